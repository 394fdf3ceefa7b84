"""The second witness of which state store keeps what a key has promised: a note on the key's token, which says what the
register of the host says (state/register.py).

It is asked only for a key of which the register knows nothing: on a new host, in a container whose home did not last,
for another user. It follows the register's entry within a second or two, in the background, or when the key manager
closes. It is not vouched for: a
writer of the token can stop such a start, as it can by erasing the key, and can hide a note, as if there were none. A
token that takes no data objects is no error. Only rotations and what a policy binds are noted: budget and orders are
each host's own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from hsmcore.base.log import get_logger
from hsmcore.config import KeyManagerConfig, Pkcs11Settings, ProviderSettings
from hsmcore.errors import HsmError
from hsmcore.members.base import Member
from hsmcore.members.control import ControlPlane
from hsmcore.members.control.notes import MOST_BYTES, ReadNotes, WriteNote
from hsmcore.members.control.quirks import quirks_for
from hsmcore.state.register import Entry, parsed

_SECONDS: Final = 30.0
"""How long a start waits for a token's notes."""
_MOST_ID: Final = (1 << 31) - 1
_MOST_NS: Final = (1 << 62) - 1


def keeps(settings: ProviderSettings) -> bool:
    """As ControlPlane.keeps_notes, of a member's settings."""
    if not isinstance(settings, Pkcs11Settings) or not quirks_for(settings.quirks).keeps_notes:
        return False
    return settings.isolation == "process" or settings.admin_credentials is not None


def is_due(rules: KeyManagerConfig) -> bool:
    """Return whether a configuration promises what another host must not begin without."""
    binds = rules.policy is not None and rules.policy.needs_store
    return rules.fleet is None and (binds or rules.active_rotation is not None)


def tokens_of(members: Iterable[Member]) -> list[ControlPlane]:
    """Return the tokens that may keep notes."""
    tokens = [member.token for member in members]
    return [token for token in tokens if isinstance(token, ControlPlane) and token.keeps_notes]


async def told(tokens: Sequence[ControlPlane], keys: Iterable[bytes]) -> dict[bytes, Entry]:
    """Return what tokens say of keys, by key: the newest note of each. What is not of hsmcore's making counts for
    nothing, and so does a token that does not answer; both are logged."""
    found: dict[bytes, Entry] = {}
    for entries in await asyncio.gather(*(_asked(token, sorted(keys)) for token in tokens)):
        for entry in entries:
            known = found.get(entry.public_key)
            if known is None or known.noted_ns < entry.noted_ns:
                found[entry.public_key] = entry
    return found


async def note(tokens: Sequence[ControlPlane], entries: Iterable[Entry]) -> HsmError | None:
    """Have each token say what the register says of keys. Returns the error of the first one that does not take it."""
    refusal: HsmError | None = None
    for token in tokens:
        try:
            for entry in entries:
                await _note(token, entry)
            await token.rest()
        except HsmError as error:
            refusal = refusal or error
    if refusal is not None:  # it is as it was before there were notes, and `hsmcore doctor` says so
        get_logger().info("a token does not say which state store is the key's", error=str(refusal))
    return refusal


async def _note(token: ControlPlane, entry: Entry) -> None:
    said = [_read(text, entry.public_key) for text in await token.do(ReadNotes([entry.public_key]))]
    if len(said) == 1 and said[0] is not None and said[0].same(entry):
        return
    text = entry.to_bytes()
    if len(text) > MOST_BYTES or _read(text, entry.public_key) is None:
        get_logger().warning("the state store's place is no text for a token's note", store=ascii(str(entry.store)))
        return
    await token.do(WriteNote(entry.public_key, text))


async def _asked(token: ControlPlane, keys: list[bytes]) -> list[Entry]:
    try:
        async with asyncio.timeout(_SECONDS):
            found = await token.do(ReadNotes(keys))
            await token.rest()  # what an isolated module's child holds is the engine's again
    except (HsmError, TimeoutError) as error:
        get_logger().warning("what the token says of the key's state store is unknown", error=str(error))
        return []
    entries = [entry for text in found for key in keys if (entry := _read(text, key)) is not None]
    if len(entries) < len(found):
        get_logger().warning("a note on the token is not of hsmcore's making: it counts for nothing")
    return entries


def _read(text: bytes, public_key: bytes) -> Entry | None:
    try:
        entry = parsed(text, public_key)
    except ValueError:
        return None
    shown = f"{entry.store}{entry.audit_log}".isprintable()
    fits = 0 <= entry.id <= _MOST_ID and 0 <= entry.noted_ns <= _MOST_NS
    return replace(entry, by_token=True) if shown and fits and entry.store.is_absolute() else None
