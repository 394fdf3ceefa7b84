"""Keys in memory: what protects them is looked at from outside, in the memory of a process that has one."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from nacl.signing import SigningKey
from tests.support.managers import opened
from tests.support.verifiers import is_good

import hsmcore
from hsmcore.members.control import KeyNotExportable

pytestmark = pytest.mark.integration

HOLDER = Path(__file__).parents[1] / "support" / "ephemeral_holder.py"
PAGE = resource.getpagesize()


def config(**rules: Any) -> dict[str, Any]:
    settings = {"allowEphemeralPrimary": True}
    return {"keyManager": {"type": "ephemeral", "config": settings, "maxCacheSize": 0, **rules}}


# ---- the memory of another process -----------------------------------------------------------------------------------


class Holder:
    """A process with an ephemeral key; see ephemeral_holder.py for the words that it knows."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.pid = process.pid
        self.hello = self._read()

    def say(self, word: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def memory(self, address: int, size: int) -> bytes:
        with Path(f"/proc/{self.pid}/mem").open("rb", buffering=0) as memory:
            memory.seek(address)
            return memory.read(size)

    def places_of(self, wanted: bytes) -> list[int]:
        """Where in everything that the process can read these bytes are."""
        found = []
        for line in Path(f"/proc/{self.pid}/maps").read_text().splitlines():
            span, rights, *_ = line.split()
            if rights[0] != "r" or "[v" in line:
                continue
            begin, end = (int(part, 16) for part in span.split("-"))
            try:
                content = self.memory(begin, end - begin)
            except OSError:
                continue
            at = content.find(wanted)
            while at >= 0:
                found.append(begin + at)
                at = content.find(wanted, at + 1)
        return found

    def flags(self, address: int) -> set[str]:
        """VmFlags of the mapping that begins there; proc(5), /proc/pid/smaps."""
        inside = False
        for line in Path(f"/proc/{self.pid}/smaps").read_text().splitlines():
            if "-" in line.split()[0]:
                inside = line.startswith(f"{address:x}-")
            elif inside and line.startswith("VmFlags:"):
                return set(line.split()[1:])
        return set()


@pytest.fixture
def holder() -> Iterator[Holder]:
    with holding() as made:
        yield made


@contextmanager
def holding(*arguments: str) -> Iterator[Holder]:
    with subprocess.Popen(
        [sys.executable, str(HOLDER), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Holder(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(30)


def test_the_key_is_in_protected_memory_and_nowhere_else(holder):
    address = holder.hello["address"]
    assert {"lo", "dd", "wf"} <= holder.flags(address), "locked, not in core dumps, wiped on fork"
    seed = holder.memory(address, 32)
    assert bytes(SigningKey(seed).verify_key).hex() == holder.hello["public_key"]
    assert holder.say("sign")["good"]
    assert holder.places_of(seed) == [address]
    assert holder.say("close")["closed"]
    assert holder.places_of(seed) == []


def test_the_page_reads_as_zeros_after_the_wipe_and_before_it_goes(holder):
    assert holder.say("wipe")["before_unmapping"] == "00" * PAGE


def test_a_forked_child_has_no_key(holder):
    answer = holder.say("fork")
    assert answer["bytes"] == "00" * 64
    assert answer["error"] == "EngineForked"
    assert answer["key_error"] == "EngineClosed"
    assert holder.say("sign")["good"], "the parent still has it"


def test_a_key_that_is_deactivated_is_wiped(holder):
    seed = holder.memory(holder.hello["address"], 32)
    assert holder.say("deactivate") == {"enforced": True}
    assert holder.places_of(seed) == []


def test_without_locked_memory_there_is_no_key():
    with holding("unlocked") as holder:
        assert holder.hello["error"] == "OutOfMemory"
        assert "RLIMIT_MEMLOCK" in holder.hello["text"]
        assert "ulimit -l" in holder.hello["text"]


# ---- through the key manager -----------------------------------------------------------------------------------------


async def test_signatures_are_those_of_ed25519(capfd):
    async with opened(config()) as manager:
        for message in (b"x", bytes(1), bytes(16_384)):
            assert is_good("ed25519", manager.public_key, message, await manager.sign(message))
        assert await manager.sign(b"x") == await manager.sign(b"x")
        first = manager.public_key
    async with opened(config()) as manager:
        assert manager.public_key != first, "another start, another key"


async def test_keys_are_made_and_wiped():
    async with opened(config()) as manager:
        first = await manager.get_current_key_id()
        second = await manager.generate_key()
        await manager.set_current_key_id(second)
        signature = await manager.sign(b"x")
        await manager.deactivate_key(first)
        with pytest.raises(hsmcore.KeyDeactivated):
            await manager.set_current_key_id(first)
        with pytest.raises(KeyNotExportable):
            await manager.export_key_backup(second)
        assert await manager.verify(b"x", signature, second)
        control = manager._path.member.control
        assert {record.id: record.can_sign for record in await control.list_keys()} == {first: False, second: True}
        with pytest.raises(hsmcore.KeyNotFound):
            await manager.set_current_key_id("00")


def test_only_ed25519_is_accepted():
    given = config()
    given["keyManager"]["config"]["algorithm"] = "ecdsa-p256"
    with pytest.raises(hsmcore.ConfigurationError) as caught:
        hsmcore.create_key_manager(given)
    assert caught.value.path == "$.keyManager.config.algorithm"
    assert "'ed25519'" in str(caught.value)
