"""Zero-order steps on a CUDA device: captured graphs, and no waiting for the device."""

import pytest
import torch
from optim_cases import assert_same_bits, batch, cross_entropy, mlp
from sparse_optim import ZOSAM, MeZO
from torch.optim import SGD

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
WARM_UP, REPLAYS = 3, 50


def on_device():
    x, y = batch()
    return mlp().cuda(), x.cuda(), y.cuda()


@pytest.mark.parametrize("distribution", ["normal", "rademacher"])
def test_property_10_a_replayed_graph_draws_new_directions(distribution):
    """50 replays of one captured step of MeZO are 50 steps: the counter advances on the device."""
    eager, x, y = on_device()
    opt = MeZO(eager.parameters(), 0.02, 2, 1e-2, distribution, seed=3, pair_rng=False)
    for _ in range(WARM_UP + REPLAYS):
        opt.step(lambda: cross_entropy(eager(x), y))

    model, x, y = on_device()
    captured = MeZO(model.parameters(), 0.02, 2, 1e-2, distribution, seed=3, pair_rng=False)

    def step():
        return captured.step(lambda: cross_entropy(model(x), y))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for _ in range(REPLAYS):
        graph.replay()
    assert captured.probe_count == opt.probe_count == WARM_UP + REPLAYS
    for p, q in zip(model.parameters(), eager.parameters(), strict=True):
        assert_same_bits(p.detach(), q.detach())


@pytest.mark.parametrize("name", ["ZOSAM", "MeZO"])
@pytest.mark.parametrize("restore", ["exact", "replay"])
def test_property_15_no_step_waits_for_the_device(name, restore):
    model, x, y = on_device()
    shared = {"num_directions": 2, "seed": 3, "restore": restore, "pair_rng": False}
    if name == "ZOSAM":
        opt = ZOSAM(model.parameters(), SGD, 0.1, lr=0.1, momentum=0.9, **shared)
    else:
        opt = MeZO(model.parameters(), 0.02, smoothing=1e-2, **shared)

    def loss():
        return cross_entropy(model(x), y)

    def step():
        if name == "MeZO":
            opt.step(loss)
            return
        opt.probe(loss)
        opt.zero_grad()
        loss().backward()
        opt.step()

    for _ in range(2):  # the first steps build state and tables
        step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(p.isfinite().all() for p in model.parameters())
