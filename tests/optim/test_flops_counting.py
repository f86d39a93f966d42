"""What SparseFlops counts of layers, weight masks, passes, times, states and supports."""

import pytest
import torch
from optim_cases import batch, cross_entropy, mlp
from sparse_optim import (
    MEST,
    SAM,
    SET,
    AdaBreg,
    LinBreg,
    MeZO,
    RigL,
    SparseFlops,
    bregman_param_groups,
)
from sparse_optim.demo import models
from torch import nn
from torch.optim import SGD, Adam


def counter(model, example, **options):
    """Of plain SGD."""
    return SparseFlops(model, example, SGD(model.parameters(), lr=0.1), **options)


def uses(flops):
    return {layer.name: layer.uses for layer in flops.layers}


# -- layers --------------------------------------------------------------------------------------


def test_groups_transposed_convolutions_and_embeddings():
    grouped = nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4)
    flops = counter(grouped, torch.zeros(2, 8, 9, 7))
    assert uses(flops) == {"weight": 5 * 4}
    assert flops.dense_forward == 2 * 5 * 4 * 12 * (8 // 4) * 9
    transposed = nn.ConvTranspose2d(6, 4, 5, stride=3, groups=2)
    flops = counter(transposed, torch.zeros(2, 6, 4, 3))
    assert uses(flops) == {"weight": 4 * 3}
    assert flops.dense_forward == 2 * 4 * 3 * 6 * (4 // 2) * 25
    model = nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 5))
    flops = counter(model, torch.zeros(2, 7, dtype=torch.int64))
    assert uses(flops) == {"1.weight": 7}
    assert flops.unweighted_forward == 0.0


def test_attention_scores_are_a_line_of_their_own():
    """Causal attention too, which torch's own kernel for the CPU would hide from the counter."""
    model = models.transformer((12,), 20, depth=2, width=128)
    flops = counter(model, torch.zeros(3, 12, dtype=torch.int64))
    assert flops.dense_forward == 2 * 12 * (2 * 12 * 128 * 128 + 20 * 128)
    assert flops.unweighted_forward == 2 * 2 * (2 * 12 * 12 * 128)
    flops.step(samples=5)
    report = flops.report()
    assert report["theoretical_flops"] == 3 * 5 * flops.dense_forward
    assert report["unweighted_flops"] == 3 * 5 * flops.unweighted_forward
    # an embedding in front wants the gradient of the first layer's input
    assert report["issued_percent"] == 100.0


@pytest.mark.parametrize("sizes", [{}, {"kdim": 6, "vdim": 10}])
def test_multi_head_attention_called_as_a_module(sizes):
    model = nn.MultiheadAttention(8, 2, batch_first=True, **sizes)
    query = torch.zeros(3, 5, 8)
    key, value = (torch.zeros(3, 7, sizes.get(name, 8)) for name in ("kdim", "vdim"))
    flops = counter(model, (query, key, value))
    if sizes:
        found = {"q_proj_weight": 5, "k_proj_weight": 7, "v_proj_weight": 7}
    else:
        found = {"in_proj_weight": pytest.approx(19 / 3)}
    assert uses(flops) == {**found, "out_proj.weight": 5}
    width = sizes.get("kdim", 8) + sizes.get("vdim", 8)
    assert flops.dense_forward == pytest.approx(2 * (2 * 5 * 64 + 7 * 8 * width))
    assert flops.unweighted_forward == pytest.approx(2 * (2 * 5 * 7 * 8))


def test_recurrent_layers():
    model = nn.LSTM(6, 4, num_layers=2, batch_first=True, bidirectional=True)
    flops = counter(model, torch.zeros(3, 5, 6))
    assert uses(flops) == dict.fromkeys((n for n, p in model.named_parameters() if p.dim() == 2), 5)
    read = 2 * 16 * 6 * 5 * 2  # the input gradients of the first layer, both directions
    flops.step()
    report = flops.report()
    assert report["dense_flops"] - report["issued_flops"] == read


def test_issued_flops_leave_out_what_nothing_asks_for():
    model = mlp()
    model[2].weight.requires_grad_(False)
    x, _ = batch()
    flops = counter(model, x)
    flops.step()
    one, two = (2 * model[i].weight.numel() for i in (0, 2))
    assert flops.report()["issued_flops"] == 2 * one + 2 * two
    before = [p.requires_grad for p in model.parameters()]
    assert before == [True, True, False, True]


