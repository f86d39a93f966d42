"""ZO-SAM and MeZO on two processes (zero-order.md 2.5 (7, 8), properties 8 and 24)."""

import itertools
import math

import pytest
import torch
import torch.multiprocessing
from optim_cases import assert_same_bits, cross_entropy, mlp
from sparse_optim import ZOSAM, BitMask, MeZO
from torch.optim import SGD
from zo_ranks import (
    BACKENDS,
    FSDP_CASES,
    LR,
    RHO,
    SHARD_CASES,
    SIGN_SMOOTHING,
    SIGNS,
    STEPS,
    UIDS,
    WORLD,
    data,
    main,
    part,
    shard_run,
    weights_of,
    whole,
)

from sparse_kernels import derive_key, zo_combine_

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
def backend(request):
    return request.param


@pytest.fixture
def ranks(results, backend):
    """The results of each rank, by scenario."""
    return [r[backend] for r in results]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def mean_of(own):
    """Averaged over the ranks in float64, in rank order."""
    total = torch.zeros_like(own[0], dtype=torch.float64)
    for losses in own:
        total = total + losses.double()
    return total / len(own)


# -- whole parameters ------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "m"), [("global", 1), ("auto", 3)])
def test_property_24_all_ranks_have_the_same_e_and_w(ranks, mode, m):
    first, second = (r[mode] for r in ranks)
    assert first["seed"] == second["seed"] == [50] * STEPS  # rank 0's
    assert first["keys"] == second["keys"]
    assert equal(first["perturbed"], second["perturbed"])
    assert equal(first["w"], second["w"])
    starts = [weights_of(mlp()), *first["w"]]
    for before, at, after in zip(starts[:-1], first["perturbed"], first["w"], strict=True):
        assert float((at - before).norm()) == pytest.approx(RHO, rel=1e-4)
        assert not torch.equal(before, after)
    for step in range(STEPS):
        own = [r[mode]["own"][step] for r in ranks]
        assert not torch.equal(*own)  # other data
        for r in ranks:
            assert_same_bits(r[mode]["losses"][step], mean_of(own))


@pytest.mark.parametrize(
    ("mode", "m"), [("global", 1), ("auto", 3), ("descent", 2), ("local", None)]
)
def test_property_24_one_collective_of_the_losses_per_probe(ranks, mode, m):
    for r in ranks:
        for step, calls in enumerate(r[mode]["probe"]):
            seed = [("broadcast_", 1)] if step == 0 else []
            losses = [] if m is None else [("allgather_", 2 * m + 1)]  # whether there are any, too
            assert calls == seed + losses
        for calls in r[mode].get("train", []):
            assert ("allreduce_", len(r[mode]["w"][0])) in calls  # the mode does see DDP's


def test_property_24_local_directions_differ_and_weights_do_not(ranks):
    first, second = (r["local"] for r in ranks)
    assert first["seed"] == second["seed"] == [50] * STEPS
    assert equal(first["w"], second["w"])
    for a, b in zip(first["perturbed"], second["perturbed"], strict=True):
        assert not torch.equal(a, b)
    for rank, r in enumerate(ranks):
        keys = [k % 2**64 for k in r["local"]["keys"]]
        assert keys == [derive_key(50, t, 1 + rank) for t in range(STEPS)]
        for step in range(STEPS):  # its own losses, not averaged
            assert torch.equal(r["local"]["losses"][step], r["local"]["own"][step])


def test_property_24_descent_needs_no_gradient(ranks):
    first, second = (r["descent"] for r in ranks)
    assert first["seed"] == second["seed"] == [50] * STEPS
    assert equal(first["w"], second["w"])
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(first["w"]))
    for step in range(STEPS):
        averaged = mean_of([r["descent"]["own"][step] for r in ranks])
        assert_same_bits(first["losses"][step], averaged)
        assert_same_bits(second["losses"][step], averaged)


def test_a_rank_without_data_takes_the_losses_of_the_others(ranks):
    first, second = (r["without data"] for r in ranks)
    assert second["own"][1] == [None] * 4
    alone = torch.stack(first["own"][1]).reshape(2, 2).double()
    for r in (first, second):
        assert_same_bits(r["losses"][1], alone)
        assert r["nonfinite"] == [(0, 0), (0, 0), (2, 2)]
        assert r["losses"][2].isnan().all()  # nobody has data
        assert [calls[-1] for calls in r["probe"]] == [("allgather_", 5)] * 3
        for step in range(3):
            moved = not torch.equal(r["perturbed"][step], r["w"][step])
            assert moved is (step < 2)
            assert torch.equal(r["mezo"][step], r["mezo"][step + 1]) is (step == 2)
    assert equal(first["perturbed"], second["perturbed"])
    assert equal(first["mezo"], second["mezo"])


@pytest.mark.parametrize(("case", "having"), [("share", 2), ("blank", 1)])
def test_signs_are_checked_against_the_mean_gradient(ranks, backend, case, having):
    model = mlp(dtype=torch.float64)
    opt = MeZO(model.parameters(), seed=3, smoothing=SIGN_SMOOTHING, backend=backend)

    def loss():
        parts = [data(rank, torch.float64) for rank in range(having)]
        return sum(cross_entropy(model(x), y) for x, y in parts) / having

    expected = opt.sign_check(loss, SIGNS)
    assert 0.5 < expected < 1.0
    for r in ranks:
        assert r["signs"][case] == expected
        assert torch.equal(r["signs"]["w"], weights_of(mlp(dtype=torch.float64)))


# -- parameters in parts ---------------------------------------------------------------------


