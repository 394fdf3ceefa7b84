"""A simulated device: it really signs, it keeps a ledger of what it has signed, and it fails as its script says."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from nacl.bindings import crypto_sign, crypto_sign_BYTES, crypto_sign_seed_keypair
from tests.simulation.chance import Chance
from tests.simulation.clock import Clock

FaultKind = Literal["slow", "error", "hang", "wrong", "gone", "keyless", "silent"]
KINDS: Final[tuple[FaultKind, ...]] = ("slow", "error", "hang", "wrong", "gone", "keyless", "silent")
_CKR: Final = 0x30
FAILURES: Final = (
    ("C_SignInit", "BUSY"),
    ("C_Sign", "BUSY"),
    ("C_SignInit", "SESSION_LOST"),
    ("C_Sign", "SESSION_LOST"),
    ("C_Sign", "OPERATION_STATE"),
    ("C_SignInit", "NOT_LOGGED_IN"),
    ("C_SignInit", "KEY_HANDLE_STALE"),
    ("C_Sign", "TOKEN_LOST"),
    ("C_SignInit", "TOKEN_LOST"),
    ("C_Sign", "CKR_UNKNOWN"),
    ("C_Sign", "REQUEST_REJECTED"),
    ("C_Sign", "MESSAGE_REJECTED"),
    ("C_Sign", "SIGNATURE_MALFORMED"),
)
"""What an "error" may be. Of a module that fails in C_Sign the device may have signed before, where the class of the
status leaves that open (`signs_anyway`)."""
LEFT_OPEN: Final = frozenset({"SESSION_LOST", "TOKEN_LOST", "CKR_UNKNOWN", "SIGNATURE_MALFORMED"})


@dataclass(frozen=True, slots=True)
class Fault:
    """From `at_ns` of the world's clock, for `lasts_ns`."""

    at_ns: int
    lasts_ns: int
    member: str
    kind: FaultKind
    share: float
    """Of the calls that it meets."""
    failure: tuple[str, str] = ("", "")
    factor: int = 1

    def __str__(self) -> str:
        what = " ".join(self.failure) if self.kind == "error" else f"x{self.factor}" if self.kind == "slow" else ""
        text = f"{self.kind} {what}".strip()
        return f"{self.member}: {text}, {self.share:.0%} of calls, {self.lasts_ns / 1e9:.3f} s"


@dataclass(slots=True)
class Signed:
    """A signature that exists, whoever has it. `begun_ns`: when the module was called."""

    begun_ns: int
    at_ns: int
    member: str
    public_key: bytes
    message: bytes
    signature: bytes = b""


@dataclass(slots=True)
class Call:
    """How one call ends, after `takes_ns`. `signs`: whether there is a signature then, which the answer is if it is
    bytes: other bytes do not verify."""

    takes_ns: int
    answer: bytes | tuple[str, int, str]
    signs: bool
    signature: bytes = b""


class Pair:
    """An Ed25519 key pair: it makes the same signature of a message each time, so of each one once."""

    def __init__(self, seed: bytes) -> None:
        self.public_key, self._secret = crypto_sign_seed_keypair(seed)
        self._made: dict[bytes, bytes] = {}

    def sign(self, message: bytes) -> bytes:
        made = self._made.get(message)
        if made is None:
            made = self._made[message] = crypto_sign(message, self._secret)[:crypto_sign_BYTES]
        return made


@dataclass(slots=True)
class Key:
    label: str
    id: bytes
    pair: Pair
    public_key: bytes
    can_sign: bool = True
    """Whether the device may sign with it (CKA_SIGN),"""
    exists: bool = True
    """and whether it is on its device: a caller may know it longer."""

    @classmethod
    def of(cls, name: str) -> Key:
        """A key by its name, the same in each run."""
        seed = hashlib.sha256(name.encode()).digest()
        pair = Pair(seed)
        return cls(name, seed[:8], pair, pair.public_key)


