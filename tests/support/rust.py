"""The client in Rust: its test program, clients/rust/probe, built without a registry, and driven by lines."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from tests.support.paths import ROOT
from tests.support.verifiers import is_good

PACKAGE: Final = ROOT / "clients" / "rust"
TARGET: Final = ROOT / "build" / "rust"
STAND_INS: Final = ROOT / "tests" / "support" / "rust" / "stand-ins.toml"
CARGO: Final = shutil.which("cargo")
needs_cargo = pytest.mark.skipif(CARGO is None, reason="cargo is not installed")


def cargo(*words: str | Path, folder: Path = PACKAGE) -> str:
    """Run cargo. Returns what it prints."""
    assert CARGO is not None
    command = [CARGO, "--config", str(STAND_INS), *map(str, words), "--offline", "--quiet"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def built(name: str) -> Path:
    """Build the test program and the examples, where they are older than their sources."""
    cargo("build", "--target-dir", TARGET, "--features", "solana", "--examples")
    return TARGET / "debug" / "examples" / name


class Probe:
    """The program while it runs `ask`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def line(self) -> list[str]:
        """The next line that it says, as its words."""
        assert self._process.stdout is not None
        return (await self._process.stdout.readline()).decode().rstrip("\n").split("\t")

    def say(self, *words: object) -> None:
        """Give it a line."""
        assert self._process.stdin is not None
        self._process.stdin.write("\t".join(map(str, words)).encode() + b"\n")

    async def ask(self, *words: object) -> list[str]:
        """Give it a line, and return the next one that it says."""
        self.say(*words)
        return await self.line()

    async def sign(
        self, message: bytes, *, key: str = "default", kind: str = "", position: str = "-", ms: int = 20_000
    ) -> list[str]:
        """Have one message signed. Returns what is told."""
        return (await self.ask("sign", "1", key, kind, position, ms, message.hex()))[1:]

    async def close(self) -> None:
        """Close the client. Nothing may be left of it that goes wrong."""
        self.say("close")
        while (said := await self.line()) != ["closed"]:
            assert said != [""], "it ended"
        assert await self._process.wait() == 0


@asynccontextmanager
async def probe(program: Path, *addresses: str, **environment: str) -> AsyncIterator[Probe]:
    """A client of these gateways, connected."""
    process = await asyncio.create_subprocess_exec(
        program,
        "ask",
        *addresses,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | environment,
    )
    made = Probe(process)
    try:
        assert await made.line() == ["connected"]
        yield made
        await made.close()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


Tell = Callable[[str], Awaitable[None]]


async def load(program: Path, folder: Path, during: Callable[[Tell], Awaitable[None]], *addresses: str) -> int:
    """Have the program sign without end while `during` runs. Its outcomes are in the file `told`. Returns how many
    requests it made."""
    file = folder / "told"
    pipes: dict[str, Any] = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    process = await asyncio.create_subprocess_exec(program, "load", file, "3", *addresses, **pipes)
    assert process.stdin is not None
    assert process.stdout is not None

    async def tell(command: str) -> None:
        process.stdin.write(f"{command}\n".encode())
        assert await process.stdout.readline() == b"done\n"

    try:
        await during(tell)
        process.stdin.write(b"end\n")
        return int(await process.stdout.readline())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def settled(folder: Path, made: int) -> set[bytes]:
    """Check what the program was told: each request once, a good signature. Returns the messages."""
    rows = [line.split("\t") for line in (folder / "told").read_text().splitlines()]
    assert Counter(row[2] for row in rows if row[1] == "error") == {}
    messages = [row[0].encode() for row in rows]
    assert len(messages) == len(set(messages)) == made
    wrong = [
        row for row in rows if not is_good("ed25519", bytes.fromhex(row[3]), row[0].encode(), bytes.fromhex(row[2]))
    ]
    assert wrong == []
    return set(messages)
