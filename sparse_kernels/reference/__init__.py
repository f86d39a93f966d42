"""Pure PyTorch references of every op: the fallback on any device, and the oracle in float64.

Each function takes the arguments of the dispatcher schema of the same name (see ``_schemas.py``):
contiguous tensors of one device and one dtype per list, an empty list where an optional list is
absent. They are written to be obviously correct and obey the bit rules of ``docs/numerics.md``:
products and sums are separate operations, scalars are rounded to the tensors' math dtype first.
"""

from .bregman_step import adabreg_step_ref, linbreg_step_ref
from .compaction import gather_entries_ref, live_mask_ref, mask_index_ref, scatter_entries_ref
from .mask_apply import mask_apply_ref
from .mask_count import mask_count_ref
from .mask_nm import mask_nm_ref
from .mask_pack import mask_pack_ref, mask_unpack_ref
from .mask_topk import topk_histogram_ref, topk_ties_ref, topk_write_ref
from .masked_perturb import masked_perturb_ref
from .norm import grad_norm_ref
from .prox_group import prox_group_ref
from .restore import restore_ref
from .restore_adamw import restore_adamw_ref
from .restore_sgd import restore_sgd_ref
from .zo_combine import zo_combine_ref, zo_gram_ref, zo_norm2_ref
from .zo_key import zo_key_ref

__all__ = [
    "adabreg_step_ref",
    "gather_entries_ref",
    "grad_norm_ref",
    "linbreg_step_ref",
    "live_mask_ref",
    "mask_apply_ref",
    "mask_count_ref",
    "mask_index_ref",
    "mask_nm_ref",
    "mask_pack_ref",
    "mask_unpack_ref",
    "masked_perturb_ref",
    "prox_group_ref",
    "restore_adamw_ref",
    "restore_ref",
    "restore_sgd_ref",
    "scatter_entries_ref",
    "topk_histogram_ref",
    "topk_ties_ref",
    "topk_write_ref",
    "zo_combine_ref",
    "zo_gram_ref",
    "zo_key_ref",
    "zo_norm2_ref",
]