@dataclass(slots=True)
class Ledger:
    """What every device of a world has signed, in order."""

    signed: dict[bytes, list[Signed]] = field(default_factory=dict)
    """By message."""

    def note(self, one: Signed) -> None:
        self.signed.setdefault(one.message, []).append(one)

    def of(self, message: bytes) -> list[Signed]:
        return self.signed.get(message, [])


class Device:
    def __init__(self, name: str, keys: list[Key], usual_ns: int, chance: Chance, clock: Clock, ledger: Ledger) -> None:
        self.name, self.keys, self.usual_ns = name, keys, usual_ns
        self.chance, self.clock, self.ledger = chance, clock, ledger
        self.faults: list[Fault] = []
        self.tell: Callable[[str, str], None] = lambda _who, _what: None
        self.touched: dict[bytes, set[bytes]] = {}
        self.destroyed: Callable[[Key], None] = lambda _key: None
        self.wrapped: dict[str, Key] = {}
        """Keys that were exported, by id."""
        self._bytes = random.Random(f"{name}/{chance.seed}")

    def now(self) -> list[Fault]:
        """The faults that it has now."""
        now = self.clock.ns
        return [one for one in self.faults if one.at_ns <= now < one.at_ns + one.lasts_ns]

    @property
    def is_gone(self) -> bool:
        return self.has("gone")

    def has(self, kind: FaultKind) -> bool:
        """Whether it has a fault of a kind now."""
        return any(fault.kind == kind for fault in self.now())

    def random_bytes(self, count: int) -> bytes:
        """Return chance of its own, so that it makes the same keys whatever else happens."""
        return self._bytes.randbytes(count)

    def find(self, label: str | None, key_id: bytes | None) -> Key | None:
        if any(fault.kind == "keyless" for fault in self.now()):
            return None
        wanted = (
            one for one in self.keys if (label is None or one.label == label) and (key_id is None or one.id == key_id)
        )
        return next(wanted, None)

    def call(self, key: Key, message: bytes) -> Call:
        """One call of the module to sign."""
        rng = self.chance.time
        self.touched.setdefault(message, set()).add(key.public_key)
        if not (key.exists and key.can_sign):
            status = "KEY_UNUSABLE" if key.exists else "KEY_NOT_FOUND"
            return Call(self.usual_ns, (status, 0, "C_SignInit"), signs=False)
        signature = key.pair.sign(message)
        call = Call(int(self.usual_ns * (0.7 + 0.6 * rng.random())), signature, True, signature)
        for fault in self.now():
            if rng.random() >= fault.share:
                continue
            left = fault.at_ns + fault.lasts_ns - self.clock.ns
            if fault.kind == "slow":
                call.takes_ns *= fault.factor
            elif fault.kind == "hang":  # it may have signed before
                call.takes_ns += left
            elif fault.kind == "wrong":
                call.answer, call.signs = bytes(64), False
            elif fault.kind == "gone":
                return Call(call.takes_ns, ("TOKEN_LOST", _CKR, "C_SignInit"), signs=False)
            elif fault.kind == "silent":  # signs, and its answer is lost
                call.answer = "TOKEN_LOST", _CKR, "C_Sign"
            elif fault.kind == "error":
                name, status = fault.failure
                signs = name == "C_Sign" and status in LEFT_OPEN and rng.random() < 0.5
                return Call(call.takes_ns, (status, _CKR, name), signs, signature)
            elif key not in self.keys or fault.kind == "keyless":
                return Call(call.takes_ns, ("KEY_NOT_FOUND", 0, ""), signs=False)
        return call

    def note(self, begun_ns: int, key: Key, message: Any, call: Call) -> None:
        self.tell(self.name, f"has signed {hashlib.sha256(message).hexdigest()[:8]}")
        self.ledger.note(Signed(begun_ns, self.clock.ns, self.name, key.public_key, message, call.signature))
