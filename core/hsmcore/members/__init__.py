"""Members: the places that can sign, each behind one interface (base.Member)."""

from __future__ import annotations

from hsmcore.config import AwsCloudHsmSettings, KeyManagerConfig, Pkcs11Settings, Provider
from hsmcore.errors import HsmError
from hsmcore.members.base import Member, SigningEngine
from hsmcore.members.cloudhsm import CloudHsmMember
from hsmcore.members.pkcs11 import Pkcs11Member

__all__ = ["CloudHsmMember", "Member", "Pkcs11Member", "SigningEngine", "make_member"]


def make_member(provider: Provider, rules: KeyManagerConfig, level: str, hidden_variables: frozenset[str]) -> Member:
    """The member for a provider of the configuration. Nothing is loaded or connected yet."""
    settings = provider.config
    if isinstance(settings, AwsCloudHsmSettings):
        return CloudHsmMember(provider, settings, rules, level, hidden_variables)
    if isinstance(settings, Pkcs11Settings):
        return Pkcs11Member(provider, settings, rules, level, hidden_variables)
    raise HsmError(f"provider {provider.name} cannot be used", status="MODULE_MISSING", hint=provider.install_hint)
