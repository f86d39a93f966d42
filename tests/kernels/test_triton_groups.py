"""The Triton kernels of group shrinkage under Triton's interpreter against the reference.

    TRITON_INTERPRET=1 python -m pytest tests/kernels/test_triton*.py

Triton reads the variable when it is imported, so these modules need a pytest process of their own.
Every bit is compared, but for the value, which each backend adds in an order of its own.
"""

from __future__ import annotations

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a process with TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed")

from triton_cases import CHUNK_SIZE, assert_same_bits, compare, copies, each_dtype, make, special

import sparse_kernels as sk
from sparse_kernels import Tiling
from sparse_kernels.triton import prox_group

# numpy, which carries the interpreter out, warns where IEEE arithmetic gives inf or NaN
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in .*:RuntimeWarning")


def lines(n):
    """Groups of consecutive entries."""
    return Tiling(n, 1, n)


def shrink_groups(duals, tilings, lam_groups, lam=0.0, delta=0.7, dtype=torch.float32, **options):
    """Equal bits of parameters, flags and counts, values to rounding; those of Triton."""
    values = {}

    def run(backend):
        params = [torch.full_like(d, 7.0, dtype=dtype) for d in duals]
        sizes = [t.groups(d.numel()) for t, d in zip(tilings, duals, strict=True)]
        alive = [torch.full((n,), 9, dtype=torch.uint8) for n in sizes]
        stats = sk.prox_group_(
            params, duals, tilings, lam_groups, lam, delta, alive=alive, backend=backend, **options
        )
        values[backend] = stats.value
        return {"params": params, "alive": alive, "live": stats.live, "groups": stats.groups}

    result = compare(run)
    # hyper-parameters are rounded to float32 once, sums of magnitudes more often
    torch.testing.assert_close(
        values["triton"], values["reference"], rtol=1e-6, atol=0.0, equal_nan=True
    )
    return {**result, "value": values["triton"]}


SHAPES = {
    "rows": [((5, 7), 7), ((3, 130), 130), ((2, 768), 768)],
    "kernels": [((7, 3, 3, 3), 9), ((300, 9), 9), ((5, 25), 25), ((4, 49), 49), ((2, 4), 4)],
    "entries": [((2050,), 1), ((3,), 1), ((1025, 2), 2)],
    "lane counts": [((3, 1024), 1024), ((2, 1025), 1025), ((2, 2047), 2047), ((3, 2048), 2048)],
    "one group": [((1,), 1), ((9,), 9), ((2049,), 2049)],
    "empty": [((0,), 3), ((4, 3), 3), ((0, 9), 9)],
    "long": [((3, 2049), 2049), ((2, 4096), 4096), ((2, 4608), 4608)],
}


@each_dtype
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("lam", [0.0, 0.4])
def test_groups_in_one_piece(shapes, lam, param_dtype):
    duals = make([torch.Size(s).numel() for s, _ in shapes], torch.float32, 1)
    tilings = [lines(n) for _, n in shapes]
    lam_groups = 0.97 if lam == 0.0 else 0.65  # of about the size of the norms
    shrink_groups(duals, tilings, lam_groups, lam, dtype=param_dtype)


def test_some_groups_live_and_some_die():
    """What the other tests rely on."""
    duals = make([7 * 27, 300 * 9, 4608], torch.float32, 1)
    alive = shrink_groups(duals, [lines(9)] * 3, 0.97)["groups"]
    assert (alive > 0).all()
    assert (alive < torch.tensor([21, 300, 512])).all()


TILINGS = {
    "fitting": [((32, 64), (4, 4)), ((16, 24), (8, 8))],
    "ragged": [((33, 70), (4, 8)), ((5, 7), (3, 2)), ((7, 5), (2, 3))],
    "low": [((33, 8), (4, 8)), ((11, 40), (4, 40)), ((5, 600), (2, 600))],
    "narrow": [((8, 70), (4, 8)), ((3, 50), (1, 8))],
    "columns": [((50, 3), (50, 1)), ((9, 4), (4, 1))],
    "cut lines": [((3, 64), (1, 16)), ((2, 5000), (1, 2500))],
    "higher than the matrix": [((3, 10), (100, 4)), ((2, 9), (5, 9))],
    "long": [((70, 130), (64, 64)), ((3, 9001), (2, 4500))],
    "long and low": [((7, 1100), (3, 1100))],
    "3 x 5 and 5 x 3": [((3, 5), (1, 5)), ((5, 3), (1, 3)), ((3, 5), (3, 1)), ((5, 3), (5, 1))],
}


@pytest.mark.parametrize("shapes", TILINGS.values(), ids=TILINGS.keys())
@pytest.mark.parametrize("lam", [0.0, 0.4])
def test_tiles(shapes, lam):
    duals = make([torch.Size(s).numel() for s, _ in shapes], torch.float32, 2)
    tilings = [Tiling(s[1], *tile) for s, tile in shapes]
    shrink_groups(duals, tilings, 0.97 if lam == 0.0 else 0.65, lam)
    shrink_groups(duals, tilings, 0.5, lam, dtype=torch.bfloat16)


CHUNKED = {
    "whole chunks": (2 * CHUNK_SIZE, lines(CHUNK_SIZE)),
    "one more": (2 * CHUNK_SIZE + 2, lines(CHUNK_SIZE + 1)),
    "several": (2 * CHUNK_SIZE + 4099, lines(2 * CHUNK_SIZE + 4099)),
    "low": (3 * 50000, Tiling(50000, 2, 50000)),
    "tiles": (310 * 500, Tiling(500, 300, 301)),
}


