"""What an application sees that embeds hsmcore: its log lines, a manager that it forgot, a token for its tests."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog
from tests.support.doc_blocks import block
from tests.support.paths import ROOT

import hsmcore
from hsmcore.base.log import get_logger

pytestmark = pytest.mark.integration

LOGS = """
import hsmcore.base.log
hsmcore.base.log.get_logger(member="a").warning("member down", reason="x")
"""
CANNOT_IMPORT = """
import sys
import hsmcore.base.log
sys.modules["structlog.stdlib"] = None  # as behind a changed user or root, where the interpreter's folder is not
hsmcore.base.log.get_logger(member="a").warning("member down", reason="x", pin="1234")
try:
    raise ValueError("broken")
except ValueError:
    hsmcore.base.log.get_logger().exception("cannot be followed")
"""
FORGETS = """
import asyncio, gc, sys, warnings
import hsmcore
from hsmcore.testing import fresh_token
async def forget():
    km = hsmcore.create_key_manager(config)
    await km.initialize()
    print(repr(km))
with fresh_token() as config:
    asyncio.run(forget())
    gc.collect()
"""


def ran(*arguments: str, cwd: Path = ROOT, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=True, timeout=100, **more
    )


def test_an_application_without_logging_sees_time_and_level():
    line = ran("-c", LOGS).stderr.strip()
    time, level, event, *_ = line.split(" ")
    assert time.startswith("timestamp='20")
    assert (level, event) == ("level='warning'", "event='member")
    assert "member='a'" in line


def test_a_process_that_can_import_no_more_still_logs():
    lines = ran("-c", CANNOT_IMPORT).stderr.splitlines()
    assert lines[:2] == ["member down member='a' reason='x' pin='<dropped>'", "cannot be followed"]
    assert lines[-1] == "ValueError: broken"


def test_an_application_s_own_format_is_not_repeated(monkeypatch, caplog):
    monkeypatch.setattr(structlog, "is_configured", lambda: False)
    with caplog.at_level(logging.WARNING, "hsmcore"):
        get_logger(member="a").warning("member down")
    assert caplog.messages == ["event='member down' member='a'"]


def test_a_manager_that_was_never_closed_is_warned_of():
    done = ran("-X", "dev", "-c", FORGETS)
    assert "ResourceWarning: a key manager was not closed" in done.stderr


def test_a_manager_says_what_it_is(world):
    async def run() -> list[str]:
        manager = hsmcore.create_key_manager(world.config())
        said = [repr(manager)]
        async with manager:
            said.append(repr(manager))
        return [*said, repr(manager)]

    new, opened, closed = asyncio.run(run())
    assert new.endswith(": new>")
    assert f": open, ed25519 key {world.keys['ed25519'].id}>" in opened
    assert closed.endswith(": closed>")
    assert world.pin not in new + opened + closed


@pytest.mark.slow("pytest within pytest")
def test_a_token_for_the_tests_of_an_application(tmp_path):
    """The two files of the document, under pytest as it is: none of its plug-ins runs coroutines."""
    for number, name in enumerate(("conftest.py", "test_it.py"), 1):
        (tmp_path / name).write_text(block("docs/operations/softhsm.md", "python", number))
    plain = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    said = ran("-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path), cwd=tmp_path, env=plain).stdout
    assert "1 passed" in said
