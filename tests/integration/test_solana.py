"""Transactions signed on a token, with Solana's own runtime as the judge: LiteSVM, with signature verification on."""

from __future__ import annotations

from base64 import b64decode

import pytest
from solana_keychain import SignerError, SignerErrorCode, sign_and_send_transaction
from solders.keypair import Keypair
from solders.message import to_bytes_versioned
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import VersionedTransaction
from tests.integration.test_key_binding import LEVELS, key_of
from tests.support.levels import OTHER, SAME, Site
from tests.support.loops import one_loop
from tests.support.managers import becomes, counters, opened
from tests.support.solana_keys import UNSIGNED, VERSIONS, Svm, memo, memo_transaction, message_of, unsigned

import hsmcore
from hsmcore.solana import HsmcoreSigner, off_chain_message, sign_transactions, verify_transaction

pytestmark = pytest.mark.integration
TWO = ({"name": "ed25519", "kind": "ed25519"}, {"name": "next", "kind": "ed25519"})
UNCACHED = {"maxCacheSize": 0, "requestTimeoutMs": 10_000}


@pytest.fixture
def site(tmp_path, fresh_token):
    """Makes a site: one member for each key."""
    return lambda *keys: Site(tmp_path, fresh_token, *keys)


def cause(error: SignerError) -> str:
    assert isinstance(error.__cause__, hsmcore.HsmError)
    return str(error.__cause__)


# ---- the chain executes it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_transfer_is_executed(version, world):
    async with opened(world.config()) as km:
        signer = HsmcoreSigner(km)
        chain = Svm(signer.pubkey)
        [transaction] = chain.transfers(version, signer.pubkey)
        if version == "v0":
            assert transaction.message.address_table_lookups
        forged = VersionedTransaction.populate(transaction.message, [Signature(bytes(63) + b"\1")])
        assert "SignatureFailure" in str(chain.refusal(forged))
        signed = await signer.sign_transaction(transaction)
        assert signed.is_complete
        assert verify_transaction(signed.transaction)
        assert b64decode(signed.encoded_transaction) == bytes(transaction)
        assert chain.refusal(VersionedTransaction.from_bytes(b64decode(signed.encoded_transaction))) is None


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_second_of_three_signers(version, world):
    payer, last = Keypair(), Keypair()
    async with opened(world.config()) as km:
        signer = HsmcoreSigner(km)
        chain = Svm(payer.pubkey())
        instruction = memo(b"three", payer.pubkey(), signer.pubkey, last.pubkey())
        transaction = unsigned(message_of(version, payer.pubkey(), [instruction], chain.blockhash()))
        signers = transaction.message.account_keys[:3]
        payload = to_bytes_versioned(transaction.message)
        transaction.signatures = [payer.sign_message(payload), UNSIGNED, UNSIGNED]
        second = signers.index(signer.pubkey)
        signed = await signer.sign_transaction(transaction)
        assert not signed.is_complete
        assert not verify_transaction(transaction)
        assert chain.refusal(transaction) is not None
        whole = list(transaction.signatures)
        assert whole[0] == payer.sign_message(payload)
        assert whole[second] == signed.signature
        assert whole.count(UNSIGNED) == 1
        whole[signers.index(last.pubkey())] = last.sign_message(payload)
        transaction.signatures = whole
        assert chain.refusal(transaction) is None


async def test_a_batch_of_a_hundred_is_executed(world):
    async with opened(world.config(maxCacheSize=0)) as km:
        signer = HsmcoreSigner(km)
        chain = Svm(signer.pubkey)
        before = counters(km)["signatures"]
        batch = chain.transfers("legacy", signer.pubkey, 100)
        signed = await signer.sign_transactions(batch)
        assert [one.transaction for one in signed] == batch
        assert [chain.refusal(one.transaction) for one in signed] == [None] * 100
        assert counters(km)["signatures"] == before + 100


async def test_a_transaction_is_sent_through_keychain(world):
    async with opened(world.config()) as km:
        signer = HsmcoreSigner(km)
        chain = Svm(signer.pubkey)

        async def send(encoded: str) -> Signature:
            transaction = VersionedTransaction.from_bytes(b64decode(encoded))
            assert chain.refusal(transaction) is None
            return transaction.signatures[0]

        [transaction] = chain.transfers("v1", signer.pubkey)
        signature = await sign_and_send_transaction(signer, transaction, send)
        assert signature.verify(signer.pubkey, to_bytes_versioned(transaction.message))


# ---- refused ---------------------------------------------------------------------------------------------------------


@one_loop
async def test_what_is_refused_asks_no_token_and_spoils_no_other(world):
    async with opened(world.config(maxCacheSize=0)) as km:
        signer = HsmcoreSigner(km)
        chain = Svm(signer.pubkey)
        before = counters(km)["signatures"]
        good = chain.transfers("v0", signer.pubkey, 2)
        large = memo_transaction("v0", [signer.pubkey], bytes(1100))
        foreign = memo_transaction("v0", [Pubkey.new_unique()])
        batch = [good[0], large, foreign, good[1]]
        with pytest.raises(SignerError) as caught:
            await signer.sign_transactions(batch)
        assert caught.value.code is SignerErrorCode.SERIALIZATION_ERROR
        assert counters(km)["signatures"] == before
        assert [one.signatures for one in batch] == [[UNSIGNED]] * 4
        found = await signer.sign_transactions(batch, return_exceptions=True)
        codes = [one.code for one in found if isinstance(one, SignerError)]
        assert codes == [SignerErrorCode.SERIALIZATION_ERROR, SignerErrorCode.SIGNING_FAILED]
        assert [chain.refusal(one) for one in good] == [None, None]
        assert counters(km)["signatures"] == before + 2


