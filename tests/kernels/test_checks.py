"""Bad input: the same words on every backend, and nothing modified."""

from __future__ import annotations

import pytest
import torch

import sparse_kernels as sk
from sparse_kernels.testing import assert_bit_equal, copy_of


def ones(*shape, **options):
    return torch.ones(*shape, **options)


def words(n):
    return torch.zeros(-(-n // 32), dtype=torch.int32)


def good(op):
    """Arguments of a valid call: two tensors of 4 and 40 elements, every optional list given."""
    two = [ones(4), ones(5, 8)]
    lists = {name: copy_of(two) for name in ("a", "b", "c", "d", "e")}
    bits = [words(4), words(40)]
    if op == "grad_norm":
        return {"grads": lists["a"], "masks": bits, "weights": lists["b"], "eta": 0.5}
    if op == "masked_perturb_":
        return {"params": lists["a"], "grads": lists["b"], "norm": ones(()), "rho": 0.5,
                "masks": bits, "backup": lists["c"]}  # fmt: skip
    if op == "restore_":
        return {"params": lists["a"], "backup": lists["b"], "masks": bits}
    if op == "restore_sgd_":
        return {"params": lists["a"], "grads": lists["b"], "backup": lists["c"], "lr": 0.1,
                "momentum": 0.5, "momentum_buffers": lists["d"], "masks": bits,
                "skip": torch.zeros(()), "inv_scale": ones(())}  # fmt: skip
    if op == "restore_adamw_":
        return {"params": lists["a"], "grads": lists["b"], "backup": lists["c"], "lr": 0.1,
                "exp_avgs": lists["d"], "exp_avg_sqs": lists["e"], "step_sizes": ones(2),
                "bias2_sqrts": ones(2), "masks": bits, "skip": torch.zeros(()),
                "inv_scale": ones(())}  # fmt: skip
    if op == "mask_apply_":
        return {"tensors": lists["a"], "masks": bits}
    if op == "mask_topk":
        return {"scores": lists["a"], "k": 2, "among": bits, "out": copy_of(bits)}
    if op == "mask_nm":
        return {"scores": [ones(2, 2), ones(5, 8)], "n": 2, "m": 4}
    if op in ("count_ones", "mask_ranks"):
        return {"masks": bits}
    if op == "zo_combine_":
        return {"tensors": lists["a"], "coef": [1.0, 2.0], "seed": 1, "src": lists["b"],
                "mask": bits, "backup": lists["c"], "directions": [0, 1], "uids": [0, 1],
                "sumsq": torch.zeros((), dtype=torch.float64)}  # fmt: skip
    if op == "zo_norm2":
        return {"tensors": lists["a"], "coef": [1.0], "seed": 1, "mask": bits}
    if op == "zo_gram":
        return {"tensors": lists["a"], "num_directions": 2, "seed": 1, "mask": bits}
    if op == "linbreg_step_":
        return {"params": lists["a"], "grads": lists["b"], "duals": lists["c"], "lr": 0.1,
                "lam": 0.1, "momentum": 0.5, "momentum_buffers": lists["d"],
                "active": bits}  # fmt: skip
    if op == "adabreg_step_":
        counts = [t.int() for t in two]
        return {"params": lists["a"], "grads": lists["b"], "duals": lists["c"], "lr": 0.1,
                "lam": 0.1, "exp_avgs": lists["d"], "exp_avg_sqs": lists["e"], "step": 1,
                "counts": counts, "active": bits}  # fmt: skip
    if op == "pack_mask":
        return {"masks": [t > 0 for t in two]}
    return {"words": bits, "shapes": [(4,), (5, 8)]}


OPS = ("grad_norm", "masked_perturb_", "restore_", "restore_sgd_", "restore_adamw_", "zo_combine_",
       "zo_norm2", "zo_gram", "linbreg_step_", "adabreg_step_", "mask_apply_", "mask_topk",
       "mask_nm", "count_ones", "mask_ranks", "pack_mask", "unpack_mask")  # fmt: skip
MUTATED = {
    "masked_perturb_": ("params", "backup"),
    "restore_": ("params",),
    "restore_sgd_": ("params", "momentum_buffers"),
    "restore_adamw_": ("params", "exp_avgs", "exp_avg_sqs"),
    "mask_apply_": ("tensors",),
    "mask_topk": ("out",),
    "zo_combine_": ("tensors", "backup"),
    "linbreg_step_": ("params", "duals", "momentum_buffers"),
    "adabreg_step_": ("params", "duals", "exp_avgs", "exp_avg_sqs", "counts"),
}
WORDS = ("masks", "mask", "active", "words", "among", "out")
#: the list every other one is compared with
LEAD = {op: next(iter(good(op))) for op in OPS}
REQUIRED = {
    "grad_norm": ("grads",), "masked_perturb_": ("params", "grads"),
    "restore_": ("params", "backup"), "restore_sgd_": ("params", "grads", "backup"),
    "restore_adamw_": ("params", "grads", "backup", "exp_avgs", "exp_avg_sqs"),
    "zo_combine_": ("tensors",), "zo_norm2": ("tensors",), "zo_gram": ("tensors",),
    "linbreg_step_": ("params", "grads"),
    "adabreg_step_": ("params", "grads", "exp_avgs", "exp_avg_sqs"),
    "mask_apply_": ("tensors", "masks"), "mask_topk": ("scores",), "mask_nm": ("scores",),
    "count_ones": ("masks",), "mask_ranks": ("masks",), "pack_mask": ("masks",),
    "unpack_mask": ("words",),
}  # fmt: skip


def lists_of(op):
    return [
        k for k, v in good(op).items() if isinstance(v, list) and isinstance(v[0], torch.Tensor)
    ]


def refused(op, arguments, error=ValueError):
    """The message of the refusal, the same on every backend; asserts that nothing was modified."""
    messages = set()
    for backend in sk.available_backends():
        listed = [t for v in arguments.values() if isinstance(v, list) for t in v]
        dense = [t for t in listed if isinstance(t, torch.Tensor) and t.layout == torch.strided]
        tensors = [t.detach() for t in dense if not t.is_meta]
        before, versions = copy_of(tensors), [t._version for t in tensors]
        with pytest.raises(error) as caught:
            getattr(sk, op)(**arguments, backend=backend)
        messages.add(str(caught.value))
        assert_bit_equal(tensors, before, "arguments")
        assert [t._version for t in tensors] == versions
    assert len(messages) == 1, messages
    message = messages.pop()
    assert message.startswith(f"{op}: "), message
    assert "\n" not in message
    return message


def replaced(op, name, index, tensor):
    arguments = good(op)
    arguments[name] = list(arguments[name])
    arguments[name][index] = tensor
    return arguments


@pytest.mark.parametrize("op", OPS)
def test_the_valid_call_is_valid(op, target):
    if target.device == "cpu":
        getattr(sk, op)(**good(op), backend=target.backend)


ALL_LISTS = [(op, name) for op in OPS for name in lists_of(op)]


@pytest.mark.parametrize(("op", "name"), ALL_LISTS)
def test_not_a_list_of_tensors(op, name):
    for wrong, kind in ((ones(2, 4), "Tensor"), ((t for t in ()), "generator"), ("ab", "str")):
        message = refused(op, {**good(op), name: wrong})
        assert message == f"{op}: {name} must be a list or tuple of tensors, got {kind}"
    message = refused(op, replaced(op, name, 1, [1.0]))
    assert message == f"{op}: {name}[1] must be a tensor, got list"
    message = refused(op, replaced(op, name, 1, torch.eye(8).to_sparse()))
    assert message.startswith(f"{op}: {name}[1] must be dense")


@pytest.mark.parametrize(("op", "name"), [(op, n) for op in OPS for n in REQUIRED[op]])
def test_required_list_is_absent(op, name):
    message = refused(op, {**good(op), name: None})
    assert message == f"{op}: {name} must be a list or tuple of tensors, got NoneType"


@pytest.mark.parametrize(("op", "name"), [(o, n) for o, n in ALL_LISTS if n != LEAD[o]])
def test_length_size_shape_dtype_and_device(op, name):
    lead = LEAD[op]
    value = good(op)[name]
    message = refused(op, {**good(op), name: value[:1]})
    assert message == f"{op}: {name} has 1 tensors, {lead} has 2"
    if name in WORDS:
        message = refused(op, replaced(op, name, 1, words(80)))
        assert message == f"{op}: {name}[1] has 3 words, the mask of {lead}[1] (40 elements) has 2"
    else:
        small = value[1].reshape(-1)[:39]
        message = refused(op, replaced(op, name, 1, small))
        assert message == f"{op}: {name}[1] has 39 elements, {lead}[1] has 40"
        message = refused(op, replaced(op, name, 1, value[1].t().contiguous()))
        assert message == f"{op}: {name}[1] has shape (8, 5), {lead}[1] has (5, 8)"
    other = torch.int64 if value[1].dtype == torch.int32 else torch.bfloat16
    message = refused(op, replaced(op, name, 1, value[1].to(other)))
    assert message == f"{op}: {name}[1] is {other}, expected {value[1].dtype} to go with {lead}[1]"
    message = refused(op, replaced(op, name, 1, value[1].to("meta")))
    assert message == f"{op}: {name}[1] is on meta, {lead}[1] is on cpu"


#: what they take is not of a floating dtype
OF_MASKS = ("pack_mask", "unpack_mask", "count_ones", "mask_ranks")


@pytest.mark.parametrize("op", [o for o in OPS if o not in OF_MASKS])
def test_dtype_of_the_first_list(op):
    for dtype in (torch.int32, torch.bool, torch.complex64):
        message = refused(op, replaced(op, LEAD[op], 1, ones(5, 8).to(dtype)))
        assert message == (
            f"{op}: {LEAD[op]}[1] is {dtype}, expected one of float32, bfloat16, float16, float64"
        )


def test_dtype_of_masks_and_shapes_to_unpack():
    message = refused("pack_mask", {"masks": [ones(4) > 0, ones(4)]})
    assert message == "pack_mask: masks[1] is torch.float32, expected torch.bool"
    for op in ("count_ones", "mask_ranks"):
        message = refused(op, {"masks": [words(4), words(40).long()]})
        assert message == f"{op}: masks[1] is torch.int64, expected int32 words"
    message = refused("unpack_mask", {"words": [words(4)], "shapes": [(4,), (5,)]})
    assert message == "unpack_mask: shapes has 2 entries, words has 1"
    message = refused("unpack_mask", {"words": [words(4)], "shapes": [(33,)]})
    assert message == "unpack_mask: words[0] has 1 words, the mask of masks[0] (33 elements) has 2"
    message = refused("unpack_mask", {"words": [words(4).long()], "shapes": [(4,)]})
    assert message.startswith("unpack_mask: words[0] is torch.int64, expected torch.int32")


MUTATED_LISTS = [(op, name) for op, names in MUTATED.items() for name in names]


@pytest.mark.parametrize(
    ("op", "name"), [m for m in MUTATED_LISTS if m[1] not in ("counts", "out")]
)
def test_leaf_that_requires_grad(op, name):
    def arguments():
        made = good(op)
        made[name][1].requires_grad_()
        return made

    message = refused(op, arguments())
    assert message == f"{op}: {name}[1] requires grad; call under torch.no_grad() to modify it"
    for backend in sk.available_backends():
        made = arguments()
        with torch.no_grad():
            getattr(sk, op)(**made, backend=backend)
        assert made[name][1].requires_grad
        assert made[name][1].is_leaf


@pytest.mark.parametrize(("op", "name"), MUTATED_LISTS)
def test_mutated_memory_is_named_once(op, name):
    made = good(op)
    tensor = made[name][0]
    made = {k: [v[0], copy_of([v[0]])[0]] if k in lists_of(op) else v for k, v in made.items()}
    made[name] = [tensor, tensor]
    message = refused(op, made)
    assert message == f"{op}: {name}[1] and {name}[0] are the same memory"
    like = good(op)[name][1]
    made = replaced(op, name, 1, ones((1,) * like.dim(), dtype=like.dtype).expand(like.shape))
    message = refused(op, made)
    assert message == f"{op}: {name}[1] is expanded; several elements share memory"


def test_the_same_memory_in_two_mutated_lists():
    made = good("linbreg_step_")
    made["duals"][1] = made["params"][1]
    message = refused("linbreg_step_", made)
    assert message == "linbreg_step_: duals[1] and params[1] are the same memory"


@pytest.mark.parametrize("op", list(MUTATED))
def test_meta_tensors_are_accepted(op):
    # shapes only, e.g. a model built on the meta device; they have no addresses to compare
    made = {k: [t.to("meta") for t in v] if k in lists_of(op) else v for k, v in good(op).items()}
    made[LEAD[op]][1] = torch.ones(8, 5, device="meta").t()
    made.pop("sumsq", None)
    getattr(sk, op)(**made)
