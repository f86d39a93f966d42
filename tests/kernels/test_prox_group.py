"""prox_group_: group shrinkage of rows, kernels, filters and tiles."""

from __future__ import annotations

import math
import re

import pytest
import torch
from ranked_cases import exactly

import sparse_kernels as sk
from sparse_kernels import Tiling
from sparse_kernels.testing import assert_bit_equal, copy_of, targets

NAN, INF = float("nan"), float("inf")

#: rows x cols of a matrix, its tiling; sizes around every way of summing and around a chunk
CASES = {
    "rows": [((6, 5), Tiling(5, 1, 5)), ((77, 100), Tiling(100, 1, 100)),
             ((33, 512), Tiling(512, 1, 512)), ((5, 3), Tiling(3, 1, 3)),
             ((3, 5), Tiling(5, 1, 5))],
    "kernels": [((3000, k), Tiling(k, 1, k)) for k in (1, 2, 4, 9, 16, 17, 25, 49)],
    "filters": [((7, 576), Tiling(576, 1, 576)), ((3, 4608), Tiling(4608, 1, 4608))],
    "edges": [((3, n), Tiling(n, 1, n)) for n in (31, 32, 33, 1024, 2047, 2048, 2049, 4096, 65535,
              65536, 65537)],
    "parts of rows": [((9, 40), Tiling(40, 1, 8)), ((9, 41), Tiling(41, 1, 8))],
    "bands": [((11, 40), Tiling(40, 4, 40)), ((11, 40), Tiling(40, 11, 40))],
    "tiles": [((130, 515), Tiling(515, 4, 4)), ((130, 515), Tiling(515, 5, 7)),
              ((128, 512), Tiling(512, 16, 16)), ((130, 515), Tiling(515, 64, 64)),
              ((130, 515), Tiling(515, 7, 8)), ((600, 44), Tiling(44, 500, 4)),
              ((5, 3), Tiling(3, 2, 2)), ((3, 5), Tiling(5, 2, 2))],
    "columns": [((300, 70), Tiling(70, 300, 1)), ((3000, 20), Tiling(20, 3000, 1))],
    "large": [((400, 515), Tiling(515, 300, 300)), ((70_000, 3), Tiling(3, 66_000, 2)),
              ((2, 140_000), Tiling(140_000, 1, 140_000))],
    "one": [((1, 70_000), Tiling(70_000, 1, 70_000)), ((5, 7), Tiling(7, 5, 7)),
            ((5, 7), Tiling(7, 100, 7)), ((5, 7), Tiling(7, 100, 3)), ((1, 1), Tiling(1, 1, 1))],
    "empty": [((0, 7), Tiling(7, 2, 3)), ((4, 5), Tiling(5, 1, 5)), ((0, 1), Tiling(1, 1, 1))],
}  # fmt: skip
SCALARS = [
    {"lam_groups": 0.7, "lam": 0.2, "delta": 1.3},
    {"lam_groups": 1.0, "delta": 0.5},
    {"lam_groups": 0.3, "lam": 0.1, "nonnegative": True},
    {"lam_groups": 0.0, "lam": 0.4},
    {"lam_groups": 1e3},
    {"lam_groups": 1e39},  # infinite in float32
]


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def duals_of(cases, dtype, device, shift=0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [shape for shape, _ in cases]
    flat = [torch.randn(r * c + shift, generator=generator)[shift:] for r, c in shapes]
    # a view would lose its shift on the way
    out = [torch.empty(f.numel() + shift, dtype=wide(dtype), device=device)[shift:] for f in flat]
    for o, f in zip(out, flat, strict=True):
        o.copy_(f)
    return [o.view(shape) for o, shape in zip(out, shapes, strict=True)]


def run(cases, duals, dtype, backend, shift=0, **scalars):
    """Parameters, flags and statistics on the CPU."""
    tilings = [t for _, t in cases]
    params = [
        torch.full((d.numel() + shift,), 7.0, dtype=dtype, device=d.device)[shift:].view(d.shape)
        for d in duals
    ]
    alive = [
        torch.full((t.groups(d.numel()),), 9, dtype=torch.uint8, device=d.device)
        for t, d in zip(tilings, duals, strict=True)
    ]
    stats = sk.prox_group_(params, duals, tilings, alive=alive, backend=backend, **scalars)
    return [p.cpu() for p in params], [a.cpu() for a in alive], [s.cpu() for s in stats]


def assert_close(ours, theirs, duals, dtype, delta):
    """float64: torch's own square root may be 1 ulp off, and so 1 - threshold / norm by 1 eps."""
    if dtype != torch.float64:
        return assert_bit_equal(ours, theirs, "params")
    for a, b, v in zip(ours, theirs, duals, strict=True):
        # root, quotient, difference and two products: half an eps each, the root's own twice
        bound = 3 * torch.finfo(dtype).eps * delta * v.cpu().abs()
        assert bool(((a - b).abs() <= bound).all())
        assert torch.equal(a == 0, b == 0)


@pytest.mark.parametrize("scalars", SCALARS, ids=range(len(SCALARS)))
@pytest.mark.parametrize("kind", CASES)
def test_equals_the_reference(twin, dtype, kind, scalars):
    cases = CASES[kind]
    for shift in (0, 1):
        duals = duals_of(cases, dtype, twin.device, shift)
        params, alive, stats = run(cases, duals, dtype, twin.backend, shift, **scalars)
        cpu = [d.cpu() for d in duals]
        wanted, flags, found = run(cases, cpu, dtype, "reference", shift, **scalars)
        assert_close(params, wanted, duals, dtype, scalars.get("delta", 1.0))
        assert_bit_equal(alive, flags, "alive")
        assert_bit_equal(stats[:2], found[:2], "counts")
        # at most 64 roundings in either sum of |theta|, all of one sign
        rounding = 1e-12 if dtype == torch.float64 else 64 * torch.finfo(torch.float32).eps
        torch.testing.assert_close(stats[2], found[2], rtol=rounding, atol=0)


def loop(dual, tiling, lam_groups, lam, delta, nonnegative):
    """Tile by tile in float64, and the regulariser from the result."""
    matrix = dual.double().reshape(-1, tiling.cols)
    out, flags, value = torch.zeros_like(matrix), [], 0.0
    for i in range(0, matrix.shape[0], tiling.height):
        for j in range(0, tiling.cols, tiling.width):
            v = matrix[i : i + tiling.height, j : j + tiling.width]
            s = (v - lam).clamp(min=0) if nonnegative else v.sign() * (v.abs() - lam).clamp(min=0)
            norm, threshold = float(s.square().sum()) ** 0.5, lam_groups * math.sqrt(v.numel())
            theta = delta * s * max(1 - threshold / norm, 0.0) if norm > 0 else 0 * s
            out[i : i + tiling.height, j : j + tiling.width] = theta
            flags.append(norm > threshold)
            value += threshold * float(theta.norm()) + lam * float(theta.abs().sum())
    return out.reshape(dual.shape), torch.tensor(flags, dtype=torch.uint8), value


@pytest.mark.parametrize("kind", ["rows", "parts of rows", "bands", "tiles", "one"])
def test_is_the_group_lasso(target, kind):
    dtype = torch.float64 if target.backend in ("cpp", "reference") else torch.float32
    cases = CASES[kind]
    duals = duals_of(cases, dtype, target.device)
    for scalars in SCALARS[:3]:
        params, alive, stats = run(cases, duals, dtype, target.backend, **scalars)
        for i, (dual, (_, tiling)) in enumerate(zip(duals, cases, strict=True)):
            full = {"lam": 0.0, "delta": 1.0, "nonnegative": False, **scalars}
            theta, flags, value = loop(dual.cpu(), tiling, **full)
            exact = 1e-12 if dtype == torch.float64 else 1e-4
            torch.testing.assert_close(params[i].double(), theta, rtol=0, atol=exact)
            assert torch.equal(alive[i], flags)
            assert int(stats[0][i]) == int((params[i] != 0).sum())
            assert int(stats[1][i]) == int(flags.sum())
            assert float(stats[2][i]) == pytest.approx(value, rel=exact, abs=exact)


@pytest.mark.parametrize("nonnegative", [False, True])
def test_dead_groups_and_subgradients(target, nonnegative):
    """Spec P3: a group is 0 iff |v_g| <= threshold, else v_g - theta_g is the threshold's share."""
    tiling = Tiling(9, 1, 9)
    (dual,) = duals_of([((2000, 9), tiling)], torch.float32, target.device)
    (params,), (alive,), _ = run(
        [((2000, 9), tiling)], [dual], torch.float32, target.backend, lam_groups=0.9,
        nonnegative=nonnegative,
    )  # fmt: skip
    v = dual.cpu().clamp(min=0) if nonnegative else dual.cpu()
    threshold = 0.9 * 3.0
    norms = v.double().norm(dim=1)
    clear = (norms - threshold).abs() > 1e-5
    live = norms > threshold
    assert 0 < int(live.sum()) < 2000
    assert torch.equal((params != 0).any(1)[clear], live[clear])
    assert torch.equal(alive.bool()[clear], live[clear])
    theta = params[live].double()
    share = threshold * theta / theta.norm(dim=1, keepdim=True)
    torch.testing.assert_close(v[live].double() - theta, share, rtol=0, atol=1e-5)
    assert not (params.view(torch.int32) == -(2**31)).any()  # spec N7: no -0.0


def test_thresholds_of_kernels(target, dtype):
    """Spec N2, kernels 3 x 3: |v_g| = 3 lam gives 0, 4 lam a factor of delta / 4."""
    lam, delta = 0.5, 2.0
    three = torch.tensor([2.0, 0, -2, 1, 0, 0, 0, 0, 0])  # of norm 3
    four = torch.tensor([0, 2.0, 0, -2, 0, 2, 0, 2, 0])
    duals = [torch.stack([three, four]).to(target.device, wide(dtype)) * lam]
    case = [((2, 9), Tiling(9, 1, 9))]
    (params,), (alive,), (live, groups, value) = run(
        case, duals, dtype, target.backend, lam_groups=lam, delta=delta
    )
    assert alive.tolist() == [0, 1]
    assert (live.tolist(), groups.tolist()) == ([4], [1])
    assert not params[0].any()
    assert torch.equal(params[1].double(), four.double() * lam * delta / 4)
    # threshold 3 lam times |theta| = delta / 4 * 4 lam
    assert float(value) == pytest.approx(3 * lam * delta * lam, rel=1e-6)


def test_by_hand(target, dtype):
    """Sparse groups of 4: |s| = 2, 1 and 0 at thresholds 1, so factors 1/2, 0 and 0."""
    dual = torch.tensor([[3.0, 1, 0, 0], [0.5, 0, -2, 1], [1, -1, 0, 0]], dtype=wide(dtype))
    case, lam_groups = [((3, 4), Tiling(4, 1, 4))], 0.5
    (params,), (alive,), (live, groups, value) = run(
        case, [dual.to(target.device)], dtype, target.backend, lam_groups=lam_groups, lam=1.0
    )
    assert alive.tolist() == [1, 0, 0]
    assert params.reshape(-1).tolist() == [1.0] + [0.0] * 11
    assert (int(live), int(groups)) == (1, 1)
    assert float(value) == pytest.approx(2.0)  # 1 |theta| + lam |theta|_1


def test_edge_tiles_have_thresholds_of_their_own(target):
    """2 x 2 tiles of 3 x 5, all entries 1: norms 2, sqrt 2, sqrt 2, 1 at n = 4, 2, 2, 1."""
    dual = torch.ones(3, 5, device=target.device)
    (params,), (alive,), _ = run(
        [((3, 5), Tiling(5, 2, 2))], [dual], torch.float32, target.backend, lam_groups=0.5
    )
    torch.testing.assert_close(params, torch.full((3, 5), 0.5), rtol=1e-6, atol=0)
    assert alive.tolist() == [1] * 6


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_what_is_not_finite_stays_in_its_group(target, dtype, value):
    for kind in ("rows", "kernels", "tiles", "edges"):
        for case in CASES[kind]:
            tiling = case[1]
            (dual,) = duals_of([case], dtype, target.device)
            options = {"dtype": dtype, "backend": target.backend, "lam_groups": 0.5}
            (clean,), (before,), _ = run([case], [dual], **options)
            row, col = dual.shape[0] // 2, dual.shape[1] // 2
            dual[row, col] = value
            (params,), (after,), _ = run([case], [dual], **options)
            band, stripe = row // tiling.height, col // tiling.width
            group = torch.zeros(dual.shape, dtype=torch.bool)
            group[band * tiling.height : (band + 1) * tiling.height,
                  stripe * tiling.width : (stripe + 1) * tiling.width] = True  # fmt: skip
            assert torch.equal(params[~group], clean[~group])
            number = band * -(-tiling.cols // tiling.width) + stripe
            others = torch.arange(after.numel()) != number
            assert torch.equal(after[others], before[others])
            assert int(after[number]) == 1
            assert not params[row, col].isfinite()
            if math.isnan(value):
                assert params[group].isnan().all()


def test_a_parameter_may_be_its_own_dual(target):
    dtypes = (torch.float32, torch.float64)[: 2 if target.backend in ("cpp", "reference") else 1]
    for dtype in dtypes:
        cases = [case for kind in CASES.values() for case in kind]
        duals = duals_of(cases, dtype, target.device)
        wanted, _, stats = run(cases, duals, dtype, target.backend, **SCALARS[0])
        tilings = [t for _, t in cases]
        own = sk.prox_group_(duals, duals, tilings, backend=target.backend, **SCALARS[0])
        assert_bit_equal([d.cpu() for d in duals], wanted, "params")
        assert_bit_equal([s.cpu() for s in own[:2]], stats[:2], "counts")
        torch.testing.assert_close(own.value.cpu(), stats[2], rtol=1e-12, atol=0)


def test_threads_do_not_matter(target):
    cases = [case for kind in CASES.values() for case in kind]
    cases.append(((300_000, 9), Tiling(9, 1, 9)))
    duals = duals_of(cases, torch.float32, target.device)
    torch.set_num_threads(1)
    first = run(cases, duals, torch.float32, target.backend, **SCALARS[0])
    torch.set_num_threads(2)
    second = run(cases, duals, torch.float32, target.backend, **SCALARS[0])
    if target.backend == "reference":  # a torch sum, whose order depends on the threads
        second[2][2], first[2][2] = second[2][2] * 0, first[2][2] * 0
    for ours, theirs in zip(second, first, strict=True):
        assert_bit_equal(ours, theirs, "results")


def test_past_the_caches(target):
    """Sets that are streamed give what small ones give."""
    for shape, tiling in (
        ((1_100_000, 9), Tiling(9, 1, 9)),
        ((2501, 4003), Tiling(4003, 4, 5)),
        ((2500, 4096), Tiling(4096, 1, 4096)),
    ):
        (dual,) = duals_of([(shape, tiling)], torch.float32, target.device)
        rows = shape[0] // 20 * 4
        options = {"dtype": torch.float32, "backend": target.backend, **SCALARS[0]}
        (params,), (alive,), _ = run([(shape, tiling)], [dual], **options)
        part = ((rows, shape[1]), tiling)
        (head,), (flags,), _ = run([part], [dual[:rows]], **options)
        assert_bit_equal([params[:rows]], [head], "params")
        assert_bit_equal([alive[: flags.numel()]], [flags], "alive")
        whole = duals_of([(shape, tiling)], torch.float32, target.device)
        sk.prox_group_(whole, whole, [tiling], backend=target.backend, **SCALARS[0])
        assert_bit_equal([whole[0].cpu()], [params], "params in place")


def test_nothing_to_do(target):
    stats = sk.prox_group_([], [], [], 0.1, backend=target.backend)
    assert [s.numel() for s in stats] == [0, 0, 0]
    empty = [torch.empty(0, 9, device=target.device)]
    stats = sk.prox_group_(empty, copy_of(empty), [Tiling(9, 1, 9)], 0.1, backend=target.backend)
    assert [s.tolist() for s in stats] == [[0], [0], [0.0]]


BAD = [
    ({"tilings": []}, "tilings has 0 entries, params has 1"),
    ({"tilings": [(5, 1, 5)]},
     "tilings[0] (5, 1, 5) does not divide params[0] of 12 elements into rows and tiles"),
    ({"tilings": [(4, 1, 5)]},
     "tilings[0] (4, 1, 5) does not divide params[0] of 12 elements into rows and tiles"),
    ({"tilings": [(4, 0, 4)]},
     "tilings[0] (4, 0, 4) does not divide params[0] of 12 elements into rows and tiles"),
    ({"lam_groups": -1.0}, "lam_groups must be finite and >= 0, got -1.0"),
    ({"lam": NAN}, "lam must be finite and >= 0, got nan"),
    ({"delta": 0.0}, "delta must be finite and > 0, got 0.0"),
    ({"duals": [torch.ones(3, 5)]}, "duals[0] has 15 elements, params[0] has 12"),
    ({"alive": [torch.zeros(2, dtype=torch.uint8)]}, "alive[0] has 2 elements, expected 3"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD)
def test_refused(target, change, message):
    arguments = {"params": [torch.ones(3, 4)], "duals": [torch.ones(3, 4)],
                 "tilings": [(4, 1, 4)], "lam_groups": 0.1, **change}  # fmt: skip
    for name in ("params", "duals", "alive"):
        if name in arguments:
            arguments[name] = [t.to(target.device) for t in arguments[name]]
    with pytest.raises(ValueError, match=exactly(f"prox_group_: {message}")):
        sk.prox_group_(**arguments, backend=target.backend)
    assert (arguments["params"][0] == 1).all()


REFUSED_BY_THE_OP = [
    ({"cols": [5]}, "the tiling of params[0] does not divide it"),
    ({"widths": [13]}, "the tiling of params[0] does not divide it"),
    ({"heights": [0]}, "the tiling of params[0] does not divide it"),
    ({"heights": []}, "cols, heights, widths and alive of every tensor are needed"),
    ({"alive": [torch.zeros(4, dtype=torch.uint8)]}, "alive[0] is not one byte per group"),
    ({"alive": [torch.zeros(3, dtype=torch.int8)]}, "alive[0] is not one byte per group"),
    ({"thresholds": torch.zeros(1, 3)}, "thresholds must be contiguous with 4 elements"),
    ({"duals": [torch.ones(3, 4).double()]}, "duals[0] has the wrong dtype"),
    ({"duals": []}, "duals is empty"),
]


@pytest.mark.parametrize("device", [t.device for t in targets() if t.backend in ("cpp", "cuda")])
@pytest.mark.parametrize(("change", "message"), REFUSED_BY_THE_OP)
def test_the_op_itself_refuses_what_memory_safety_needs(device, change, message):
    arguments = {"params": [torch.ones(3, 4)], "duals": [torch.ones(3, 4)], "alive": [],
                 "cols": [4], "heights": [1], "widths": [4], "thresholds": torch.zeros(1, 4),
                 **change}  # fmt: skip
    on = {
        name: [t.to(device) if isinstance(t, torch.Tensor) else t for t in value]
        if isinstance(value, list)
        else value.to(device)
        for name, value in arguments.items()
    }
    with pytest.raises(RuntimeError, match=re.escape(f"prox_group_: {message}")):
        torch.ops.sparse_kernels.prox_group_(*on.values(), 0.0, 1.0, False)
