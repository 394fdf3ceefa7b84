"""The control plane: rare work on a token and its keys. Read plane.py, then verb.py. It signs no request."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
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

# Loaded when they are used: a command that only names an algorithm needs no PKCS#11 library.
_HOMES: Final = {
    "ALGORITHMS": "curves",
    "Algorithm": "curves",
    "ControlError": "faults",
    "ControlPlane": "plane",
    "Deactivation": "records",
    "KeyNotExportable": "faults",
    "KeyRecord": "records",
    "TokenAccess": "records",
    "TokenRecord": "records",
    "TokenSelector": "records",
    "algorithm_of_params": "curves",
    "decode_point": "curves",
    "is_whole": "backup",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hsmcore.control' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"hsmcore.control.{_HOMES[name]}"), name)
    return value