@one_loop
async def test_a_policy_tells_text_from_transactions(fresh_token, tmp_path):
    policy = {"kinds": ["off-chain"], "domain": "here"}
    config = fresh_token().config(policy=policy, stateFile=str(tmp_path / "state.db"))
    async with opened(config) as km:
        signer = HsmcoreSigner(km)
        text = off_chain_message("I agree", [signer.pubkey])
        assert (await signer.sign_message(text)).verify(signer.pubkey, text)
        transaction = memo_transaction("v0", [signer.pubkey])
        for asked in (
            signer.sign_transaction(transaction),
            signer.sign_message(to_bytes_versioned(transaction.message)),
        ):
            with pytest.raises(SignerError) as caught:
                await asked
            assert caught.value.code is SignerErrorCode.SIGNING_FAILED
            assert isinstance(caught.value.__cause__, hsmcore.PolicyRefused)
        assert transaction.signatures == [UNSIGNED]


@one_loop
async def test_errors_of_a_manager_that_is_not_open(world):
    km = hsmcore.create_key_manager(world.config())
    with pytest.raises(SignerError) as caught:
        HsmcoreSigner(km)
    assert caught.value.code is SignerErrorCode.NOT_INITIALIZED
    unopened = HsmcoreSigner(km, Pubkey.new_unique())
    assert not await unopened.is_available()
    async with km:
        signer = HsmcoreSigner(km)
        transaction = memo_transaction("v0", [signer.pubkey])
        assert await signer.is_available()
        assert not await unopened.is_available()
    assert not await signer.is_available()
    with pytest.raises(SignerError) as caught:
        await signer.sign_transaction(transaction)
    assert caught.value.code is SignerErrorCode.NOT_AVAILABLE


# ---- another key signs by then ---------------------------------------------------------------------------------------


def address(key: bytes) -> str:
    return str(Pubkey(key))


async def test_a_key_that_was_rotated_away_gets_no_signature(fresh_token):
    token = fresh_token(*TWO)
    old, new = token.keys["ed25519"], token.keys["next"]
    async with opened(token.config(**UNCACHED)) as km:
        signer = HsmcoreSigner(km)
        chain = Svm(signer.pubkey)
        batch = chain.transfers("v0", signer.pubkey, 3)
        await km.set_current_key_id(new.id)
        before = counters(km)["signatures"]
        with pytest.raises(SignerError) as caught:
            await signer.sign_transactions(batch)
        assert f"built for {address(old.public_key)}" in cause(caught.value)
        assert f"the key that signs now is {address(new.public_key)}" in cause(caught.value)
        assert not await signer.is_available()
        # The key that signs now has another address, and says for which key the message was built.
        with pytest.raises(hsmcore.HsmError, match=f"built for {address(old.public_key)}") as caught:
            await sign_transactions(km, batch)
        assert caught.value.index == 0
        assert counters(km)["signatures"] == before
        assert [one.signatures for one in batch] == [[UNSIGNED]] * 3
        await km.set_current_key_id(old.id)
        await signer.sign_transactions(batch)
        assert [chain.refusal(one) for one in batch] == [None] * 3


@one_loop
async def test_a_token_that_is_down_is_not_available(site):
    place = site(SAME)
    config = place.config()
    del config["sequencer"]["keyManager"]["failover"]
    async with opened(config) as km:
        signer = HsmcoreSigner(km, timeout=0.2)
        place.kill(0)
        with pytest.raises(SignerError) as caught:
            await signer.sign_transaction(memo_transaction("v0", [signer.pubkey]))
        assert caught.value.code is SignerErrorCode.NOT_AVAILABLE
        await becomes(lambda: unavailable(signer))
        place.revive(0)
        await becomes(signer.is_available)


async def unavailable(signer: HsmcoreSigner) -> bool:
    return not await signer.is_available()


@one_loop
async def test_a_level_with_another_key_takes_over_within_a_request(site):
    """The primary level fails after the request was sent to it: what the other key signs goes into no transaction."""
    place = site(SAME, OTHER)
    async with opened(place.config(failover=LEVELS)) as km:
        signer = HsmcoreSigner(km)
        batch = [memo_transaction("v0", [signer.pubkey], b"%d" % n) for n in range(8)]
        alone = memo_transaction("v1", [signer.pubkey])
        place.kill(0)
        assert km.public_key == key_of(place, 0)
        found = await signer.sign_transactions(batch, return_exceptions=True)
        assert all(isinstance(one, SignerError) and "was built for" in cause(one) for one in found)
        with pytest.raises(SignerError) as caught:
            await signer.sign_transaction(alone)
        assert "was built for" in cause(caught.value)
        assert [one.signatures for one in [*batch, alone]] == [[UNSIGNED]] * 9
