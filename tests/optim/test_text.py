"""Text as training data, the transformer, and gradient-free steps on them."""

from __future__ import annotations

import doctest
import math
import sysconfig
from pathlib import Path

import pytest
import torch
from sparse_optim import MeZO
from sparse_optim.demo import machine, methods, models, runner, text, variants
from sparse_optim.demo._support import UserError
from sparse_optim.demo.eager_mezo import EagerMeZO
from text_cases import small_stdlib
from torch.nn.functional import cross_entropy


@pytest.fixture
def small(tmp_path, monkeypatch) -> text.TextData:
    small_stdlib(tmp_path, monkeypatch)
    return text.load_stdlib(window=12, epoch_steps=3)


def new_run(data: text.TextData, optimizer: str, steps: int = 6, **options) -> runner.Run:
    recipe = variants.check_recipe(methods.Recipe("x", optimizer, options))
    sizes = {"width": 16, "depth": 1}
    return runner.Run("transformer", data, recipe, "auto", 3, steps, sizes=sizes)


# -- text ----------------------------------------------------------------------------------------


def test_every_byte_has_a_code():
    codes = text.encode(bytes(range(256)))
    known = [10, *range(32, 127)]
    assert len(set(codes[known].tolist())) == len(known) == text.UNKNOWN
    assert set(codes[[b for b in range(256) if b not in known]].tolist()) == {text.UNKNOWN}
    assert text.CLASSES == text.UNKNOWN + 1
    assert text.encode(b"").shape == (0,)
    assert doctest.testmod(text).failed == 0


def test_corpora_share_no_file():
    """The library of the Python that runs this: four sets of files, none of them empty."""
    root = Path(sysconfig.get_paths()["stdlib"])
    corpora = [text.load_stdlib(), text.load_stdlib("encodings")]
    sets = [set(part.files) for data in corpora for part in (data.train, data.test)]
    assert all(len(files) > 10 for files in sets)
    assert len(set.union(*sets)) == sum(len(files) for files in sets)
    assert all("/" not in name for files in sets[:2] for name in files)
    assert all(name.startswith("encodings/") for files in sets[2:] for name in files)
    for data in corpora:
        everything = sorted((*data.train.files, *data.test.files))
        assert data.test.files == tuple(everything[4::5])
        for part in (data.train, data.test):
            raw = b"".join((root / name).read_bytes() for name in part.files)
            assert torch.equal(part.codes, text.encode(raw))


def test_labels_are_the_next_characters(small):
    generator = torch.Generator().manual_seed(0)
    batches = list(small.batches(5, generator))
    assert len(batches) == small.steps(5) == 3
    whole = small.train.codes.unfold(0, 13, 1)
    for codes, labels in batches:
        assert codes.shape == labels.shape == (5, 12)
        assert torch.equal(codes[:, 1:], labels[:, :-1])
        for row in torch.cat([codes, labels[:, -1:]], dim=1):
            assert (whole == row).all(1).any()
    again = list(small.batches(5, torch.Generator().manual_seed(0)))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(batches, again, strict=True))
    assert not torch.equal(batches[0][0], batches[1][0])


