"""What a service manager is told, by datagrams to NOTIFY_SOCKET."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest

from hsmcore.base.listening.service import Reports, tell


@pytest.fixture
def told(tmp_path, monkeypatch):
    """The service manager's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as bound:
        bound.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield bound


def words(told):
    found = []
    while True:
        try:
            found.append(told.recv(100).decode())
        except BlockingIOError:
            return found


async def test_signs_of_life_come_from_the_event_loop_until_the_block_ends(told, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    loop = asyncio.get_running_loop()
    with Reports() as reports:
        assert words(told) == ["READY=1", "WATCHDOG=1"]
        assert await loop.sock_recv(told, 100) == b"WATCHDOG=1"
        reports.stopping()
        reports.stopping()
        found = words(told)
        assert found.count("STOPPING=1") == 1
        while await loop.sock_recv(told, 100) != b"WATCHDOG=1":  # the last answers may take their time
            pass
    assert reports._ticking is not None
    assert reports._ticking.cancelled()


@pytest.mark.parametrize("pid", ["1", "x"])
async def test_a_watchdog_of_another_process_is_not_fed(told, monkeypatch, pid):
    monkeypatch.setenv("WATCHDOG_USEC", "1000")
    monkeypatch.setenv("WATCHDOG_PID", pid)
    with Reports():
        assert words(told) == ["READY=1"]
    assert words(told) == ["STOPPING=1"]


async def test_its_own_watchdog_is_fed(told, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    with Reports():
        assert words(told) == ["READY=1", "WATCHDOG=1"]


def test_nothing_is_told_where_nothing_listens(told, monkeypatch):
    told.close()
    tell("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "no path")
    tell("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    tell("READY=1")


def test_an_abstract_socket_is_told_and_one_that_is_full_is_not_waited_for(monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(f"\0hsmcore-test-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@hsmcore-test-{os.getpid()}")
        for _ in range(2000):
            tell("READY=1")
        assert bound.recv(100) == b"READY=1"