# -- weight masks --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options", "reads", "replaces"),
    [
        (SET, {}, False, False),
        (RigL, {"stop_at": 99}, True, True),
        (MEST, {"first_dense": False}, False, False),
        (MEST, {"first_dense": False, "weight_grad": 1.0}, True, False),
    ],
)
@pytest.mark.parametrize("around", ["sgd", "sam"])
def test_sparse_training_around_sgd_and_sam(method, options, reads, replaces, around):
    model = mlp()
    sgd = around == "sgd"
    opt = SGD(model.parameters(), lr=0.1) if sgd else SAM(model.parameters(), SGD, lr=0.1)
    sparse = method(model, opt, 0.5, update_every=3, **options)
    x, y = batch()
    flops = SparseFlops(model, x, opt, masked=sparse)
    dense, expected, updates = flops.dense_forward, 0.0, 0
    for _ in range(8):
        opt.zero_grad()
        cross_entropy(model(x), y).backward()
        due, passes = sparse.update_due, 1
        replaced = sparse.step()
        assert replaced == (due and replaces)
        if sgd and not replaced:
            opt.step()
        elif not replaced:
            passes = 2
            opt.first_step(zero_grad=True)
            cross_entropy(model(x), y).backward()
            opt.second_step()
        flops.step(2)
        updates += due
        live = sum(2 * n for n in sparse.layer_live.values())
        expected += 2 * (3 * passes * live + (dense - live if due and reads else 0))
    assert updates >= 2
    report = flops.report()
    assert report["theoretical_flops"] == expected
    assert {n: v["live"] for n, v in report["layers"].items()} == sparse.layer_live
    with pytest.raises(ValueError, match="another optimizer"):
        SparseFlops(model, x, SGD(model.parameters(), lr=0.1), masked=sparse)


def test_the_mask_of_the_optimizer_itself():
    model = mlp()
    half = [torch.arange(p.numel()).reshape(p.shape) % 2 == 0 for p in model.parameters()]
    opt = SAM(model.parameters(), SGD, weight_mask=half, interval=2, lr=0.1)
    x, y = batch()
    flops = SparseFlops(model, x, opt)
    for passes in (2, 1, 2):
        cross_entropy(model(x), y).backward()
        if passes == 2:
            opt.first_step()
            opt.second_step()
        else:
            opt.step()
        flops.step()
    assert flops.report()["theoretical_flops"] == 5 * 3 * 2 * (27 + 14)


def test_passes_outside_of_steps():
    model = mlp()
    opt = SGD(model.parameters(), lr=0.1)
    sparse = SET(model, opt, 0.5)
    flops = SparseFlops(model, batch()[0], opt, masked=sparse)
    live, dense = sum(2 * n for n in sparse.layer_live.values()), flops.dense_forward
    flops.count_passes(4, 1, 1)
    flops.count_passes(5, 2, 0, dense=True)
    flops.step(10)
    report = flops.report()
    assert report["theoretical_flops"] == 4 * 3 * live + 5 * 2 * dense + 10 * 3 * live
    assert (report["steps"], report["dense_flops"]) == (1, 30 * dense)


# -- the other columns ---------------------------------------------------------------------------


def test_times_in_parts():
    flops = counter(mlp(), batch()[0])
    flops.step(1, 5.0, {"forward": 1.0, "optimizer": 0.5})
    flops.step(1, parts={"forward": 2.0, "backward": 4.0})
    report = flops.report()
    assert report["measured"] == 11.0
    unknown = "not measured"
    assert report["seconds"] == {
        "forward": 3.0, "backward": 4.0, "fine_step": unknown, "conversion": unknown,
        "optimizer": 0.5,
    }  # fmt: skip
    with pytest.raises(ValueError, match="'prox'"):
        flops.step(1, parts={"prox": 1.0})
    assert flops.report()["steps"] == 2


@pytest.mark.parametrize(
    ("make", "per_weight"),
    [
        (lambda p: SGD(p, lr=0.1), 12),
        (lambda p: SGD(p, lr=0.1, momentum=0.9), 20),
        (lambda p: Adam(p), 28),
        (lambda p: LinBreg(p, reg="l1", lam=0.1), 16),
        (lambda p: LinBreg(p, reg="l1", lam=0.1, momentum=0.9), 24),
        (lambda p: AdaBreg(p, reg="l1", lam=0.1), 32),
        (lambda p: LinBreg(p), 12),
    ],
)
def test_optimizer_bytes_of_a_step(make, per_weight):
    """Section 8: 16 B per weight of LinBreg, 24 with momentum, 32 of AdaBreg."""
    model = mlp()
    opt = make(list(model.parameters()))
    flops = SparseFlops(model, batch()[0], opt)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    opt.step()
    count = sum(p.numel() for p in model.parameters())
    assert flops.report()["optimizer_bytes_per_step"] == per_weight * count


def test_mezo_has_no_bytes_of_an_update_with_gradients():
    model = mlp()
    opt = MeZO(model.parameters(), seed=1)
    assert SparseFlops(model, batch()[0], opt).report()["optimizer_bytes_per_step"] is None


def test_births_and_deaths():
    model = mlp()
    with torch.no_grad():
        model[0].weight.fill_(1.0)[0, :2] = 0.0
    opt = LinBreg(bregman_param_groups(model, lam=0.1), lr=0.1)
    x, _ = batch()
    flops, plain = SparseFlops(model, x, opt, track_support=True), SparseFlops(model, x, opt)
    numel = model[0].weight.numel()
    with torch.no_grad():
        for change in ((0, 0, 1.0), (1, 0, 0.0), (1, 1, 0.0), (1, 0, 2.0)):
            model[0].weight[change[0], change[1]] = change[2]
            flops.step()
    layer = flops.report()["layers"]["0.weight"]
    assert (layer["births"], layer["deaths"]) == (2, 2)
    assert layer["live"] == numel - 2
    other = flops.report()["layers"]["2.weight"]
    assert (other["births"], other["deaths"]) == (0, 0)
    assert plain.report()["layers"]["0.weight"]["births"] == "not counted"
