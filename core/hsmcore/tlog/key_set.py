"""The set of a key manager's keys as a signed note, and what a verifier makes of it. docs/KEYSET.md has the format.

A note has one form only: what differs by a byte is refused, save its lines of signatures: a signed note may have
them in any order, twice, and of other names. Who signs it: manager/key_sets.py.
"""

from __future__ import annotations

import re
import time
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Self, cast

from hsmcore._native import verify
from hsmcore.errors import BadArgument
from hsmcore.tlog import batch_proof
from hsmcore.tlog.note import ED25519, MAX_NOTE_BYTES, Note, NoteError, VerifierKey
from hsmcore.tlog.proof import BatchProof

KeyState = Literal["next", "current", "overlap", "retired", "other", "emergency"]
SKEW: Final = 300.0
"""Seconds that a verifier's clock may differ from the signer's, unless it says otherwise."""
FIRST_LINE: Final = "§ hsmcore/key-set/v1\n".encode()
_NUMBER: Final = r"(?:0|[1-9][0-9]{0,18})"
_HASH: Final = "[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]="
_KEY: Final = re.compile(
    rf"key (-|{_NUMBER}) ([a-z0-9-]{{1,32}}) ([A-Za-z0-9+/]{{40,120}}={{0,2}}) "
    rf"(next|current|overlap|retired|other|emergency) ({_NUMBER}) (-|{_NUMBER}) (-|{_NUMBER}) (-|{_HASH})"
    rf"(?: ({_NUMBER}))?"
)
_TEXT: Final = re.compile(
    FIRST_LINE.decode() + rf"([!-*,-~]{{1,64}})/keys\n({_NUMBER})\ntime ({_NUMBER})\n"
    rf"(?:good until ({_NUMBER})\n)?kinds((?: [a-z0-9-]{{1,32}}){{1,64}})\n((?:key [^\n]*\n)+)"
)
_ENDORSING: Final = ("next", "current")
"""Not "overlap": a key may have been rotated away because it may be stolen."""
_MOST_STEP: Final = 1 << 20
"""Serials from one set to the next: a stolen key uses up no more of them at a time."""


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """A key of a set. Times are Unix seconds."""

    version: int | None
    """The version in the key ring; None: the key is in no ring."""
    algorithm: str
    public_key: bytes
    state: KeyState
    """"next": it signs after the current one. "overlap": signatures of it are accepted until `not_after`. "other",
    "emergency": of a level with its own key."""
    not_before: int
    not_after: int | None
    successor: int | None
    """The version that signed after it."""
    evidence: bytes | None = None
    """SHA-256 of what the device says of the key; None: it said nothing."""
    last_batched: int | None = None
    """Of a retired key: no batch that it signed has a higher index. None: no proof of its batches is good any more."""

    @property
    def line(self) -> str:
        """The line of the text."""
        numbers = (
            "-" if n is None else str(n) for n in (self.version, self.not_before, self.not_after, self.successor)
        )
        version, not_before, not_after, successor = numbers
        evidence = "-" if self.evidence is None else b64encode(self.evidence).decode()
        public = b64encode(self.public_key).decode()
        last = "" if self.last_batched is None else f" {self.last_batched}"
        rest = f"{self.state} {not_before} {not_after} {successor} {evidence}{last}"
        return f"key {version} {self.algorithm} {public} {rest}\n"

    @classmethod
    def parse(cls, line: str) -> Self:
        """Raises NoteError."""
        found = _KEY.fullmatch(line)
        if found is None:
            raise NoteError("not the line of a key")
        version, not_before, not_after, successor = (
            None if found[group] == "-" else int(found[group]) for group in (1, 5, 6, 7)
        )
        public = b64decode(found[3] + "==")  # of another form are those whose line differs
        evidence = None if found[8] == "-" else b64decode(found[8])
        state = cast("KeyState", found[4])
        if len(public) != (32 if found[2] == "ed25519" else 65):
            raise NoteError("not a public key")
        last = None if found[9] is None else int(found[9])
        if last is not None and (state, found[2]) != ("retired", "ed25519"):
            raise NoteError("only a retired key that signed batches has a last index")
        entry = cls(version, found[2], public, state, not_before or 0, not_after, successor, evidence, last)
        if entry.line != f"{line}\n" or (not_after is None) != (state not in ("overlap", "retired")):
            raise NoteError("not the line of a key")
        return entry

    def accepts(self, now: float, skew: float = SKEW) -> bool:
        """Return whether a signature that is made now may be of this key."""
        if self.state == "retired":
            return False
        return self.not_before - skew <= now and (self.not_after is None or now <= self.not_after + skew)

    def signed_batch(self, index: int) -> bool:
        """Return whether a batch with this index may be one that it signed before it was retired."""
        return self.last_batched is not None and index <= self.last_batched


