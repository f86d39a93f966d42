"""Options on the device: the bits of plain numbers, and steps that ask the host for nothing."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from optim_cases import assert_same_bits, batch, cross_entropy, mlp
from sparse_optim import SAM, AdaBreg, LinBreg, MeZO, ProxSGD, QuantileLambda
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils._python_dispatch import TorchDispatchMode

OPTIMIZERS = {
    "LinBreg": (LinBreg, {"reg": "l1", "momentum": 0.9, "weight_decay": 0.01}),
    "LinBreg ema": (LinBreg, {"reg": "l1_pos", "momentum": 0.9, "momentum_form": "ema"}),
    "LinBreg none": (LinBreg, {"reg": "none"}),
    "AdaBreg": (AdaBreg, {"reg": "l1", "weight_decay": 0.01}),
    "ProxSGD": (ProxSGD, {"reg": "l1", "momentum": 0.9, "nesterov": True}),
}
each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


class NoReads(TorchDispatchMode):
    """Values that come to the host are errors."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            raise AssertionError("a value came to the host")
        return function(*args, **(kwargs or {}))


def tensors(dtype=torch.float32):
    generator = torch.Generator().manual_seed(7)
    shapes = [(9, 6), (9,), (3, 9), (1,)]
    drawn = [torch.randn(shape, generator=generator).abs().to(dtype) for shape in shapes]
    return [torch.nn.Parameter(t) for t in drawn]


def give_gradients(params, step, without=()):
    generator = torch.Generator().manual_seed(100 + step)
    for i, p in enumerate(params):
        grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        p.grad = None if i in without else grad


def make(name, params, **more):
    cls, options = OPTIMIZERS[name]
    lam = {} if options["reg"] == "none" else {"lam": 0.03}
    return cls(params, lr=0.05, **options, **lam, **more)


def assert_same_state(a, b):
    for p, q in zip(a, b, strict=True):
        assert_same_bits(p.detach(), q.detach())


def tensors_of(opt):
    """State tensors by parameter and name, step counts as numbers."""
    found = {}
    for i, p in enumerate(p for g in opt.param_groups for p in g["params"]):
        for key, value in opt.state.get(p, {}).items():
            found[i, key] = int(value) if key == "step" else value
    return found


def assert_same_optimizers(ours, theirs):
    a, b = tensors_of(ours), tensors_of(theirs)
    assert a.keys() == b.keys()
    for key, value in a.items():
        if isinstance(value, torch.Tensor):
            assert_same_bits(value, b[key])
        else:
            assert value == b[key], key


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
@each_optimizer
def test_a_capturable_run_is_the_plain_run(name, kind, backend):
    """Through a schedule, changes of lam and parameters that take no part in some steps."""
    ours, theirs = tensors(kind), tensors(kind)
    a = make(name, ours, capturable=True, backend=backend)
    b = make(name, theirs, backend=backend)
    schedules = [CosineAnnealingLR(a, 8), CosineAnnealingLR(b, 8)]
    for step in range(10):
        without = {3: (1,), 4: (0, 2), 7: (0, 1, 2)}.get(step, ())
        for opt, params, schedule in zip((a, b), (ours, theirs), schedules, strict=True):
            give_gradients(params, step, without)
            opt.step()
            schedule.step()
            if step == 5 and opt.param_groups[0]["reg"] != "none":
                opt.set_lam(0.05)
        assert_same_state(ours, theirs)
        assert a.live_counts() == b.live_counts()
    assert_same_optimizers(a, b)
    assert float(a.param_groups[0]["lr"]) == b.param_groups[0]["lr"]


@each_optimizer
def test_a_capturable_step_reads_nothing(name):
    params = tensors()
    opt = make(name, params, capturable=True)
    for step in range(2):  # the first steps make the state
        give_gradients(params, step)
        opt.step()
    give_gradients(params, 2)
    with NoReads():
        opt.step()
    plain = make(name, params)
    plain.param_groups[0]["lr"] = torch.tensor(0.05)  # what the mode is there to see
    with NoReads(), pytest.raises(AssertionError, match="came to the host"):
        plain.step()


