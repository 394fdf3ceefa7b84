"""A Solana node's JSON-RPC interface for handovers: a few calls, for which the standard library is enough."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import urllib.request
from base64 import b64decode, b64encode
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from hsmcore.base.base58 import base58, from_base58
from hsmcore.errors import BadArgument
from hsmcore.handover.client import Account, ChainRefused

COMMITMENT: Final = "finalized"
_POLL_SECONDS: Final = 0.5
_MOST_BYTES: Final = 32 << 20
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class RpcClient:
    """A SolanaClient. `url`: https, or http on the loopback. Seconds: `timeout` for one call, `patience` until a
    transaction is finalized; a blockhash lives about 80 seconds."""

    def __init__(self, url: str, *, timeout: float = 10.0, patience: float = 90.0) -> None:
        parts = urlsplit(url)
        if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
            raise BadArgument("the node's URL must begin with https://, except on this machine's own loopback")
        self._url, self._timeout, self._patience = url, timeout, patience
        self._numbers = itertools.count(1)

    async def account(self, address: bytes) -> Account | None:
        options = {"encoding": "base64", "commitment": COMMITMENT}
        value = (await self._call("getAccountInfo", base58(address), options))["value"]
        return None if value is None else Account(_key(value["owner"]), b64decode(value["data"][0]))

    async def blockhash(self) -> bytes:
        return _key((await self._call("getLatestBlockhash", {"commitment": COMMITMENT}))["value"]["blockhash"])

    async def settle(self) -> None:
        """As SolanaClient: about 80 seconds, until the newest blockhash has expired."""
        newest = (await self._call("getLatestBlockhash", {"commitment": "processed"}))["value"]
        last = newest["lastValidBlockHeight"]
        while await self._call("getBlockHeight", {"commitment": COMMITMENT}) <= last:  # noqa: ASYNC110  # a poll
            await asyncio.sleep(_POLL_SECONDS)

    async def execute(self, transaction: bytes) -> None:
        """As SolanaClient. The bytes are sent once: repeating them is the node's task."""
        options = {"encoding": "base64", "preflightCommitment": COMMITMENT}
        signature = await self._call("sendTransaction", b64encode(transaction).decode(), options)
        until = asyncio.get_running_loop().time() + self._patience
        while asyncio.get_running_loop().time() < until:
            [status] = (await self._call("getSignatureStatuses", [signature]))["value"]
            if status is not None and status["err"] is not None:
                raise ChainRefused(f"transaction {signature} failed: {status['err']}")
            if status is not None and status["confirmationStatus"] == COMMITMENT:
                return
            await asyncio.sleep(_POLL_SECONDS)
        raise ChainRefused(f"transaction {signature} was not finalized within {self._patience:g} s")

    async def _call(self, method: str, *params: Any) -> Any:
        body = orjson.dumps({"jsonrpc": "2.0", "id": next(self._numbers), "method": method, "params": params})
        try:
            answer = orjson.loads(await asyncio.get_running_loop().run_in_executor(None, self._post, body))
        except (OSError, http.client.HTTPException, orjson.JSONDecodeError) as error:
            # Without the error's text: it may hold the URL, which may hold an API key.
            raise ChainRefused(
                f"{method}: the node does not answer ({type(error).__name__})", status="TOKEN_LOST"
            ) from None
        if not isinstance(answer, dict) or "result" not in answer:
            fault = answer.get("error", {}) if isinstance(answer, dict) else {}
            raise ChainRefused(f"{method}: the node refused: {str(fault.get('message', 'no result'))[:300]}")
        return answer["result"]

    def _post(self, body: bytes) -> bytes:
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})  # noqa: S310  # checked
        with urllib.request.urlopen(request, timeout=self._timeout) as response:  # noqa: S310
            data: bytes = response.read(_MOST_BYTES)
            return data


def _key(text: str) -> bytes:
    return from_base58(text).rjust(32, b"\0")
