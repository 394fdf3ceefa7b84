"""The control plane: rare work on a token and its keys. Read plane.py, then verb.py. It signs no request."""

from typing import TYPE_CHECKING

from hsmcore.base.lazy import names

if TYPE_CHECKING:
    from hsmcore.members.control.backup import is_whole
    from hsmcore.members.control.curves import ALGORITHMS, Algorithm, algorithm_of_params, decode_point
    from hsmcore.members.control.faults import ControlError, KeyNotExportable
    from hsmcore.members.control.plane import ControlPlane
    from hsmcore.members.control.records import Deactivation, KeyRecord, TokenAccess, TokenRecord, TokenSelector

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

# Loaded when they are used: a command that only names an algorithm needs no PKCS#11 library.
if not TYPE_CHECKING:
    __getattr__ = names(
        __name__,
        {
            "backup": ["is_whole"],
            "curves": ["ALGORITHMS", "Algorithm", "algorithm_of_params", "decode_point"],
            "faults": ["ControlError", "KeyNotExportable"],
            "plane": ["ControlPlane"],
            "records": ["Deactivation", "KeyRecord", "TokenAccess", "TokenRecord", "TokenSelector"],
        },
    )
