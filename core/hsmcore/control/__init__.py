"""The control plane: rare work on a token and its keys. Read plane.py, then verb.py. It signs no request."""

from hsmcore.control.backup import is_whole
from hsmcore.control.curves import ALGORITHMS, Algorithm, algorithm_of_params, decode_point
from hsmcore.control.faults import ControlError, KeyNotExportable
from hsmcore.control.plane import ControlPlane
from hsmcore.control.records import Deactivation, KeyRecord, TokenAccess, TokenRecord, TokenSelector

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "ControlError",
    "ControlPlane",
    "Deactivation",
    "KeyNotExportable",
    "KeyRecord",
    "TokenAccess",
    "TokenRecord",
    "TokenSelector",
    "algorithm_of_params",
    "decode_point",
    "is_whole",
]
