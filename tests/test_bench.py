"""The benchmark: its rows and their bytes, its roofs, its files, and its targets."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from bench import __main__ as bench
from bench import _harness as harness
from bench import _measure as measure
from bench import _output as output
from bench import _roofs as roofs
from bench import _targets as targets
from bench import bregman_cases, model_shapes, plot, sam_cases, tables, zo_cases
from bench.cases import Case, Data, Pass, Touched

SIZE = ["--elements", "4096", "--rounds", "1", "--no-compile", "--warm"]
TINY = ["--suite", "zo", *SIZE]


def read(path):
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "zo.csv"
    assert bench.main([*TINY, "--csv", str(path)]) == 0
    return path


@pytest.fixture
def rows(stored):
    return read(stored)


def test_one_run_has_both_dtypes_and_distributions(rows):
    sums = [(r["op"], r["dtype"], r["q"]) for r in rows if r["q"]]
    assert sums == [
        (f"zo {name}", dtype, q)
        for dtype in ("fp32", "bf16")
        for name in ("gaussian", "rademacher")
        for q in ("1", "4", "8", "16")
    ]
    assert {r["bytes_per_element"] for r in rows if r["q"] and r["dtype"] == "bf16"} == {"4"}
    steps = {r["op"]: float(r["bytes_per_element"]) for r in rows if not r["q"]}
    assert steps == {"mezo step exact": 28, "mezo step replay": 24, "zo-sam + sgd": 48}


def test_directions_per_second_follow_from_the_time(rows):
    for r in rows:
        if not r["q"]:
            assert r["gdirections_per_s"] == ""
            continue
        rate = int(r["q"]) * 4096 / (float(r["p50_ms"]) * 1e6)
        assert float(r["gdirections_per_s"]) == pytest.approx(rate, rel=1e-3)
        ratio = float(r["gdirections_per_s"]) / float(r["eager_gdirections_per_s"])
        assert float(r["x_eager"]) == pytest.approx(ratio, rel=1e-3)
        assert r["compile_gdirections_per_s"] == ""


def test_the_readme_can_show_the_rows(stored, monkeypatch):
    monkeypatch.setattr(tables, "ROOT", stored.parent)
    lines = tables.table("zo", stored).splitlines()
    assert lines[2].startswith("| zo gaussian | fp32 | 1 |")
    assert "--suite zo" in lines[-1]


def test_a_file_with_other_columns_is_refused(tmp_path):
    old = tmp_path / "old.csv"
    old.write_text("machine,op\n")
    with pytest.raises(SystemExit, match="other columns"):
        bench.main([*TINY, "--csv", str(old)])
    assert old.read_text() == "machine,op\n"


def test_dtype_option_chooses_one(capsys):
    assert bench.main([*TINY, "--dtype", "fp16", "--op", "rademacher q=4"]) == 0
    assert "zo fp16 1 x 4096 zo rademacher q=4\n" in capsys.readouterr().err


# bytes -----------------------------------------------------------------------------------------


def test_bytes_follow_from_the_passes():
    one = Pass(read=(4, 0.125), update=(2,), write=(4,))
    assert one.bytes == 12.125
    case = Case("two", (one, Pass((1,))), lambda _: None, ())
    assert case.bytes_per_element == 13.125


def test_scattered_entries_cost_the_lines_they_lie_in():
    assert Touched(1.0, 4) == 4
    assert Touched(0.05, 4) == pytest.approx(4 * (1 - 0.95**16), abs=1e-3)
    assert Touched(0.5, 4, run=1000) == 2
    assert Touched(0.5, 4, run=1000).lines == 62
    assert Touched(0.05, 2) == pytest.approx(2 * (1 - 0.95**32), abs=1e-3)


def test_bytes_of_the_steps():
    data = Data.make([(4096,)], torch.float32, "cpu")
    half = Data.make([(4096,)], torch.bfloat16, "cpu")
    found = {c.label: c.bytes_per_element for m in bregman_cases.all_cases(data) for c in (m(),)}
    assert found["linbreg"] == 16
    assert found["linbreg momentum"] == 24
    assert found["adabreg"] == 32
    assert found["linbreg rows of 64"] == 20
    assert found["coarse linbreg, active gradient"] == 1.0
    assert found["coarse linbreg, dense gradient"] == pytest.approx(
        0.05 * (8 + 4) + 3 * Touched(0.05, 4), abs=1e-6
    )
    assert bregman_cases.linbreg(half).bytes_per_element == 12
    assert sam_cases.sam_step(data, "sgd").bytes_per_element == 40
    assert sam_cases.sam_step(data, "adamw", adaptive=True).bytes_per_element == 52
    assert (
        sam_cases.ssam_step(sam_cases.as_matrices(data), sam_cases.MASKS[0]).bytes_per_element
        == 40.25
    )
    assert zo_cases.sums(half, "normal", 4).bytes_per_element == 4


def test_bregman_rows_have_their_baselines(tmp_path):
    path = tmp_path / "rows.csv"
    bench.main(["--suite", "bregman", *SIZE, "--csv", str(path)])
    for r in read(path):
        assert bool(r["x_dense"]) == r["op"].startswith("coarse")
        assert float(r["x_eager"]) > 0
        assert bool(r["torch_step"]) == bool(r["x_fused"]) == bool(r["x_foreach"])
        assert r["device"] == "cpu"


# roofs -----------------------------------------------------------------------------------------


def test_streams_move_the_bytes_of_the_model():
    move = roofs.streams_op()
    assert move is not None, "g++ and ninja are part of the development environment"
    made = roofs.Roofs(8192, torch.float32, "cpu")
    case = Case("two", (Pass((4, 0.125), (2,), (4,)), Pass((4,))), lambda _: None, ())
    run = made.variants(case)["streams"]
    assert run() == made.bytes["streams"] == 8192 * (12.125 + 4)


@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_streams_touch_every_line_once(past, threads):
    """Widths of which none divides the other, and a last turn that is not full."""
    read, update, write = (torch.ones(64 * n, dtype=torch.uint8) for n in (131, 77, 5))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        moved = roofs.streams_op()([read], [update], [write], [], [], [], [], past)
    finally:
        torch.set_num_threads(before)
    assert moved == 64 * (131 + 2 * 77 + 5)
    assert (read == 1).all()
    assert (update.view(torch.int64) == 0x0101010101010102).all()
    assert (write.view(torch.int64) == 0x01010101).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_scattered_streams_touch_their_share_of_the_lines(threads):
    """Beside a longer array, so that turns begin and end between the pattern's words."""
    longer = torch.ones(64 * 20001, dtype=torch.uint8)
    read, update = (torch.ones(64 * 16384, dtype=torch.uint8) for _ in range(2))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        moved = roofs.streams_op()([longer], [], [], [read], [update], [0.5, 0.25], [1, 8], False)
    finally:
        torch.set_num_threads(before)
    assert moved == 64 * (20001 + 8192 + 2 * 4096)
    words = update.view(torch.int64).view(-1, 8)
    assert (words[:, 1:] == 0x0101010101010101).all()
    assert (read == 1).all()
    added = words[:, 0] - 0x0101010101010101
    assert set(added.tolist()) == {0, 1}
    assert added.sum() == 4096
    assert (added.view(-1, 8).sum(1) % 8 == 0).all()  # in runs of 8


