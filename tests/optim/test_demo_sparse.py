"""Sparse training methods in the demo's runs: counts, schedules, rewinding, FLOPs."""

from __future__ import annotations

import math

import pytest
import torch
from demo_cases import few_digits, new_run, train
from sparse_optim import layer_counts, live_count
from sparse_optim.demo import data, sparse

WEIGHTS = 25_866 - 122  # convolution and linear weights of the CNN, without its biases


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return few_digits()


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("method", sparse.METHODS[1:])
def test_sparse_methods_keep_their_counts(method, backend, digits):
    run = new_run(digits, "sgd", backend=backend, sparse_method=method, weight_sparsity=0.75)
    first = run.sparse.scheduler.mask
    train(run, 2)
    scheduler = run.sparse.scheduler
    live = live_count(WEIGHTS, 0.75)
    assert scheduler.mask.live == pytest.approx(live, abs=2 if method in ("lth", "mest") else 0)
    for p, exists in zip(scheduler.weights.values(), scheduler.mask.to_bool(), strict=True):
        assert not p[~exists].any()
    assert run.sparsity() >= 100.0 * (1 - scheduler.mask.live / WEIGHTS)
    # updates in steps 1 to 5 of 8 (RigL's last time 6 is excluded), MEST's also at time 0, GMP's at
    # its last time
    assert scheduler.updates == {"snip": 1, "grasp": 1, "lth": 3, "mest": 6, "gmp": 6}.get(
        method, 5
    )
    assert (scheduler.mask == first) == (method in ("snip", "grasp"))


@pytest.mark.parametrize(("given", "acts"), [(None, "erk"), ("er", "er"), ("uniform", "uniform")])
def test_weight_distribution(given, acts, digits):
    more = {} if given is None else {"weight_distribution": given}
    run = new_run(digits, "sam", sparse_method="set", weight_sparsity=0.8, **more)
    scheduler = run.sparse.scheduler
    shapes = {n: p.shape for n, p in scheduler.weights.items()}
    assert scheduler.layer_live == layer_counts(shapes, 0.8, acts, first_dense=False)


def test_rigl_takes_the_place_of_a_step(digits):
    """Around every optimizer; ZO-SAM hands over its gradients at w + e and is idle afterwards."""
    for optimizer in ("sgd", "sam", "ssam", "zosam"):
        run = new_run(digits, optimizer, sparse_method="rigl", weight_sparsity=0.5)
        run.start_epoch(torch.Generator().manual_seed(0))
        scheduler = run.sparse.scheduler
        assert scheduler.update_due
        assert run.sparse.wants_perturbed == (optimizer == "zosam")
        before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
        run.step(digits.train.images[:40], digits.train.labels[:40])
        assert scheduler.updates == 1
        exists = dict(zip(scheduler.weights, scheduler.mask.to_bool(), strict=True))
        for name, p in run.model.named_parameters():
            kept = exists.get(name, torch.ones(p.shape, dtype=torch.bool))
            assert torch.equal(p[kept], before[name][kept]), (optimizer, name)
        run.step(digits.train.images[:40], digits.train.labels[:40])


def test_lottery_ticket_rewinds_and_starts_its_schedule_again(digits):
    run = new_run(digits, "ssam", steps=16, sparse_method="lth", weight_sparsity=0.875)
    start = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    rates = []
    for epoch in range(4):
        run.start_epoch(generator)
        scheduler = run.sparse.scheduler
        assert scheduler.level == epoch
        # halved three times: 1 - 0.875 = 0.5 ** 3
        assert scheduler.mask.live == pytest.approx(WEIGHTS * 0.5**epoch, abs=2)
        for name, p in run.model.named_parameters():
            assert torch.equal(p[p != 0], start[name][p != 0]), name
        # what is perturbed was chosen among the weights that are left
        alive = 122 + scheduler.mask.live
        assert sum(int(m.sum()) for m in run.masks().values()) == live_count(alive, 0.5)
        for images, labels in data.epoch_batches(digits.train, 40, generator):
            run.step(images, labels)
            rates.append(run.optimizer.param_groups[0]["lr"])
    expected = [0.05 * 0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)] * 4
    assert rates == pytest.approx(expected)


def test_lottery_rounds_need_not_be_epochs(digits):
    run = new_run(digits, "sgd", steps=10, sparse_method="lth", weight_sparsity=0.5)
    assert [run.sparse.progress(i) for i in (0, 1, 2, 4, 5, 6, 7, 9)] == pytest.approx(
        [0, 1 / 2, 0, 2 / 3, 0, 1 / 2, 0, 2 / 3]
    )
    levels = []
    for _ in range(10):
        run.step(digits.train.images[:40], digits.train.labels[:40])
        levels.append(run.sparse.scheduler.level)
    assert levels == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]


@pytest.mark.parametrize(
    ("optimizer", "options", "forwards", "backwards"),
    [
        ("sam", {"interval": 2}, 1.5, 1.5),
        ("ssam", {"mask": "dynamic"}, 2, 2),
        ("ssam", {"form": "implicit"}, 2.8, 2.8),  # 128 mask samples per epoch of 160
        ("zosam", {"interval": 2}, 2, 1),  # every second step does without its two probes
        ("mezo", {"num_directions": 2, "forward_difference": True}, 3, 0),
        ("mezo-eager", {}, 2, 0),
    ],
)
def test_flops_of_all_passes(digits, optimizer, options, forwards, backwards):
    run = new_run(digits, optimizer, **options)
    train(run, 1)
    theory, issued = run.flops_percent()
    assert theory == pytest.approx(100.0 * (forwards + 2 * backwards) / 3)
    first = run.flops.layers[0].dense / run.flops.dense_forward  # images need no gradient
    assert theory - issued == pytest.approx(100.0 * backwards * first / 3)
    report = run.flops.report()
    assert report["measured"] == pytest.approx(sum(run.step_seconds))
    assert report["seconds"]["optimizer"] == pytest.approx(sum(run.seconds))
    assert report["seconds"]["forward"] == "not measured"


@pytest.mark.parametrize("optimizer", ["sgd", "sam", "zosam"])
@pytest.mark.parametrize("method", sparse.METHODS[1:])
def test_flops_of_sparse_methods(digits, method, optimizer):
    run = new_run(digits, optimizer, sparse_method=method, weight_sparsity=0.75)
    dense, expected, steps = run.flops.dense_forward, 0.0, []
    scheduler = run.sparse.scheduler

    def count(own=run.step):
        def step(samples, labels):
            updates = scheduler.updates
            loss = own(samples, labels)
            live = dict(zip(scheduler.weights, scheduler.mask.popcount(), strict=True))
            f_live = sum(2.0 * x.uses * live[x.name] for x in run.flops.layers)
            grows = method == "rigl" and scheduler.updates > updates
            passes = {"sgd": 3, "sam": 3 if grows else 6, "zosam": 5}[optimizer]
            steps.append(passes * f_live + (dense - f_live if grows else 0.0))
            return loss

        return step

    run.step = count()
    train(run, 2)
    expected = 40 * sum(steps)
    # SNIP: the gradient of 128 samples; GraSP: a gradient, another and the gradient of that
    expected += dense * {"snip": 3 * 128, "grasp": 12 * len_balanced(digits)}.get(method, 0)
    assert run.flops_percent()[0] == pytest.approx(100.0 * expected / (3 * dense * 40 * len(steps)))
    assert len(steps) == 8


def len_balanced(digits):
    return 10 * min(sparse.GRASP_PER_CLASS, int(digits.train.labels.bincount().min()))