@each_optimizer
def test_numbers_are_read_where_they_were(name):
    """What a captured graph reads keeps its memory through schedules, set_lam and steps."""
    params = tensors()
    opt = make(name, params, capturable=True)
    give_gradients(params, 0)
    opt.step()

    def memory():
        group = opt.param_groups[0]
        held = [group["lr"], group["lam"], *tensors_of(opt).values()]
        own = [s["step"] for s in opt.state.values() if "step" in s]
        return [t.data_ptr() for t in (*held, *own) if isinstance(t, torch.Tensor)]

    before = memory()
    schedule = CosineAnnealingLR(opt, 5)
    if name != "LinBreg none":
        opt.set_lam(0.2)
    opt.sync_from_params()
    give_gradients(params, 1)
    opt.step()
    schedule.step()
    assert memory() == before
    assert opt.param_groups[0]["lr"].dtype == torch.float64


def test_adam_counts_are_shared_until_they_differ():
    params = tensors()
    opt = make("AdaBreg", params, capturable=True)
    give_gradients(params, 0)
    opt.step()
    counts = [opt.state[p]["step"] for p in params]
    assert len({id(c) for c in counts}) == 1
    give_gradients(params, 1, without=(2,))
    opt.step()
    counts = [opt.state[p]["step"] for p in params]
    assert [int(c) for c in counts] == [2, 2, 1, 2]
    assert len({id(c) for c in counts}) == 2


@pytest.mark.parametrize("saved_on_device", [False, True])
@pytest.mark.parametrize("loaded_on_device", [False, True])
@pytest.mark.parametrize("name", ["LinBreg", "AdaBreg", "ProxSGD"])
def test_checkpoints_go_either_way(name, saved_on_device, loaded_on_device):
    params = tensors()
    opt = make(name, params, capturable=saved_on_device)
    for step in range(3):
        give_gradients(params, step, without=(1,) if step == 1 else ())
        opt.step()
    stream = io.BytesIO()
    torch.save(opt.state_dict(), stream)
    stream.seek(0)
    again = [torch.nn.Parameter(p.detach().clone()) for p in params]
    other = make(name, again, capturable=loaded_on_device)
    other.load_state_dict(torch.load(stream, weights_only=True))
    group = other.param_groups[0]
    assert group["capturable"] is loaded_on_device
    assert isinstance(group["lr"], torch.Tensor) is loaded_on_device
    assert isinstance(group["lam"], torch.Tensor) is loaded_on_device
    assert_same_optimizers(opt, other)
    third = copy.deepcopy(other)
    for o, own in ((opt, params), (other, again)):
        give_gradients(own, 9)
        o.step()
    assert_same_state(params, again)
    assert_same_optimizers(opt, other)
    assert int(tensors_of(third).get((0, "step"), 3)) == 3


@pytest.mark.parametrize("cls", [LinBreg, AdaBreg, ProxSGD])
@pytest.mark.parametrize("reg", ["l1_l2", "sparse_group", "nuclear"])
def test_thresholds_of_groups_are_refused(cls, reg):
    groups = {} if reg == "nuclear" else {"groups": "rows"}
    with pytest.raises(ValueError, match=f"capturable=True needs reg in .*{reg}"):
        cls([torch.nn.Parameter(torch.ones(4, 3))], reg=reg, lam=0.1, capturable=True, **groups)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), torch.tensor(-1.0), torch.ones(2)])
@pytest.mark.parametrize("option", ["lr", "lam"])
def test_values_are_checked_when_they_are_given(option, bad):
    with pytest.raises(ValueError, match=option):
        LinBreg(tensors(), reg="l1", capturable=True, **{option: bad})


def test_numbers_assigned_by_hand_move_to_the_device():
    params, others = tensors(), tensors()
    a, b = make("LinBreg", params, capturable=True), make("LinBreg", others)
    for opt, own in ((a, params), (b, others)):
        opt.param_groups[0]["lr"] = 0.125
        give_gradients(own, 0)
        opt.step()
    assert a.param_groups[0]["lr"].dtype == torch.float64
    assert_same_state(params, others)
    a.param_groups[0]["lr"] = torch.ones(3)
    with pytest.raises(ValueError, match="lr must be one number"):
        a.step()


