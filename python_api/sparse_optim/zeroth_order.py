"""Zero-order optimizers: ``ZOSAM`` (estimated ascent, one backward) and ``MeZO`` (none)."""

from ._directions import Probe
from ._mezo import MeZO
from ._replay_log import ReplayLog
from ._stream import name_uid
from ._zosam import ZOSAM

__all__ = ["ZOSAM", "MeZO", "Probe", "ReplayLog", "name_uid"]
