"""How much strangers may ask for: token buckets, one for each address. What costs this process something before its
client has shown who it is, a handshake or an answer, takes of them."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from hsmcore.base.listening.connections import Connection

_MAX_PEERS: Final = 1024
_NETWORK_BITS: Final = 64
"""Of an address of IPv6, what its host has not chosen itself."""


def network_of(address: str) -> str:
    """Return an address, of IPv6 the /64 that it is in: one host may have all the others of it."""
    if ":" not in address:
        return address
    try:
        found = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.IPv6Address(int(found) >> _NETWORK_BITS << _NETWORK_BITS))


class AddressBuckets:
    """Token buckets, one for each address; that of an address not heard of lately is full. For one event loop."""

    def __init__(self, most: float, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`seconds`: in which one is refilled."""
        self._most, self.seconds, self._clock = float(most), seconds, clock
        self._peers: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """What is left, and at what time; the latest address last."""

    def left(self, peer: str) -> float:
        """Return what an address may take; below 1: later."""
        left, then = self._peers.get(network_of(peer), (self._most, 0.0))
        return min(self._most, left + (self._clock() - then) / self.seconds)

    def take(self, peer: str, count: int = 1) -> None:
        """Take of an address; a negative count gives back."""
        key = network_of(peer)
        self._peers[key] = (min(self.left(peer) - count, self._most), self._clock())
        self._peers.move_to_end(key)
        if len(self._peers) > _MAX_PEERS:
            self._peers.popitem(last=False)

    def turn(self, peer: str, longest: float) -> float | None:
        """Take one, and return how many seconds to wait for it; None: it would be longer than the longest wait, and
        none is taken."""
        wait = (1 - self.left(peer)) * self.seconds
        if wait > longest:
            return None
        self.take(peer)
        return max(wait, 0.0)


async def has_turn(wait: float | None, place: Connection) -> bool:
    """Have the request of a connection wait for its turn. Returns False, and closes the connection, if it gets none. A
    short wait holds a flood back, which a closed connection does not: its client makes another, at a higher price than
    an answer's."""
    if wait is None:
        place.give_way()
    elif wait:
        place.idle()  # those that wait give way to a client
        await asyncio.sleep(wait)
        place.busy()
    return wait is not None
