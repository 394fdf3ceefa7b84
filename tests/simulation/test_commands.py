"""Each command that changes something is simulated, or says why it is not."""

from __future__ import annotations

import pytest
from tests.simulation.operator_script import OFFLINE, ONLINE
from tests.support.every_command import APART, LINES, LONG, lines, path_of

ELSEWHERE = {
    "fleet claim": "fleet",
    "fleet hold": "fleet",
    "fleet release": "fleet",
    "fleet resume": "fleet",
    "sign": "host",
}
"""Commands whose work a key manager of another world does."""
NOT_SIMULATED = {
    "audit adopt": "it takes in lines that hsmcore has not written: tests/integration writes such",
    "audit mend": "it needs a log that is damaged, which no crash leaves: `sound`, in the world disk",
    "audit ship": "copies of the log elsewhere are not simulated",
    "backup recovery-key": "it makes a file of its own, and reads no state",
    "bench": "it measures",
    "fleet drain": "as `fleet release`, and a mark of the host, which tests/fleet asks of a real database",
    "fleet export": "as `state export`",
    "fleet import": "as `state import`",
    "fleet migrate": "the rights of roles are a server's",
    "fleet prune": "as the removal that each host does, in the world host",
    "fleet retire": "what it risks would break a law: tests/integration has it",
    "fleet reconcile": "each start of a host does it, in the world fleet",
    "keys attest": "it only asks the device",
    "load": "it measures",
    "notices test": "it sends notices, which are not simulated",
    "tune": "it measures",
}
"""Commands that change something, and why no world runs them."""
READS = {
    *("audit device-log", "audit prove", "audit query", "audit show", "audit verify", "backup list", "batch proof"),
    *("cluster", "doctor", "emergency status", "failover history", "failover status", "fleet status", "keys"),
    *("keys list", "keys set", "policy explain", "policy floor show", "rotate history", "rotate plan"),
    *("rotate status", "state verify", "tokens", "verify"),
}
"""Commands that change nothing."""


@pytest.mark.slow("it imports every command")
def test_each_command_that_changes_something_is_simulated_or_says_why_not():
    known = {path_of(line) for line in lines(LINES + LONG)} - APART.keys()
    simulated = {*ONLINE, *OFFLINE}
    placed = [simulated, ELSEWHERE.keys(), NOT_SIMULATED.keys(), READS]
    assert set().union(*placed) == known
    assert sum(map(len, placed)) == len(known), "a command stands in one place"
