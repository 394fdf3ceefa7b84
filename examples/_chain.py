"""Solana in this process: LiteSVM, which verifies every signature and executes; also behind a node's JSON-RPC."""

from __future__ import annotations

import json
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from solders.hash import Hash
from solders.litesvm import LiteSVM
from solders.pubkey import Pubkey
from solders.transaction import VersionedTransaction
from solders.transaction_metadata import FailedTransactionMetadata


class Chain:
    """One thread at a time."""

    def __init__(self, funded: Pubkey) -> None:
        self._svm = LiteSVM()
        self._svm.airdrop(funded, 10_000_000_000)

    def blockhash(self) -> Hash:
        return self._svm.latest_blockhash()

    def balance(self, address: Pubkey) -> int:
        """Lamports."""
        return self._svm.get_balance(address) or 0

    def execute(self, transaction: VersionedTransaction) -> str:
        """ "executed", or why it was refused."""
        result = self._svm.send_transaction(transaction)
        return str(result.err()) if isinstance(result, FailedTransactionMetadata) else "executed"


@contextmanager
def node(chain: Chain) -> Iterator[str]:
    """Serve the chain on a free port of the loopback; the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = {"jsonrpc": "2.0", "id": asked["id"]} | _answer(chain, asked["method"], asked["params"])
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _answer(chain: Chain, method: str, params: list[Any]) -> dict[str, Any]:
    here = {"context": {"slot": 1}}
    match method:
        case "getLatestBlockhash":
            return {"result": here | {"value": {"blockhash": str(chain.blockhash()), "lastValidBlockHeight": 150}}}
        case "getBalance":
            return {"result": here | {"value": chain.balance(Pubkey.from_string(params[0]))}}
        case "sendTransaction":
            transaction = VersionedTransaction.from_bytes(b64decode(params[0]))
            happened = chain.execute(transaction)
            if happened == "executed":
                return {"result": str(transaction.signatures[0])}
            return {"error": {"code": -32602, "message": happened}}
    return {"error": {"code": -32601, "message": "no such method"}}