class BatchedBy(NamedTuple):
    """What `KeySet.verify_batched` found: the key that signed the batch, and what the proof says."""

    key: KeyEntry
    says: BatchProof


@dataclass(frozen=True, slots=True)
class KeySet:
    """The keys whose signatures are good. Made by `trust` or `remembered`; `follow` returns a newer one."""

    domain: str
    serial: int
    """It only grows: a verifier keeps the newest set that it has seen, and takes none with a lower one."""
    time: int
    """When it was made, by the signer's clock: Unix seconds."""
    good_until: int | None
    """When the signer will have made a newer one, even if nothing has changed: Unix seconds. None: it does not say."""
    kinds: tuple[str, ...]
    """The kinds of payload that the keys sign."""
    keys: tuple[KeyEntry, ...]
    note: bytes
    """The signed text, with its signatures."""

    @classmethod
    def trust(cls, note: bytes, public_key: bytes, domain: str | None = None) -> Self:
        """Begin with a note that an Ed25519 key has signed which is known from elsewhere. Raises ValueError for a note
        of another domain, or without a good signature of this key."""
        found = cls.remembered(note)
        if domain not in (None, found.domain):
            raise NoteError(f"it is of {found.domain}, not of {domain}")
        if public_key not in found.signed_by([public_key]):
            raise NoteError("the key has not signed it")
        return found

    @classmethod
    def remembered(cls, note: bytes) -> Self:
        """Return the set of a note that this verifier accepted before, and kept. Its signatures are checked against its
        own keys alone. Raises ValueError."""
        if len(note) > MAX_NOTE_BYTES:
            raise NoteError("too long for a note")
        parsed = Note.parse(note)
        found = _TEXT.fullmatch(parsed.text.decode())
        if found is None:
            raise NoteError("not a set of keys")
        keys = tuple(map(KeyEntry.parse, found[6].removesuffix("\n").split("\n")))
        good_until = None if found[4] is None else int(found[4])
        made = cls(found[1], int(found[2]), int(found[3]), good_until, tuple(found[5].split()), keys, note)
        made._require_sound()
        return made

    def _require_sound(self) -> None:
        publics = {key.public_key for key in self.keys}
        versions = [key.version for key in self.keys if key.version is not None]
        current = [key for key in self.keys if key.state == "current"]
        if len(publics) != len(self.keys) or len(set(versions)) != len(versions) or len(current) != 1:
            raise NoteError("it names a key twice, or no current one")
        if current[0].public_key not in self.signed_by():
            raise NoteError("its current key has not signed it")

    @property
    def text(self) -> bytes:
        """The text that the signatures cover."""
        return Note.parse(self.note).text

    @property
    def current(self) -> KeyEntry:
        """The key that signs."""
        return next(key for key in self.keys if key.state == "current")

    def says(self, keys: Sequence[KeyEntry], kinds: Sequence[str]) -> bool:
        """Return whether these are its keys and kinds."""
        return (self.keys, self.kinds) == (tuple(keys), tuple(kinds))

    def renews(self, older: KeySet) -> bool:
        """Return whether it says what an older one says, and each key signed it that signed the older one: a verifier
        that could follow to that one can follow to this."""
        return self.says(older.keys, older.kinds) and older.signed_by() <= self.signed_by()

    def signed_by(self, public_keys: Iterable[bytes] = ()) -> set[bytes]:
        """Return those of its own keys, and of others, that signed it. Raises ValueError if one of them has made a
        signature that is wrong."""
        own = {key.public_key for key in self.keys if key.algorithm == "ed25519"}
        known = [signer(self.domain, key) for key in own | {key for key in public_keys if len(key) == 32}]
        return {key.public_key for key in Note.parse(self.note).signers(known)}

    def follow(self, notes: bytes, now: float | None = None, skew: float = SKEW) -> KeySet:
        """Return the newest set that notes lead to, which stand one after the other as `/keys?since=` gives them; this
        one, if it is the newest. Each must be signed by a key that the one before it lists as next or current, and
        have a serial that is at most 2^20 higher. `now` and `skew`: no longer needed. Raises ValueError: a set that is
        not, another one of the same serial, and an older one at the end are refused."""
        del now, skew
        latest = self
        found = list(split(notes))
        if not found:
            raise NoteError("there is no note")
        for note in found:
            latest = latest._next(note, last=note is found[-1])
        return latest

    def _next(self, note: bytes, *, last: bool) -> KeySet:
        new = KeySet.remembered(note)
        if new.domain != self.domain:
            raise NoteError(f"it is of {new.domain}, not of {self.domain}")
        if new.serial < self.serial and not last:
            return self  # a step that was gone before
        if new.serial < self.serial:
            raise NoteError(f"it is older than one that was accepted: serial {new.serial} after {self.serial}")
        if new.serial == self.serial:
            if new.text != self.text:
                raise NoteError(f"there are two sets of serial {self.serial}")
            return self
        if new.serial > self.serial + _MOST_STEP:
            raise NoteError(f"serial {new.serial} is more than 2^20 after {self.serial}")
        trusted = {key.public_key for key in self.keys if key.state in _ENDORSING}
        if not trusted & new.signed_by(trusted):
            raise NoteError(f"no key that is trusted has signed serial {new.serial}")
        return new

    def entry(self, public_key: bytes) -> KeyEntry | None:
        """Return what it says of a key."""
        return next((key for key in self.keys if key.public_key == public_key), None)

    def is_fresh(self, now: float | None = None, skew: float = SKEW) -> bool:
        """Return whether no newer set is due. False without a `good until`."""
        return self.good_until is not None and (time.time() if now is None else now) <= self.good_until + skew

    def accepts(
        self,
        public_key: bytes,
        now: float | None = None,
        skew: float = SKEW,
        kind: str | None = None,
        *,
        fresh: bool = False,
    ) -> bool:
        """Return whether a signature that is made now may be of this key. `skew`: seconds that this clock may differ
        from the signer's. `kind`: and be of a payload of this kind. `fresh`: and the set must not be past its `good
        until`."""
        now = time.time() if now is None else now
        found = self.entry(public_key)
        good = found is not None and found.accepts(now, skew) and (not fresh or self.is_fresh(now, skew))
        return good and kind in (None, *self.kinds)

    def verify(
        self,
        message: bytes,
        signature: bytes,
        now: float | None = None,
        skew: float = SKEW,
        kind: str | None = None,
        *,
        fresh: bool = False,
    ) -> KeyEntry | None:
        """Return the key that made a signature; None if no key did that is accepted now. In software."""
        good = (key for key in self.keys if self.accepts(key.public_key, now, skew, kind, fresh=fresh))
        return next((key for key in good if verify(key.algorithm, key.public_key, message, signature)), None)

    def verify_batched(
        self,
        message: bytes,
        proof: bytes,
        now: float | None = None,
        skew: float = SKEW,
        kind: str | None = None,
        *,
        fresh: bool = False,
    ) -> BatchedBy | None:
        """Return the key that signed the batch of a message, and what the proof says; None unless the batch is of this
        domain, and its key is accepted now or was retired after it had signed that batch. `kind`: of the message. In
        software."""
        found = batch_proof.signed_by(message, proof, (key.public_key for key in self.keys))
        key = None if found is None else self.entry(found[0])
        if found is None or key is None or found[1].domain != self.domain or kind not in (None, found[1].kind):
            return None
        now = time.time() if now is None else now
        good = key.accepts(now, skew) or key.signed_batch(found[1].index)
        return BatchedBy(key, found[1]) if good and (not fresh or self.is_fresh(now, skew)) else None


