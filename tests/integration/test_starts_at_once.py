"""Processes that start at the same time on one token: workers of a server, or a pair that the machine starts."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

import hsmcore
from hsmcore.errors import HsmError, TokenNotFound

pytestmark = pytest.mark.integration
PROCESSES, STARTS = 4, 25


def test_a_login_in_another_process_hides_the_token_from_none(fresh_token):
    """SoftHSM writes the token's file at each login. One start in ten found no token."""
    config = fresh_token().config(settings={"sessions": 1})
    children = [_starts(config) for _ in range(PROCESSES)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * PROCESSES


def _starts(config: dict[str, Any]) -> int:
    child = os.fork()
    if child:
        return child
    failed = 100
    try:
        failed = sum(asyncio.run(_missed(config)) for _ in range(STARTS))
    finally:
        os._exit(failed)


async def _missed(config: dict[str, Any]) -> bool:
    try:
        async with hsmcore.create_key_manager(config):
            return False
    except HsmError as error:  # more rarely, a call reads the file itself half written: CKR_GENERAL_ERROR
        return isinstance(error, TokenNotFound)
