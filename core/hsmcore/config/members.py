"""From the providers of a configuration to members: most are one, a YubiHSM with several connectors is several."""

from __future__ import annotations

from collections.abc import Iterable

from hsmcore.config.providers import Provider
from hsmcore.config.yubihsm import YubiHsmSettings


def members_of(provider: Provider) -> tuple[Provider, ...]:
    """One provider for each member, in the order of the configuration.

    A YubiHSM module works on one call at a time for each connector, and so does each device: several connectors sign in
    parallel only as several members. Each is named after its connector and differs from the others in nothing else.
    """
    settings = provider.config
    if not isinstance(settings, YubiHsmSettings) or len(settings.connector_urls) == 1:
        return (provider,)
    members = []
    for url in settings.connector_urls:
        alone = settings.model_copy(update={"connector": url, "connectors": None})
        member = Provider.model_construct(type=provider.type, config=alone)
        member.locate(provider.where)
        members.append(member)
    return tuple(members)


def all_members(providers: Iterable[Provider]) -> tuple[Provider, ...]:
    """The members of a level."""
    return tuple(member for provider in providers for member in members_of(provider))
