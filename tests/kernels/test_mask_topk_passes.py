"""The three passes of mask_topk on their own: any digit, any threshold, one pool or many."""

from __future__ import annotations

import pytest
import torch
from ranked_cases import KEY, scores_of

import sparse_kernels as sk
from sparse_kernels.reference._keys import ordered_keys
from sparse_kernels.testing import assert_bit_equal, make_masks, targets


def namespace_of(target):
    name = {"triton": "sparse_kernels_triton", "reference": "sparse_kernels_reference"}
    return getattr(torch.ops, name.get(target.backend, "sparse_kernels"))


class Passes:
    """The three passes on their own, on a target and on the reference, with the same arguments."""

    def __init__(self, twin, dtype, kind, pools, masked, inverted):
        self.twin, self.kind, self.pools = twin, kind, pools
        self.scores = [s.reshape(-1) for s in scores_of("misaligned", dtype, "cpu")]
        self.masks = sk.pack_mask(make_masks(self.scores, 0.5, seed=2))
        self.firsts = [3, 4, 9, 1032]
        self.key = torch.tensor(KEY - 2**64) if kind == "random" else None
        self.width = 64 if dtype == torch.float64 and kind != "random" else 32
        self.shared = (self.masks if masked else [], inverted)

    def both(self, op, *tail):
        """Results on the target and on the reference; lists in ``tail`` are copied first."""
        results = []
        for target in (self.twin, None):
            device = "cpu" if target is None else target.device
            ops = torch.ops.sparse_kernels_reference if target is None else namespace_of(target)

            def moved(x, device=device):
                if isinstance(x, list) and x and isinstance(x[0], torch.Tensor):
                    return [t.to(device, copy=True) for t in x]
                return x.to(device) if isinstance(x, torch.Tensor) else x

            own = [moved(x) for x in tail]
            head = (self.scores, self.kind, self.key, self.firsts, *self.shared)
            result = getattr(ops, op)(*map(moved, head), *own)
            words = [x for x in own if isinstance(x, list)]
            results.append(([] if result is None else [result]) + (words[0] if words else []))
        assert_bit_equal(*results, op)
        return results[1]

    def frequent(self):
        """The most frequent key of the longest tensor: it has ties, unless it is random."""
        keys = ordered_keys(self.scores[3], self.kind, self.key, self.firsts[3])
        found, counts = keys.unique(return_counts=True)
        return int(found[counts.argmax()])


@pytest.mark.parametrize(
    ("kind", "pools", "masked", "inverted"),
    [("value", 1, False, False), ("abs", 4, True, True), ("random", 4, True, False),
     ("random", 1, False, False)],
)  # fmt: skip
def test_equals_the_reference_op_by_op(twin, dtype, kind, pools, masked, inverted):
    passes = Passes(twin, dtype, kind, pools, masked, inverted)
    frequent = passes.frequent()
    for shift, bits in ((passes.width - 11, 11), (passes.width - 20, 9), (0, 3)):
        above = shift + bits
        upper = (frequent >> above) & ((1 << (passes.width - above)) - 1)
        prefix = torch.full((pools,), upper) - torch.arange(pools) % 2
        (counts,) = passes.both("topk_histogram", prefix, shift, bits)
        assert above < passes.width or int(counts.sum()) > 0
    for threshold in (0, 2**31 + 2**30, frequent):
        limit = torch.full((pools,), threshold)
        old = [torch.full_like(m, 8) for m in passes.masks]
        for accumulate in (False, True):
            ties, *words = passes.both("topk_write_", limit, old, accumulate)
        take = torch.arange(3, 3 + pools)
        passes.both("topk_ties_", limit, ties, ties.cumsum(0) - ties, take, words)


@pytest.mark.parametrize("fast", [t for t in targets() if t.backend in ("cpp", "cuda")], ids=str)
def test_chunks_without_ties_are_not_looked_at(fast):
    def on(x):
        return torch.tensor(x, device=fast.device)

    words = torch.zeros(4096, dtype=torch.int32, device=fast.device)
    torch.ops.sparse_kernels.topk_ties_(
        [torch.zeros(2 * 65536, device=fast.device)], "value", None, [0], [], False, on([2**31]),
        on([0, 65536]), on([0, 0]), on([40]), [words],
    )  # fmt: skip
    assert not words[:2048].any()
    assert words[2048:2050].tolist() == [-1, 255]
