"""hsmcore: sign through hardware security modules at the speed of the hardware, from asyncio.

    km = hsmcore.create_key_manager("hsmcore.json")
    async with km:
        signature = await km.sign(message)

Reading order: manager, members, keyring, then bindings/_native.pyx and native/include/hsmcore/hsmcore.h.
"""

from hsmcore._version import __version__
from hsmcore.audit import tagged as audit_tag
from hsmcore.config import Config, load
from hsmcore.errors import (
    AccessDenied,
    AuditUnavailable,
    ConfigurationError,
    DeadlineExceeded,
    EngineClosed,
    EngineForked,
    HsmError,
    InvalidMessage,
    InvalidTimeout,
    KeyAmbiguous,
    KeyDeactivated,
    KeyMismatch,
    KeyNotFound,
    LoginError,
    MemberDown,
    MessageTooLarge,
    ModuleInvalid,
    ModuleMissing,
    NotInitialized,
    PinIncorrect,
    PinLocked,
    QueueFull,
    SignatureInvalid,
    TokenNotFound,
    WrongEventLoop,
)
from hsmcore.failover.errors import AllLevelsFailed, AllLevelsLate, EmergencyRefused
from hsmcore.keyring import KeyVersion
from hsmcore.manager.key_manager import KeyManager, create_key_manager
from hsmcore.members.snapshot import MemberSnapshot
from hsmcore.receipt import Receipt

__all__ = [
    "AccessDenied",
    "AllLevelsFailed",
    "AllLevelsLate",
    "AuditUnavailable",
    "Config",
    "ConfigurationError",
    "DeadlineExceeded",
    "EmergencyRefused",
    "EngineClosed",
    "EngineForked",
    "HsmError",
    "InvalidMessage",
    "InvalidTimeout",
    "KeyAmbiguous",
    "KeyDeactivated",
    "KeyManager",
    "KeyMismatch",
    "KeyNotFound",
    "KeyVersion",
    "LoginError",
    "MemberDown",
    "MemberSnapshot",
    "MessageTooLarge",
    "ModuleInvalid",
    "ModuleMissing",
    "NotInitialized",
    "PinIncorrect",
    "PinLocked",
    "QueueFull",
    "Receipt",
    "SignatureInvalid",
    "TokenNotFound",
    "WrongEventLoop",
    "__version__",
    "audit_tag",
    "create_key_manager",
    "load",
]
