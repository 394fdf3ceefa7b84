"""A signer of solana-keychain in a process that has no HSM: over the gateway's client, judged by LiteSVM."""

from __future__ import annotations

import pytest
from solana_keychain import SignerError, SignerErrorCode
from solders.pubkey import Pubkey
from tests.support.loops import one_loop
from tests.support.managers import until
from tests.support.solana_keys import VERSIONS, Svm, memo_transaction
from tests.support.wire_site import site

from hsmcore.gateway import Client
from hsmcore.solana import HsmcoreSigner, verify_transaction

pytestmark = pytest.mark.integration


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
