"""The tokens that a module shows, whatever is in them, without a login."""

from __future__ import annotations

from collections.abc import Iterator

from pkcs11.exceptions import TokenNotPresent, TokenNotRecognised
from pkcs11.types import Token

from hsmcore.errors import TokenAmbiguous, TokenNotFound
from hsmcore.members.control.adopt import AdoptedLibrary
from hsmcore.members.control.nearby import near_tokens
from hsmcore.members.control.records import TokenAccess, TokenRecord


def present(library: AdoptedLibrary, slot_id: int | None = None) -> Iterator[tuple[TokenRecord, Token]]:
    """Each token that is there, or the one in slot `slot_id`. The caller has entered the module."""
    for slot in library.get_slots(token_present=True):
        if slot_id not in (None, slot.slot_id):
            continue  # no call for it: it may be slow
        try:
            token = slot.get_token()
        except (TokenNotPresent, TokenNotRecognised):
            continue
        record = TokenRecord(
            slot_id=slot.slot_id,
            label=token.label,
            serial=token.serial.rstrip(b"\0 ").decode("utf-8", "replace"),
            manufacturer=token.manufacturer_id,
            model=token.model,
            slot_description=slot.slot_description,
        )
        yield record, token


def choose_one(access: TokenAccess, tokens: list[TokenRecord]) -> TokenRecord:
    """The token that is meant. Raises TokenNotFound and TokenAmbiguous, which list the candidates."""
    selector, member = access.token, access.member
    found = selector.choose(tokens)
    if len(found) == 1:
        return found[0]
    shown = "; ".join(map(str, found or tokens)) or "none"
    if found:
        text = f"{len(found)} tokens match {selector}: {shown}"
        raise TokenAmbiguous(text, member=member, hint="Choose one by slotId, tokenSerial or tokenLabel.")
    hint = near_tokens(
        selector, [token for token in tokens if token.label or token.serial], access.module_path, access.module_args
    )
    raise TokenNotFound(f"no slot holds a token with {selector}; there are: {shown}", member=member, hint=hint)
