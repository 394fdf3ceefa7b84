"""What other programs may import. A change here is a change of the public interface: it belongs into CHANGELOG.md."""

from __future__ import annotations

import importlib
import inspect
import re

import pytest
from tests.support.paths import ROOT

import hsmcore

NAMES = {
    "hsmcore": """
        AccessDenied AlgorithmUnsupported AllLevelsFailed AllLevelsLate AuditUnavailable BadArgument BatchedSignature
        Config ConfigurationError DeadlineExceeded DigestSignature DomainMismatch DoubleSign EmergencyRefused
        EmptyMessage EngineClosed EngineForked FleetBehind HostUnusable HsmError InternalError InvalidMessage
        InvalidMessageType InvalidTimeout KeyAmbiguous KeyDeactivated KeyManager KeyManagers KeyMismatch
        KeyNotCurrent KeyNotExportable KeyNotFound KeySet KeyUnusable KeyVersion LoginError MemberDown MemberSnapshot
        MessageTooLarge ModuleBusy ModuleFatal ModuleInvalid ModuleMissing NotApproved NotHolder NotInitialized
        OutOfMemory PinIncorrect PinLocked PolicyRefused PublicKeyMissing QueueFull Receipt RequestCancelled
        RequestRejected SecretUnavailable SessionFailed SignatureInvalid SignatureMalformed StoreBehind StoreBusy
        StoreError StoreNotGenuine SystemFailure TokenAmbiguous TokenNotFound WrongEventLoop __version__ audit_tag
        caller create_key_manager create_key_managers load payload proof_from_bytes proof_to_bytes verify_batched
    """,
    "hsmcore.errors": """
        AccessDenied AlgorithmUnsupported AuditUnavailable BadArgument ConfigFault ConfigurationError
        DeadlineExceeded DoubleSign EmptyMessage EngineClosed EngineForked FleetBehind HostUnusable HsmError
        InternalError InvalidMessage InvalidMessageType InvalidTimeout KeyAmbiguous KeyDeactivated KeyMismatch
        KeyNotCurrent KeyNotFound KeyUnusable LoginError MemberDown MessageTooLarge ModuleBusy ModuleFatal
        ModuleInvalid ModuleMissing NotHolder NotInitialized OutOfMemory PinIncorrect PinLocked PolicyRefused
        PublicKeyMissing QueueFull RequestCancelled RequestRejected SecretUnavailable SessionFailed
        SignatureInvalid SignatureMalformed SystemFailure TokenAmbiguous TokenNotFound WrongEventLoop error_of
    """,
    "hsmcore.gateway": "Client ClientTls",
    "hsmcore.handover": "Handover HandoverKey Settled",
    "hsmcore.handover.rpc": "RpcClient",
    "hsmcore.handover.solana": "MintAuthority NonceAuthority ProgramAuthority SolanaHandover",
    "hsmcore.metrics": "also collector read render",
    "hsmcore.serve": "Site attached",
    "hsmcore.solana": "HsmcoreSigner SigningKeys off_chain_message sign_transactions verify_transaction",
    "hsmcore.testing": "fresh_token hsmcore_config hsmcore_token",
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


def errors_of(base: type) -> list[type]:
    return [base, *(found for each in base.__subclasses__() for found in errors_of(each))]


def test_every_error_that_is_documented_is_exported():
    """So that the file of a user who catches it passes `mypy --strict`."""
    texts = [path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))]
    texts += [inspect.getdoc(member) or "" for _, member in inspect.getmembers(hsmcore.KeyManager)]
    said = set(re.findall(r"\w+", " ".join(texts)))
    for module in ("hsmcore.cli", "hsmcore.handover.solana", "hsmcore.serve"):
        importlib.import_module(module)
    documented = {found.__name__ for found in errors_of(hsmcore.HsmError) if found.__name__ in said}
    assert documented > {"StoreBusy", "BadArgument", "KeyNotExportable", "DeadlineExceeded"}
    assert documented - set(hsmcore.__all__) == set()
    everywhere = {found.__name__ for found in errors_of(hsmcore.HsmError) if found.__module__ == "hsmcore.errors"}
    assert everywhere - set(hsmcore.__all__) == set()
