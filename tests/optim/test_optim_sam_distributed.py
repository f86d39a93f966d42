"""SAM and SSAM on two processes (sparse-sam.md 2.2 (13), 3.5, properties 8, 23 and 34)."""

import itertools

import pytest
import torch
import torch.multiprocessing
from optim_cases import batch, cross_entropy, loop_oracle, mlp
from sam_cases import draw, inject, make_params, random_masks
from sam_ranks import HALVES, LR, RHO, SHARDED, STEPS, WORLD, data, main, masks, weights_of
from sparse_optim import SAM, SSAM, live_count
from torch.optim import SGD

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch without torch.distributed"
)


@pytest.fixture(params=["reference", "auto"], scope="module")
def ranks(request, tmp_path_factory):
    """The results of each rank, by scenario."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(main, (request.param, str(folder)), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def oracle(local_e):
    """Weights and w+ of each rank in one process: the mean of the gradients at w + e_rank."""
    model = mlp(dtype=torch.float64)
    params, kept = list(model.parameters()), [m.double() for m in masks()]
    opt = SGD(params, lr=LR, momentum=0.9)
    weights, perturbed = [], []

    def gradients(rank):
        x, y = data(rank)
        return torch.autograd.grad(cross_entropy(model(x), y), params)

    def mean(parts):
        return [torch.stack(gs).mean(0) for gs in zip(*parts, strict=True)]

    for _ in range(STEPS):
        first = [gradients(rank) for rank in range(WORLD)]
        if not local_e:
            first = [mean(first)] * WORLD
        old, second, moved = [p.detach().clone() for p in params], [], []
        for rank, grads in enumerate(first):
            scale = RHO / torch.cat([g.reshape(-1) for g in grads]).norm()
            with torch.no_grad():
                for p, w, g, m in zip(params, old, grads, kept, strict=True):
                    p.copy_(w + scale * g * m)
            moved.append(weights_of(model))
            second.append(gradients(rank))
        with torch.no_grad():
            for p, w, g in zip(params, old, mean(second), strict=True):
                p.copy_(w)
                p.grad = g
        opt.step()
        weights.append(weights_of(model))
        perturbed.append(moved)
    return weights, perturbed


@pytest.mark.parametrize("mode", ["averaged", "per rank"])
def test_property_34_replicas_stay_equal_and_match_one_process(ranks, mode):
    weights, perturbed = oracle(mode == "per rank")
    first, second = (r[mode] for r in ranks)
    assert equal(first["w"], second["w"])
    assert equal(first["perturbed"], second["perturbed"]) is (mode == "averaged")
    for step in range(STEPS):
        torch.testing.assert_close(first["w"][step], weights[step], rtol=1e-9, atol=1e-11)
        for rank in range(WORLD):
            mine = ranks[rank][mode]["perturbed"][step]
            torch.testing.assert_close(mine, perturbed[step][rank], rtol=1e-7, atol=1e-8)


def test_property_34_the_first_rank_hands_its_masks_to_the_others(ranks):
    first, second = (r["shared masks"] for r in ranks)
    assert not equal(first["own"], second["own"])  # each rank alone draws another mask
    assert len(first["words"]) == 10
    for a, b in zip(first["words"], second["words"], strict=True):
        assert equal(a, b)
    for half in (first["words"][:5], first["words"][5:]):
        assert not any(equal(a, b) for a, b in itertools.pairwise(half))


def test_fisher_scores_are_added_over_the_ranks(ranks):
    first, second = (r["fisher"] for r in ranks)
    assert equal(first["scores"], second["scores"])
    assert equal(first["words"], second["words"])
    model, (x, y) = mlp(), batch(n=24)
    for got, expected in zip(first["scores"], loop_oracle(model, x, y), strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-9)
    live = sum(bin(w & 0xFFFFFFFF).count("1") for ws in first["words"] for w in ws.tolist())
    assert live == live_count(93, 0.5)


@pytest.mark.parametrize("case", SHARDED)
def test_property_8_a_sharded_norm_is_the_whole_one(ranks, case):
    own = SHARDED[case]
    params = make_params(((9, 7), (33,), (40, 11), (5,)))
    (first, second), *_ = draw(params, 1)
    cls = SSAM if "norm" in own else SAM
    opt = cls(params, SGD, rho=RHO, lr=LR, weight_mask=random_masks(params, 0.7),
              backend="reference", **own)  # fmt: skip
    if cls is SSAM:
        opt.set_masks(random_masks(params, 0.4, seed=6))
    inject(params, first)
    opt.first_step(zero_grad=True)
    perturbed = [p.detach().clone() for p in params]
    norm = opt._norm
    inject(params, second)
    opt.second_step()
    for rank, mine in enumerate(HALVES):
        got = ranks[rank][f"sharded {case}"]
        torch.testing.assert_close(got["norm"], norm, rtol=1e-6, atol=0)
        assert torch.equal(got["norm"], ranks[0][f"sharded {case}"]["norm"])
        for i, w_plus, w in zip(mine, got["perturbed"], got["w"], strict=True):
            torch.testing.assert_close(w_plus, perturbed[i], rtol=1e-6, atol=1e-7)
            assert torch.equal(w, params[i])


def test_a_rank_without_gradients_takes_part_and_a_bad_one_stops_all(ranks):
    params = make_params(((9, 7), (33,)))
    (first, _), _ = draw(params, 2)
    for rank in range(WORLD):
        got = ranks[rank]["sharded without gradients"]
        assert float(got["norms"][0]) == pytest.approx(float(first[0].norm()), rel=1e-6)
        assert got["norms"][1].isnan()
        assert int(got["skipped"]) == 1
        assert torch.equal(got["w"][0], got["w"][1])
        assert torch.equal(got["w"][0], params[rank]) is (rank == 1)


def test_a_step_between_is_suppressed_on_every_shard(ranks):
    for got in (r["sharded interval"] for r in ranks):
        assert int(got["skipped"]) == 1
        assert torch.equal(got["before"], got["after"])


@pytest.mark.parametrize("mode", ["averaged", "per rank"])
def test_property_34_a_suppressed_step_is_suppressed_everywhere(ranks, mode):
    first, second = (r[f"suppressed {mode}"] for r in ranks)
    assert first["skipped"] == second["skipped"] == [0, 1, 1]
    assert equal(first["w"], second["w"])
    assert torch.equal(first["w"][0], first["w"][1])
    assert not torch.equal(first["w"][1], first["w"][2])
    for a, b in zip(first["words"], second["words"], strict=True):
        assert equal(a, b)
    assert equal(first["words"][0], first["words"][1])  # the exchange waits
    assert not equal(first["words"][1], first["words"][2])


def test_property_34_replicas_agree_to_skip_where_one_gradient_at_w_is_bad(ranks):
    first, second = (r["suppressed at w"] for r in ranks)
    assert first["skipped"] == second["skipped"] == [0, 1, 1]
    for a, b in zip(first["w"], second["w"], strict=True):
        assert torch.equal(a, b)
    assert torch.equal(first["w"][0], first["w"][1])
    assert not torch.equal(first["w"][1], first["w"][2])