@pytest.mark.parametrize(("numel", "tiling"), CHUNKED.values(), ids=CHUNKED.keys())
def test_groups_around_chunks(numel, tiling):
    duals = make([5, numel, 300], torch.float32, 3)
    for lam_groups in (0.6, 0.66):
        shrink_groups(duals, [lines(5), tiling, lines(100)], lam_groups, 0.4)


@pytest.mark.parametrize("size", [9, 4096, CHUNK_SIZE + 1])
@pytest.mark.parametrize("nonnegative", [False, True])
def test_a_group_that_is_not_finite_stays_alone(size, nonnegative):
    duals = make([5 * size], torch.float32, 4)
    duals[0][size + 1], duals[0][3 * size + 2] = torch.nan, torch.inf
    result = shrink_groups(duals, [lines(size)], 0.5, 0.1, nonnegative=nonnegative)
    params = result["params"][0].view(5, size)
    assert params[1].isnan().all()
    assert params[[0, 2, 4]].isfinite().all()


def test_special_values_and_thresholds():
    duals = special([9 * 300, 2500], torch.float32, 5)
    for nonnegative in (False, True):
        shrink_groups(duals, [lines(9), lines(2500)], 0.7, 0.2, nonnegative=nonnegative)
        shrink_groups(duals, [lines(1), lines(1)], 0.7, 0.0, nonnegative=nonnegative)


@pytest.mark.parametrize("size", [4, 2304, CHUNK_SIZE + 4])
def test_the_norm_at_the_threshold(size):
    """|v_g| = sqrt(n): closed, so that it is zero; and never -0.0."""
    duals = [torch.ones(3 * size).neg()]
    duals[0][0] = -torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    duals[0][2 * size :] = -2.0
    result = shrink_groups(duals, [lines(size)], 1.0)
    params = result["params"][0].view(3, size)
    assert not params[1].any()
    assert not params[1].signbit().any()
    torch.testing.assert_close(params[2], torch.full((size,), -0.7))
    assert result["groups"].item() == int((result["alive"][0] != 0).sum()) >= 1


@each_dtype
@pytest.mark.parametrize("tiling", [lines(16), lines(2400), Tiling(80, 4, 8)])
def test_misaligned_tensors(tiling, param_dtype):
    duals, params = make([4801], torch.float32, 6), make([4802], param_dtype, 7)

    def run(backend):
        storage, flags = copies(params), [torch.full((400,), 9, dtype=torch.uint8)]
        count = tiling.groups(4800)
        stats = sk.prox_group_(
            [storage[0][1:-1]], [duals[0][1:]], [tiling], 0.97,
            alive=[flags[0][3 : 3 + count]], backend=backend,
        )  # fmt: skip
        return {"whole storage": storage, "flags": flags, "live": stats.live}

    compare(run)


@pytest.mark.parametrize("tiling", [lines(9), Tiling(90, 4, 8), lines(4500), lines(2 * 36000)])
def test_a_parameter_may_be_its_own_dual(tiling):
    tensors = make([72000], torch.float32, 8)

    def run(backend):
        own = copies(tensors)
        sk.prox_group_(own, own, [tiling], 0.9, backend=backend)
        other = copies(tensors)
        sk.prox_group_(other, tensors, [tiling], 0.9, backend=backend)
        assert_same_bits(own[0], other[0])
        return {"own": own}

    compare(run)


def test_every_kind_of_groups_in_one_list():
    """Values, counts and flags come to their tensors."""
    small = [(900, lines(9)), (100, lines(10)), (0, lines(9)), (50, lines(1))]
    others = [(900, Tiling(30, 4, 8)), (9000, lines(4500)), (70001, lines(70001))]
    numels, tilings = zip(*small[:2], (140000, lines(70000)), *others, *small[2:], strict=True)
    duals = make(numels, torch.float32, 9)
    shrink_groups(duals, tilings, 0.6, 0.4)


def test_launches(launches):
    def run(tilings, numels):
        params = [torch.zeros(n) for n in numels]
        launches.clear()
        sk.prox_group_(params, make(numels, torch.float32, 11), tilings, 0.5, backend="triton")
        return [name[6:-7] for name in launches]

    sizes = [9 * (i % 4) for i in range(40)]
    assert run([lines(9)] * 40, sizes) == ["block", "value"]
    assert run([lines(9), lines(10), lines(3000)], [90, 20, 6000]) == ["block", "group", "value"]
    assert run([lines(70000)], [70000]) == ["sums", "factors", "write", "value"]
    assert run([lines(3)] * 2, [0, 0]) == []


def test_class_of_a_tensor():
    kinds = {1: 0, 2: 1, 9: 4, 16: 4, 17: 5, 2048: 11, 2049: -1, CHUNK_SIZE: -1, CHUNK_SIZE + 1: -2}
    for size, steps in kinds.items():
        layout = prox_group._layout(((3 * size, size, 1, size),))
        assert [part.steps for part in layout.classes] == [steps]


def test_float64_is_refused():
    p, table = [torch.ones(3, dtype=torch.float64)], torch.ones(1, 4, dtype=torch.float64)
    with pytest.raises(TypeError, match="float32, bfloat16 and float16"):
        torch.ops.sparse_kernels_triton.prox_group_(p, p, [], [3], [1], [3], table, 0.0, 1.0, False)
