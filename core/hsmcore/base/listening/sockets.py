"""Sockets that are bound, and do not listen yet: no client can connect before Door has it listen. And which hosts are
this machine's own."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from contextlib import suppress
from pathlib import Path


def is_loopback(host: str) -> bool:
    """Return whether a host, by name or address, is this machine and reached by no other one."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def tcp(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to a host's address. Raises OSError."""
    family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
        0
    ]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(where)
    except BaseException:
        made.close()
        raise
    return made


def unix(path: str, mode: int) -> socket.socket:
    """Return a Unix socket with a new file of these permissions, in the place of one without a listener. Raises
    OSError."""
    with suppress(FileNotFoundError):
        if Path(path).is_socket() and not _answers(path):
            Path(path).unlink()  # of a process that was killed
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.bind(path)
        Path(path).chmod(mode)
    except BaseException:
        made.close()
        raise
    return made


def try_out(host: str, port: int, path: str) -> None:
    """Raise OSError unless a socket of TCP, or one with a file at `path`, could be bound. Nothing is left behind."""
    if path and Path(path).exists() and (_answers(path) or not Path(path).is_socket()):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    beside = f"{path}~"  # in the same folder: at the path itself, a gateway that starts now would find it
    (unix(beside, 0o600) if path else tcp(host, port)).close()
    if path:
        Path(beside).unlink()


def hint_for(error: OSError) -> str:
    """Return what to do where a socket cannot be bound."""
    if isinstance(error, FileNotFoundError):
        return "Make the socket's folder (systemd does with RuntimeDirectory=), or choose another address."
    if isinstance(error, PermissionError):
        return "Run as a user that may write the socket's folder or take the port, or choose another address."
    return "Choose another address, or end what listens there."


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def host_and_port(host: str, bound: socket.socket) -> str:
    """Return where a bound socket of TCP is, as a URL has it: with the port that was chosen."""
    return f"{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}"
