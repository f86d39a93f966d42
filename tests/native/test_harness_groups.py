"""The CUDA kernels' programs on host memory: group shrinkage."""

from __future__ import annotations

import itertools

import pytest
import torch
from native_lists import CHUNK, Lists, assert_same

from sparse_kernels import Tiling
from sparse_kernels.functional.prox_group import _Plan
from sparse_kernels.reference import prox_group_ref

DTYPE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
storage = pytest.mark.parametrize("kind", DTYPE)

#: elements and tiling; around a batch of 4,096 entries, 2,048 lanes and a chunk
LISTS = {
    "kernels": [(9 * 1000, Tiling(9, 1, 9)), (0, Tiling(9, 1, 9)), (25 * 331, Tiling(25, 1, 25)),
                (49 * 84, Tiling(49, 1, 49)), (5001, Tiling(1, 1, 1)), (64, Tiling(2, 1, 2))],
    "rows": [(512 * 9, Tiling(512, 1, 512)), (3 * 2047, Tiling(2047, 1, 2047)),
             (3 * 2048, Tiling(2048, 1, 2048)), (2 * 2049, Tiling(2049, 1, 2049)),
             (3 * 4609, Tiling(4609, 1, 4609)), (15, Tiling(5, 1, 5)), (15, Tiling(3, 1, 3))],
    "tiles": [(130 * 515, Tiling(515, 4, 4)), (64 * 128, Tiling(128, 4, 4)), (15, Tiling(5, 2, 2)),
              (31 * 41, Tiling(41, 5, 7)), (9 * 41, Tiling(41, 1, 8)), (440, Tiling(40, 4, 40)),
              (130 * 130, Tiling(130, 64, 64)), (35, Tiling(7, 100, 3)),
              (2100, Tiling(7, 300, 1))],
    "large": [(2 * CHUNK, Tiling(CHUNK, 1, CHUNK)), (300 * 401, Tiling(401, 280, 300)),
              (2 * CHUNK + 2, Tiling(CHUNK + 1, 1, CHUNK + 1)), (99, Tiling(9, 1, 9)),
              (CHUNK - 1, Tiling(CHUNK - 1, 1, CHUNK - 1))],
    "many": [(9 * (i % 5), Tiling(9, 1, 9)) for i in range(1000)],
}  # fmt: skip


def run(core, kind, described, duals, params, alive, scalars, **options):
    """Statistics of a run; alive may be empty."""
    segments = [
        core.Segment(
            n,
            [p, v, a] if alive else [p, v],
            cols=t.cols,
            height=t.height,
            width=t.width,
        )
        for (n, t), p, v, a in zip(described, params, duals, alive or params, strict=True)
    ]
    lam_groups, lam, delta, nonnegative = scalars
    plan = _Plan(*map(tuple, zip(*described, strict=True)))
    table = plan.thresholds(lam_groups, torch.float32, torch.device("cpu"))
    count = len(described)
    live, groups = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.int64)
    value = torch.zeros(count, dtype=torch.float64)
    out = [live.data_ptr(), groups.data_ptr(), value.data_ptr()]
    report = core.prox_group(
        core.Run(segments, **options), kind, table.data_ptr(), lam, delta, nonnegative, out
    )
    return (live, groups, value), table, report


@storage
@pytest.mark.parametrize("name", LISTS)
def test_equals_the_reference(core, kind, name):
    described = LISTS[name]
    for shift, scalars in itertools.product(
        (0, 1), ((0.7, 0.2, 1.5, False), (0.4, 0.0, 1.0, True))
    ):
        lists = Lists([n for n, _ in described], shift, seed=3)
        duals = lists.normal(torch.float32)
        params = lists.normal(DTYPE[kind])
        alive = [
            lists.place(torch.full((t.groups(n),), 9, dtype=torch.uint8)) for n, t in described
        ]
        wanted = [p.clone() for p in params]
        flags = [a.clone() for a in alive]
        ours, table, _ = run(
            core, kind, described, *([t.data_ptr() for t in x] for x in (duals, params, alive)),
            scalars,
        )  # fmt: skip
        tilings = [t for _, t in described]
        theirs = prox_group_ref(
            wanted, duals, flags, [t.cols for t in tilings], [t.height for t in tilings],
            [t.width for t in tilings], table, *scalars[1:],
        )  # fmt: skip
        assert_same(params, wanted, "params")
        assert_same(alive, flags, "alive")
        assert_same(list(ours[:2]), list(theirs[:2]), "counts")
        # at most 64 roundings in either sum of |theta|, all of one sign
        eps = torch.finfo(torch.float32).eps
        torch.testing.assert_close(ours[2], theirs[2], rtol=64 * eps, atol=0)
        lists.check_guards()


def test_a_parameter_may_be_its_own_dual(core):
    described = [case for name in ("kernels", "rows", "tiles", "large") for case in LISTS[name]]
    lists = Lists([n for n, _ in described], seed=4)
    duals = lists.normal(torch.float32)
    params = [torch.empty_like(d) for d in duals]
    scalars = (0.7, 0.2, 1.5, False)
    apart, own = ([t.data_ptr() for t in x] for x in (params, duals))
    first, _, _ = run(core, "float32", described, own, apart, [], scalars)
    second, _, _ = run(core, "float32", described, own, own, [], scalars)
    assert_same(duals, params, "params")
    assert_same(list(second), list(first), "statistics")
    lists.check_guards()


def traffic(report, address):
    """Bytes read and written of a tensor, in all launches."""
    ranges = [r for r in report.ranges if r.begin == address]
    return sum(r.loaded for r in ranges), sum(r.stored for r in ranges)


@pytest.mark.parametrize("name", ["kernels", "rows", "tiles", "large"])
def test_memory_is_read_and_written_once(core, name):
    """Twice where a group is one of more than 2,048 entries: the second time it is in a cache."""
    for n, tiling in LISTS[name]:
        if n == 0:
            continue
        lists = Lists([n], seed=5)
        duals, params = lists.normal(torch.float32), lists.normal(torch.float32)
        described = [(n, tiling)]
        _, _, report = run(
            core, "float32", described, [duals[0].data_ptr()], [params[0].data_ptr()], [],
            (0.0, 0.0, 1.0, False),
        )  # fmt: skip
        passes = 1 if tiling.height * tiling.width <= 2048 else 2
        assert traffic(report, duals[0].data_ptr()) == (4 * n * passes, 0)
        assert traffic(report, params[0].data_ptr()) == (0, 4 * n)


PAST = 2**33


@pytest.mark.parametrize(
    ("numel", "tiling", "size"),
    [
        (9 * (PAST // 9), Tiling(9, 1, 9), 4096 // 9 // 8 * 8 * 9),
        (4608 * (PAST // 4608), Tiling(4608, 1, 4608), 4608),
        (2**17 * 2**16, Tiling(2**17, 4, 4), 4096),
        (PAST + 5, Tiling(PAST + 5, 1, PAST + 5), CHUNK),
    ],
)
def test_indices_past_2_to_the_32(core, numel, tiling, size):
    """No memory behind the addresses: what is written is counted, in the last block too."""
    blocks = -(-numel // size)
    chosen = [0, 2**32 // size, blocks - 1]
    params, duals, alive = 1 << 50, 1 << 52, 1 << 54
    _, _, report = run(
        core, "float32", [(numel, tiling)], [duals], [params], [alive], (0.5, 0.1, 1.0, False),
        backed=False, chunks=chosen,
    )  # fmt: skip
    assert traffic(report, params) == (0, 4 * (2 * size + numel - (blocks - 1) * size))
