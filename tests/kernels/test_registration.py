"""The dispatcher ops: schemas, fakes, torch.compile, version counters, docstring examples."""

from __future__ import annotations

import doctest
import inspect
import shutil
import warnings

import pytest
import torch
from op_samples import cloned, samples, tensors_in
from test_checks import MUTATED, good, lists_of

import sparse_kernels as sk
from sparse_kernels import _schemas, testing
from sparse_kernels._schemas import COMPILED, OPS, REFERENCE, TRITON
from sparse_kernels.testing import assert_bit_equal, targets

NAMESPACES = [COMPILED, REFERENCE]
if "triton" in sk.available_backends():
    NAMESPACES.append(TRITON)
CALLS = [(ns, op, i) for ns in NAMESPACES for op in OPS for i in range(len(samples(op)))]


def overload(namespace, op):
    return getattr(getattr(torch.ops, namespace), op).default


@pytest.mark.parametrize(("namespace", "op", "sample"), CALLS)
def test_opcheck(namespace, op, sample):
    torch.library.opcheck(overload(namespace, op), samples(op)[sample])


@pytest.mark.parametrize(("namespace", "op", "sample"), CALLS)
def test_schema_names_exactly_what_is_mutated(namespace, op, sample):
    arguments = samples(op)[sample]
    before = cloned(arguments)
    function = overload(namespace, op)
    function(*arguments)
    schema = function._schema.arguments
    assert len(schema) >= len(arguments)
    # what a sample leaves out has a default, and is read at most
    assert all(d.has_default_value() for d in schema[len(arguments) :])
    schema = schema[: len(arguments)]
    changed = set()
    for declared, old, new in zip(schema, before, arguments, strict=True):
        pairs = list(zip(tensors_in((old,)), tensors_in((new,)), strict=True))
        if not (declared.alias_info and declared.alias_info.is_write):
            assert_bit_equal([n for _, n in pairs], [o for o, _ in pairs], declared.name)
        elif any(not torch.equal(o, n) for o, n in pairs):
            changed.add(declared.name)
    written = {a.name for a in schema if a.alias_info and a.alias_info.is_write}
    if not dict(zip([a.name for a in schema], arguments, strict=True)).get("readout", True):
        written.remove("params")  # one schema for both: without readout they are only read
    present = {a.name for a, v in zip(schema, arguments, strict=True) if tensors_in((v,))}
    # mask_pack_ and mask_unpack_ rewrite what is there already: the samples hold both sides
    assert changed == (set() if op in ("mask_pack_", "mask_unpack_") else written & present)


@pytest.mark.parametrize("op", OPS)
def test_every_namespace_has_the_same_schema(op):
    texts = {
        ns: str(overload(ns, op)._schema).partition("::")[2] for ns in (COMPILED, REFERENCE, TRITON)
    }
    assert len(set(texts.values())) == 1


@pytest.mark.parametrize(("namespace", "op", "sample"), CALLS)
def test_compiled_op_equals_eager(namespace, op, sample):
    torch._dynamo.reset()
    function = overload(namespace, op)
    eager, traced = cloned(samples(op)[sample]), cloned(samples(op)[sample])
    want = function(*eager)
    got = torch.compile(lambda *a: function(*a), fullgraph=True, backend="aot_eager")(*traced)
    assert_bit_equal(tensors_in(traced), tensors_in(eager), f"arguments of {op}")
    assert (got is None) == (want is None)
    if want is not None:
        assert_bit_equal(got, want, f"result of {op}")


def public_call(op, backend):
    arguments = good(op)

    def call(lists):
        with torch.no_grad():
            return getattr(sk, op)(**{**arguments, **lists}, backend=backend)

    return call, {name: arguments[name] for name in lists_of(op)}


@pytest.mark.parametrize("backend", [t.backend for t in targets("cpu")])
@pytest.mark.parametrize(
    "op", [*MUTATED, "grad_norm", "zo_norm2", "zo_gram", "pack_mask", "unpack_mask"]
)
def test_public_function_traces_in_one_graph(op, backend):
    torch._dynamo.reset()
    call, eager = public_call(op, backend)
    want = call(eager)
    call, traced = public_call(op, backend)
    got = torch.compile(call, fullgraph=True, backend="aot_eager")(traced)
    for name in eager:
        assert_bit_equal(traced[name], eager[name], name)
    if want is not None:
        assert_bit_equal(got, want, f"result of {op}")


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++ on the CPU")
def test_inductor_keeps_the_bits():
    torch._dynamo.reset()

    def step(w, g, saved):
        g = [x * 2.0 for x in g]
        norm = sk.grad_norm(g)
        sk.masked_perturb_(w, g, norm, 0.5, None, saved)
        return norm

    inputs = [[torch.randn(64, 3), torch.randn(5)] for _ in range(3)]
    compiled_inputs = [[t.clone() for t in ts] for ts in inputs]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, at inductor's import
        want = step(*inputs)
        got = torch.compile(step, fullgraph=True)(*compiled_inputs)
    assert_bit_equal(got, want, "norm")
    for after, expected in zip(compiled_inputs, inputs, strict=True):
        assert_bit_equal(after, expected, "lists")


@pytest.mark.parametrize(("op", "name"), [(o, n) for o, names in MUTATED.items() for n in names])
def test_version_counters_advance(op, name, target):
    arguments = good(op)
    read_only = [n for n in lists_of(op) if n not in MUTATED[op]]
    versions = {n: [t._version for t in arguments[n]] for n in lists_of(op)}
    getattr(sk, op)(**arguments, backend=target.backend if target.device == "cpu" else None)
    assert all(t._version > v for t, v in zip(arguments[name], versions[name], strict=True))
    for n in read_only:
        assert [t._version for t in arguments[n]] == versions[n]


def test_version_of_sumsq_advances(target):
    arguments = good("zo_combine_")
    before = arguments["sumsq"]._version
    sk.zo_combine_(**arguments, backend=target.backend if target.device == "cpu" else None)
    assert arguments["sumsq"]._version > before


def test_saved_tensor_that_was_modified_is_noticed(target):
    # what the version counter is for: autograd must refuse a stale tensor
    w = torch.ones(3, requires_grad=True, device=target.device)
    loss = (w * w).sum()
    with torch.no_grad():
        sk.restore_([w], [torch.zeros_like(w)], backend=target.backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inference_mode(target):
    with torch.inference_mode():
        w = torch.ones(3, device=target.device)
        sk.restore_([w], [torch.zeros_like(w)], backend=target.backend)
        assert float(sk.grad_norm([w], backend=target.backend)) == 0.0


FUNCTIONS = [name for name in sk.__all__ if inspect.isfunction(getattr(sk, name))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_example(name):
    function = getattr(sk, name)
    assert inspect.getdoc(function), name
    finder = doctest.DocTestFinder(recurse=False)
    globs = {"torch": torch, **{n: getattr(sk, n) for n in sk.__all__}}
    (test,) = finder.find(inspect.unwrap(function), name, globs=globs)
    if name in MUTATED or name in ("grad_norm", "zo_norm2", "zo_gram", "pack_mask", "unpack_mask"):
        assert test.examples, f"{name} has no example"
    assert doctest.DocTestRunner().run(test).failed == 0


def test_docstring_examples_of_testing():
    assert doctest.testmod(testing).failed == 0


def test_every_op_has_a_fake_and_a_reference():
    assert set(_schemas._FAKES) == set(OPS)
    for op in OPS:
        assert callable(_schemas.reference_function(op))
