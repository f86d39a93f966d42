"""Fused kernels for sparse training: masked SAM, zero-order directions, Bregman steps."""

import torch  # noqa: F401  # first: the compiled libraries need torch's shared libraries loaded

from . import _schemas  # noqa: F401  # schemas before the libraries that implement them
from . import _loader  # noqa: F401
from ._version import __version__
from ._backend import (
    BackendUnavailableError,
    available_backends,
    explain,
    resolved_name,
    use_backend,
)
from .functional import (
    adabreg_step_,
    count_ones,
    derive_key,
    grad_norm,
    linbreg_step_,
    mask_apply_,
    mask_dropgrow,
    mask_nm,
    mask_ranks,
    mask_topk,
    masked_perturb_,
    pack_mask,
    restore_,
    restore_adamw_,
    restore_sgd_,
    unpack_mask,
    zo_combine_,
    zo_gram,
    zo_key_,
    zo_norm2,
)


__all__ = [
    "BackendUnavailableError",
    "__version__",
    "adabreg_step_",
    "available_backends",
    "count_ones",
    "derive_key",
    "explain",
    "grad_norm",
    "linbreg_step_",
    "mask_apply_",
    "mask_dropgrow",
    "mask_nm",
    "mask_ranks",
    "mask_topk",
    "masked_perturb_",
    "pack_mask",
    "resolved_name",
    "restore_",
    "restore_adamw_",
    "restore_sgd_",
    "unpack_mask",
    "use_backend",
    "zo_combine_",
    "zo_gram",
    "zo_key_",
    "zo_norm2",
]
