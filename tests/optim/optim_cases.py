"""Models, data and comparisons shared by the optimizer tests."""

import io

import torch
from sparse_optim import sparse_init_
from torch import nn

from sparse_kernels.reference import philox

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
_INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}
cross_entropy = nn.functional.cross_entropy


def mlp(seed=1, dtype=torch.float32, norm=False, dropout=0.0):
    """A small classifier of 6 inputs and 3 classes."""
    generator = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(6, 9)]
    layers += [nn.BatchNorm1d(9)] if norm else []
    layers += [nn.ReLU()]
    layers += [nn.Dropout(dropout)] if dropout else []
    model = nn.Sequential(*layers, nn.Linear(9, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.4)
    return model.to(dtype)


def batch(seed=2, n=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator).to(dtype)
    return x, torch.randint(3, (n,), generator=generator)


def bits(tensor):
    return tensor.detach().clone().view(_INTEGER[tensor.element_size()])


def assert_same_bits(a, b):
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    assert torch.equal(bits(a), bits(b))


def assert_same_params(a, b):
    """Equal by value, bit for bit but for the sign of zero."""
    a = list(a.parameters()) if isinstance(a, nn.Module) else list(a)
    b = list(b.parameters()) if isinstance(b, nn.Module) else list(b)
    assert len(a) == len(b)
    for p, q in zip(a, b, strict=True):
        assert torch.equal(p, q), (p - q).abs().max()


def planted(dtype, numel=40):
    """A parameter with NaN payloads, infinities, denormals and both zeros among its values."""
    p = torch.randn(numel).to(dtype)
    raw = p.view(_INTEGER[p.element_size()])
    quiet = torch.tensor(float("nan"), dtype=dtype).view(raw.dtype)
    raw[0] = quiet | 5  # a payload
    raw[1] = 1  # the smallest denormal
    p[2], p[3], p[4], p[5] = float("inf"), float("-inf"), -0.0, 0.0
    return p.requires_grad_()


def through_disk(state):
    """The state dict as ``torch.load(weights_only=True)`` gives it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def clone_grads(model):
    return [p.grad.clone() for p in model.parameters()]


def train_sam(model, opt, steps=6):
    x, y = batch()
    for _ in range(steps):
        cross_entropy(model(x), y).backward()
        opt.first_step(zero_grad=True)
        cross_entropy(model(x), y).backward()
        opt.second_step(zero_grad=True)
    return model


def full_masks(model, value):
    return [torch.full(p.shape, value, dtype=torch.bool) for p in model.parameters()]


def perturbation(opt, params, grads):
    """e in float64, from injected gradients."""
    before = [p.detach().double().clone() for p in params]
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()
    opt.first_step()
    e = [p.detach().double() - b for p, b in zip(params, before, strict=True)]
    opt.restore()
    return e


def norm_of(tensors):
    return torch.cat([t.double().reshape(-1) for t in tensors]).norm()


def shrink(v, lam):
    return v - v.clamp(-lam, lam)


def zero_param(n=1, dtype=torch.float64):
    return nn.Parameter(torch.zeros(n, dtype=dtype))


def run(opt, p, gradient, steps):
    """Steps with ``gradient(p)``; the list of parameter values after each."""
    seen = []
    for _ in range(steps):
        p.grad = gradient(p.detach()).to(p.dtype)
        opt.step()
        seen.append(p.detach().clone())
    return torch.stack(seen)


def birth(values):
    """Number of the first step after which the (single) entry is not zero."""
    alive = (values.reshape(len(values)) != 0).nonzero()
    return int(alive[0]) + 1 if len(alive) else None


def train_plain(model, opt, steps, data=None):
    x, y = batch() if data is None else data
    for _ in range(steps):
        opt.zero_grad()
        cross_entropy(model(x), y).backward()
        opt.step()
    return model


def sparse_model(density=0.3, dtype=torch.float32):
    model = mlp()
    sparse_init_(model, density, generator=torch.Generator().manual_seed(1))
    return model.to(dtype)


def directions(probe, uid, numel, m, distribution="normal", rounds=10):
    """z of one parameter in float64, [m, numel], by the reference stream."""
    key = probe.key
    draw = philox.DISTRIBUTIONS[distribution]
    return torch.stack([draw(key, uid, i, 0, numel, rounds).double() for i in range(m)])


def loop_oracle(model, x, y):
    """Sum of squared gradients over samples of one, by plain autograd."""
    model.eval()
    total = [torch.zeros(p.shape, dtype=torch.float64) for p in model.parameters()]
    for i in range(len(x)):
        loss = cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        grads = torch.autograd.grad(loss, model.parameters())
        for t, g in zip(total, grads, strict=True):
            t += g.double().square()
    model.train()
    return total


def sorted_oracle(scores, k):
    """Score descending, index ascending, NaN last, -0.0 equal to 0.0."""
    flat = torch.cat([s.reshape(-1) for s in scores]).tolist()

    def rank(i):
        nan = flat[i] != flat[i]
        return nan, 0.0 if nan else -flat[i], i

    order = sorted(range(len(flat)), key=rank)
    chosen = torch.zeros(len(flat), dtype=torch.bool)
    chosen[order[:k]] = True
    return chosen
