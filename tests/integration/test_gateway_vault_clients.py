"""Clients that speak to Vault already, unmodified, against Vault's face: solana-keychain's for Python and for
JavaScript, and hvac."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
from pathlib import Path

import httpx
import hvac
import pytest
from nacl.signing import VerifyKey
from solana_keychain import SignerError, SignerErrorCode
from solana_keychain.vault import VaultSigner, VaultSignerConfig
from solders.hash import Hash
from solders.litesvm import LiteSVM
from solders.message import MessageV0
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.system_program import TransferParams, transfer
from solders.transaction import VersionedTransaction
from tests.integration.test_rotation import rules
from tests.support.loops import one_loop
from tests.support.policed import key
from tests.support.vault_site import TOKEN, b64, site

pytestmark = pytest.mark.integration
M = b"a message"
MODULES = Path(__file__).with_name("keychain_vault")
WRONG = "x" * 40


def unsigned(chain: LiteSVM, payer: Pubkey, lamports: int) -> VersionedTransaction:
    """A transfer that waits for its fee payer's signature."""
    pays = transfer(TransferParams(from_pubkey=payer, to_pubkey=key(9), lamports=lamports))
    message = MessageV0.try_compile(payer, [pays], [], chain.latest_blockhash())
    return VersionedTransaction.populate(message, [Signature.default()])


def funded(payer: Pubkey) -> LiteSVM:
    """A chain that checks signatures, on which the payer has something."""
    chain = LiteSVM()
    assert chain.get_sigverify()
    chain.airdrop(payer, 1_000_000_000)
    assert chain.latest_blockhash() != Hash.default()
    return chain


@one_loop
async def test_solana_keychain_for_python_signs(fresh_token, tmp_path):
    config = fresh_token().config(**rules(tmp_path))
    async with site(config, tmp_path) as vault, httpx.AsyncClient(verify=vault.trusting()) as link:
        payer = Pubkey.from_bytes(vault.manager.public_key)

        def signer(token: str = TOKEN, name: str = "default", public_key: str = str(payer)) -> VaultSigner:
            return VaultSigner(VaultSignerConfig(f"{vault.url}/", token, name, public_key, link))

        good = signer()
        assert await good.is_available()
        assert (await good.sign_message(M)).verify(payer, M)
        chain = funded(payer)
        for lamports in range(1_000_000, 1_000_005):
            signed = await good.sign_transaction(unsigned(chain, payer, lamports))
            assert signed.is_complete
            assert not hasattr(chain.send_transaction(signed.transaction), "err")
        assert chain.get_balance(key(9)) == sum(range(1_000_000, 1_000_005))
        for bad in (signer(token=WRONG), signer(name="other")):
            assert not await bad.is_available()
            with pytest.raises(SignerError) as caught:
                await bad.sign_message(M)
            assert caught.value.code == SignerErrorCode.REMOTE_API_ERROR
        await vault.manager.rotate_key("test")  # the client has one key, and says so rather than use another one
        assert not await good.is_available()
        with pytest.raises(SignerError):
            await good.sign_message(M)
        new = signer(public_key=str(Pubkey.from_bytes(vault.manager.public_key)))
        assert await new.is_available()
        await new.sign_message(M)


async def node(vault, config, messages=(), transactions=()):
    """What sign.mjs says."""
    program = shutil.which("node")
    assert program is not None, "node is missing: see scripts/setup"
    assert (MODULES / "node_modules").is_dir(), "npm packages are missing: see scripts/setup"
    environment = {"PATH": os.environ["PATH"], "NODE_EXTRA_CA_CERTS": vault.authority.file}
    running = await asyncio.create_subprocess_exec(
        program, MODULES / "sign.mjs", stdin=-1, stdout=-1, stderr=-1, env=environment
    )
    asked = {"config": config, "messages": [*map(b64, messages)], "transactions": [b64(bytes(t)) for t in transactions]}
    out, errors = await running.communicate(json.dumps(asked).encode())
    assert running.returncode == 0, errors.decode()
    return json.loads(out)


@one_loop
async def test_solana_keychain_for_javascript_signs(world, tmp_path):
    async with site(world.config(), tmp_path) as vault:
        payer = Pubkey.from_bytes(vault.manager.public_key)
        config = {"vaultAddr": vault.url, "vaultToken": TOKEN, "keyName": "default", "publicKey": str(payer)}
        chain = funded(payer)
        messages = [M, b"another one", bytes(1000)]
        transactions = [unsigned(chain, payer, lamports) for lamports in range(1_000_000, 1_000_010)]
        said = await node(vault, config, messages, transactions)
        assert said.keys() == {"available", "messages", "transactions"}
        assert said["available"] is True
        for message, signature in zip(messages, said["messages"], strict=True):
            VerifyKey(bytes(payer)).verify(message, base64.b64decode(signature))
        for transaction, signature in zip(transactions, said["transactions"], strict=True):
            signed = VersionedTransaction.populate(
                transaction.message, [Signature.from_bytes(base64.b64decode(signature))]
            )
            assert not hasattr(chain.send_transaction(signed), "err")
        assert chain.get_balance(key(9)) == sum(range(1_000_000, 1_000_010))
        refused = await node(vault, {**config, "vaultToken": WRONG}, messages)
        assert refused["available"] is False
        assert "permission denied" in refused["error"]["message"]
        assert WRONG not in json.dumps(refused)


