"""The device's audit log: 62 entries in a ring, each with a digest over itself and the one before."""

from __future__ import annotations

import hashlib
import os
import struct
import time
from collections.abc import Callable

from .codes import COMMAND_AUDIT, FORCE_AUDIT, Command, DeviceError, Error

CAPACITY = 62
OFF, ON, FIXED = 0, 1, 2
NOBODY = 0xFFFF
BOOT = 0x00
INITIALIZED = 0xFF
_DIGEST_BYTES = 16

# Always allowed, so that the log can be read when it is full; what did not fit is counted.
_ALWAYS = frozenset({Command.CREATE_SESSION, Command.AUTHENTICATE_SESSION})
# Reading the log and making room in it cannot wait for room in it.
_MAKES_ROOM = frozenset({Command.GET_LOG_ENTRIES, Command.SET_LOG_INDEX, Command.CLOSE_SESSION})
# As a device comes from the factory (firmware 2.x): all but these is logged.
_NOT_LOGGED = frozenset({Command.ECHO, Command.SESSION_MESSAGE, Command.DEVICE_INFO, Command.GET_LOG_ENTRIES})


class AuditLog:
    """Entries as they go over the wire (32 bytes each), and the options that govern them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._start = clock, clock()
        self.entries: list[bytes] = []
        self.force = OFF
        self.commands = {
            int(command): OFF if command in _NOT_LOGGED else ON for command in Command if command != Command.ERROR
        }
        self.unlogged_boots = self.unlogged_authentications = 0
        self._number = 0
        self._digest = os.urandom(_DIGEST_BYTES)
        self._append(struct.pack("!BHHHHBL", INITIALIZED, NOBODY, NOBODY, NOBODY, NOBODY, 0xFF, 0xFFFFFFFF))
        self.boot()

    @property
    def full(self) -> bool:
        """Whether every place is taken."""
        return len(self.entries) >= CAPACITY

    def _append(self, fields: bytes) -> None:
        self._number = self._number + 1 & 0xFFFF
        data = struct.pack("!H", self._number) + fields
        self._digest = hashlib.sha256(data + self._digest).digest()[:_DIGEST_BYTES]
        self.entries = [*self.entries, data + self._digest][-CAPACITY:]

    def boot(self) -> None:
        """The power came back: the ticks begin again."""
        self._start = self._clock()
        if self.full and self.force:
            self.unlogged_boots += 1
        else:
            self._append(struct.pack("!BHHHHBL", BOOT, 0, NOBODY, 0, 0, 0, 0))

    def admit(self, command: int) -> None:
        """Refuse a command whose entry would have no place."""
        if self.force and self.full and self.commands.get(command) and command not in _ALWAYS | _MAKES_ROOM:
            raise DeviceError(Error.LOG_FULL)

    def record(
        self,
        command: int,
        length: int,
        result: int,
        session_key: int = NOBODY,
        target: int = NOBODY,
        second: int = NOBODY,
    ) -> None:
        """Note an executed command. `result` is the reply's first byte, or the error code."""
        if not self.commands.get(command):
            return
        if self.force and self.full:
            self.unlogged_authentications += command in _ALWAYS
            return
        tick = int((self._clock() - self._start) * 1000) & 0xFFFFFFFF
        self._append(struct.pack("!BHHHHBL", command, length, session_key, target, second, result, tick))

    def read(self) -> bytes:
        """The reply to GET LOG ENTRIES."""
        head = struct.pack("!HHB", self.unlogged_boots, self.unlogged_authentications, len(self.entries))
        return head + b"".join(self.entries)

    def consume(self, index: int) -> None:
        """Everything up to and with entry `index` has been kept elsewhere."""
        numbers = [int.from_bytes(entry[:2], "big") for entry in self.entries]
        if index not in numbers:
            raise DeviceError(Error.INVALID_DATA)
        self.entries = self.entries[numbers.index(index) + 1 :]
        self.unlogged_boots = self.unlogged_authentications = 0

    def set_option(self, option: int, value: bytes) -> None:
        """SET OPTION for the two options that are about the log."""
        if option == FORCE_AUDIT and len(value) == 1 and value[0] <= FIXED:
            if self.force == FIXED and value[0] != FIXED:
                raise DeviceError(Error.INVALID_DATA)
            self.force = value[0]
        elif option == COMMAND_AUDIT and len(value) % 2 == 0 and value:
            wanted = dict(zip(value[::2], value[1::2], strict=True))
            if any(command not in self.commands or how > FIXED for command, how in wanted.items()):
                raise DeviceError(Error.INVALID_DATA)
            if any(self.commands[command] == FIXED and how != FIXED for command, how in wanted.items()):
                raise DeviceError(Error.INVALID_DATA)
            self.commands |= wanted
        else:
            raise DeviceError(Error.INVALID_DATA)

    def get_option(self, option: int) -> bytes:
        """GET OPTION."""
        if option == FORCE_AUDIT:
            return bytes([self.force])
        if option == COMMAND_AUDIT:
            return b"".join(bytes(pair) for pair in sorted(self.commands.items()))
        raise DeviceError(Error.INVALID_DATA)
