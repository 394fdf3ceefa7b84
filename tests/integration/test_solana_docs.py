"""docs/SOLANA.md: its programs do what it says, with LiteSVM as the chain."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest
from solana_keychain import SignedTransaction, SignerErrorCode
from solders.hash import Hash
from solders.null_signer import NullSigner
from solders.pubkey import Pubkey
from solders.transaction import VersionedTransaction
from tests.support.loops import one_loop
from tests.support.managers import opened
from tests.support.paths import ROOT
from tests.support.solana import Chain, Node
from tests.support.solana_keys import Svm, memo, memo_transaction, message_of, unsigned

from hsmcore.solana import verify_transaction

pytestmark = pytest.mark.integration
PAGE = (ROOT / "docs" / "SOLANA.md").read_text()


async def run_section(title: str, **names: Any) -> dict[str, Any]:
    """Run the programs of a section one after the other, with these names; the names that there are then."""
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    programs = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    assert programs
    for program in programs:
        code = compile(program, title, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        done = eval(code, names)  # noqa: S307  # our own document
        if done is not None:
            await done
    return names


def test_the_page_has_these_sections():
    assert re.findall(r"^## (.+)$", PAGE, re.MULTILINE) == [
        "Sign with solana-keychain",
        "Sign a batch",
        "Send with solana-py",
        "Sign what anchorpy builds",
    ]


@one_loop
async def test_sign_with_solana_keychain(world):
    async with opened(world.config()) as km:
        payer = Pubkey(km.public_key)
        chain = Svm(payer)
        [transaction] = chain.transfers("v0", payer)
        names = await run_section("Sign with solana-keychain", km=km, transaction=transaction)
        assert names["signed"].is_complete
        assert names["signature"].verify(payer, names["text"])
        assert chain.refusal(transaction) is None
        table = PAGE.partition("| code | `__cause__` |\n")[2].partition("\n\n")[0]
        told = {name for row in table.splitlines() for name in re.findall(r"`([A-Z_]+)`", row.split("|")[1])}
        assert told == {code.name for code in SignerErrorCode} - {
            "BROADCAST_UNCONFIRMED",  # of what sends
            "EXPECTED_SOLANA_SIGNER",
            "HTTP_ERROR",
            "INVALID_PRIVATE_KEY",
            "PARSING_ERROR",
            "REMOTE_API_ERROR",
        }


@one_loop
async def test_sign_a_batch(world):
    async with opened(world.config()) as km:
        payer = Pubkey(km.public_key)
        signer = (await run_section("Sign with solana-keychain", km=km, transaction=memo_transaction("v0", [payer])))[
            "signer"
        ]
        transactions = [memo_transaction("v0", [payer], b"%d" % n) for n in range(3)]
        names = {"km": km, "signer": signer, "transactions": transactions}
        names = await run_section("Sign a batch", **names)
        assert names["failed"] == []
        assert all(isinstance(one, SignedTransaction) for one in names["results"])
        assert all(verify_transaction(one) for one in transactions)


@one_loop
async def test_send_with_solana_py(world):
    async with opened(world.config()) as km:
        payer, chain = Pubkey(km.public_key), Chain()
        chain.fund(km.public_key)
        with Node(chain) as node:
            blockhash = Hash.from_bytes(await chain.blockhash())
            transaction = unsigned(message_of("legacy", payer, [memo(b"text", payer)], blockhash))
            names = await run_section("Send with solana-py", km=km, url=node.url, transaction=transaction)
            assert names["sent"].value == transaction.signatures[0]


class Program:
    """anchorpy's, which does not install beside solana-keychain: a transaction is built with the payer's signature, and
    the provider sends it."""

    def __init__(self, chain: Svm) -> None:
        self.chain, self.provider, self.sent = chain, self, []
        self.transaction = {"initialize": self._initialize}

    def _initialize(self, number: int, *, payer: NullSigner, blockhash: Hash, ctx: object) -> VersionedTransaction:
        message = message_of("legacy", payer.pubkey(), [memo(b"%d" % number, payer.pubkey())], blockhash)
        return VersionedTransaction(message, [payer])

    async def send(self, transaction: VersionedTransaction) -> None:
        self.sent.append(self.chain.refusal(transaction))


@one_loop
async def test_sign_what_anchorpy_builds(world):
    async with opened(world.config()) as km:
        chain = Svm(Pubkey(km.public_key))
        program = Program(chain)
        await run_section(
            "Sign what anchorpy builds", km=km, program=program, blockhash=chain.blockhash(), context=None
        )
        assert program.sent == [None]
