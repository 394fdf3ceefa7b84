"""A fleet with `"unordered": "any"`, on PostgreSQL and SoftHSM: each host signs transactions, one signs blocks."""

from __future__ import annotations

import signal

import pytest
from solders.pubkey import Pubkey
from tests.integration.test_fleet import Hosts, hosts, own_server, until_known
from tests.support.policed import moving, ordered
from tests.support.verifiers import is_good

__all__ = ["hosts", "own_server"]  # fixtures
pytestmark = pytest.mark.integration
KINDS = {"kinds": ["tx-v0", "block", "batch-root"]}


def transaction(hosts: Hosts, lamports: int) -> bytes:
    return moving(Pubkey.from_bytes(hosts.token.keys["ed25519"].public_key), lamports)


def signed_by(host: object, hosts: Hosts, lamports: int) -> bool:
    message, answer = transaction(hosts, lamports), host.sign(transaction(hosts, lamports))
    assert "signature" in answer, answer
    return is_good("ed25519", hosts.token.keys["ed25519"].public_key, message, bytes.fromhex(answer["signature"]))


def test_a_follower_signs_transactions_and_refuses_what_has_a_position(hosts):
    first, second = hosts.two(unordered="any", policy=KINDS)
    assert signed_by(first, hosts, 1)
    assert signed_by(second, hosts, 2)
    first.until_signed(ordered(1, b"a"))
    holder = first.ask("state")["holder"]
    refused = second.sign(ordered(2))
    assert (refused["error"], refused["holder"], refused["epoch"]) == ("NotHolder", holder, 1)
    mixed = second.ask("many", messages=[transaction(hosts, 3).hex(), ordered(3).hex()])["answers"]
    assert (len(mixed[0]), mixed[1]) == (128, "NotHolder")
    assert second.ask("batch", messages=["a", "b"])["error"] == "NotHolder"  # its root has positions
    assert first.ask("batch", messages=["a", "b"])["numbers"] == [0, 1]
    assert (second.ask("state")["state"], second.ask("state")["unordered"]) == ("follower", "any")
    # Each host has the records of what it signed itself.
    signed = {"operation": "sign", "result": "ok", "kind": "block"}
    assert len(first.ask("records", **signed)["records"]) == 1
    assert second.ask("records", **signed)["records"] == []


def test_transactions_need_neither_holder_nor_database(own_server):
    server, hosts = own_server
    alone = hosts.start("alone", unordered="any", claim="manual", policy=KINDS)
    assert alone.ask("state")["state"] == "follower"
    assert signed_by(alone, hosts, 1)
    assert alone.sign(ordered(1))["error"] == "NotHolder"
    alone.ask("claim")
    alone.until_signed(ordered(1))
    server.stop(how="immediate")
    while alone.ask("state")["leaseSeconds"] > 0:
        assert signed_by(alone, hosts, 2)
    assert signed_by(alone, hosts, 3)
    assert alone.sign(ordered(2), timeout=0.1)["error"] in ("NotHolder", "DeadlineExceeded")


def test_a_holder_that_was_stopped_binds_nothing_more_and_signs_transactions(hosts):
    first, second = hosts.two(unordered="any", policy=KINDS, ttlMs=1000)
    first.until_signed(ordered(1, b"a"))
    first.signal(signal.SIGSTOP)
    second.until_signed(ordered(2, b"b"))
    first.tell("sign", message=ordered(2, b"a").hex())
    first.signal(signal.SIGCONT)
    assert first.answer()["error"] in ("NotHolder", "StoreError")
    until_known(first, 2)
    assert signed_by(first, hosts, 1)
