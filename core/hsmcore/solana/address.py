"""Signatures of one address: of the key whose public key it is, and of no other.

On Solana a key is an identity: a message names the addresses that must sign it, and the signature of another key is
worth nothing. A key manager may sign with another key than it did when the message was built, after a rotation or on
another level. So each request names its key, and nothing is put into a transaction unless that key has signed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, overload

from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import VersionedTransaction

from hsmcore.base.keyring import KeyVersion, address_of
from hsmcore.errors import BadArgument, HsmError, KeyNotCurrent
from hsmcore.errors.batch import of_batch
from hsmcore.solana.off_chain import off_chain_message
from hsmcore.solana.transactions import Slot, signers_of, slot_of

if TYPE_CHECKING:
    from hsmcore.manager.key_manager import KeyManager

_PROBE_SECONDS: Final = 5.0  # as long as solana-keychain waits


class ServingMember(Protocol):
    """The state of a member that is_available reads."""

    @property
    def signs(self) -> bool: ...
    @property
    def condition(self) -> str: ...
    @property
    def public_key(self) -> bytes | None: ...


class SigningKeys(Protocol):
    """The signer behind an address: a KeyManager, a gateway.Client, or another client with these methods. Errors are
    HsmError."""

    @property
    def public_key(self) -> bytes: ...
    def keys(self) -> Sequence[KeyVersion]: ...
    def members(self) -> Sequence[ServingMember]: ...
    async def sign(self, message: bytes, timeout: float | None = None, *, key_id: str | None = None) -> bytes: ...
    async def sign_many(
        self,
        messages: Iterable[bytes],
        timeout: float | None = None,
        return_exceptions: bool = False,
        *,
        key_id: str | None = None,
    ) -> Sequence[bytes | HsmError]: ...


if TYPE_CHECKING:

    def _checked_by_mypy(manager: KeyManager) -> SigningKeys:
        return manager


class AddressKey:
    """The key of one address. Belongs to the key manager's event loop."""

    def __init__(self, manager: SigningKeys, address: Pubkey | None = None) -> None:
        """`address`: None is that of the key that signs now. Raises AlgorithmUnsupported for a key that is not an
        Ed25519 key, NotInitialized."""
        if address is None:
            address = Pubkey.from_string(address_of(manager.public_key))
        self.address = address
        self._manager = manager

    async def signs_now(self) -> bool:
        """Whether this key signs. If a member that holds it is in service, no device is asked. Members that are down
        are probed by requests: they get a text to sign, which a policy must allow (kind "off-chain"). Raises HsmError
        if none signs it."""
        raw = bytes(self.address)
        mine = [one for one in self._manager.members() if one.signs and one.public_key == raw]
        if mine and all(one.condition == "open" for one in mine):
            await self.sign(off_chain_message("Is this key in service?", [self.address]), _PROBE_SECONDS)
        return bool(mine)

    async def sign(self, message: bytes, timeout: float | None) -> Signature:
        """Sign bytes. Raises BadArgument for an address that is not a key of the key ring, KeyNotCurrent while another
        key signs, and the errors of KeyManager.sign."""
        key_id = self._key_id()
        try:
            return Signature(await self._manager.sign(message, timeout, key_id=key_id))
        except HsmError as error:
            raise self._explained(error) from error

    async def sign_all(
        self, transactions: Iterable[VersionedTransaction], timeout: float | None, return_exceptions: bool
    ) -> list[Signature | HsmError]:
        """As sign_transactions; returns the signatures in order."""
        asked: list[Slot | HsmError] = []
        for transaction in transactions:
            try:
                asked.append(self._slot(transaction))
            except HsmError as error:
                if not return_exceptions:
                    of_batch(error, len(asked))
                    raise
                asked.append(error)
        slots = [one for one in asked if isinstance(one, Slot)]
        signed = iter(await self._fill(slots, timeout, return_exceptions) if slots else ())
        return [next(signed) if isinstance(one, Slot) else one for one in asked]

    def _slot(self, transaction: Any) -> Slot:
        """As slot_of; the error says so if the transaction was built for another key of the key ring."""
        try:
            return slot_of(transaction, self.address)
        except BadArgument:
            signers = signers_of(transaction.message) if isinstance(transaction, VersionedTransaction) else []
            versions = self._manager.keys()
            ring = {version.public_key for version in versions}
            built_for = next((signer for signer in signers if bytes(signer) in ring), None)
            if built_for is None or self.address in signers:
                raise
            raise self._not_current(built_for) from None

    async def _fill(
        self, slots: Sequence[Slot], timeout: float | None, return_exceptions: bool
    ) -> list[Signature | HsmError]:
        """Sign in one crossing to the workers, and fill the slots once every answer is known. No other key can have
        signed: the core compares each key's public key with the pinned one."""
        payloads, key_id = [slot.payload for slot in slots], self._key_id()
        try:
            answers = await self._manager.sign_many(payloads, timeout, return_exceptions, key_id=key_id)
        except HsmError as error:
            raise self._explained(error) from error
        found = [self._explained(one) if isinstance(one, HsmError) else Signature(one) for one in answers]
        for slot, one in zip(slots, found, strict=True):
            if isinstance(one, Signature):
                slot.fill(one)
        return found

    def _key_id(self) -> str:
        raw = bytes(self.address)
        for version in self._manager.keys():  # noqa: SIM118  # no mapping
            if version.public_key == raw:
                return version.id
        raise BadArgument(f"{self.address} is no key of this key manager (those sign now: {self._now()})")

    def _explained(self, error: HsmError) -> HsmError:
        """Have KeyNotCurrent say which address the message was built for, and which sign now."""
        if not isinstance(error, KeyNotCurrent):
            return error
        explained = self._not_current(self.address)
        explained.maybe_signed = error.maybe_signed
        return explained if error.index is None else of_batch(explained, error.index)

    def _not_current(self, built_for: Pubkey) -> HsmError:
        hint = "Build it again for the key that signs now, or have its own key sign again."
        said = (
            f"the message was built for {built_for}, and the key that signs now is {self._now()}: nothing was attached"
        )
        return KeyNotCurrent(said, hint=hint)

    def _signing_now(self) -> set[bytes]:
        return {one.public_key for one in self._manager.members() if one.signs and one.public_key is not None}

    def _now(self) -> str:
        keys = self._signing_now() or {self._manager.public_key}
        return ", ".join(sorted(str(Pubkey(key)) if len(key) == 32 else key.hex() for key in keys))