def test_windows_reach_both_ends_of_the_text(small):
    exact = text.TextData("x", *(text.Text(torch.arange(14), ("f",)),) * 2, window=12)
    codes, _ = exact.samples(64, torch.Generator().manual_seed(0))
    assert set(codes[:, 0].tolist()) == {0, 1}  # 12 + 1 characters fit in two places
    ((inputs, labels),) = exact.test_batches()
    assert inputs.tolist() == [list(range(12))]
    assert labels.tolist() == [list(range(1, 13))]
    held = torch.cat([x for x, _ in small.test_batches()])
    last = torch.cat([y for _, y in small.test_batches()])[-1]
    assert torch.equal(held[0], small.test.codes[:12].long())
    assert torch.equal(last, small.test.codes[-12:].long())
    assert len(held) == min(text.TEST_WINDOWS, (len(small.test) - 1) // 12)


def test_missing_source_is_named(tmp_path, monkeypatch):
    folder = small_stdlib(tmp_path, monkeypatch)
    assert text.load_stdlib("tables", window=12).train.files[0] == "tables/__init__.py"
    for package in ("sables", "..", "tables/inner"):
        with pytest.raises(UserError, match="--package: the standard library in"):
            text.load_stdlib(package)
    with pytest.raises(UserError, match=r"held-out characters in 2 files are too few for a window"):
        text.load_stdlib(window=1000)
    for path in folder.glob("*.py"):
        path.unlink()
    with pytest.raises(UserError, match=f"no Python source in {folder}.*zip"):
        text.load_stdlib()


def test_result_counts_characters(small):
    run, e = new_run(small, "mezo"), int(text.encode(b"e"))

    class SaysE(torch.nn.Module):
        def forward(self, codes):
            scores = torch.zeros(len(codes), text.CLASSES, codes.shape[1])
            scores[:, e] = 1.0
            return scores

    run.model = SaysE()
    labels = torch.cat([y for _, y in small.test_batches()])
    share = float((labels == e).double().mean())
    loss, accuracy = run.evaluate()
    assert 0.0 < share < 1.0
    assert accuracy == pytest.approx(100.0 * share)
    assert loss == pytest.approx(math.log(text.UNKNOWN + math.e) - share, abs=1e-5)
    told = run.result_text()
    assert f"held-out loss {loss:.4f} ({loss / math.log(2):.4f} bits per character)" in told


# -- the transformer -----------------------------------------------------------------------------


def test_later_characters_change_nothing_before_them():
    model = models.build("transformer", (20,), text.CLASSES, width=96, depth=2).eval()
    codes = torch.randint(text.CLASSES, (3, 20))
    before = model(codes)
    assert before.shape == (3, text.CLASSES, 20)
    for place in (0, 7, 19):
        changed = codes.clone()
        changed[:, place] = (changed[:, place] + 1) % text.CLASSES
        after = model(changed)
        assert torch.equal(before[..., :place], after[..., :place])
        assert (before[..., place:] != after[..., place:]).any(1).all()
        part = model(codes[:, : place + 1])  # a shorter window: the same positions
        torch.testing.assert_close(part, before[..., : place + 1])


def test_transformer_has_the_size_it_claims():
    model = models.build("transformer", (text.WINDOW,), text.CLASSES)
    assert sum(p.numel() for p in model.parameters()) == 3_242_081
    small = models.build("resnet", (3, 32, 32), 10, width=4, depth=1)
    assert sum(isinstance(m, torch.nn.Conv2d) for m in small.modules()) == 9
    assert small[0].out_channels == 4


@pytest.mark.parametrize("optimizer", methods.OPTIMIZERS)
def test_every_optimizer_takes_steps(optimizer, small):
    run = new_run(small, optimizer)
    before = [p.detach().clone() for p in run.model.parameters()]
    losses = list(runner.train(run, 2, 4, 0))
    assert all(3.0 < loss < 20.0 for loss in losses)
    pairs = zip(before, run.model.parameters(), strict=True)
    assert any(not torch.equal(b, p) for b, p in pairs)
    assert len(run.step_seconds) == 6
    assert all(w >= s > 0.0 for w, s in zip(run.step_seconds, run.seconds, strict=True))


def test_adamw_learns_the_text(small):
    run = new_run(small, "adamw", 60, lr=1e-2)
    before, _ = run.evaluate()
    list(runner.train(run, 20, 16, 0))
    after, accuracy = run.evaluate()
    assert after < 0.4 * before
    assert accuracy > 60.0


def test_grasp_wants_classes(small):
    with pytest.raises(ValueError, match="grasp wants samples of every class"):
        new_run(small, "sgd", sparse_method="grasp")


# -- MeZO with a mask ----------------------------------------------------------------------------


@pytest.mark.parametrize(("mask", "smallest"), [("small", True), ("magnitude", False)])
def test_untouched_weights_keep_their_bits(mask, smallest, small):
    run = new_run(small, "mezo", mask=mask, sparsity=0.75, lr=1e-3)
    before = [p.detach().clone() for p in run.model.parameters()]
    list(runner.train(run, 2, 4, 0))
    for b, p in zip(before, run.model.parameters(), strict=True):
        moved = b.numel() - math.floor(0.75 * b.numel() + 0.5)
        order = b.abs().flatten().argsort(descending=not smallest, stable=True)
        same = (b == p).flatten()[order]
        assert not same[:moved].any()
        assert same[moved:].all()
        assert torch.equal(b.flatten()[order][moved:].view(torch.int32),
                           p.detach().flatten()[order][moved:].view(torch.int32))  # fmt: skip


def test_mask_of_the_loaded_weights(small):
    weights = new_run(small, "mezo").model.state_dict()
    largest = weights["head.1.weight"].abs().argmax()
    weights = {name: w * 2.0 for name, w in weights.items()}
    weights["head.1.weight"].view(-1)[largest] = 1e-9  # the largest of the new weights
    recipe = methods.Recipe("x", "mezo", {"mask": "small", "sparsity": 0.5})
    sizes = {"width": 16, "depth": 1}
    run = runner.Run("transformer", small, recipe, "auto", 3, 4, sizes=sizes, weights=weights)
    list(runner.train(run, 1, 4, 0))
    now = run.model.state_dict()["head.1.weight"].flatten()
    assert now[largest] != torch.tensor(1e-9)


# -- the published implementation ----------------------------------------------------------------


def test_eager_step_is_the_formula():
    w, v = (torch.nn.Parameter(torch.randn(5)) for _ in range(2))
    start, target = [w.detach().clone(), v.detach().clone()], torch.randn(5)
    opt = EagerMeZO([{"params": [w]}, {"params": [v], "weight_decay": 0.5}], 0.1, 1e-3, seed=4)
    seen = []

    def loss():
        seen.append((w.detach().clone(), v.detach().clone()))
        return (w - target).square().sum() + v.sum()

    up = opt.step(loss)
    first = EagerMeZO([w], seed=4)._seeds.randrange(1_000_000_000)
    torch.manual_seed(first)
    z = [torch.normal(0.0, 1.0, (5,)) for _ in range(2)]
    for point, sign in zip(seen, (1.0, -1.0), strict=True):
        for s, d, p in zip(start, z, point, strict=True):
            torch.testing.assert_close(p, s + sign * 1e-3 * d)
    down = (seen[1][0] - target).square().sum() + seen[1][1].sum()
    slope = (up - down) / 2e-3
    torch.testing.assert_close(w.detach(), start[0] - 0.1 * slope * z[0], rtol=1e-4, atol=1e-5)
    expected = start[1] - 0.1 * (slope * z[1] + 0.5 * start[1])
    torch.testing.assert_close(v.detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [MeZO, EagerMeZO])
def test_both_fall_on_a_quadratic_as_expected(kind):
    """E |w|^2 shrinks by 1 - 2 lr + lr^2 (d + 2) in every step on L = |w|^2 / 2."""
    d, lr, steps, ends = 12, 0.05, 4, []
    for seed in range(60):
        w = torch.nn.Parameter(torch.ones(d, dtype=torch.float64))
        opt = kind([w], lr=lr, smoothing=1e-3, seed=seed)
        for _ in range(steps):
            opt.step(lambda w=w: 0.5 * w.square().sum())
        ends.append(w.detach().square().mean())
    values = torch.stack(ends)
    expected = (1.0 - 2.0 * lr + lr**2 * (d + 2)) ** steps
    assert expected < 0.8
    assert float(values.mean()) == pytest.approx(
        expected, abs=4.0 * float(values.std()) / math.sqrt(len(ends))
    )


# -- memory --------------------------------------------------------------------------------------


def test_added_memory_is_the_most_held_at_once(capfd):
    def make() -> list[torch.Tensor]:
        return [torch.zeros(250_000) for _ in range(3)]

    def replace_each(tensors: list[torch.Tensor]) -> None:
        for i in range(3):
            tensors[i] = tensors[i].neg()  # the old one goes when the new one is there

    def hold_two(tensors: list[torch.Tensor]) -> None:
        a = tensors[0].neg()
        del a
        b, c = tensors[0].neg(), tensors[1].neg()
        del b, c

    assert machine.added_memory(make, replace_each, "cpu") == 1_000_000
    assert machine.added_memory(make, hold_two, "cpu") == 2_000_000
    assert capfd.readouterr().err == ""


def test_peak_memory_only_grows():
    before = machine.peak_memory("cpu")
    block = torch.ones(25_000_000)
    assert machine.peak_memory("cpu") >= max(before, 100_000_000)
    del block
    assert machine.peak_memory("cpu") >= max(before, 100_000_000)


def test_loss_of_text_is_per_character(small):
    run = new_run(small, "adamw")
    codes, labels = next(small.batches(4, torch.Generator()))
    loss = run.step(codes, labels)
    fresh = new_run(small, "adamw")
    scores = fresh.model(codes.long()).detach().transpose(1, 2).reshape(-1, text.CLASSES)
    torch.testing.assert_close(loss, cross_entropy(scores, labels.reshape(-1)))
