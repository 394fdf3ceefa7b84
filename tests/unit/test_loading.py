"""What a program loads: a key manager pays for what its configuration needs, before its event loop signs anything."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SIGN = """
import asyncio, json, sys
import hsmcore

def loaded():
    return {name for name in sys.modules if name.partition(".")[0] in ("hsmcore", "sqlalchemy")}

async def main():
    found = [sorted(loaded())]
    async with manager:
        opened = loaded()
        await manager.verify(b"a", await manager.sign(b"a"))
        await manager.sign_many([b"b", b"c"])
        await manager.sign_with_receipt(b"d")
        found += [sorted(opened), sorted(loaded() - opened)]
    print(json.dumps(found))

manager = hsmcore.create_key_manager(json.loads(sys.argv[1]))
asyncio.run(main())
"""
KEPT = {"hsmcore.failover.service", "hsmcore.manager.rotation.service", "hsmcore.recovery.marks", "hsmcore.state.store"}


def ran(program: str, *arguments: str) -> str:
    whole = [sys.executable, "-c", program, *arguments]
    return subprocess.run(whole, capture_output=True, text=True, check=True, timeout=60).stdout


def loaded(folder, **rules) -> list[set[str]]:
    """What a key manager loads when it is made, until it is open, and then to sign."""
    own = {"type": "ephemeral", "config": {"allowEphemeralPrimary": True}, "stateFile": str(folder / "state.db")}
    return [set(names) for names in json.loads(ran(SIGN, json.dumps({"keyManager": {**own, **rules}})))]


@pytest.mark.parametrize("module", ["hsmcore.audit", "hsmcore.doctor.child"])
def test_what_keeps_no_state_needs_no_database(module):
    assert ran(f"import sys, {module}; print('sqlalchemy' in sys.modules)") == "False\n"


def test_a_key_manager_that_keeps_no_state_loads_nothing_that_does(tmp_path):
    made, opened, later = loaded(tmp_path)
    assert {"hsmcore.manager.key_manager", "hsmcore.audit.log"} <= made
    assert (made | opened) & {"sqlalchemy", *KEPT} == set()
    assert later == set()


@pytest.mark.parametrize("log", [True, False], ids=["logged", "unlogged"])
def test_what_a_configuration_needs_is_loaded_when_its_key_manager_is_made(log, tmp_path):
    """To load it while another key manager of the process signs would hold the event loop up."""
    rules = {"auditLogFile": str(tmp_path / "audit.log")} if log else {}
    made, opened, later = loaded(tmp_path, failover={"emergencyModeEnabled": True}, **rules)
    assert {"sqlalchemy", *KEPT} <= made
    own = ("hsmcore.providers.", "hsmcore.members.", "sqlalchemy.dialects.", "sqlalchemy.connectors")
    assert [name for name in opened - made if not name.startswith(own)] == []
    assert later == set()
