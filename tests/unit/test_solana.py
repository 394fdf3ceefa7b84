"""hsmcore.solana beside software keys: slots, sizes, errors, off-chain messages, solana-keychain's contract."""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from solana_keychain import MemorySigner, SignedTransaction, SignerError, SignerErrorCode, TransactionSigner
from solders.hash import Hash
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.message import Message, to_bytes_versioned
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import Transaction, VersionedTransaction
from tests.support.payloads import expected
from tests.support.solana_keys import (
    MEMO,
    UNSIGNED,
    VERSIONS,
    SoftwareKeys,
    memo,
    memo_transaction,
    message_of,
    unsigned,
)

import hsmcore
from hsmcore import errors
from hsmcore._native import classify
from hsmcore.failover.errors import AllLevelsFailed, AllLevelsLate, EmergencyRefused
from hsmcore.solana import HsmcoreSigner, off_chain_message, sign_transactions, verify_transaction
from hsmcore.solana.keychain import signer_error
from hsmcore.state import StoreBusy, StoreError

T = TypeVar("T")


def done(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine, in a loop of its own: for tests that hypothesis repeats."""
    return asyncio.run(coroutine)


# ---- slots -----------------------------------------------------------------------------------------------------------


@st.composite
def waiting(draw: st.DrawFn) -> tuple[VersionedTransaction, Keypair]:
    """A transaction with the signatures of some of its signers, good and bad, and one key that has to sign."""
    keys = [Keypair() for _ in range(draw(st.integers(1, 5)))]
    transaction = memo_transaction(
        draw(st.sampled_from(VERSIONS)), [key.pubkey() for key in keys], draw(st.binary(max_size=200))
    )
    there = st.one_of(st.just(bytes(64)), st.binary(min_size=64, max_size=64))
    signatures = [Signature(draw(there)) for _ in keys]
    # solders lets a transaction have fewer signatures than signers.
    transaction.signatures = signatures[: draw(st.integers(0, len(keys)))] if draw(st.booleans()) else signatures
    return transaction, draw(st.sampled_from(keys))


@given(waiting(), st.booleans())
def test_other_signatures_and_the_message_are_never_changed(waits, through_keychain):
    transaction, key = waits
    message, before = to_bytes_versioned(transaction.message), list(transaction.signatures)
    signers = transaction.message.account_keys[: transaction.message.header.num_required_signatures]
    if through_keychain:
        signed = done(HsmcoreSigner(SoftwareKeys(key)).sign_transaction(transaction)).transaction
    else:
        [signed] = done(sign_transactions(SoftwareKeys(key), [transaction]))
    assert signed is transaction
    assert to_bytes_versioned(signed.message) == message
    slot = signers.index(key.pubkey())
    wanted = before + [UNSIGNED] * (len(signers) - len(before))
    wanted[slot] = key.sign_message(message)
    assert signed.signatures == wanted
    assert signed.verify_with_results()[slot]


def test_a_signature_that_comes_in_between_is_kept():
    """The slot is filled in what the transaction is then, not in what it was when it was sent to be signed."""
    second = Keypair()

    class Slow(SoftwareKeys):
        async def sign_many(self, messages, *rest, **named):
            transaction.signatures = [UNSIGNED, second.sign_message(to_bytes_versioned(transaction.message))]
            return await super().sign_many(messages, *rest, **named)

    keys = Slow()
    transaction = memo_transaction("v0", [keys.current.pubkey(), second.pubkey()])
    done(sign_transactions(keys, [transaction]))
    assert verify_transaction(transaction)


# ---- what is refused before it is signed -----------------------------------------------------------------------------


def sized(version: str, signers: list[Pubkey], size: int) -> VersionedTransaction:
    """A transaction of so many bytes."""
    made = memo_transaction(version, signers, bytes(300))  # so that the length of the text has two bytes
    made = memo_transaction(version, signers, bytes(300 + size - len(bytes(made))))
    assert len(bytes(made)) == size
    return made


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("signers", [1, 3])
def test_a_transaction_that_is_too_large_is_refused_before_it_is_signed(version, signers):
    keys = SoftwareKeys()
    named = [keys.current.pubkey(), *(Pubkey.new_unique() for _ in range(signers - 1))]
    most = 4096 if version == "v1" else 1232
    assert done(sign_transactions(keys, [sized(version, named, most)]))
    assert keys.asked == 1
    large = sized(version, named, most + 1)
    with pytest.raises(hsmcore.MessageTooLarge, match=f"{most + 1} bytes, and at most {most}"):
        done(sign_transactions(keys, [large]))
    large.signatures = []  # its signatures count before they are there
    with pytest.raises(hsmcore.MessageTooLarge):
        done(sign_transactions(keys, [large]))
    assert keys.asked == 1


def short_of_accounts() -> VersionedTransaction:
    message = memo_transaction("legacy", [Pubkey.new_unique()]).message
    return VersionedTransaction.populate(Message.from_bytes(b"\x09" + bytes(message)[1:]), [])


def with_more_signatures(key: Pubkey) -> VersionedTransaction:
    made = memo_transaction("v0", [key])
    made.signatures = [UNSIGNED] * 2
    return made


def refused(keys: SoftwareKeys) -> dict[str, Any]:
    """Transactions that cannot be signed, by a part of the error."""
    mine = keys.current.pubkey()
    return {
        "is no required signer": memo_transaction("v0", [Pubkey.new_unique(), Pubkey.new_unique()]),
        "names": short_of_accounts(),
        "2 signatures stand where the message requires 1": with_more_signatures(mine),
        "must be a VersionedTransaction, not Transaction": Transaction.new_unsigned(Message([memo(b"", mine)], mine)),
        "must be a VersionedTransaction, not bytes": b"transaction",
    }


def test_what_cannot_be_signed_is_refused_before_it_is_signed():
    keys = SoftwareKeys()
    for said, transaction in refused(keys).items():
        with pytest.raises(hsmcore.BadArgument, match=said):
            done(sign_transactions(keys, [memo_transaction("v0", [keys.current.pubkey()]), transaction]))
    assert keys.asked == 0
    legacy = refused(keys)["must be a VersionedTransaction, not Transaction"]
    with pytest.raises(hsmcore.BadArgument) as failure:
        done(sign_transactions(keys, [legacy]))
    assert "VersionedTransaction.from_legacy" in failure.value.hint
    assert done(sign_transactions(keys, [VersionedTransaction.from_legacy(legacy)]))


def test_an_account_that_is_no_signer_has_no_slot():
    keys = SoftwareKeys()
    payer = Pubkey.new_unique()
    reads = Instruction(MEMO, b"x", [AccountMeta(keys.current.pubkey(), False, True)])
    message = message_of("v0", payer, [reads], Hash.new_unique())
    assert keys.current.pubkey() in message.account_keys
    with pytest.raises(hsmcore.BadArgument, match=f"no required signer of the transaction .they are: {payer}"):
        done(sign_transactions(keys, [unsigned(message)]))


# ---- which key signs -------------------------------------------------------------------------------------------------


def test_an_address_without_a_key_is_refused():
    keys, stranger = SoftwareKeys(), Keypair().pubkey()
    transaction = memo_transaction("v0", [stranger])
    with pytest.raises(hsmcore.BadArgument, match=f"{stranger} is no key .* sign now: {keys.current.pubkey()}"):
        done(sign_transactions(keys, [transaction], address=stranger))
    assert keys.asked == 0


class Switches(SoftwareKeys):
    """Another key is current for the second message of a batch."""

    def _sign(self, message, key_id):
        return super()._sign(message, "99" if self.asked == 1 else key_id)


def test_a_key_that_ends_within_a_batch_spoils_no_other_transaction():
    keys = Switches()
    transactions = [memo_transaction("v0", [keys.current.pubkey()]) for _ in range(2)]
    found = done(sign_transactions(keys, transactions, return_exceptions=True))
    assert [verify_transaction(transaction) for transaction in transactions] == [True, False]
    assert isinstance(found[1], hsmcore.KeyNotCurrent)
    keys.asked, again = 0, [memo_transaction("v0", [keys.current.pubkey()]) for _ in range(2)]
    with pytest.raises(hsmcore.KeyNotCurrent):
        done(sign_transactions(keys, again))
    assert [one.signatures for one in again] == [[UNSIGNED]] * 2


@pytest.mark.parametrize("maybe", [True, False])
def test_what_is_said_of_a_key_keeps_whether_a_signature_may_exist(maybe):
    class Bound(SoftwareKeys):
        def _sign(self, _message, _key_id):
            error = hsmcore.KeyNotCurrent("another key signs")
            error.maybe_signed = maybe
            return error

    keys = Bound()
    [found] = done(sign_transactions(keys, [memo_transaction("v0", [keys.current.pubkey()])], return_exceptions=True))
    assert isinstance(found, hsmcore.KeyNotCurrent)
    assert found.maybe_signed is maybe


# ---- verification ----------------------------------------------------------------------------------------------------


def test_a_transaction_is_good_if_every_signer_has_signed():
    keys = [Keypair() for _ in range(3)]
    transaction = memo_transaction("v1", [key.pubkey() for key in keys])
    by_address = {key.pubkey(): key for key in keys}  # the message has them in an order of its own
    payload = to_bytes_versioned(transaction.message)
    signatures = [by_address[signer].sign_message(payload) for signer in transaction.message.account_keys[:3]]
    for wrong in ([], signatures[:2], [*signatures, signatures[0]], [*signatures[:2], UNSIGNED], signatures[::-1]):
        transaction.signatures = wrong
        assert not verify_transaction(transaction)
    transaction.signatures = signatures
    assert verify_transaction(transaction)
    assert not verify_transaction(short_of_accounts())
    assert not verify_transaction(VersionedTransaction.default())


# ---- off-chain messages ----------------------------------------------------------------------------------------------


@given(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=1300),
    st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=5, unique=True),
    st.sampled_from([0, 1]),
)
def test_an_off_chain_message_is_one(text, signers, version):
    message = off_chain_message(text, map(Pubkey, signers), version=version)
    assert classify(message) == "off-chain"
    assert expected(message) == ("off-chain", False)
    assert message.endswith(text.encode())
    for number, signer in enumerate(sorted(signers) if version else signers):
        begin = (18 if version else 51) + 32 * number
        assert message[begin : begin + 32] == signer


def test_what_is_no_off_chain_message_is_refused():
    keys = [Pubkey.new_unique() for _ in range(256)]
    wrong: list[tuple[str, list[Pubkey], dict[str, Any]]] = [
        ("", keys[:1], {}),
        ("\ud800", keys[:1], {}),
        ("text", [], {}),
        ("text", keys, {}),
        ("text", [keys[0], keys[0]], {"version": 1}),
        ("text", keys[:1], {"version": 2}),
        ("text", keys[:1], {"domain": bytes(31)}),
        ("text", keys[:1], {"domain": b"\1" * 32, "version": 1}),
        ("x" * (65535 - 84), keys[:1], {}),
    ]
    for text, signers, options in wrong:
        with pytest.raises(hsmcore.BadArgument):
            off_chain_message(text, signers, **options)


# ---- solana-keychain's contract --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_it_does_what_the_memory_signer_does(version):
    """The reference of solana-keychain, on the same key."""
    keys = SoftwareKeys()
    ours, theirs = HsmcoreSigner(keys), MemorySigner(keys.current)
    assert isinstance(ours, TransactionSigner)
    assert ours.pubkey == theirs.pubkey
    assert done(ours.is_available()) is done(theirs.is_available()) is True
    assert done(ours.sign_message(b"text")) == done(theirs.sign_message(b"text"))
    for signers in ([ours.pubkey], [ours.pubkey, Pubkey.new_unique()], [Pubkey.new_unique(), ours.pubkey]):
        made = memo_transaction(version, signers)
        copies = [VersionedTransaction.populate(made.message, []), VersionedTransaction.populate(made.message, [])]
        mine, reference = done(ours.sign_transaction(copies[0])), done(theirs.sign_transaction(copies[1]))
        assert isinstance(mine, SignedTransaction)
        assert mine.transaction is copies[0]
        assert mine == reference  # encoded transaction, signature, completeness
        assert mine.is_complete is (len(signers) == 1)
        assert b64decode(mine.encoded_transaction) == bytes(copies[0]) == bytes(copies[1])
    for signer in (ours, theirs):
        with pytest.raises(SignerError) as caught:
            done(signer.sign_transaction(memo_transaction(version, [Pubkey.new_unique()])))
        assert caught.value.code is SignerErrorCode.SIGNING_FAILED


CODES = {
    SignerErrorCode.CONFIG_ERROR: """ConfigurationError HostUnusable KeyAmbiguous KeyNotFound ModuleInvalid
        ModuleMissing PublicKeyMissing SecretUnavailable TokenAmbiguous TokenNotFound""",
    SignerErrorCode.INVALID_PUBLIC_KEY: "AlgorithmUnsupported",
    SignerErrorCode.IO_ERROR: "AuditUnavailable StoreError SystemFailure",
    SignerErrorCode.NOT_AVAILABLE: """AccessDenied AllLevelsFailed AllLevelsLate DeadlineExceeded EngineClosed
        EngineForked FleetBehind LoginError MemberDown ModuleBusy ModuleFatal NotHolder PinIncorrect PinLocked
        QueueFull SessionFailed StoreBusy""",
    SignerErrorCode.NOT_INITIALIZED: "NotInitialized",
    SignerErrorCode.OTHER: "InternalError OutOfMemory",
    SignerErrorCode.SERIALIZATION_ERROR: "EmptyMessage InvalidMessage InvalidMessageType MessageTooLarge",
    SignerErrorCode.SIGNING_FAILED: """BadArgument DoubleSign EmergencyRefused HsmError InvalidTimeout KeyDeactivated
        KeyMismatch KeyNotCurrent KeyUnusable PolicyRefused RequestCancelled RequestRejected SignatureInvalid
        SignatureMalformed WrongEventLoop""",
}


def test_every_error_has_its_code():
    extra = [AllLevelsFailed, AllLevelsLate, EmergencyRefused, StoreBusy, StoreError]
    found = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.HsmError)]
    codes = {name: code for code, names in CODES.items() for name in names.split()}
    assert {kind.__name__: signer_error(kind("text")).code for kind in [*found, *extra]} == {
        kind.__name__: codes[kind.__name__] for kind in [*found, *extra]
    }
    assert len(found) > 40


def test_a_key_that_is_no_address_makes_no_signer():
    class Ecdsa(SoftwareKeys):
        public_key = b"\4" + bytes(64)

    class Closed(SoftwareKeys):
        @property
        def public_key(self):
            raise hsmcore.NotInitialized

    for made, code in ((Ecdsa, SignerErrorCode.INVALID_PUBLIC_KEY), (Closed, SignerErrorCode.NOT_INITIALIZED)):
        with pytest.raises(SignerError) as caught:
            HsmcoreSigner(made())
        assert caught.value.code is code


# ---- what is loaded when ---------------------------------------------------------------------------------------------
