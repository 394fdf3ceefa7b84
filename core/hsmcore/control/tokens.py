"""The tokens that a module shows, whatever is in them. Nobody logs in for that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pkcs11.exceptions import TokenNotPresent, TokenNotRecognised
from pkcs11.types import Token

from hsmcore.control.adopt import AdoptedLibrary, adopt, hold_module
from hsmcore.control.faults import translated
from hsmcore.control.records import TokenRecord
from hsmcore.errors import HsmError, TokenAmbiguous, TokenNotFound


def present(library: AdoptedLibrary, slot_id: int | None = None) -> Iterator[tuple[TokenRecord, Token]]:
    """Each token that is there, or the one in slot `slot_id`. The caller has entered the module."""
    for slot in library.get_slots(token_present=True):
        if slot_id not in (None, slot.slot_id):
            continue  # not even asked: it may be a slow one
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


def list_tokens(module_path: str, module_args: str | None = None) -> list[TokenRecord]:
    """The tokens of a module, which is loaded into this process for it. Blocks as long as the module does."""
    holder = hold_module(module_path, module_args)
    try:
        holder.enter()
        try:
            with translated("listing tokens"):
                return [record for record, _ in present(adopt(module_path))]
        finally:
            holder.exit()
    finally:
        holder.close()


def record_of_json(data: Mapping[str, object]) -> TokenRecord:
    """The record that a control child wrote."""
    return TokenRecord(**data)  # type: ignore[arg-type]  # what asdict made of one


def none_or_several(
    found: list[TokenRecord], all_: list[TokenRecord], selector: object, member: str | None
) -> HsmError:
    """What to raise when not exactly one token fits; lists the candidates."""
    shown = "; ".join(map(str, found or all_)) or "none"
    if found:
        text = f"{len(found)} tokens match {selector}: {shown}"
        return TokenAmbiguous(text, member=member, hint="Choose one by slotId, tokenSerial or tokenLabel.")
    return TokenNotFound(f"no slot holds a token with {selector}; there are: {shown}", member=member)
