"""The device: sessions, one command at a time, replies to frames. Knows nothing of HTTP."""

from __future__ import annotations

import struct
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from . import objects
from .attest import Attestation
from .codes import (
    ALL_CAPABILITIES,
    ALL_DOMAINS,
    MAX_FRAME,
    Algorithm,
    Capability,
    Command,
    DeviceError,
    Error,
    Kind,
)
from .commands import COMMANDS, Call
from .faults import TRANSPORT, Fault, FaultKind, Faults
from .log import CAPACITY, AuditLog
from .objects import Store, Stored
from .scp03 import CHALLENGE_BYTES, MAC_BYTES, SecureChannel, keys_of_password

MAX_SESSIONS = 16
SESSION_SECONDS = 30.0
"""A session that is idle for so long is gone."""
DEFAULT_USER, DEFAULT_PASSWORD = 1, "password"
VERSION = (2, 4, 0)

PROFILES: dict[str, Mapping[int, float]] = {
    "none": {},
    # Ed25519 as measured on a device by tarcieri (tendermint/yubihsm-rs, pull request 16); the others are what Yubico
    # gives as approximate figures. Seconds.
    "yubihsm2": {
        Command.SIGN_EDDSA: 0.114,
        Command.SIGN_ECDSA: 0.073,
        Command.EXPORT_WRAPPED: 0.010,
        Command.IMPORT_WRAPPED: 0.010,
    },
}


class TransportFault(Exception):
    """The connector is to misbehave; `reply` is what it would have answered, None if nothing was executed."""

    def __init__(self, fault: Fault, reply: bytes | None) -> None:
        super().__init__(fault.kind)
        self.fault, self.reply = fault, reply


def _check_length(message: bytes) -> None:
    if len(message) < 3 or len(message) != 3 + int.from_bytes(message[1:3], "big"):
        raise DeviceError(Error.WRONG_LENGTH)


@dataclass(slots=True)
class Session:
    """One of the device's sixteen sessions."""

    id: int
    channel: SecureChannel
    user: Stored
    used_at: float