def test_a_case_with_scattered_entries_has_two_loops_and_the_faster_one_counts():
    made = roofs.Roofs(1 << 16, torch.float32, "cpu")
    case = Case("scattered", (Pass((Touched(0.05, 4), 0.2)),), lambda _: None, ())
    runs = made.variants(case)
    assert made.bytes["streams"] == round(65536 * (Touched(0.05, 4) + 0.2))
    assert runs["streams"]() == pytest.approx(made.bytes["streams"], rel=1e-2)
    assert runs["whole streams"]() == 65536 * 4 + round(65536 * 0.2 / 64) * 64
    data = Data.make([(1 << 16,)], torch.float32, "cpu")
    setting = measure.Setting("masks", data, "fp32", "cpu", ["cpp"], roofs=made)
    one, two = (harness.Samples([t], [t]) for t in (1e-3, 2e-3))
    for slow, fast in (("streams", "whole streams"), ("whole streams", "streams")):
        row = measure.against("cpp", case, {"cpp": two, slow: two, fast: one}, setting)
        assert row["percent_of_streams"] == pytest.approx(50, rel=1e-3)


def test_a_missing_compiler_leaves_the_column_empty(monkeypatch, capsys):
    from torch.utils import cpp_extension

    def fails(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(cpp_extension, "load", fails)
    assert roofs.streams_op.__wrapped__() is None
    assert "no compiler" in capsys.readouterr().err


def test_small_working_sets_are_flushed_out_of_the_caches(monkeypatch):
    flush = harness.Flush.__new__(harness.Flush)
    flush.bytes, calls = 1000, []
    assert flush.needed(999)
    assert not flush.needed(1000)
    harness.interleave({"a": list, "b": list}, "cpu", 3, lambda: calls.append(1))
    assert len(calls) == 6


# files -----------------------------------------------------------------------------------------


def test_json_has_one_header_and_the_rows_of_the_csv(tmp_path):
    files = tmp_path / "{suite}.csv", tmp_path / "run.json"
    bench.main([*TINY, "--op", "rademacher", "--csv", str(files[0]), "--json", str(files[1])])
    document = json.loads(files[1].read_text())
    assert set(document) == {"header", "rows"}
    assert document["header"]["torch"] == torch.__version__
    assert {"machine", "commit", "date", "command"} <= set(document["header"])
    texts, values = read(tmp_path / "zo.csv"), output.read_rows(files[1])
    assert len(texts) == len(values) == 8
    for text, value in zip(texts, values, strict=True):
        assert text == {k: output.cell_text(v) for k, v in value.items()}


def test_the_picture_is_drawn_from_stored_files_alone(stored, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(harness, "interleave", None)
    out = tmp_path / "roofs.png"
    assert plot.main([str(stored), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    found = plot.points(output.read_rows(stored))
    assert len(found) == 19
    for row, (suite, moved, rate, _) in zip(output.read_rows(stored), found, strict=True):
        assert suite == "zo"
        assert rate * moved == pytest.approx(float(row["gb_per_s"]) * 1e9)
    with pytest.raises(ValueError, match="no row has a roof"):
        plot.draw([{"suite": "host", "op": "norm"}], out)


def test_a_table_of_missing_results_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    assert (
        tables.table("host", tmp_path / "none.csv") == "No results are stored in `none.csv` yet.\n"
    )


# targets ---------------------------------------------------------------------------------------


def test_targets_are_those_of_one_direction_in_float32(monkeypatch, tmp_path):
    monkeypatch.setattr(targets, "ELEMENTS", 4096)
    path = tmp_path / "rows.csv"
    bench.main([*TINY, "--op", "zo ", "--csv", str(path)])
    found = {
        (r["op"], r["dtype"], r["q"]): (r["target"], r["target_streams"])
        for r in read(path)
        if r["target"] or r["target_streams"]
    }
    assert found == {
        ("zo gaussian", "fp32", "1"): ("13", ""),
        ("zo rademacher", "fp32", "1"): ("45", "90"),
    }


def made_up(**values):
    row = {"suite": "bregman", "op": "linbreg", "dtype": "fp32", "backend": "cpp"}
    return row | {"target": "25", "x_eager": "30", "target_streams": 90.0} | values


def test_a_row_below_its_target_is_reported(capsys):
    kept = made_up(percent_of_streams=95.0)
    below = made_up(op="adabreg", percent_of_streams=89.9, target=15, x_eager="15")
    absent = made_up(op="norm", target="", percent_of_streams="")
    slow = made_up(
        op="host", target="", target_streams="", target_host_us=100, host_us_above_memory=101
    )
    found = targets.verdicts([kept, below, absent, slow])
    assert [v.text for v in found] == ["met", "met", "met", "missed", "not measured", "missed"]
    assert bench.judged([kept], strict=True) == 0
    assert bench.judged([kept, below], strict=False) == 0
    assert bench.judged([kept, below], strict=True) == 1
    assert bench.judged([absent], strict=True) == 1
    text = capsys.readouterr().out
    assert "bregman adabreg fp32 cpp" in text
    assert "89.9, missed" in text


def test_promises_of_a_gpu():
    data = Data.make([(16,)], torch.float32, "cpu")
    row = {"device": "cuda", "dtype": "bf16", "elements": 1 << 24, "tensors": 1, "x_compile": 1.2}
    normal = targets.promised(zo_cases.sums(data, "normal", 1), "zo", "", row | {"op": "zo"})
    assert {k: v for k, v in normal.items() if v} == {"target_copy": 45, "target_compile": 1}
    signs = targets.promised(zo_cases.sums(data, "rademacher", 1), "zo", "", row | {"op": "zo"})
    assert signs["target_copy"] == 90
    small = targets.promised(zo_cases.sums(data, "rademacher", 1), "zo", "", row | {"elements": 9})
    assert not any(small.values())


# many small tensors, models --------------------------------------------------------------------


def test_host_rows_tell_what_the_number_of_tensors_costs(tmp_path):
    path = tmp_path / "host.csv"
    bench.main(["--suite", "host", "--rounds", "1", "--op", "adabreg", "--csv", str(path)])
    rows = read(path)
    assert [(r["list"], r["tensors"], r["elements"]) for r in rows] == [
        ("ResNet-50, tiny", "161", rows[0]["elements"]), ("512 x 1024", "512", "524288"),
        ("10000 x 64", "10000", "640000"),
    ]  # fmt: skip
    assert [r["target_host_us"] for r in rows] == ["100", "", ""]
    for r in rows:
        assert float(r["host_us"]) == pytest.approx(1e3 * float(r["p50_ms"]), rel=1e-3)
        assert float(r["host_us_per_tensor"]) * int(r["tensors"]) == pytest.approx(
            float(r["host_us"]), rel=1e-3
        )
        assert float(r["host_us_above_memory"]) <= float(r["host_us"])
        assert r["foreach_host_us_above_memory"]
        assert r["fused_host_us_above_memory"]
        for prefix in ("", "foreach_", "fused_"):
            assert r[f"{prefix}first_host_us_above_memory"]
        assert (r["torch_step"], r["x_eager"], r["percent_of_roof"]) == ("Adam", "", "")


@pytest.mark.parametrize("model", model_shapes.MODELS)
def test_models_have_the_parameters_their_sources_state(model):
    shapes = model_shapes.load(model)
    totals = {
        "resnet50": 25_557_032, "vit_b_16": 86_567_656, "gpt2": 124_439_808,
        "tinyllama_1b": 1_100_048_384,
    }  # fmt: skip
    assert model_shapes.total(shapes) == totals[model]
    assert (model_shapes.FOLDER / f"{model}.json").read_text() == model_shapes.document(model)


def test_models_take_a_step_of_every_optimizer(tmp_path):
    path = tmp_path / "models.csv"
    options = ["--model", "resnet50", "--longest", "4", "--rounds", "1", "--no-compile", "--warm"]
    bench.main(["--suite", "models", *options, "--csv", str(path)])
    rows = read(path)
    assert [r["op"] for r in rows] == [
        "sam + sgd", "sam + adamw", "ssam 50 %", "LinBreg.step", "LinBreg.step momentum",
        "AdaBreg.step", "ProxSGD.step momentum", "mezo step exact", "zo-sam + sgd",
    ]  # fmt: skip
    assert {(r["list"], r["tensors"]) for r in rows} == {("resnet50", "161")}


def test_a_model_without_memory_is_named(monkeypatch, capsys):
    from bench import model_cases

    monkeypatch.setattr(model_cases, "free_memory", lambda _: 10**9)
    assert not model_cases.fits("gpt2", [(10**8,)], "cpu")
    assert "gpt2: left out, needs about 7 GB" in capsys.readouterr().err
    assert model_cases.fits("small", [(10**6,)], "cpu")


def test_warm_calls_come_right_before_the_timed_ones():
    calls = []
    variants = {name: lambda name=name: calls.append(name) for name in "ab"}
    harness.interleave(variants, "cpu", 2, warm=True)
    many = harness.WARM_CALLS + 1
    assert "".join(calls) == "ab" + 2 * ("ab" + many * "a" + many * "b")
    calls.clear()
    harness.interleave(variants, "cpu", 2, flush=lambda: calls.append("-"), warm=True)
    assert "".join(calls) == "ab" + 2 * "-a-b"
