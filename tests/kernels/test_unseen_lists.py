"""Lists that Python leaves to the compiled op's own checks."""

from __future__ import annotations

import pytest
import torch
from test_checks import MUTATED, good

import sparse_kernels as sk
from sparse_kernels import _check, _group
from sparse_kernels.functional import bregman_step
from sparse_kernels.testing import assert_bit_equal, copy_of

STEPS = ("grad_norm", "masked_perturb_", "restore_", "restore_sgd_", "restore_adamw_",
         "zo_combine_", "zo_norm2", "zo_gram", "linbreg_step_", "adabreg_step_",
         "mask_apply_")  # fmt: skip

needs_cpp = pytest.mark.skipif("cpp" not in sk.available_backends(), reason="no compiled kernels")


@needs_cpp
@pytest.mark.parametrize("op", STEPS)
def test_the_usual_call_asks_no_tensor_in_python(op, monkeypatch):
    def looked(*args):
        raise AssertionError("a list was looked at")

    with monkeypatch.context() as patched:
        patched.setattr(_check, "_one_group", looked)
        patched.setattr(_check, "_check_by_tensor", looked)
        getattr(sk, op)(**good(op), backend="cpp")
        with pytest.raises(AssertionError, match="looked at"):
            getattr(sk, op)(**good(op), backend="reference")


@needs_cpp
@pytest.mark.parametrize("op", STEPS)
def test_a_refusal_is_explained_after_the_kernel_refused(op, monkeypatch):
    arguments = good(op)
    lead = next(iter(arguments))
    others = [k for k, v in arguments.items() if k != lead and isinstance(v, list)]
    name = next(k for k in others if isinstance(arguments[k][0], torch.Tensor))
    arguments[name] = [arguments[name][0], arguments[name][1].flatten()[:-1]]
    runs = []
    run = _group.Group.run

    def counted(group, *args):
        runs.append(group.unseen)
        return run(group, *args)

    monkeypatch.setattr(_group.Group, "run", counted)
    with pytest.raises(ValueError, match=name):
        getattr(sk, op)(**arguments, backend="cpp")
    assert runs == [True]


def test_a_failure_that_is_no_refusal_is_not_tried_again(monkeypatch):
    calls = []

    def failing(*args):
        calls.append(args)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(_check, "resolved", lambda *args: ("cpp", failing))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        sk.grad_norm([torch.ones(3)])
    assert len(calls) == 1


@needs_cpp
def test_an_error_after_an_op_ran_is_not_tried_again(monkeypatch):
    """It may have written."""
    runs = []

    def failing(lists):
        runs.append(1)
        raise ValueError("afterwards")

    monkeypatch.setattr(bregman_step, "bump_versions", failing)
    w, v = torch.zeros(3), torch.zeros(3)
    with pytest.raises(ValueError, match="afterwards"):
        sk.linbreg_step_([w], [torch.ones(3)], [v], lr=0.5, lam=0.25, backend="cpp")
    assert len(runs) == 1
    assert v.tolist() == [-0.5] * 3  # once


@pytest.mark.parametrize(
    "dtypes", [(torch.float32, torch.bfloat16), (torch.float64, torch.float32)]
)
def test_calls_that_must_be_split_are_split(dtypes):
    """Mixed dtypes, and a tensor that is not contiguous: what the kernel refuses is regrouped."""
    torch.manual_seed(0)
    params = [torch.randn(6, 4).to(dtypes[0]), torch.randn(4, 6).to(dtypes[1]).t()]
    grads = [torch.randn(6, 4).to(d) for d in dtypes]
    kinds = [torch.float64 if d == torch.float64 else torch.float32 for d in dtypes]
    duals = [torch.randn(6, 4).to(k) for k in kinds]
    found = []
    for backend in sk.available_backends():
        p, v = copy_of(params), copy_of(duals)
        live = sk.linbreg_step_(p, grads, v, lr=0.5, lam=0.25, backend=backend)
        found.append((*p, *v, live))
    for other in found[1:]:
        assert_bit_equal(list(other), list(found[0]), "backends")


@needs_cpp
@pytest.mark.parametrize("op", [op for op in MUTATED if op in STEPS])
def test_the_ops_themselves_refuse_memory_written_twice(op, monkeypatch):
    """Also where they are called without the wrapper."""
    arguments = good(op)
    seen = []
    resolved = _check.resolved

    def recorded(*args):
        backend, function = resolved(*args)

        def call(*inputs):
            seen.append((function, inputs))
            return function(*inputs)

        return backend, call

    monkeypatch.setattr(_check, "resolved", recorded)
    getattr(sk, op)(**arguments, backend="cpp")
    function, inputs = seen[0]
    first = inputs[0]
    twice = [first[0], first[0]]
    same = [
        [x[0], x[0]] if isinstance(x, list) and len(x) == 2 and torch.is_tensor(x[0]) else x
        for x in inputs[1:]
    ]
    with pytest.raises(RuntimeError, match=f"{op}: two of the tensors"):
        function(twice, *same)
