"""hsmcore: sign through hardware security modules at the speed of the hardware, from asyncio.

    km = hsmcore.create_key_manager("hsmcore.json")
    async with km:
        signature = await km.sign(message)

Reading order: manager, failover, members, audit, base, then bindings/_native.pyx and native/include/hsmcore/hsmcore.h.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if "t" in sys.abiflags:
    raise ImportError("hsmcore is not tested on free-threaded CPython: use the ordinary build of this version")

if TYPE_CHECKING:
    from hsmcore import audit as audit
    from hsmcore import errors as errors
    from hsmcore import gateway as gateway
    from hsmcore import handover as handover
    from hsmcore import metrics as metrics
    from hsmcore import serve as serve
    from hsmcore import solana as solana
    from hsmcore import testing as testing
    from hsmcore import tracing as tracing
    from hsmcore._native import BatchedSignature
    from hsmcore.audit import caller
    from hsmcore.audit import tagged as audit_tag
    from hsmcore.base.keyring import KeyVersion
    from hsmcore.base.payload import payload
    from hsmcore.base.receipt import DigestSignature, Receipt
    from hsmcore.base.version import __version__
    from hsmcore.config import Config, load
    from hsmcore.errors import (
        AccessDenied,
        AlgorithmUnsupported,
        AuditUnavailable,
        BadArgument,
        ConfigurationError,
        DeadlineExceeded,
        DoubleSign,
        EmptyMessage,
        EngineClosed,
        EngineForked,
        FleetBehind,
        HostUnusable,
        HsmError,
        InternalError,
        InvalidMessage,
        InvalidMessageType,
        InvalidTimeout,
        KeyAmbiguous,
        KeyDeactivated,
        KeyMismatch,
        KeyNotCurrent,
        KeyNotFound,
        KeyUnusable,
        LoginError,
        MemberDown,
        MessageTooLarge,
        ModuleBusy,
        ModuleFatal,
        ModuleInvalid,
        ModuleMissing,
        NotHolder,
        NotInitialized,
        OutOfMemory,
        PinIncorrect,
        PinLocked,
        PolicyRefused,
        PublicKeyMissing,
        QueueFull,
        RequestCancelled,
        RequestRejected,
        SecretUnavailable,
        SessionFailed,
        SignatureInvalid,
        SignatureMalformed,
        SystemFailure,
        TokenAmbiguous,
        TokenNotFound,
        WrongEventLoop,
    )
    from hsmcore.failover.errors import AllLevelsFailed, AllLevelsLate, EmergencyRefused
    from hsmcore.manager.key_manager import KeyManager
    from hsmcore.manager.key_managers import KeyManagers, create_key_manager, create_key_managers
    from hsmcore.members.control import KeyNotExportable
    from hsmcore.members.snapshot import MemberSnapshot
    from hsmcore.state import DomainMismatch, NotApproved, StoreBehind, StoreBusy, StoreError, StoreNotGenuine
    from hsmcore.tlog.batch_proof import verify_batched
    from hsmcore.tlog.key_set import KeySet
    from hsmcore.tlog.proof_bytes import proof_from_bytes, proof_to_bytes

__all__ = [
    "AccessDenied",
    "AlgorithmUnsupported",
    "AllLevelsFailed",
    "AllLevelsLate",
    "AuditUnavailable",
    "BadArgument",
    "BatchedSignature",
    "Config",
    "ConfigurationError",
    "DeadlineExceeded",
    "DigestSignature",
    "DomainMismatch",
    "DoubleSign",
    "EmergencyRefused",
    "EmptyMessage",
    "EngineClosed",
    "EngineForked",
    "FleetBehind",
    "HostUnusable",
    "HsmError",
    "InternalError",
    "InvalidMessage",
    "InvalidMessageType",
    "InvalidTimeout",
    "KeyAmbiguous",
    "KeyDeactivated",
    "KeyManager",
    "KeyManagers",
    "KeyMismatch",
    "KeyNotCurrent",
    "KeyNotExportable",
    "KeyNotFound",
    "KeySet",
    "KeyUnusable",
    "KeyVersion",
    "LoginError",
    "MemberDown",
    "MemberSnapshot",
    "MessageTooLarge",
    "ModuleBusy",
    "ModuleFatal",
    "ModuleInvalid",
    "ModuleMissing",
    "NotApproved",
    "NotHolder",
    "NotInitialized",
    "OutOfMemory",
    "PinIncorrect",
    "PinLocked",
    "PolicyRefused",
    "PublicKeyMissing",
    "QueueFull",
    "Receipt",
    "RequestCancelled",
    "RequestRejected",
    "SecretUnavailable",
    "SessionFailed",
    "SignatureInvalid",
    "SignatureMalformed",
    "StoreBehind",
    "StoreBusy",
    "StoreError",
    "StoreNotGenuine",
    "SystemFailure",
    "TokenAmbiguous",
    "TokenNotFound",
    "WrongEventLoop",
    "__version__",
    "audit_tag",
    "caller",
    "create_key_manager",
    "create_key_managers",
    "load",
    "payload",
    "proof_from_bytes",
    "proof_to_bytes",
    "verify_batched",
]

# A name is loaded when it is used: a command, or a child that serves one module, needs few of them.
_HOMES: Final = {
    "AllLevelsFailed": "failover.errors",
    "AllLevelsLate": "failover.errors",
    "BatchedSignature": "_native",
    "Config": "config",
    "DigestSignature": "base.receipt",
    "DomainMismatch": "state",
    "EmergencyRefused": "failover.errors",
    "KeyManager": "manager.key_manager",
    "KeyManagers": "manager.key_managers",
    "KeyNotExportable": "members.control",
    "KeySet": "tlog.key_set",
    "KeyVersion": "base.keyring",
    "MemberSnapshot": "members.snapshot",
    "NotApproved": "state",
    "Receipt": "base.receipt",
    "StoreBehind": "state",
    "StoreBusy": "state",
    "StoreError": "state",
    "StoreNotGenuine": "state",
    "__version__": "base.version",
    "audit_tag": "audit",
    "caller": "audit",
    "create_key_manager": "manager.key_managers",
    "create_key_managers": "manager.key_managers",
    "load": "config",
    "payload": "base.payload",
    "proof_from_bytes": "tlog.proof_bytes",
    "proof_to_bytes": "tlog.proof_bytes",
    "verify_batched": "tlog.batch_proof",
}
"""Of the names that are not in errors.py."""


if not TYPE_CHECKING:  # a type checker would take every name, also a misspelled one, for Any

    def __getattr__(name: str) -> Any:
        if name in __all__:
            module = import_module(f"hsmcore.{_HOMES.get(name, 'errors')}")
            value = globals()[name] = getattr(module, "tagged" if name == "audit_tag" else name)
            return value
        try:
            return import_module(f"hsmcore.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"hsmcore.{name}":
                raise
        raise AttributeError(f"module 'hsmcore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