@pytest.mark.parametrize("case", SHARD_CASES)
def test_property_8_directions_of_shards_are_those_of_the_whole(ranks, backend, case):
    m, distribution, density = case
    tensors, masks = whole(density)
    alone = shard_run(tensors, backend, m, distribution, masks)
    exact = distribution != "sphere"  # whose scale is a sum over the shards
    words = None if masks is None else list(BitMask.from_bool(masks).words)
    named = {"uids": UIDS, "mask": words, "backend": backend}
    named["distribution"] = "rademacher" if distribution == "rademacher" else "normal"
    squares = torch.zeros(2, dtype=torch.float64)
    for rank, r in enumerate(ranks):
        got = r[("sharded", *case)]
        assert got["active"] == alone["active"]
        starts = part(alone["restored"], rank)[0]
        assert sum(t.numel() == 0 for t in starts) == 1
        same(got["restored"], starts, True)
        # w + delta z and w - delta z, of both optimizers
        assert len(got["points"]) == len(alone["points"]) == 6 * m
        for here, there in zip(got["points"], alone["points"], strict=True):
            same(here, part(there, rank)[0], exact)
        for probe in range(2):
            key, e_of = got["keys"][probe], got["ascent"][probe]
            assert torch.equal(key, alone["keys"][probe])
            expected = part(alone["perturbed"][probe], rank)[0]
            same(got["perturbed"][probe], expected, distribution == "rademacher")
            again = [t.clone() for t in alone["restored"]]
            zo_combine_(again, e_of, seed=key, **named)  # the very coefficients, on the whole
            same(got["perturbed"][probe], part(again, rank)[0], True)
            for a, b in zip(got["perturbed"][probe], starts, strict=True):
                squares[probe] += (a.double() - b.double()).square().sum()
        same(got["mezo"], part(alone["mezo"], rank)[0], exact)
    coefs = [r[("sharded", *case)]["ascent"] for r in ranks]
    assert equal(*coefs)
    for a, b in zip(coefs[0], alone["ascent"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
    for length in squares.sqrt().tolist():
        assert length == pytest.approx(RHO, rel=1e-5)


def same(tensors, expected, exact):
    for a, b in zip(tensors, expected, strict=True):
        if exact:
            assert_same_bits(a, b)
        else:
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


# -- fully_shard -----------------------------------------------------------------------------


def one_process(backend):
    """The run of ``fully_sharded`` with whole parameters and the losses of both ranks."""
    model = mlp(dtype=torch.float64)
    params, parts = list(model.parameters()), [data(r, torch.float64) for r in range(WORLD)]

    def loss():
        return sum(cross_entropy(model(x), y) for x, y in parts) / WORLD

    def values():
        return [p.detach().clone() for p in params]

    opt = ZOSAM(params, SGD, RHO, 2, seed=9, lr=LR, momentum=0.9, backend=backend)
    seen = {k: [] for k in ("e", "w", "losses", "trained", "mezo")}
    seen["active"] = opt.num_active
    for _ in range(STEPS):
        before = values()
        opt.probe(loss)
        seen["e"].append([a - b for a, b in zip(values(), before, strict=True)])
        opt.zero_grad()
        trained = loss()
        trained.backward()
        seen["trained"].append(trained.detach())
        opt.step()
        seen["w"].append(values())
        seen["losses"].append(opt.last_probe.losses)
    mezo = MeZO(params, LR, 2, 1e-2, seed=4, backend=backend)
    for _ in range(STEPS):
        mezo.step(loss)
        seen["mezo"].append(values())
    return seen


@pytest.mark.parametrize("case", FSDP_CASES)
def test_property_24_fully_sharded_follows_one_process(ranks, backend, case):
    expected = one_process(backend)
    found = [r["fsdp", case] for r in ranks]
    assert found[0]["firsts"] == [0, 0, 0, 0]
    assert found[1]["firsts"] == [5 * 6, 5, 2 * 9, 2]  # of 9 and 3 rows

    def joined(name, step):
        return [torch.cat(ts) for ts in zip(*(f[name][step] for f in found), strict=True)]

    for step in range(STEPS):
        e = joined("e", step)
        torch.testing.assert_close(e, expected["e"][step], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(joined("logged", step), e, rtol=1e-6, atol=1e-9)
        length = math.sqrt(sum(float(t.square().sum()) for t in e))
        assert length == pytest.approx(RHO, rel=1e-6)
        for name in ("w", "mezo"):
            torch.testing.assert_close(
                joined(name, step), expected[name][step], rtol=1e-6, atol=1e-8
            )
        for f in found:
            assert f["active"] == expected["active"] == 93
            assert torch.equal(f["losses"][step], found[0]["losses"][step])
            torch.testing.assert_close(f["losses"][step], expected["losses"][step])
        # the training forward is at w + e
        trained = torch.stack([f["trained"][step] for f in found]).mean()
        torch.testing.assert_close(trained, expected["trained"][step])


REFUSALS = {
    "local with a group": "ValueError: sync='local' needs whole parameters",
    "local with DTensors": "ValueError: sync='local' needs whole parameters",
    "weight mask": "is a DTensor: masks need the local shards",
    "mask": "is a DTensor: masks need the local shards",
    "mezo mask": "is a DTensor: masks need the local shards",
    "columns": "random directions need shards along dimension 0",
    "mixture": "must be split over one process group, or none of them",
    "mixture and group": "must be split over one process group, or none of them",
    "coordinate": "'coordinate' needs restore='exact' and whole parameters",
    "masters": "or its 16-bit weights are a DTensor",
    "sign check": "RuntimeError: ZOSAM.sign_check: needs whole parameters or plain shards",
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_refused(ranks, case):
    for r in ranks:
        assert set(r["refusals"]) == set(REFUSALS)
        assert REFUSALS[case] in r["refusals"][case]
