"""The gateway's listening sockets: bound here, or given by the service manager (socket activation)."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from hsmcore.base.listening.sockets import hint_for, host_and_port, tcp, unix
from hsmcore.config import Gateway
from hsmcore.config.gateway import Listen
from hsmcore.errors import ConfigFault, ConfigurationError

FIRST_FD: Final = 3


class Bound:
    """A bound socket; its file, if this process has made it, is removed at the end."""

    def __init__(self, listen: Listen, settings: Gateway, given: socket.socket | None = None) -> None:
        """`given`: by the service manager. Raises ConfigurationError."""
        path = listen.address.path
        try:
            if given is not None:
                self.socket = given
            else:
                address, mode = listen.address, int(settings.socket_mode, 8)
                self.socket = unix(path, mode) if path else tcp(address.host, address.port)
        except OSError as error:
            where = path or f"{listen.address.host}:{listen.address.port}"
            problem = f"cannot listen at {where}: {error.strerror or error}"
            fault = ConfigFault(f"{settings.where}.listen", problem)
            raise ConfigurationError.of([fault], hint=hint_for(error)) from None
        self._file = path if given is None else ""
        self._inode = Path(path).stat().st_ino if self._file else 0
        self.shown = f"unix:{path}" if path else f"{listen.face}:{host_and_port(listen.address.host, self.socket)}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.remove()
        self.socket.close()

    def remove(self) -> None:
        """Remove the file, unless it is another gateway's by now. Idempotent."""
        with suppress(OSError):
            if self._file and Path(self._file).stat().st_ino == self._inode:
                Path(self._file).unlink()
        self._file = ""


def given_sockets() -> list[socket.socket]:
    """Return the sockets that the service manager has bound for this process (sd_listen_fds). The variables that say so
    are removed: no child process is meant by them."""
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    found = []
    for number in range(FIRST_FD, FIRST_FD + int(count)):
        os.set_inheritable(number, False)
        found.append(socket.socket(fileno=number))
    return found


def assigned(settings: Gateway, given: list[socket.socket]) -> list[tuple[Listen, socket.socket | None]]:
    """Return each address that is configured, with its socket if that was given. Raises ConfigurationError for a given
    socket that belongs to none."""
    left = list(given)
    found: list[tuple[Listen, socket.socket | None]] = []
    for listen in settings.addresses:
        own = next((one for one in left if _is_at(one, listen)), None)
        if own is not None:
            left.remove(own)
        found.append((listen, own))
    if left:
        problem = f"does not list {left[0].getsockname()!r}, a socket that the service manager has given"
        raise ConfigurationError.of([ConfigFault(f"{settings.where}.listen", problem)])
    return found


def _is_at(given: socket.socket, listen: Listen) -> bool:
    if given.family == socket.AF_UNIX:
        return bool(given.getsockname() == listen.address.path)
    # Port 0: whichever it is, since the host that a service manager binds may be written otherwise.
    return not listen.address.path and listen.address.port in (0, given.getsockname()[1])
