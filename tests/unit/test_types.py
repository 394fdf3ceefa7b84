"""What an application's type checker finds: each misspelled name, and no fault in what the documents print."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from tests.support.paths import ROOT

GOOD = """
import hsmcore


async def use(km: hsmcore.KeyManager) -> bytes:
    km.on("failover", print)
    try:
        return await km.sign(b"m")
    except hsmcore.DeadlineExceeded as error:
        raise hsmcore.errors.HsmError(str(error)) from None


async def remote(address: str) -> bytes:
    async with hsmcore.gateway.Client(address) as client:
        client.on("key-changed", print)
        signature: bytes = await client.sign(b"m")
        return signature


async def watched(km: hsmcore.KeyManager) -> str:
    async with km, hsmcore.serve.attached(km) as site:
        return f"{site.address} {[member['member'] for member in km.describe()['members']]}"
"""
TYPOS = (
    "hsmcore.nonsense",
    "hsmcore.DeadlineExceded",
    "hsmcore.gateway.Clint",
    "hsmcore.solana.HsmcoreSinger",
    "hsmcore.serve.atached",
    'km.on("failovr", print)',
    'km.describe()["currentKye"]',
    'km.describe()["members"][0]["conditon"]',
    "hsmcore.gateway.Client(7)",
    'hsmcore.gateway.Client("unix:/s").sing',
)


@pytest.mark.timeout(600)
def test_a_type_checker_finds_each_typo_and_nothing_else(tmp_path):
    typos = "".join(f"    {line}\n" for line in TYPOS)
    text = f"{GOOD}\n\ndef typos(km: hsmcore.KeyManager) -> None:\n"
    (tmp_path / "application.py").write_text(text + typos)
    # With the options of `make lint`, whose cache has hsmcore's own modules then.
    program = [sys.executable, "-m", "mypy", str(tmp_path / "application.py")]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    found = {int(line) for line in re.findall(r"application\.py:(\d+): error", done.stdout)}
    first = text.count("\n") + 1
    assert found == set(range(first, first + len(TYPOS))), done.stdout + done.stderr