def signer(domain: str, public_key: bytes) -> VerifierKey:
    """Return the key of a note, which has the origin for its name."""
    return VerifierKey(f"{domain}/keys", ED25519, public_key)


def text_of(
    domain: str,
    serial: int,
    time_s: int,
    kinds: Sequence[str],
    keys: Iterable[KeyEntry],
    good_until: int | None = None,
) -> bytes:
    """Return the text that is signed for a set."""
    until = "" if good_until is None else f"good until {good_until}\n"
    lines = (f"{domain}/keys\n", f"{serial}\n", f"time {time_s}\n", until, f"kinds {' '.join(kinds)}\n")
    return FIRST_LINE + "".join((*lines, *(key.line for key in keys))).encode()


def serial_of(since: str | None) -> int | None:
    """Return what a request says by `/keys?since=`. Raises BadArgument."""
    if since is not None and re.fullmatch("-1|[0-9]{1,18}", since) is None:
        raise BadArgument("since must be a serial")
    return None if since is None else int(since)


def after(notes: str, serial: int) -> str:
    """Return those of several notes that come after a serial. Raises ValueError."""
    return "".join(one.decode() for one in split(notes.encode()) if KeySet.remembered(one).serial > serial)


def split(notes: bytes) -> Iterator[bytes]:
    """Return each of several notes that stand one after the other. Raises NoteError."""
    head, *found = notes.split(FIRST_LINE)
    if head:
        raise NoteError("not a set of keys")
    for rest in found:
        yield FIRST_LINE + rest