class Device:
    """One YubiHSM 2. Any thread may call; the device works on one frame at a time. `latency` is seconds by command."""

    def __init__(self, serial: int = 9_000_001, latency: Mapping[int, float] = PROFILES["none"]) -> None:
        self.serial, self.latency = serial, dict(latency)
        self.attestation = Attestation(serial)
        self.faults = Faults()
        self.counts: Counter[int] = Counter()
        """Frames by command, session messages by the command inside."""
        self.openings: Counter[int] = Counter()
        """CREATE SESSION by authentication key."""
        self.reset_after = False
        self._busy = threading.Lock()
        self._ahead = 0.0
        self.reset()

    # ---- what a test does to it ----

    def reset(self) -> None:
        """As it comes from the factory."""
        self.store = Store()
        self.log = AuditLog(self._now)
        self.sessions: dict[int, Session] = {}
        self.reset_after = False
        self.put_user(DEFAULT_USER, DEFAULT_PASSWORD)

    def power_cycle(self) -> None:
        """Unplug it and plug it in again: sessions are gone, objects and log stay."""
        with self._busy:
            self.sessions.clear()
            self.log.boot()

    def advance(self, seconds: float) -> None:
        """Let time go by for the device."""
        with self._busy:
            self._ahead += seconds

    def inject(self, kind: FaultKind, command: int | None = None, **fields: float | None) -> None:
        """Plan a fault; see faults.Fault for the fields."""
        self.faults.add(Fault(kind, command, **fields))  # type: ignore[arg-type]

    def put_user(
        self,
        user: int,
        password: str,
        capabilities: int = ALL_CAPABILITIES,
        delegated: int = ALL_CAPABILITIES,
        domains: int = ALL_DOMAINS,
    ) -> None:
        """An authentication key."""
        label = (b"DEFAULT AUTHKEY CHANGE THIS ASAP" if user == DEFAULT_USER else b"user").ljust(40, b"\0")
        keys = keys_of_password(password.encode())
        algorithm = Algorithm.AES128_YUBICO_AUTHENTICATION
        kind = Kind.AUTHENTICATION_KEY
        self.store.add(Stored(user, kind, algorithm, capabilities, domains, label, keys, delegated, objects.IMPORTED))

    def put_key(
        self,
        key_id: int,
        label: str,
        algorithm: Algorithm = Algorithm.ED25519,
        capabilities: int = Capability.SIGN_EDDSA | Capability.SIGN_ECDSA,
        domains: int = ALL_DOMAINS,
        secret: bytes | None = None,
    ) -> bytes:
        """An asymmetric key. Returns its public key: 32 bytes, or X || Y."""
        secret = objects.generate_private(algorithm) if secret is None else secret
        padded = label.encode().ljust(objects.LABEL_BYTES, b"\0")
        key = Stored(key_id, Kind.ASYMMETRIC_KEY, algorithm, capabilities, domains, padded, secret)
        self.store.add(key)
        return objects.public_key(key)

    # ---- frames ----

    def process(self, frame: bytes) -> bytes:
        """The reply to one frame. Raises TransportFault."""
        with self._busy:
            try:
                return self._process(frame)
            except DeviceError as error:
                return struct.pack("!BHB", Command.ERROR, 1, error.code)

    def _now(self) -> float:
        return time.monotonic() + self._ahead

    def _process(self, frame: bytes) -> bytes:
        if len(frame) < 3:
            raise DeviceError(Error.WRONG_LENGTH)
        command, length = struct.unpack_from("!BH", frame)
        data = frame[3:]
        if len(data) != length or len(frame) > MAX_FRAME:
            raise DeviceError(Error.WRONG_LENGTH)
        if command == Command.SESSION_MESSAGE:
            return self._session_message(frame)
        plain = {
            Command.ECHO: lambda: data,
            Command.DEVICE_INFO: lambda: self.info(data),
            Command.CREATE_SESSION: lambda: self._create(data),
            Command.AUTHENTICATE_SESSION: lambda: self._authenticate(frame),
        }.get(command)
        if plain is None:
            raise DeviceError(Error.INVALID_COMMAND)
        fault = self._strike(command)
        self.counts[command] += 1
        body = plain()
        reply = struct.pack("!BH", command | 0x80, len(body)) + body
        return self._past(fault, reply)

    def _strike(self, command: int) -> Fault | None:
        """The fault for this command; what prevents its execution is raised."""
        fault = self.faults.take(command)
        time.sleep(self.latency.get(command, 0.0) + (fault.seconds if fault is not None else 0.0))
        if fault is not None and fault.kind == "error":
            raise DeviceError(fault.code)
        if fault is not None and fault.kind in ("drop", "hang", "garbage", "http-error"):
            raise TransportFault(fault, None)
        return fault

    @staticmethod
    def _past(fault: Fault | None, reply: bytes) -> bytes:
        if fault is not None and fault.kind in TRANSPORT:
            raise TransportFault(fault, reply)
        return reply if fault is None or fault.kind != "corrupt-mac" else reply[:-1] + bytes([reply[-1] ^ 1])

    def info(self, data: bytes) -> bytes:
        """DEVICE INFO; its second page is the part number."""
        if data == b"\x01":
            return b"SIMULATED"
        if data:
            raise DeviceError(Error.WRONG_LENGTH)
        used = len(self.log.entries)
        return struct.pack("!BBBIBB", *VERSION, self.serial, CAPACITY, used) + bytes(Algorithm)

    # ---- sessions ----

    def end(self, session: Session) -> None:
        """Close a session."""
        self.sessions.pop(session.id, None)

    def _forget_idle(self) -> None:
        oldest = self._now() - SESSION_SECONDS
        for session in list(self.sessions.values()):
            if session.used_at < oldest:
                self.end(session)

    def _session(self, number: int) -> Session:
        self._forget_idle()
        session = self.sessions.get(number)
        if session is None:
            raise DeviceError(Error.INVALID_SESSION)
        session.used_at = self._now()
        return session

    def _create(self, data: bytes) -> bytes:
        if len(data) != 2 + CHALLENGE_BYTES:
            raise DeviceError(Error.WRONG_LENGTH)
        user_id = int.from_bytes(data[:2], "big")
        self.openings[user_id] += 1
        self._forget_idle()
        user = self.store.find(user_id, Kind.AUTHENTICATION_KEY, ALL_DOMAINS)
        free = next((number for number in range(MAX_SESSIONS) if number not in self.sessions), None)
        if free is None:
            raise DeviceError(Error.SESSIONS_FULL)
        channel = SecureChannel(user.secret, data[2:])
        self.sessions[free] = Session(free, channel, user, self._now())
        self.log.record(Command.CREATE_SESSION, len(data), Command.CREATE_SESSION | 0x80, target=user_id)
        return bytes([free]) + channel.card_challenge + channel.card_cryptogram

    def _authenticate(self, frame: bytes) -> bytes:
        if len(frame) != 4 + 2 * MAC_BYTES:
            raise DeviceError(Error.WRONG_LENGTH)
        session = self._session(frame[3])
        result = Command.AUTHENTICATE_SESSION | 0x80
        try:
            session.channel.authenticate(frame)
        except DeviceError as error:
            result = error.code
            self.end(session)
            raise
        finally:
            self.log.record(Command.AUTHENTICATE_SESSION, len(frame) - 3, result, target=session.user.id)
        return b""

    def _session_message(self, frame: bytes) -> bytes:
        if len(frame) < 4 + MAC_BYTES:
            raise DeviceError(Error.WRONG_LENGTH)
        session = self._session(frame[3])
        if not session.channel.authenticated:
            raise DeviceError(Error.INVALID_SESSION)
        inner = session.channel.open(frame)
        fault: Fault | None = None
        try:
            _check_length(inner)
            self.counts[inner[0]] += 1
            fault = self._strike(inner[0])
            body = self._execute(session, inner[0], inner[3:])
            if fault is not None and fault.kind == "wrong-signature":
                body = bytes([body[0] ^ 1]) + body[1:] if inner[0] == Command.SIGN_EDDSA else body[:-1] + b"\0"
            reply = struct.pack("!BH", inner[0] | 0x80, len(body)) + body
        except DeviceError as error:
            reply = struct.pack("!BHB", Command.ERROR, 1, error.code)
        sealed = session.channel.seal(session.id, reply)
        if self.reset_after:
            self.reset()
        return self._past(fault, sealed)

    def _execute(self, session: Session, command: int, data: bytes) -> bytes:
        if command not in COMMANDS:
            raise DeviceError(Error.INVALID_COMMAND)
        capability, run = COMMANDS[command]
        self.log.admit(command)
        call = Call(self, session, data)
        result = command | 0x80
        try:
            if capability:
                call.require(capability)
            return run(call)
        except DeviceError as error:
            result = error.code
            raise
        finally:
            self.log.record(command, len(data), result, session.user.id, call.target, call.second)
