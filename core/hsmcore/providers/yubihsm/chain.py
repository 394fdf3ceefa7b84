"""The YubiHSM 2's audit log as data: entries, their hash chain, and the match of its signatures with our records.

An entry has 32 bytes: number, command, length, session key, target key, second key, result, tick, and the first 16
bytes of SHA-256 over these fields and the digest of the entry before (Yubico, "Get Log Entries"). Numbers have 16 bits
and wrap.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any, Final, Literal, Self

ENTRY_BYTES: Final = 32
DIGEST_BYTES: Final = 16

_FIELDS: Final = struct.Struct("!HBHHHHBL")
_INITIALIZED: Final = 0xFF
_SIGN_COMMANDS: Final = {0x56: "sign-ecdsa", 0x6A: "sign-eddsa"}
_EDDSA: Final = 0x6A
_KEY_ID_BYTES: Final = 2
_HALF: Final = 0x8000

_NAMES: Final = {
    0x00: "boot",
    0x03: "create-session",
    0x04: "authenticate-session",
    0x08: "reset-device",
    0x40: "close-session",
    0x42: "put-opaque",
    0x44: "put-authentication-key",
    0x45: "put-asymmetric-key",
    0x46: "generate-asymmetric-key",
    0x48: "list-objects",
    0x4A: "export-wrapped",
    0x4B: "import-wrapped",
    0x4C: "put-wrap-key",
    0x4E: "get-object-info",
    0x4F: "set-option",
    0x50: "get-option",
    0x51: "get-pseudo-random",
    0x54: "get-public-key",
    0x58: "delete-object",
    0x5B: "generate-wrap-key",
    0x67: "set-log-index",
    0x6C: "change-authentication-key",
    _INITIALIZED: "initialized",
    **_SIGN_COMMANDS,
}

Kind = Literal["gap", "order", "tampered", "reset", "unlogged", "cut", "foreign", "unrecorded", "missing"]


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One command that the device executed, as it logged it."""

    number: int
    command: int
    length: int
    """Bytes of the command's data."""
    session_key: int
    """The session's authentication key."""
    target_key: int
    second_key: int
    result: int
    """The reply's command byte (the command | 0x80), or an error code."""
    tick: int
    """The device's clock, from its power-up."""
    digest: bytes

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Parse an entry of the device. Raises ValueError unless it has 32 bytes."""
        if len(raw) != ENTRY_BYTES:
            raise ValueError(f"a log entry has {ENTRY_BYTES} bytes, not {len(raw)}")
        fields = (*_FIELDS.unpack_from(raw), bytes(raw[_FIELDS.size :]))
        return cls(*fields)

    @property
    def name(self) -> str:
        """Name of the command."""
        return _NAMES.get(self.command, f"command-{self.command:#04x}")

    @property
    def succeeded(self) -> bool:
        """Whether the command succeeded."""
        return self.result == self.command | 0x80

    @property
    def message_bytes(self) -> int | None:
        """Bytes of the message that was signed; None if a digest was signed."""
        return self.length - _KEY_ID_BYTES if self.command == _EDDSA else None

    def digest_after(self, previous: bytes) -> bytes:
        """Return the digest that this entry must have after an entry with the digest `previous`."""
        data = _FIELDS.pack(*astuple(self)[:-1])
        return hashlib.sha256(data + previous).digest()[:DIGEST_BYTES]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready data, with the digest in hexadecimal and the command's name."""
        return {**asdict(self), "digest": self.digest.hex(), "name": self.name}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the entry of which `to_json` returned `value`."""
        fields = {name: value[name] for name in cls.__slots__}
        return cls(**{**fields, "digest": bytes.fromhex(value["digest"])})


@dataclass(frozen=True, slots=True)
class Anchor:
    """The last entry that is kept, which the next one must follow. Store it with the entries."""

    serial: int
    number: int
    digest: bytes

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return {"serial": self.serial, "number": self.number, "digest": self.digest.hex()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the anchor of which `to_json` returned `value`."""
        return cls(int(value["serial"]), int(value["number"]), bytes.fromhex(value["digest"]))


