"""Solana's off-chain messages: text that a key signs and that no transaction can be. The policy's kind "off-chain"."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

from solders.pubkey import Pubkey

from hsmcore.errors import BadArgument

PREFIX: Final = b"\xffsolana offchain"
NO_DOMAIN: Final = bytes(32)
MOST_WALLET: Final = 1232
"""Bytes of the whole message that a hardware wallet takes."""
MOST: Final = 65535


def off_chain_message(
    text: str, signers: Iterable[Pubkey], *, version: Literal[0, 1] = 0, domain: bytes = NO_DOMAIN
) -> bytes:
    """Make the bytes to sign. `signers`: all that shall sign them, 1 to 255.

    Version 0 names the application by a `domain` of 32 bytes, and takes at most 65,535 bytes; if the whole has at most
    1,232, hardware wallets show the text. Version 1 (sRFC 38) has no domain. Raises BadArgument.
    """
    try:
        body = text.encode()
    except UnicodeEncodeError:
        raise BadArgument("the text of an off-chain message must be valid Unicode") from None
    keys = [bytes(signer) for signer in signers]
    if not body:
        raise BadArgument("the text of an off-chain message must not be empty")
    if not 1 <= len(keys) <= 255 or len(set(keys)) < len(keys):
        raise BadArgument("an off-chain message has 1 to 255 signers, each once")
    if version == 1:
        if domain != NO_DOMAIN:
            raise BadArgument("an off-chain message of version 1 has no domain")
        return PREFIX + bytes([1, len(keys)]) + b"".join(sorted(keys)) + body
    if version != 0:
        raise BadArgument(f"an off-chain message has version 0 or 1, not {version}")
    if len(domain) != 32:
        raise BadArgument(f"the domain of an off-chain message has 32 bytes, not {len(domain)}")
    size = len(PREFIX) + 1 + 32 + 2 + 32 * len(keys) + 2 + len(body)
    if size > MOST:
        raise BadArgument(f"an off-chain message of version 0 has at most {MOST} bytes, not {size}")
    form = 2 if size > MOST_WALLET else 0 if all(0x20 <= byte <= 0x7E for byte in body) else 1
    head = PREFIX + b"\0" + domain + bytes([form, len(keys)])
    return head + b"".join(keys) + len(body).to_bytes(2, "little") + body