class TestUnderCapture:
    """What the host decides raises; the capture itself is played here."""

    @pytest.fixture(autouse=True)
    def capturing(self, monkeypatch):
        for module in ("_bregman", "_sam", "_base", "_fused_base"):
            monkeypatch.setattr(f"sparse_optim.{module}.is_capturing", lambda: True)

    def refused(self, opt, match):
        params = [p for g in opt.param_groups for p in g["params"]]
        give_gradients(params, 0)
        before = [p.detach().clone() for p in params]
        with pytest.raises(RuntimeError, match=match):
            opt.step()
        assert_same_state(params, before)

    @each_optimizer
    def test_plain_numbers(self, name):
        self.refused(make(name, tensors()), "capturable=True")

    def test_a_cycle(self):
        opt = make("LinBreg", tensors(), capturable=True, coarse_steps=2)
        self.refused(opt, "coarse_steps=0")

    def test_lam_from_the_host(self):
        opt = make("LinBreg", tensors(), capturable=True)
        QuantileLambda(opt, 0.5)
        self.refused(opt, "QuantileLambda")

    @each_optimizer
    def test_a_capturable_step_goes_through(self, name):
        params = tensors()
        give_gradients(params, 0)
        make(name, params, capturable=True).step()

    def test_sam_with_an_interval(self):
        params = tensors()
        opt = SAM(params, SGD, lr=0.1, interval=2)
        give_gradients(params, 0)
        with pytest.raises(RuntimeError, match="interval=1"):
            opt.first_step()

    @pytest.mark.parametrize("base", [SGD, AdamW])
    def test_sam_before_its_state_is_made(self, base):
        """Whether the step is suppressed would come to the host."""
        params = tensors()
        opt = SAM(params, base, lr=0.1)
        give_gradients(params, 0)
        before = [p.detach().clone() for p in params]
        opt.first_step()
        with pytest.raises(RuntimeError, match="CUDA graph"):
            opt.second_step()
        assert_same_state(params, before)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize(
    ("base", "options"),
    [(SGD, {"momentum": 0.9, "weight_decay": 0.1}), (AdamW, {"weight_decay": 0.1})],
)
def test_sam_reads_rho_and_lr_from_tensors(base, options, adaptive, backend):
    ours, theirs = tensors(), tensors()
    lr, rho = (torch.zeros((), dtype=torch.float64) for _ in range(2))
    lr.fill_(0.1)
    shared = {"adaptive": adaptive, "backend": backend, **options}
    a = SAM(ours, base, rho=rho, lr=lr, **shared)
    b = SAM(theirs, base, rho=0.0, lr=0.1, **shared)
    for step in range(4):
        lr.fill_(0.1 / (step + 1))
        rho.fill_(0.05 * (step + 1))
        b.param_groups[0].update(lr=float(lr), rho=float(rho))
        for opt, params in ((a, ours), (b, theirs)):
            give_gradients(params, step)
            opt.first_step()
            give_gradients(params, 50 + step)
            opt.second_step()
        assert_same_state(ours, theirs)


@pytest.mark.parametrize("restore", ["exact", "replay"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("groups", [1, 2])
def test_mezo_reads_lr_from_a_tensor(restore, decay, groups):
    x, y = batch()
    models = [mlp(), mlp()]
    made = []
    for model, capturable in zip(models, (True, False), strict=True):
        params = list(model.parameters())
        given = [{"params": params[:2]}, {"params": params[2:], "lr": 0.005}][:groups]
        given[0]["params"] = params if groups == 1 else params[:2]
        made.append(
            MeZO(given, 0.02, 2, 1e-2, weight_decay=decay, seed=3, restore=restore,
                 capturable=capturable)
        )  # fmt: skip
    schedules = [CosineAnnealingLR(opt, 4) for opt in made]
    for _ in range(3):
        for opt, model, schedule in zip(made, models, schedules, strict=True):
            opt.step(lambda model=model: cross_entropy(model(x), y))
            schedule.step()
        assert_same_state(models[0].parameters(), models[1].parameters())
    saved = made[1].state_dict()
    made[0].load_state_dict(saved)
    assert made[0].param_groups[0]["capturable"] is True
    assert float(made[0].param_groups[0]["lr"]) == made[1].param_groups[0]["lr"]


def test_a_capturable_mezo_step_reads_nothing():
    x, y = batch()
    model = mlp()
    opt = MeZO(model.parameters(), 0.02, 2, 1e-2, seed=3, capturable=True, pair_rng=False)

    def loss():
        return cross_entropy(model(x), y)

    opt.step(loss)
    with NoReads():
        opt.step(loss)


def test_mezo_refuses_what_records_numbers():
    with pytest.raises(ValueError, match="replay_log"):
        MeZO(tensors(), capturable=True, replay_log=True)
    opt = MeZO(tensors(), capturable=True)
    with pytest.raises(ValueError, match="capturable must be the same"):
        opt.add_param_group({"params": tensors(), "capturable": False})