@dataclass(frozen=True, slots=True)
class ChainFinding:
    """Something in a log that needs an explanation. `number`: the entry at which it shows."""

    kind: Kind
    number: int
    detail: str


def verify_chain(entries: Sequence[LogEntry], anchor: Anchor | LogEntry | None = None) -> list[ChainFinding]:
    """Return what is wrong with consecutive entries of a log.

    With an anchor the first entry must follow it; without one the first entry is trusted. After a finding the check
    continues from its entry.
    """
    findings, before = [], anchor
    for entry in entries:
        if before is not None and (finding := _break(entry, before)) is not None:
            findings.append(finding)
        before = entry
    return findings


def _break(entry: LogEntry, before: Anchor | LogEntry) -> ChainFinding | None:
    number = before.number
    step = entry.number - number & 0xFFFF
    if step == 1:
        if hmac.compare_digest(entry.digest_after(before.digest), entry.digest):
            return None
        return ChainFinding("tampered", entry.number, f"entry {entry.number} or the one before it was changed")
    if entry.command == _INITIALIZED and entry.number == 1:
        return ChainFinding("reset", entry.number, f"the device was reset after entry {number}; its log began anew")
    if 1 < step < _HALF:
        return ChainFinding("gap", entry.number, f"{step - 1} entries are missing between {number} and {entry.number}")
    return ChainFinding("order", entry.number, f"entry {entry.number} stands behind entry {number}")


def after(entries: Sequence[LogEntry], anchor: Anchor | None) -> Sequence[LogEntry]:
    """Return the entries after the anchor: the device repeats kept entries until it is told to delete them."""
    if anchor is not None:
        for index, entry in enumerate(entries):
            if entry.number == anchor.number and hmac.compare_digest(entry.digest, anchor.digest):
                return entries[index + 1 :]
    return entries


@dataclass(frozen=True, slots=True)
class Joined:
    """The device's signatures and our records, matched."""

    pairs: list[tuple[LogEntry, Mapping[str, Any]]]
    only_device: list[LogEntry]
    """Signatures without a record: proofs of keys, requests whose caller was gone, or another user of the device."""
    only_ours: list[Mapping[str, Any]]
    """Records without an entry: the log lost it, or another device signed."""


def join(entries: Iterable[LogEntry], records: Iterable[Mapping[str, Any]], *, auth_key_id: int) -> Joined:
    """Match the successful signatures of a device's log with our records of them, both oldest first.

    `records` are those of the member (`operation` "sign", `result` "ok", `key_id` in hexadecimal, `message_bytes`);
    others are ignored. Signatures of one key and one length are matched in order, as the device logs nothing more.
    """
    waiting: defaultdict[tuple[int, int | None], deque[Mapping[str, Any]]] = defaultdict(deque)
    taken = []
    for record in records:
        key, signed = _device_key(record), not record.get("cached")
        if key is not None and signed and record.get("operation") == "sign" and record.get("result") == "ok":
            waiting[key, record.get("message_bytes")].append(record)
            taken.append(record)
    pairs, only_device = [], []
    for entry in entries:
        if entry.command not in _SIGN_COMMANDS or not entry.succeeded:
            continue
        found = _take(waiting, entry) if entry.session_key == auth_key_id else None
        if found is None:
            only_device.append(entry)
        else:
            pairs.append((entry, found))
    matched = {id(record) for _, record in pairs}
    return Joined(pairs, only_device, [record for record in taken if id(record) not in matched])


def _take(
    waiting: Mapping[tuple[int, int | None], deque[Mapping[str, Any]]], entry: LogEntry
) -> Mapping[str, Any] | None:
    if entry.message_bytes is not None:
        queues = [waiting.get((entry.target_key, entry.message_bytes))]
    else:
        queues = [queue for (key, _), queue in waiting.items() if key == entry.target_key]
    filled = [queue for queue in queues if queue]
    return min(filled, key=lambda queue: queue[0].get("seq", 0)).popleft() if filled else None


def _device_key(record: Mapping[str, Any]) -> int | None:
    try:
        raw = bytes.fromhex(record["key_id"])
    except (KeyError, TypeError, ValueError):
        return None
    return int.from_bytes(raw, "big") if len(raw) == _KEY_ID_BYTES else None
