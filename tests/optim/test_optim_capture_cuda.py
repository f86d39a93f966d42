"""Captured graphs on a CUDA device: 50 replays of a step are 50 steps, and none waits for it."""

import pytest
import torch
from optim_cases import assert_same_bits, batch, cross_entropy, mlp
from sparse_optim import SAM, AdaBreg, LinBreg, MeZO, ProxSGD
from torch.optim import SGD, AdamW

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
WARM_UP, REPLAYS = 3, 50
BREGMAN = {
    "LinBreg": (LinBreg, {"reg": "l1", "momentum": 0.9}),
    "AdaBreg": (AdaBreg, {"reg": "l1", "weight_decay": 0.01}),
    "ProxSGD": (ProxSGD, {"reg": "l1", "momentum": 0.9}),
}
SAM_BASES = {
    "SGD": (SGD, {"momentum": 0.9, "weight_decay": 0.01}),
    "AdamW": (AdamW, {"capturable": True}),
}
STEPS = (*BREGMAN, *(f"SAM {name}" for name in SAM_BASES), "MeZO")
BACKENDS = ("auto", "triton")


class Run:
    """A model, its optimizer and one whole training step, with every option on the device."""

    def __init__(self, name, backend):
        x, y = batch()
        self.x, self.y = x.cuda(), y.cuda()
        self.model = mlp().cuda()
        params = list(self.model.parameters())
        self.name, options = name, {"backend": backend}
        if name in BREGMAN:
            cls, own = BREGMAN[name]
            self.opt = cls(params, lr=0.02, lam=0.01, capturable=True, **own, **options)
        elif name == "MeZO":
            self.opt = MeZO(
                params, 0.02, 2, 1e-2, seed=3, pair_rng=False, capturable=True, **options
            )
        else:
            base, own = SAM_BASES[name.removeprefix("SAM ")]
            lr, rho = torch.tensor(0.02, device="cuda"), torch.tensor(0.05, device="cuda")
            self.opt = SAM(params, base, rho=rho, lr=lr, **own, **options)

    def loss(self):
        return cross_entropy(self.model(self.x), self.y)

    def backward(self):
        for p in self.model.parameters():
            if p.grad is not None:
                p.grad.zero_()
        self.loss().backward()

    def step(self):
        if self.name == "MeZO":
            self.opt.step(self.loss)
            return
        self.backward()
        if self.name.startswith("SAM"):
            self.opt.first_step()
            self.backward()
            self.opt.second_step()
        else:
            self.opt.step()

    def change(self, i):
        """What a schedule does between two steps, with no word to the graph."""
        group = self.opt.param_groups[0]
        group["lr"].fill_(0.02 / (1 + i % 5))
        if self.name in BREGMAN:
            group["lam"].fill_(0.01 * (1 + i % 3))
        if self.name.startswith("SAM"):
            group["rho"].fill_(0.05 * (1 + i % 4))

    def warm_up(self):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self.step()
        torch.cuda.current_stream().wait_stream(side)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", STEPS)
def test_replays_are_steps(name, backend):
    eager, captured = Run(name, backend), Run(name, backend)
    eager.warm_up()
    captured.warm_up()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()
    for i in range(REPLAYS):
        eager.change(i)
        captured.change(i)
        eager.step()
        graph.replay()
    pairs = zip(captured.model.parameters(), eager.model.parameters(), strict=True)
    for p, q in pairs:
        assert_same_bits(p.detach(), q.detach())
    if name in BREGMAN:
        assert captured.opt.live_counts() == eager.opt.live_counts()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", STEPS)
def test_no_step_waits_for_the_device(name, backend):
    run = Run(name, backend)
    for _ in range(WARM_UP):
        run.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for i in range(3):
            run.change(i)
            run.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(p.isfinite().all() for p in run.model.parameters())


@pytest.mark.parametrize("name", [*BREGMAN, "SAM AdamW"])
def test_a_capture_that_would_keep_numbers_of_the_host_raises(name):
    run = Run(name, "auto")
    run.warm_up()
    if name in BREGMAN:
        for group in run.opt.param_groups:
            group["capturable"] = False
    else:
        for state in run.opt.state.values():
            state["step"] = state["step"].cpu()
    graph, match = torch.cuda.CUDAGraph(), "capturable=True|CUDA graph"
    with pytest.raises(RuntimeError, match=match), torch.cuda.graph(graph):
        run.step()
