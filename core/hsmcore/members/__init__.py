"""Members: the places that can sign, each behind one interface (base.Member)."""

from __future__ import annotations

from hsmcore.config import AwsCloudHsmSettings, AwsKmsSettings, EphemeralSettings, KeyManagerConfig, Provider
from hsmcore.errors import ModuleMissing
from hsmcore.members.base import Member, SigningEngine
from hsmcore.members.cloudhsm import CloudHsmMember
from hsmcore.members.ephemeral import EphemeralMember
from hsmcore.members.pkcs11 import Pkcs11Member

__all__ = ["CloudHsmMember", "EphemeralMember", "Member", "Pkcs11Member", "SigningEngine", "make_member"]


def make_member(provider: Provider, rules: KeyManagerConfig, level: str, hidden_variables: frozenset[str]) -> Member:
    """The member for a provider of the configuration. Nothing is loaded or connected yet."""
    settings = provider.config
    if isinstance(settings, EphemeralSettings):
        return EphemeralMember(provider, settings, rules, level)
    if isinstance(settings, AwsKmsSettings):
        try:
            from hsmcore.members.kms.member import KmsMember
        except ModuleNotFoundError as error:
            text = f"member {provider.name!r}: signing with AWS KMS needs the package {error.name}"
            raise ModuleMissing(text, member=provider.name, hint=provider.install_hint) from None
        return KmsMember(provider, settings, rules, level)
    if isinstance(settings, AwsCloudHsmSettings):
        return CloudHsmMember(provider, settings, rules, level, hidden_variables)
    return Pkcs11Member(provider, settings, rules, level, hidden_variables)
