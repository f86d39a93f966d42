"""The benchmark: its rows, and that the baselines of the zero-order suite do what ours does."""

from __future__ import annotations

import csv

import pytest
import torch
from torch import nn
from torch.optim import SGD

from bench import __main__ as bench
from bench import bregman_cases, cases, tables, zo_cases

TINY = ["--suite", "zo", "--elements", "4096", "--rounds", "1", "--no-compile"]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "zo.csv"
    assert bench.main([*TINY, "--csv", str(path)]) == 0
    return path


@pytest.fixture
def rows(stored):
    with stored.open(newline="") as f:
        return list(csv.DictReader(f))


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
    assert capsys.readouterr().err == "fp16 zo rademacher q=4\n"


@pytest.mark.parametrize("suite", ["core", "zo"])
def test_targets_are_those_of_one_direction_in_float32(suite, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "ELEMENTS", 4096)
    path = tmp_path / "rows.csv"
    bench.main(["--suite", suite, *TINY[2:], "--op", "zo ", "--csv", str(path)])
    with path.open(newline="") as f:
        found = {
            (r["op"], r["dtype"], r["q"]): r["target"] for r in csv.DictReader(f) if r["target"]
        }
    assert found == {("zo gaussian", "fp32", "1"): "13", ("zo rademacher", "fp32", "1"): "45"}


# what the baselines compute ------------------------------------------------------------------


def run(stages, before):
    passed = None
    for number, stage in enumerate(stages):
        before(number)
        passed = stage(passed)


@pytest.mark.parametrize("distribution", ["normal", "rademacher"])
@pytest.mark.parametrize("q", [1, 4, 16])
def test_sums_add_q_independent_directions(distribution, q):
    data = cases.Data.make(2, 8192, torch.float32, "cpu")
    case = cases.zo(data, distribution, q, smoothing=1.0)
    ways = [lambda: case.fused("auto"), case.eager, lambda: case.eager(case.graphs)]
    for way in ways:
        before = [p.clone() for p in data.params]
        way()
        moves = torch.cat([p - b for p, b in zip(data.params, before, strict=True)]).double()
        # variance q; 16,384 entries know it to 1.1 %: the same direction q times would be q^2 or 0
        assert moves.var().item() == pytest.approx(q, rel=0.05)


def test_mezo_baselines_take_the_step_of_the_optimizer():
    """They all move by -lr (c z + decay w) with some standard normal z, and by nothing else."""
    data = cases.Data.make(1, 8192, torch.float64, "cpu")
    slope = (zo_cases.LOSSES[0] - zo_cases.LOSSES[1]) / (2 * zo_cases.SMOOTHING)
    start = [p.clone() for p in data.params]
    drawn = []

    def take(after):
        kept = 1 - zo_cases.LR * zo_cases.DECAY
        z = (start[0] * kept - after[0]) / (zo_cases.LR * slope)
        assert z.var().item() == pytest.approx(1, rel=0.07)
        drawn.append(z)

    for stages in (zo_cases.mezo_stages, zo_cases.mezo_graphs):
        params = [p.clone() for p in start]
        run(stages(params), zo_cases._reseed)
        take(params)
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=1e-6)  # one seed
    for restore in ("exact", "replay"):
        zo_cases.mezo_step(data, restore).fused("auto")
        take(data.params)
        data.params[0].copy_(start[0])
    torch.testing.assert_close(drawn[2], drawn[3], rtol=0, atol=1e-6)


def test_zosam_baselines_take_the_step_of_the_optimizer():
    """Whatever was drawn, the weights come back and take the base step."""
    data = cases.Data.make(2, 4096, torch.float64, "cpu")
    start = [p.clone() for p in data.params]

    def fresh():
        made = [nn.Parameter(p.clone()) for p in start]
        for p, g in zip(made, data.grads, strict=True):
            p.grad = g
        return made

    plain = fresh()
    SGD(plain, **zo_cases.SGD_OPTIONS).step()
    eager = fresh()
    run(zo_cases.zosam_stages(eager, SGD(eager, **zo_cases.SGD_OPTIONS)), zo_cases._reseed)
    graph = [p.clone() for p in start]
    update = zo_cases.base_graph("sgd", graph, data)
    run(zo_cases.zosam_graphs(graph, update), zo_cases._reseed)
    zo_cases.zosam_step(data).fused("auto")
    for found in (eager, graph, data.params):
        for f, p, s in zip(found, plain, start, strict=True):
            torch.testing.assert_close(f, p, rtol=0, atol=1e-14, check_device=False)
            assert not torch.equal(f, s)


def test_zosam_baselines_ascend_by_rho():
    data = cases.Data.make(2, 4096, torch.float64, "cpu")
    for kind in ("eager", "graph"):
        params = [p.clone() for p in data.params]
        if kind == "eager":
            stages = zo_cases.zosam_stages(params, SGD([nn.Parameter(torch.zeros(1))]))
        else:
            stages = zo_cases.zosam_graphs(params, lambda _: None)
        run(stages[:-1], zo_cases._reseed)
        moved = [p - s for p, s in zip(params, data.params, strict=True)]
        length = torch.cat(moved).norm().item()
        assert length == pytest.approx(zo_cases.RHO, rel=1e-5)


# Bregman steps -------------------------------------------------------------------------------


def test_bregman_rows_have_their_bytes_and_baselines(tmp_path):
    path = tmp_path / "rows.csv"
    bench.main(["--suite", "bregman", *TINY[2:], "--csv", str(path)])
    with path.open(newline="") as f:
        rows = {r["op"]: r for r in csv.DictReader(f)}
    moved = {op: float(r["bytes_per_element"]) for op, r in rows.items()}
    assert moved["linbreg"] == 16
    assert moved["adabreg"] == 32
    assert moved["linbreg rows of 64"] == 20
    assert moved["coarse linbreg, dense gradient"] == 1.0
    for op, r in rows.items():
        assert bool(r["x_dense"]) == op.startswith("coarse")
        assert float(r["x_eager"]) > 0


def test_coarse_steps_leave_the_weights_of_dense_steps():
    """Learning rates of 1e-7 hardly move a weight: support and values are those of the duals."""
    data = cases.Data.make(1, 4096, torch.float32, "cpu")
    for rows in (False, True):
        case = bregman_cases.coarse(data, bregman_cases.LinBreg, {}, "dense gradient", rows)
        case.fused("auto")
        coarse = data.params[0].clone()
        data.params[0].fill_(7.0)
        case.dense("auto")
        assert 0.02 < (coarse != 0).float().mean() < 0.1
        assert torch.equal(coarse != 0, data.params[0] != 0)
        if not rows:  # rows are shrunk by their norm, entries by lam
            torch.testing.assert_close(coarse, data.params[0], rtol=0, atol=5e-6)