@one_loop
async def test_hvac_signs_verifies_and_looks_around(fresh_token, tmp_path):
    config = fresh_token({"name": "p256", "kind": "ecdsa-p256"}).config("p256", **rules(tmp_path))
    async with site(config, tmp_path) as vault:
        await asyncio.to_thread(use_hvac, vault.url, vault.authority.file)
        old = await asyncio.to_thread(hvac_signature, vault.url, vault.authority.file)
        await vault.manager.rotate_key("test")
        new = await asyncio.to_thread(hvac_signature, vault.url, vault.authority.file)
        assert [one[:9] for one in (old, new)] == ["vault:v1:", "vault:v2:"]
        await asyncio.to_thread(hvac_verifies, vault.url, vault.authority.file, old, new)


def client(url: str, authority: str, token: str = TOKEN) -> hvac.Client:
    """A client of hvac, which is to be closed."""
    return hvac.Client(url, token, verify=authority)


def use_hvac(url: str, authority: str) -> None:
    """Blocks."""
    vault = client(url, authority)
    try:
        assert vault.is_authenticated()
        assert vault.sys.read_health_status().status_code == 200
        assert vault.sys.read_health_status(method="GET")["sealed"] is False
        assert vault.sys.is_initialized()
        assert not vault.sys.is_sealed()
        assert vault.sys.read_leader_status()["ha_enabled"] is False
        assert vault.auth.token.renew_self()["auth"]["renewable"] is False
        assert vault.sys.get_capabilities(["transit/sign/default"])["data"]["capabilities"] == ["update"]
        transit = vault.secrets.transit
        assert transit.list_keys()["data"]["keys"] == ["default"]
        described = transit.read_key("default")["data"]
        assert (described["type"], described["latest_version"], described["supports_signing"]) == (
            "ecdsa-p256",
            1,
            True,
        )
        for options in ({}, {"marshaling_algorithm": "jws"}, {"hash_algorithm": "sha2-256"}, {"key_version": 1}):
            signature = transit.sign_data("default", b64(M), **options)["data"]["signature"]
            options.pop("key_version", None)
            checked = transit.verify_signed_data("default", b64(M), signature, **options)
            assert checked["data"]["valid"] is True
            checked = transit.verify_signed_data("default", b64(b"other"), signature, **options)
            assert checked["data"]["valid"] is False
        items = [{"input": b64(b"%d" % number), "reference": str(number)} for number in range(50)]
        results = transit.sign_data("default", batch_input=[*items, {}])["data"]["batch_results"]
        assert [one["reference"] for one in results[:50]] == [str(number) for number in range(50)]
        assert results[50]["error"] == "missing input"
        with pytest.raises(hvac.exceptions.InvalidRequest, match="signature_algorithm"):
            transit.sign_data("default", b64(M), signature_algorithm="pss")
        with pytest.raises(hvac.exceptions.Forbidden, match="permission denied"):
            transit.sign_data("other", b64(M))
        with pytest.raises(hvac.exceptions.InvalidPath):
            transit.encrypt_data("default", plaintext=b64(M))
    finally:
        vault.adapter.close()
    stranger = client(url, authority, WRONG)
    try:
        assert not stranger.is_authenticated()
        with pytest.raises(hvac.exceptions.Forbidden, match="permission denied"):
            stranger.secrets.transit.sign_data("default", b64(M))
    finally:
        stranger.adapter.close()


def hvac_signature(url: str, authority: str) -> str:
    """A signature of M. Blocks."""
    vault = client(url, authority)
    try:
        return str(vault.secrets.transit.sign_data("default", b64(M))["data"]["signature"])
    finally:
        vault.adapter.close()


def hvac_verifies(url: str, authority: str, *signatures: str) -> None:
    """Blocks."""
    vault = client(url, authority)
    try:
        for signature in signatures:
            assert vault.secrets.transit.verify_signed_data("default", b64(M), signature)["data"]["valid"] is True
        swapped = signatures[0].replace("v1", "v2")
        assert vault.secrets.transit.verify_signed_data("default", b64(M), swapped)["data"]["valid"] is False
    finally:
        vault.adapter.close()
