"""Handovers on Solana's own runtime: it accepts the new key, refuses the old one, and a failure is undone."""

from __future__ import annotations

import asyncio
import socket

import pytest

pytest.importorskip("solders")
from solders.account import Account as SvmAccount
from solders.hash import Hash
from solders.message import Message
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import Transaction
from tests.integration.test_rotation import rules
from tests.support.solana import Chain, Node

import hsmcore
from hsmcore.errors import BadArgument, HsmError
from hsmcore.handover import rpc
from hsmcore.handover.client import ChainRefused
from hsmcore.handover.solana import MintAuthority, NonceAuthority, ProgramAuthority, SolanaHandover

pytestmark = pytest.mark.integration
PROGRAM, MINT, NONCE = (Pubkey(bytes([n]) * 32) for n in (7, 8, 9))
AUTHORITIES = [ProgramAuthority(PROGRAM), MintAuthority(MINT), MintAuthority(MINT, freeze=True), NonceAuthority(NONCE)]


def chain_for(key):
    chain = Chain()
    chain.fund(key)
    chain.program(PROGRAM, key)
    chain.mint(MINT, key)
    chain.nonce(NONCE, key)
    return chain


async def holders(chain):
    return {bytes(a.holder(await chain.account(bytes(a.address)))) for a in AUTHORITIES}


async def takes(chain, manager, key_id, authority, to):
    """Whether the chain lets a key of the ring move an authority."""
    version = await manager._keys._load(key_id)
    me = Pubkey(version.public_key)
    account = await chain.account(bytes(authority.address))
    message = Message.new_with_blockhash(
        [authority.move(account, me, Pubkey(to))], me, Hash.from_bytes(await chain.blockhash())
    )
    signature = Signature.from_bytes(await manager._path.sign_as(version, bytes(message)))
    return chain.send(bytes(Transaction.populate(message, [signature]))) is None


async def test_the_chain_accepts_the_new_key_and_refuses_the_old_one(fresh_token, tmp_path):
    token = fresh_token()
    manager = hsmcore.create_key_manager(token.config(**rules(tmp_path, overlapDays=2)))
    chain = chain_for(token.keys["ed25519"].public_key)
    manager.on_rotation(SolanaHandover(chain, AUTHORITIES))
    async with manager:
        old, old_key = await manager.get_current_key_id(), manager.public_key
        new = await manager.rotate_key()
        chain.fund(manager.public_key)
        assert await holders(chain) == {manager.public_key}
        assert not await takes(chain, manager, old, AUTHORITIES[1], old_key)
        assert await takes(chain, manager, new, AUTHORITIES[1], manager.public_key)
        assert await takes(chain, manager, new, AUTHORITIES[3], manager.public_key)
        await manager.rotate_key()
        assert await holders(chain) == {manager.public_key}


async def test_a_handover_that_fails_half_way_is_given_back(fresh_token, tmp_path):
    token = fresh_token()
    manager = hsmcore.create_key_manager(token.config(**rules(tmp_path)))
    chain = chain_for(token.keys["ed25519"].public_key)
    chain.mint(MINT, bytes(32))  # of another owner: the second authority cannot be moved

    class Rich(SolanaHandover):
        async def revert(self, old, new, km):
            chain.fund(new.public_key)
            return await super().revert(old, new, km)

    manager.on_rotation(Rich(chain, AUTHORITIES))
    async with manager:
        old = await manager.get_current_key_id()
        with pytest.raises(HsmError, match="not the key that is to hand it over"):
            await manager.rotate_key()
        assert await manager.get_current_key_id() == old
        assert chain.settled == 2, "before it is given back, and before the new key is destroyed"
        program, nonce = AUTHORITIES[0], AUTHORITIES[3]
        for authority in (program, nonce):
            assert bytes(authority.holder(await chain.account(bytes(authority.address)))) == manager.public_key
        assert [key.id for key in await manager._path.member.control.list_keys()] == [old]


async def test_the_handover_works_over_the_rpc_of_a_node(fresh_token, tmp_path, monkeypatch):
    monkeypatch.setattr(rpc, "_POLL_SECONDS", 0.01)
    token = fresh_token()
    manager = hsmcore.create_key_manager(token.config(**rules(tmp_path)))
    chain = chain_for(token.keys["ed25519"].public_key)
    with Node(chain) as node:
        client = rpc.RpcClient(node.url)
        manager.on_rotation(SolanaHandover(client, AUTHORITIES))
        async with manager:
            await manager.rotate_key()
            for authority in AUTHORITIES:
                found = await client.account(bytes(authority.address))
                assert bytes(authority.holder(found)) == manager.public_key
            chain.refuse = 1
            current = await manager.get_current_key_id()
            with pytest.raises(HsmError, match="refused on purpose"):
                await manager.rotate_key()
            assert await manager.get_current_key_id() == current
        with pytest.raises(HsmError, match="no such method"):
            await client._call("getNothing")
    with pytest.raises(HsmError, match="does not answer"):
        await client.blockhash()


async def test_settled_tells_which_key_every_authority_obeys(fresh_token, tmp_path):
    token = fresh_token()
    manager = hsmcore.create_key_manager(token.config(**rules(tmp_path, overlapDays=2)))
    chain = chain_for(token.keys["ed25519"].public_key)
    handover = SolanaHandover(chain, AUTHORITIES)
    manager.on_rotation(handover)
    async with manager:
        old = manager.keys()[0]
        await manager.rotate_key()
        new = manager.keys()[1]
        assert await handover.settled(old, new) == "new"
        assert chain.settled == 0, "what obeys the new key needs no wait"
        chain.mint(MINT, old.public_key)
        assert await handover.settled(old, new) == "unknown"
        chain.mint(MINT, bytes(32))  # a third key's
        assert await handover.settled(old, new) == "unknown"
        for put, address in ((chain.program, PROGRAM), (chain.nonce, NONCE)):
            put(address, old.public_key)
        assert await handover.settled(old, new) == "old"
        assert chain.settled == 1

        async def lands():  # a transaction that an earlier life sent
            chain.nonce(NONCE, new.public_key)

        chain.settle = lands
        assert await handover.settled(old, new) == "unknown", "not old: the transaction in doubt was waited for"
        chain.svm.set_account(NONCE, SvmAccount(0, b"", Pubkey.default()))
        with pytest.raises(HsmError):
            await handover.settled(old, new)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\n{", "IncompleteRead"),
        (b"what\r\n", "BadStatusLine"),
    ],
)
async def test_an_answer_that_is_no_http_is_an_error_of_the_node(text, error):
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = rpc.RpcClient(f"http://127.0.0.1:{server.getsockname()[1]}")

        def answer():
            peer, _ = server.accept()
            with peer:
                peer.sendall(text)
                peer.shutdown(socket.SHUT_WR)
                while peer.recv(65536):
                    pass

        answering = asyncio.get_running_loop().run_in_executor(None, answer)
        with pytest.raises(ChainRefused, match=error):
            await client.blockhash()
        await answering


def test_a_handover_needs_an_authority():
    with pytest.raises(BadArgument, match="at least one"):
        SolanaHandover(Chain(), [])


def test_a_node_in_clear_text_is_refused():
    with pytest.raises(BadArgument, match="https"):
        rpc.RpcClient("http://example.org")
