"""The signed bytes of a transaction, the places of its signatures, and their verification. No I/O."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from solders.message import VersionedMessage, to_bytes_versioned
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import Transaction, VersionedTransaction

from hsmcore.errors import BadArgument, MessageTooLarge

VERSION_1: Final = 0x81
MOST_BYTES: Final = 1232
"""Most bytes of a transaction of the legacy form or version 0: a packet's."""
MOST_BYTES_1: Final = 4096
"""Most bytes of a transaction of version 1 (SIMD-0385)."""
UNSIGNED: Final = Signature.default()
"""The content of a slot before its signer has signed."""


class Slot(NamedTuple):
    """The place of one signer in a transaction that waits for its signature."""

    transaction: VersionedTransaction
    payload: bytes
    """The signed bytes: the message behind its version byte."""
    number: int
    """The signer's place, from 0."""
    required: int
    """Signatures that the message requires."""

    def fill(self, signature: Signature) -> None:
        """Put the signature into the slot. All others are kept as they are now, not as they were when the slot was
        found: another signer may have signed in between."""
        signatures = list(self.transaction.signatures)
        signatures += [UNSIGNED] * (self.required - len(signatures))
        signatures[self.number] = signature
        self.transaction.signatures = signatures


def signers_of(message: VersionedMessage) -> list[Pubkey]:
    """The required signers, in the order of their signatures; fewer if the message names fewer accounts."""
    return message.account_keys[: message.header.num_required_signatures]


def slot_of(transaction: Any, address: Pubkey) -> Slot:
    """Find the signer's slot. Raises BadArgument for anything but a transaction that needs its signature,
    MessageTooLarge for a transaction that no node would take."""
    if not isinstance(transaction, VersionedTransaction):
        hint = "VersionedTransaction.from_legacy makes one." if isinstance(transaction, Transaction) else ""
        raise BadArgument(f"a transaction must be a VersionedTransaction, not {type(transaction).__name__}", hint=hint)
    message = transaction.message  # a copy, each time
    required, signers, there = message.header.num_required_signatures, signers_of(message), len(transaction.signatures)
    if len(signers) < required:
        raise BadArgument(f"the message requires {required} signatures and names {len(signers)} accounts")
    if there > required:
        raise BadArgument(f"{there} signatures stand where the message requires {required}")
    if address not in signers:
        named = ", ".join(str(signer) for signer in signers)
        raise BadArgument(f"{address} is no required signer of the transaction (they are: {named})")
    payload = to_bytes_versioned(message)
    _refuse_too_large(payload, required)
    return Slot(transaction, payload, signers.index(address), required)


def _refuse_too_large(payload: bytes, required: int) -> None:
    """Before version 1 the count of the signatures stands in front of them; more than 127 never fit."""
    first = payload[0] == VERSION_1
    size, most = len(payload) + 64 * required + (not first), MOST_BYTES_1 if first else MOST_BYTES
    if size > most:
        hint = "Split the transaction, or use an address lookup table."
        raise MessageTooLarge(f"the transaction has {size} bytes, and at most {most} are allowed", hint=hint)


def is_complete(transaction: VersionedTransaction) -> bool:
    """Whether each slot holds a signature. It need not be good: see verify_transaction."""
    signatures = transaction.signatures
    return len(signatures) >= transaction.message.header.num_required_signatures and UNSIGNED not in signatures


def verify_transaction(transaction: VersionedTransaction) -> bool:
    """Whether every required signer has signed the message, as a node verifies it. About 45 µs for each signature."""
    # solders looks at the signatures that are there, and finds nothing wrong where there are none.
    message = transaction.message
    required = message.header.num_required_signatures
    complete = required > 0 and len(transaction.signatures) == required == len(signers_of(message))
    return complete and all(transaction.verify_with_results())
