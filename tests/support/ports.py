"""Ports of the loopback that stay a server's own while it does not listen."""

from __future__ import annotations

import socket


def bound(port: int = 0) -> socket.socket:
    """A socket at `port`, or at a free one, which others of these may share: one that never listens keeps it."""
    place = socket.socket()
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        place.setsockopt(socket.SOL_SOCKET, option, 1)
    place.bind(("127.0.0.1", port))
    return place
