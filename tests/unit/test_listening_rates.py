"""What an address may ask for before its clients have shown who they are."""

import pytest

from hsmcore.base.listening import rates
from hsmcore.base.listening.rates import AddressBuckets, network_of


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::1", "::"),
        ("", ""),
        ("no:address", "no:address"),
    ],
)
def test_a_host_has_all_addresses_of_its_network(address, network):
    assert network_of(address) == network


def test_turns_are_taken_late_and_then_not_at_all():
    now = [0.0]
    buckets = AddressBuckets(2, 0.5, lambda: now[0])
    assert [buckets.turn("a", 1.0) for _ in range(5)] == [0.0, 0.0, 0.5, 1.0, None]
    assert buckets.turn("b", 1.0) == 0.0
    now[0] = 0.5
    assert [buckets.turn("a", 1.0) for _ in range(2)] == [1.0, None]
    buckets.take("a", -1)  # a client has shown who it is
    assert buckets.turn("a", 1.0) == 1.0
    buckets.take("c", -100)
    assert buckets.left("c") == 2


def test_addresses_without_end_take_no_memory_without_end(monkeypatch):
    monkeypatch.setattr(rates, "_MAX_PEERS", 3)
    buckets = AddressBuckets(1, 1.0, lambda: 0.0)
    for number in range(10):
        buckets.take(f"192.0.2.{number}")
    assert len(buckets._peers) == 3
    assert buckets.left("2001:db8::1") == 1
    buckets.take("2001:db8::1")
    assert buckets.left("2001:db8::2") == 0
