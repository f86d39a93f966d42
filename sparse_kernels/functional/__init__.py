"""Public operations: check the input, resolve the backend, call, tell autograd what changed."""

from .bregman_step import adabreg_step_, linbreg_step_
from .mask_pack import pack_mask, unpack_mask
from .masked_perturb import masked_perturb_
from .norm import grad_norm
from .restore import restore_
from .zo_combine import derive_key, zo_combine_, zo_gram, zo_norm2

__all__ = [
    "adabreg_step_",
    "derive_key",
    "grad_norm",
    "linbreg_step_",
    "masked_perturb_",
    "pack_mask",
    "restore_",
    "unpack_mask",
    "zo_combine_",
    "zo_gram",
    "zo_norm2",
]
