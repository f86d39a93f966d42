"""Every op's schema, fake and registration; nothing else.

The schemas stand in three namespaces, so that each backend is an opaque op of its own for the
dispatcher, ``torch.compile`` and ``opcheck``:

* ``sparse_kernels``: the compiled kernels (CPU key from ``_C``, CUDA key from ``_C_cuda``), the
  reference where neither is there;
* ``sparse_kernels_reference``: always the reference;
* ``sparse_kernels_triton``: the Triton twins, imported at their first call.

Lists come as contiguous tensors of one device and dtype; an absent list is an empty list.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor
from torch.library import Library

from . import reference
from .reference._common import chunks_of

COMPILED, REFERENCE, TRITON = "sparse_kernels", "sparse_kernels_reference", "sparse_kernels_triton"

_ZO_STREAM = (
    "Tensor key, Tensor? directions, int first_direction, int[] uids, int[] firsts, "
    "str distribution, int rounds, str math, Tensor[] masks"
)
#: what ranks an element of a selection: its score, |score|, or a number of the random stream
_RANKED = "Tensor[] scores, str kind, Tensor? key, int[] firsts"
_CANDIDATES = f"{_RANKED}, Tensor[] among, bool inverted"
#: where the unperturbed parameters are: whole copies, or packed by a mask into one tensor
_BACKUP = "Tensor[] masks, Tensor[] backup, Tensor[] ranks"
_GATES = "Tensor? skip, Tensor? inv_scale"

# device_rho, device_lr, device_shrink, scalars: numbers that only the device knows, in the math
# dtype; the host's numbers of their meaning are then not read
#: op name -> (schema without the name, stem of the file that implements it)
SCHEMAS: dict[str, tuple[str, str]] = {
    "grad_norm": (
        "(Tensor[] grads, Tensor[] masks, Tensor[] weights, float eta, bool squared) -> Tensor",
        "norm",
    ),
    "masked_perturb_": (
        "(Tensor(a!)[] params, Tensor[] grads, Tensor norm, float rho, Tensor[] masks, "
        "Tensor(b!)[] backup, Tensor[] ranks, bool adaptive, float eta, float eps, "
        "Tensor? device_rho=None) -> ()",
        "masked_perturb",
    ),
    "restore_": (f"(Tensor(a!)[] params, {_BACKUP}) -> ()", "restore"),
    "restore_sgd_": (
        f"(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, {_BACKUP}, "
        "float lr, float momentum, float dampening, bool nesterov, float weight_decay, "
        f"bool maximize, bool first, {_GATES}, Tensor? device_lr=None) -> ()",
        "restore_sgd",
    ),
    "restore_adamw_": (
        "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
        f"{_BACKUP}, Tensor step_sizes, Tensor bias2_sqrts, float lr, float beta1, float beta2, "
        f"float eps, float weight_decay, bool decoupled, bool maximize, {_GATES}, "
        "Tensor? device_shrink=None) -> ()",
        "restore_adamw",
    ),
    "mask_pack_": ("(Tensor[] masks, Tensor(a!)[] words) -> ()", "mask_pack"),
    "mask_unpack_": ("(Tensor[] words, Tensor(a!)[] masks) -> ()", "mask_pack"),
    "mask_count_": ("(Tensor[] words, Tensor(a!)[] counts) -> ()", "mask_count"),
    "mask_apply_": ("(Tensor(a!)[] tensors, Tensor[] masks) -> ()", "mask_apply"),
    "topk_histogram": (
        f"({_CANDIDATES}, Tensor prefix, int shift, int bits) -> Tensor",
        "mask_topk",
    ),
    "topk_write_": (
        f"({_CANDIDATES}, Tensor threshold, Tensor(a!)[] words, bool accumulate) -> Tensor",
        "mask_topk",
    ),
    "topk_ties_": (
        f"({_CANDIDATES}, Tensor threshold, Tensor counts, Tensor before, Tensor take, "
        "Tensor(a!)[] words) -> ()",
        "mask_topk",
    ),
    "mask_nm_": (
        f"({_RANKED}, int[] rows, int[] cols, int n, int m, bool along_rows, "
        "Tensor(a!)[] words) -> ()",
        "mask_nm",
    ),
    "live_mask_": (
        "(Tensor[] duals, Tensor(a!)[] words, float lam, bool nonnegative) -> ()",
        "compaction",
    ),
    "mask_index_": ("(Tensor[] words, Tensor[] ranks, Tensor(a!)[] index) -> ()", "compaction"),
    "gather_entries_": (
        "(Tensor[] tensors, Tensor[] index, int[] runs, Tensor(a!)[] values) -> ()",
        "compaction",
    ),
    "scatter_entries_": (
        "(Tensor(a!)[] tensors, Tensor[] index, int[] runs, Tensor[] values) -> ()",
        "compaction",
    ),
    "zo_combine_": (
        f"(Tensor(a!)[] tensors, Tensor[] src, Tensor coef, {_ZO_STREAM}, Tensor(b!)[] backup, "
        "Tensor[] ranks, Tensor? alpha, Tensor? gamma, Tensor(c!)? sumsq) -> ()",
        "zo_combine",
    ),
    "zo_norm2": (f"(Tensor[] tensors, Tensor coef, {_ZO_STREAM}) -> Tensor", "zo_combine"),
    "zo_gram": (f"(Tensor[] tensors, int q, {_ZO_STREAM}) -> Tensor", "zo_combine"),
    "zo_key_": (
        "(Tensor(a!) key, Tensor(b!) counter, Tensor seed, int stream) -> ()",
        "zo_key",
    ),
    "linbreg_step_": (
        "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] duals, Tensor(c!)[] momentum_buffers, "
        "Tensor[] active, float lr, float lam, float delta, float momentum, str momentum_form, "
        "bool nesterov, float weight_decay, bool maximize, bool nonnegative, bool readout, "
        "float dual_leak, float fine_scale, Tensor? scalars=None) -> Tensor",
        "bregman_step",
    ),
    "adabreg_step_": (
        "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] duals, Tensor(c!)[] exp_avgs, "
        "Tensor(d!)[] exp_avg_sqs, Tensor(e!)[] counts, Tensor[] active, float lr, float lam, "
        "float delta, float beta1, float beta2, float eps, float weight_decay, bool maximize, "
        "bool nonnegative, bool readout, float dual_leak, float fine_scale, int step, "
        "Tensor? step_sizes, Tensor? bias2_sqrts, Tensor? scalars=None) -> Tensor",
        "bregman_step",
    ),
    "prox_group_": (
        "(Tensor(a!)[] params, Tensor[] duals, Tensor(b!)[] alive, int[] cols, int[] heights, "
        "int[] widths, Tensor thresholds, float lam, float delta, bool nonnegative) "
        "-> (Tensor, Tensor, Tensor)",
        "prox_group",
    ),
}

OPS = tuple(SCHEMAS)


def _returns_nothing(*args: object) -> None:
    return None


def _scalar64(tensors: list[Tensor], *args: object) -> Tensor:
    return tensors[0].new_empty((), dtype=torch.float64)


def _fake_grad_norm(
    grads: list[Tensor], masks: list[Tensor], weights: list[Tensor], eta: float, squared: bool
) -> Tensor:
    wide = squared or grads[0].dtype == torch.float64
    return grads[0].new_empty((), dtype=torch.float64 if wide else torch.float32)


def _fake_zo_gram(tensors: list[Tensor], q: int, *args: object) -> Tensor:
    return tensors[0].new_empty((q, q), dtype=torch.float64)


def _fake_live(params: list[Tensor], *args: object) -> Tensor:
    return params[0].new_empty((len(params),), dtype=torch.int64)


def _fake_prox(params: list[Tensor], *args: object) -> tuple[Tensor, Tensor, Tensor]:
    kinds = (torch.int64, torch.int64, torch.float64)
    live, groups, value = (params[0].new_empty((len(params),), dtype=kind) for kind in kinds)
    return live, groups, value


def _fake_histogram(scores: list[Tensor], *args: object) -> Tensor:
    prefix, _, bits = args[-3:]
    return prefix.new_empty((prefix.numel(), 1 << bits))  # type: ignore[attr-defined, operator]


def _fake_tie_counts(scores: list[Tensor], *args: object) -> Tensor:
    return scores[0].new_empty((sum(chunks_of(s.numel()) for s in scores),), dtype=torch.int64)


_FAKES: dict[str, Callable] = {
    "grad_norm": _fake_grad_norm,
    "masked_perturb_": _returns_nothing,
    "restore_": _returns_nothing,
    "restore_sgd_": _returns_nothing,
    "restore_adamw_": _returns_nothing,
    "mask_pack_": _returns_nothing,
    "mask_unpack_": _returns_nothing,
    "mask_count_": _returns_nothing,
    "mask_apply_": _returns_nothing,
    "topk_histogram": _fake_histogram,
    "topk_write_": _fake_tie_counts,
    "topk_ties_": _returns_nothing,
    "mask_nm_": _returns_nothing,
    "live_mask_": _returns_nothing,
    "mask_index_": _returns_nothing,
    "gather_entries_": _returns_nothing,
    "scatter_entries_": _returns_nothing,
    "zo_combine_": _returns_nothing,
    "zo_norm2": _scalar64,
    "zo_gram": _fake_zo_gram,
    "zo_key_": _returns_nothing,
    "linbreg_step_": _fake_live,
    "adabreg_step_": _fake_live,
    "prox_group_": _fake_prox,
}


def _alike(op: str, function: Callable) -> Callable:
    """``function`` for dense tensors of one device.

    A call whose lists nobody has looked at comes to the fake, or to the reference in place of the
    compiled kernel, where one of its tensors is on meta or sparse.
    """

    def checked(*args: object) -> object:
        lists = (a for a in args if isinstance(a, (list, tuple)))
        tensors = [t for a in lists for t in a if isinstance(t, Tensor)]
        if len({(t.device, t.layout) for t in tensors}) > 1:
            raise RuntimeError(f"{COMPILED}::{op}: tensors of several devices or layouts")
        return function(*args)

    return checked


def reference_function(op: str) -> Callable:
    return getattr(reference, op.rstrip("_") + "_ref")


def _in_place_of_compiled(op: str) -> Callable:
    return _alike(op, reference_function(op))


def _triton_function(op: str) -> Callable:
    """The Triton launcher of ``op``, imported at its first call: triton is optional and slow."""
    name, stem = op.rstrip("_") + "_triton", SCHEMAS[op][1]

    def launch(*args: object) -> object:
        return getattr(importlib.import_module(f"sparse_kernels.triton.{stem}"), name)(*args)

    launch.__name__ = name
    return launch


def _register(namespace: str, function_of: Callable[[str], Callable]) -> Library:
    library = Library(namespace, "DEF")
    for op, (schema, _) in SCHEMAS.items():
        library.define(op + schema)
        library.impl(op, function_of(op), "CompositeExplicitAutograd")
        torch.library.register_fake(f"{namespace}::{op}", _alike(op, _FAKES[op]), lib=library)
    return library


_libraries = [
    _register(COMPILED, _in_place_of_compiled),
    _register(REFERENCE, reference_function),
    _register(TRITON, _triton_function),
]
