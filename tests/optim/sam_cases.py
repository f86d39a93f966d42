"""Injected gradients, small parameters and recorded operator calls for the tests of SAM."""

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

OURS = ("sparse_kernels", "sparse_kernels_reference", "sparse_kernels_triton")


class OurCalls(TorchDispatchMode):
    """Names of the operators of this package that are called inside the block, in order."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in OURS:
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


def make_params(shapes=((7, 5), (33,)), dtype=torch.float32, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def draw(params, steps, seed=4):
    """``steps`` pairs (g1, g2) of lists of gradients."""
    generator = torch.Generator().manual_seed(seed)

    def one():
        return [torch.randn(p.shape, generator=generator).to(p.dtype) for p in params]

    return [(one(), one()) for _ in range(steps)]


def inject(params, grads):
    """Set ``.grad`` to copies; None stays None."""
    for p, g in zip(params, grads, strict=True):
        p.grad = None if g is None else g.clone()


def injected_step(opt, params, first, second):
    inject(params, first)
    opt.first_step(zero_grad=True)
    inject(params, second)
    opt.second_step(zero_grad=True)


def random_masks(params, density=0.5, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(p.shape, generator=generator) < density for p in params]


def is_positive_zero(tensor):
    """Where the bits are those of +0.0."""
    return (tensor == 0) & ~torch.signbit(tensor)
