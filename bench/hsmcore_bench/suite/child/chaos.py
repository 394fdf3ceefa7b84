"""The module that injects faults, told what to do through its control socket."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson

ATTEMPTS = 200  # at the socket, 10 ms apart


async def tell(socket: str, command: Mapping[str, Any]) -> dict[str, Any]:
    """Send one command and return its answer. The socket goes and comes back when the module is initialized again."""
    for _ in range(ATTEMPTS):
        try:
            line = await _asked(socket, orjson.dumps(dict(command)) + b"\n")
        except (ConnectionError, FileNotFoundError):
            line = b""
        if not line:
            await asyncio.sleep(0.01)
            continue
        reply: dict[str, Any] = orjson.loads(line)
        if not reply.get("ok"):
            raise RuntimeError(f"{dict(command)}: {reply.get('error')}")
        return reply
    raise RuntimeError("the module that injects faults does not answer")


async def _asked(socket: str, line: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        writer.write(line)
        return await reader.readline()
    finally:
        writer.close()
        await writer.wait_closed()
