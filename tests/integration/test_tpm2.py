"""tpm2-pkcs11 in a host process, on a TPM that is a program: it reads its store once, and a TPM has room for little."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from tests.contract.rigs.tpm2 import Tpm2Process
from tests.support.loops import one_loop
from tests.support.managers import opened, start, until
from tests.support.verifiers import is_good

pytestmark = pytest.mark.integration


@pytest.fixture
def tpm(tmp_path) -> Iterator[Tpm2Process]:
    """A TPM with a key."""
    rig = Tpm2Process(tmp_path)
    try:
        rig.setup()
        yield rig
    finally:
        rig.teardown()


@one_loop
async def test_a_key_that_another_process_made_signs_without_a_restart(tpm):
    """As a live rotation makes it, while the old one signs."""
    async with opened(tpm.config()) as manager:
        first, done, over = manager.public_key, [], asyncio.Event()

        async def sign():
            while not over.is_set():
                message = b"%d" % len(done)
                done.append((message, await manager.sign_with_receipt(message, 60)))

        signing = start(sign())
        second = await manager.generate_key()
        await manager.set_current_key_id(second)
        before = len(done)
        await until(lambda: len(done) > before + 5 or signing.done())
        over.set()
        await signing
        assert [receipt.public_key for _, receipt in done][-1] == manager.public_key != first
        for message, receipt in done:
            assert receipt.public_key in (first, manager.public_key)
            assert is_good("ecdsa-p256", receipt.public_key, message, receipt.signature)
        assert manager._path.member.supervisor.restarts == 0
