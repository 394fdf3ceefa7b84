"""The client in Rust: its test program, clients/rust/probe, built without a registry, and driven by lines."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
from tests.support.paths import ROOT

PACKAGE: Final = ROOT / "clients" / "rust"
TARGET: Final = ROOT / "build" / "rust"
STAND_INS: Final = ROOT / "tests" / "support" / "rust"
CARGO: Final = shutil.which("cargo")
needs_cargo = pytest.mark.skipif(CARGO is None, reason="cargo is not installed")
_PATCHES: Final = [
    word
    for name in ("solana-pubkey", "solana-signature", "solana-signer")
    for word in ("--config", f'patch.crates-io.{name}.path="{STAND_INS / name}"')
]
"""The crates of the feature `solana`, as far as it names them: no registry can be reached here."""


def cargo(*words: str | Path, folder: Path = PACKAGE) -> str:
    """Run cargo. Returns what it prints."""
    assert CARGO is not None
    command = [CARGO, *_PATCHES, *map(str, words), "--offline", "--quiet"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def built() -> Path:
    """Build the test program, if it is older than its sources."""
    cargo("build", "--target-dir", TARGET, "--example", "probe")
    return TARGET / "debug" / "examples" / "probe"


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

    async def sign(self, message: bytes, *, key: str = "default", kind: str = "", position: str = "-", ms: int = 20_000) -> list[str]:
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
