"""LiteSVM as a chain for handovers: in this process, or as a node behind JSON-RPC on the loopback."""

from __future__ import annotations

import json
import threading
from base64 import b64decode, b64encode
from contextlib import AbstractContextManager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, Self

from solders.account import Account as SvmAccount
from solders.litesvm import LiteSVM
from solders.pubkey import Pubkey
from solders.transaction import Transaction
from solders.transaction_metadata import FailedTransactionMetadata

from hsmcore.handover.client import Account, ChainRefused
from hsmcore.handover.solana import LOADER, SYSTEM, TOKEN

RENT = 10_000_000_000


class Chain:
    """A SolanaClient. It starts with signature verification on; `refuse` makes the next transactions fail."""

    def __init__(self) -> None:
        self.svm = LiteSVM()
        assert self.svm.get_sigverify()
        self.refuse = 0
        self.settled = 0

    def fund(self, key: bytes) -> None:
        self.svm.airdrop(Pubkey(key), 1_000_000_000)

    def put(self, address: Pubkey, owner: Pubkey, data: bytes) -> None:
        self.svm.set_account(address, SvmAccount(RENT, data, owner))

    def program(self, program: Pubkey, authority: bytes) -> None:
        """An upgradeable program that obeys `authority`."""
        [address, _] = Pubkey.find_program_address([bytes(program)], LOADER)
        self.put(address, LOADER, b"\3\0\0\0" + bytes(8) + b"\1" + authority + bytes(64))

    def mint(self, mint: Pubkey, authority: bytes) -> None:
        """A token's mint with that mint and freeze authority."""
        data = b"\1\0\0\0" + authority + bytes(8) + b"\6\1" + b"\1\0\0\0" + authority
        self.put(mint, TOKEN, data)

    def nonce(self, nonce: Pubkey, authority: bytes) -> None:
        """A durable nonce account."""
        data = b"\1\0\0\0\1\0\0\0" + authority + bytes(32) + (5000).to_bytes(8, "little")
        self.put(nonce, SYSTEM, data)

    def send(self, transaction: bytes) -> str | None:
        """None, or why it was refused."""
        if self.refuse:
            self.refuse -= 1
            return "refused on purpose"
        result = self.svm.send_transaction(Transaction.from_bytes(transaction))
        return str(result.err()) if isinstance(result, FailedTransactionMetadata) else None

    async def account(self, address: bytes) -> Account | None:
        found = self.svm.get_account(Pubkey(address))
        return None if found is None else Account(bytes(found.owner), bytes(found.data))

    async def blockhash(self) -> bytes:
        self.svm.expire_blockhash()
        return bytes(self.svm.latest_blockhash())

    async def settle(self) -> None:
        self.settled += 1

    async def execute(self, transaction: bytes) -> None:
        if (why := self.send(transaction)) is not None:
            raise ChainRefused(why)


class Node(AbstractContextManager["Node"]):
    """A chain behind JSON-RPC. Every transaction is finalized when it is asked about for the second time."""

    def __init__(self, chain: Chain) -> None:
        self.chain, self.asked, self.errors = chain, {}, {}
        self.height = 0
        node = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                answer = {"jsonrpc": "2.0", "id": request["id"]} | node.answer(request["method"], request["params"])
                body = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))

    def __enter__(self) -> Self:
        # LiteSVM belongs to one thread: the server's own, from here on.
        self.thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def answer(self, method: str, params: list[Any]) -> dict[str, Any]:
        if method == "getAccountInfo":
            found = self.chain.svm.get_account(Pubkey.from_string(params[0]))
            data = None if found is None else {"owner": str(found.owner), "data": [b64encode(found.data).decode(), ""]}
            return {"result": {"value": data}}
        if method == "getLatestBlockhash":
            self.chain.svm.expire_blockhash()
            value = {"blockhash": str(self.chain.svm.latest_blockhash()), "lastValidBlockHeight": self.height + 2}
            return {"result": {"value": value}}
        if method == "getBlockHeight":
            self.height += 1
            return {"result": self.height}
        if method == "sendTransaction":
            raw = b64decode(params[0])
            signature = str(Transaction.from_bytes(raw).signatures[0])
            if (why := self.chain.send(raw)) is not None:
                return {"error": {"code": -32002, "message": why}}
            self.asked[signature] = 0
            return {"result": signature}
        if method == "getSignatureStatuses":
            [signature] = params[0]
            self.asked[signature] += 1
            done = self.asked[signature] > 1
            return {"result": {"value": [{"err": None, "confirmationStatus": "finalized" if done else "confirmed"}]}}
        return {"error": {"code": -32601, "message": "no such method"}}
