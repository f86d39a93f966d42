"""Public operations: check the input, resolve the backend, call, tell autograd what changed."""

from .bregman_step import adabreg_step_, linbreg_step_
from .compaction import gather_entries, live_mask, mask_index, scatter_entries_
from .mask_apply import mask_apply_
from .mask_count import count_ones, mask_ranks
from .mask_dropgrow import mask_dropgrow
from .mask_nm import mask_nm
from .mask_pack import pack_mask, unpack_mask
from .mask_topk import kth_largest, mask_topk
from .masked_perturb import masked_perturb_
from .norm import grad_norm
from .prox_group import ProxStats, Tiling, prox_group_
from .restore import restore_
from .restore_adamw import restore_adamw_
from .restore_sgd import restore_sgd_
from .zo_combine import derive_key, zo_combine_, zo_gram, zo_norm2
from .zo_key import zo_key_

__all__ = [
    "ProxStats",
    "Tiling",
    "adabreg_step_",
    "count_ones",
    "derive_key",
    "gather_entries",
    "grad_norm",
    "kth_largest",
    "linbreg_step_",
    "live_mask",
    "mask_apply_",
    "mask_dropgrow",
    "mask_index",
    "mask_nm",
    "mask_ranks",
    "mask_topk",
    "masked_perturb_",
    "pack_mask",
    "prox_group_",
    "restore_",
    "restore_adamw_",
    "restore_sgd_",
    "scatter_entries_",
    "unpack_mask",
    "zo_combine_",
    "zo_gram",
    "zo_key_",
    "zo_norm2",
]
