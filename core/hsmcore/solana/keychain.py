"""A signer of solana-keychain over a key manager: what takes its TransactionSigner takes a key in an HSM."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from typing import Any, Final, Literal, overload

from solana_keychain import SignedTransaction, SignerError, SignerErrorCode, TransactionSigner
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import VersionedTransaction

from hsmcore import errors
from hsmcore.errors import HsmError
from hsmcore.solana.address import AddressKey, SigningKeys
from hsmcore.solana.transactions import is_complete

CODES: Final[dict[type[HsmError], SignerErrorCode]] = {
    errors.AlgorithmUnsupported: SignerErrorCode.INVALID_PUBLIC_KEY,
    errors.AuditUnavailable: SignerErrorCode.IO_ERROR,
    errors.ConfigurationError: SignerErrorCode.CONFIG_ERROR,
    errors.EngineClosed: SignerErrorCode.NOT_AVAILABLE,
    errors.EngineForked: SignerErrorCode.NOT_AVAILABLE,
    errors.FleetBehind: SignerErrorCode.NOT_AVAILABLE,
    errors.HostUnusable: SignerErrorCode.CONFIG_ERROR,
    errors.InternalError: SignerErrorCode.OTHER,
    errors.InvalidMessage: SignerErrorCode.SERIALIZATION_ERROR,
    errors.KeyAmbiguous: SignerErrorCode.CONFIG_ERROR,
    errors.KeyNotFound: SignerErrorCode.CONFIG_ERROR,
    errors.LoginError: SignerErrorCode.NOT_AVAILABLE,
    errors.MessageTooLarge: SignerErrorCode.SERIALIZATION_ERROR,
    errors.ModuleFatal: SignerErrorCode.NOT_AVAILABLE,
    errors.ModuleInvalid: SignerErrorCode.CONFIG_ERROR,
    errors.ModuleMissing: SignerErrorCode.CONFIG_ERROR,
    errors.NotInitialized: SignerErrorCode.NOT_INITIALIZED,
    errors.OutOfMemory: SignerErrorCode.OTHER,
    errors.PublicKeyMissing: SignerErrorCode.CONFIG_ERROR,
    errors.SignatureInvalid: SignerErrorCode.SIGNING_FAILED,
    errors.SignatureMalformed: SignerErrorCode.SIGNING_FAILED,
    errors.SystemFailure: SignerErrorCode.IO_ERROR,
    errors.TokenAmbiguous: SignerErrorCode.CONFIG_ERROR,
    errors.TokenNotFound: SignerErrorCode.CONFIG_ERROR,
}
"""The code of an error, by its class or nearest base. Every other error is NOT_AVAILABLE if it is retryable, else
SIGNING_FAILED."""


def signer_error(error: HsmError) -> SignerError:
    """Make the SignerError for an error; as its cause, that says what happened. SignerError itself shows its code
    alone."""
    other = SignerErrorCode.NOT_AVAILABLE if error.retryable else SignerErrorCode.SIGNING_FAILED
    code = next((CODES[base] for base in type(error).__mro__ if base in CODES), other)
    made = SignerError(code, str(error))
    made.__cause__ = error
    return made


class HsmcoreSigner(TransactionSigner):
    """Signs for one address: with the key that has it, or not at all. After a rotation the new key is another address:
    make another signer. Belongs to the key manager's event loop. Every error is a SignerError with the HsmError as its
    `__cause__`."""

    def __init__(self, keys: SigningKeys, pubkey: Pubkey | None = None, *, timeout: float | None = None) -> None:
        """`keys`: an initialized KeyManager, or a gateway.Client. `pubkey`: None is the key that signs now.
        `timeout` of each call, in seconds; None: `requestTimeoutMs`."""
        try:
            self._key = AddressKey(keys, pubkey)
        except HsmError as error:
            raise signer_error(error) from error
        self._timeout = timeout

    def __repr__(self) -> str:
        return f"HsmcoreSigner(pubkey={self.pubkey})"

    @property
    def pubkey(self) -> Pubkey:
        """The address."""
        return self._key.address

    async def sign_message(self, message: bytes) -> Signature:
        """Sign bytes as they are. The signature of a transaction's bytes is one of the transaction: wrap text in
        off_chain_message, and have a policy say which kinds the key signs."""
        try:
            return await self._key.sign(message, self._timeout)
        except HsmError as error:
            raise signer_error(error) from error

    async def sign_transaction(self, transaction: VersionedTransaction) -> SignedTransaction:
        """Sign a transaction in place: legacy, version 0 or 1. Other signatures stay as they are."""
        [signed] = await self.sign_transactions([transaction])
        return signed

    @overload
    async def sign_transactions(
        self, transactions: Iterable[VersionedTransaction], return_exceptions: Literal[False] = False
    ) -> list[SignedTransaction]: ...
    @overload
    async def sign_transactions(
        self, transactions: Iterable[VersionedTransaction], return_exceptions: bool = False
    ) -> list[SignedTransaction | SignerError]: ...
    async def sign_transactions(
        self, transactions: Iterable[VersionedTransaction], return_exceptions: bool = False
    ) -> Any:
        """Sign transactions in one crossing to the workers, in place. The first error is raised, and then none is
        changed, unless `return_exceptions` puts errors into the list."""
        batch = list(transactions)
        try:
            found = await self._key.sign_all(batch, self._timeout, return_exceptions)
        except HsmError as error:
            raise signer_error(error) from error
        return [
            signer_error(one) if isinstance(one, HsmError) else _signed(transaction, one)
            for transaction, one in zip(batch, found, strict=True)
        ]

    async def is_available(self) -> bool:
        """Whether the key signs now. A device is asked only if all that hold the key are down; see AddressKey."""
        try:
            return await self._key.signs_now()
        except HsmError:
            return False


def _signed(transaction: VersionedTransaction, signature: Signature) -> SignedTransaction:
    encoded = b64encode(bytes(transaction)).decode()
    return SignedTransaction(encoded, signature, is_complete(transaction), transaction)
