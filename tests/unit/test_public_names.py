"""What other programs may import. A change here is a change of the public interface: it belongs into CHANGELOG.md."""

from __future__ import annotations

import importlib
import inspect

import pytest

NAMES = {
    "hsmcore": """
        AccessDenied AllLevelsFailed AllLevelsLate AuditUnavailable Config ConfigurationError DeadlineExceeded
        EmergencyRefused EngineClosed EngineForked HsmError InvalidMessage InvalidTimeout KeyAmbiguous KeyDeactivated
        KeyManager KeyMismatch KeyNotFound KeyVersion LoginError MemberDown MemberSnapshot MessageTooLarge ModuleInvalid
        ModuleMissing NotInitialized PinIncorrect PinLocked QueueFull Receipt SignatureInvalid TokenNotFound
        WrongEventLoop __version__ audit_tag create_key_manager load
    """,
    "hsmcore.errors": """
        AccessDenied AlgorithmUnsupported AuditUnavailable BadArgument ConfigFault ConfigurationError DeadlineExceeded
        EmptyMessage EngineClosed EngineForked HostUnusable HsmError InternalError InvalidMessage InvalidMessageType
        InvalidTimeout KeyAmbiguous KeyDeactivated KeyMismatch KeyNotFound KeyUnusable LoginError MemberDown
        MessageTooLarge ModuleBusy ModuleFatal ModuleInvalid ModuleMissing NotInitialized OutOfMemory PinIncorrect
        PinLocked PublicKeyMissing QueueFull RequestCancelled RequestRejected SecretUnavailable SessionFailed
        SignatureInvalid SignatureMalformed SystemFailure TokenAmbiguous TokenNotFound WrongEventLoop error_of
    """,
    "hsmcore.handover": "Handover HandoverKey Settled",
    "hsmcore.handover.rpc": "RpcClient",
    "hsmcore.handover.solana": "MintAuthority NonceAuthority ProgramAuthority SolanaHandover",
    "hsmcore.metrics": "collector read render",
    "hsmcore.serve": "Site attached",
    "hsmcore.tracing": "configured_provider instrument",
}


def public(name: str) -> list[str]:
    """`__all__`, or the classes and functions that a module without one defines."""
    module = importlib.import_module(name)
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    found = inspect.getmembers(module, lambda value: inspect.isclass(value) or inspect.isroutine(value))
    return sorted(key for key, value in found if not key.startswith("_") and value.__module__ == name)


@pytest.mark.parametrize("module", NAMES)
def test_the_public_names_are_these(module):
    assert public(module) == NAMES[module].split()


@pytest.mark.parametrize("module", NAMES)
def test_every_public_name_exists(module):
    imported = importlib.import_module(module)
    assert [name for name in NAMES[module].split() if not hasattr(imported, name)] == []
