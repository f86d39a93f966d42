"""Bregman training on two processes (bregman.md sections 9 and 12, M14)."""

import pytest
import torch
import torch.multiprocessing
from bregman_ranks import BACKENDS, CASES, CYCLE, STEPS, WORLD, main
from optim_cases import assert_same_bits, sparse_model
from sparse_optim import LinBreg, active_hash
from torch import nn

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch without torch.distributed"
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What each rank found, by backend and scenario; the processes are started once."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(main, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.fixture(params=BACKENDS)
def ranks(results, request):
    """The results of each rank, by scenario."""
    return [r[request.param] for r in results]


@pytest.mark.parametrize("case", CASES)
def test_m14_ranks_agree_on_weights_and_active_sets(ranks, case):
    first, second = (r[case] for r in ranks)
    assert first["hash"] == second["hash"]
    assert len(set(first["hash"][::CYCLE])) > 1  # the sets change from phase to phase
    for a, b in zip(first["w"], second["w"], strict=True):
        for p, q in zip(a, b, strict=True):
            assert_same_bits(p, q)


@pytest.mark.parametrize("case", CASES)
def test_m14_reducing_active_entries_is_the_dense_way_restricted(ranks, case):
    for r in ranks:
        found = r[case]
        for step in range(STEPS):
            for p, q in zip(found["w"][step], found["dense"][step], strict=True):
                assert_same_bits(p, q)
        assert found["masked"] == [True] * len(found["masked"])
        assert not torch.equal(found["w"][0][0], found["w"][-1][0])


@pytest.mark.parametrize("case", ["l1", "ada", "rows"])
def test_traffic_of_coarse_steps_follows_the_active_entries(ranks, case):
    sizes = [p.numel() for p in sparse_model().parameters()]
    weights, biases = sizes[0] + sizes[2], sizes[1] + sizes[3]
    found = ranks[0][case]
    small = 0
    for step in range(STEPS):
        # a set of more than half of the entries steps, and is reduced, under a mask
        active = found["active"][step][:2]
        counts = [n if n <= s / 2 else s for n, s in zip(active, sizes[::2], strict=True)]
        expected = [sum(counts) + biases] if found["next"][step] else [weights + biases]
        small += found["next"][step] and sum(counts) < weights
        sent = [numel for _, numel in found["calls"][step]]
        assert sent == ([4] if step % CYCLE == 0 else []) + expected
    assert small > STEPS / 2


def test_different_sets_are_an_error_on_every_rank(ranks):
    for r in ranks:
        assert (
            "RuntimeError: LinBreg: the ranks have different active sets" in r["mismatch"]["said"]
        )
        assert r["mismatch"]["same"]
        assert r["mismatch"]["steps"] == 0
    said = [r["mismatch"]["said"] for r in ranks]
    assert said[0] != said[1]  # each names its own hash


def test_the_hash_depends_on_every_word_and_its_place():
    def number(chosen, numel=200):
        w = torch.zeros(numel)
        w[chosen] = 1.0
        params = [nn.Parameter(w[:70].clone()), nn.Parameter(w[70:].clone())]
        opt = LinBreg(params, reg="l1", lam=0.5, coarse_steps=1)
        opt.init_dual()
        return active_hash(opt)

    single = [number([i]) for i in range(200)]
    assert len({*single, number([])}) == 201
    assert number([3, 100]) == number([100, 3])
    assert 0 <= min(single) <= max(single) < 2**64
    plain = LinBreg([nn.Parameter(torch.ones(3))], lr=0.1)
    assert active_hash(plain) == 0
