"""A signer of solana-keychain in a process that has no HSM: over the gateway's client, judged by LiteSVM."""

from __future__ import annotations

import pytest
from solana_keychain import SignerError, SignerErrorCode
from solders.pubkey import Pubkey
from tests.support.loops import one_loop
from tests.support.managers import until
from tests.support.solana_keys import UNSIGNED, VERSIONS, Svm, memo_transaction
from tests.support.wire_site import site

import hsmcore
from hsmcore.gateway import Client
from hsmcore.solana import HsmcoreSigner, sign_transactions, verify_transaction

pytestmark = pytest.mark.integration
TWO = ({"name": "ed25519", "kind": "ed25519"}, {"name": "next", "kind": "ed25519"})


@one_loop
async def test_what_a_gateway_signs_is_executed(world, tmp_path):
    async with site(world.config(), tmp_path) as served, Client(f"unix:{served.path}") as km:
        signer = HsmcoreSigner(km)
        assert await signer.is_available()
        chain = Svm(signer.pubkey)
        for version in VERSIONS:
            batch = chain.transfers(version, signer.pubkey, 8)
            signed = await signer.sign_transactions(batch)
            assert [one.transaction for one in signed] == batch
            assert all(verify_transaction(one) for one in batch)
            assert [chain.refusal(one) for one in batch] == [None] * 8
        batch = [memo_transaction("v0", [signer.pubkey]), memo_transaction("v0", [Pubkey.new_unique()])]
        found = await signer.sign_transactions(batch, return_exceptions=True)
        assert [isinstance(one, SignerError) for one in found] == [False, True]
        assert (await signer.sign_message(b"text")).verify(signer.pubkey, b"text")


@one_loop
async def test_a_key_that_was_rotated_away_gets_no_signature(fresh_token, tmp_path):
    token = fresh_token(*TWO)
    old, new = token.keys["ed25519"], token.keys["next"]
    async with site(token.config(), tmp_path) as served, Client(f"unix:{served.path}") as km:
        signer = HsmcoreSigner(km)
        batch = [memo_transaction("v1", [signer.pubkey], b"%d" % number) for number in range(3)]
        await served.manager.set_current_key_id(new.id)
        await until(lambda: km.public_key == new.public_key)
        said = f"built for {Pubkey(old.public_key)}, and the key that signs now is {Pubkey(new.public_key)}"
        for asked in (signer.sign_transactions(batch), signer.sign_message(b"text")):
            with pytest.raises(SignerError) as caught:
                await asked
            assert isinstance(caught.value.__cause__, hsmcore.KeyNotCurrent)
            assert said in str(caught.value.__cause__)
        with pytest.raises(hsmcore.KeyNotCurrent, match="built for"):
            await sign_transactions(km, batch)
        assert [one.signatures for one in batch] == [[UNSIGNED]] * 3
        assert not await signer.is_available()
        assert await HsmcoreSigner(km).is_available()


@one_loop
async def test_a_client_that_is_not_open_or_has_no_gateway_is_not_available(world, tmp_path):
    km = Client(f"unix:{tmp_path}/sign.sock", timeout=0.5)
    assert km.members() == ()
    with pytest.raises(SignerError) as caught:
        HsmcoreSigner(km)
    assert caught.value.code is SignerErrorCode.NOT_INITIALIZED
    async with site(world.config(), tmp_path):
        await km.initialize()
        signer = HsmcoreSigner(km, timeout=0.5)
        [member] = km.members()
        assert (member.signs, member.condition, member.public_key) == (True, "ready", km.public_key)
        assert await signer.is_available()
    await until(lambda: km.members()[0].condition == "open")
    with pytest.raises(SignerError) as caught:
        await signer.sign_message(b"text")
    assert caught.value.code is SignerErrorCode.NOT_AVAILABLE
    await km.close()
    assert not await signer.is_available()
