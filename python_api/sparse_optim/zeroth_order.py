"""Zero-order optimizers: ``ZOSAM`` (estimated ascent, one backward) and ``MeZO`` (none)."""

from ._directions import Probe
from ._mezo import MeZO
from ._stream import name_uid
from ._zosam import ZOSAM

__all__ = ["ZOSAM", "MeZO", "Probe", "name_uid"]