@overload
async def sign_transactions(
    keys: SigningKeys,
    transactions: Iterable[VersionedTransaction],
    timeout: float | None = None,
    return_exceptions: Literal[False] = False,
    *,
    address: Pubkey | None = None,
) -> list[VersionedTransaction]: ...
@overload
async def sign_transactions(
    keys: SigningKeys,
    transactions: Iterable[VersionedTransaction],
    timeout: float | None = None,
    return_exceptions: bool = False,
    *,
    address: Pubkey | None = None,
) -> list[VersionedTransaction | HsmError]: ...
async def sign_transactions(
    keys: SigningKeys,
    transactions: Iterable[VersionedTransaction],
    timeout: float | None = None,
    return_exceptions: bool = False,
    *,
    address: Pubkey | None = None,
) -> Any:
    """Sign transactions in one crossing to the workers, in place, and return them in order.

    `address`: the signer whose slots are filled; None is that of the key that signs now. Legacy, version 0 and 1. Other
    signatures and messages stay as they are. Raises, before the HSM is asked, BadArgument where the address is not a
    required signer and MessageTooLarge beyond 1,232 bytes (4,096 for version 1); KeyNotCurrent where another key signs
    than the one that a message was built for; and the errors of KeyManager.sign_many. The first error is raised, and
    then no transaction is changed, unless `return_exceptions` puts errors into the list. `timeout` covers the batch.
    """
    batch = list(transactions)
    found = await AddressKey(keys, address).sign_all(batch, timeout, return_exceptions)
    return [one if isinstance(one, HsmError) else transaction for transaction, one in zip(batch, found, strict=True)]
