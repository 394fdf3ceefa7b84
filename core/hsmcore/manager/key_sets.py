"""Has the set of keys signed: a new note whenever the key ring says something else than the last one did.

A set is bound to its serial before it is signed, so no serial has two texts, and kept before it is handed out. It is
signed by the key that signs, and by the others of it that can: the next key, and the one before. So a verifier that
knows one of them can follow. A rotation waits until a set lists its new key (manager/rotation/steps/handover.py).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Self

from hsmcore.audit.record import extra as audit_extra
from hsmcore.base.keyring import KeyVersion
from hsmcore.base.log import get_logger
from hsmcore.base.payload import MOST_POSITION
from hsmcore.base.scope import Scope
from hsmcore.config import Config
from hsmcore.config.policy import BATCH_ROOT, KEY_SET
from hsmcore.errors import AlgorithmUnsupported, EngineClosed, HsmError, MessageTooLarge, NotInitialized
from hsmcore.failover.levels import EMERGENCY
from hsmcore.manager.evidence import collect
from hsmcore.manager.path import OwnTexts
from hsmcore.manager.policy.wants import NotNext, PayloadPlace
from hsmcore.manager.rotation.context import ManagerPort
from hsmcore.manager.rotation.service import RotationService
from hsmcore.members.base import SIGN_SECONDS
from hsmcore.members.control import ControlPlane
from hsmcore.state import RoleLost, Store, StoredKey, positions
from hsmcore.state.key_sets import KeySetNotes
from hsmcore.state.keys import BY_HAND
from hsmcore.tlog.key_set import KeyEntry, KeySet, KeyState, signer, text_of
from hsmcore.tlog.note import NoteError, signature_line

if TYPE_CHECKING:
    pass

ROLE: Final = "key-set"
"""The store's role: one process has sets signed, the others hand them out."""
LOOK_SECONDS: Final = 1.0
_MOST_SECONDS: Final = 60.0
_OPENING_SECONDS: Final = 0.02
_CLOSED: Final = "the sets of keys are closed"
_ROOM: Final = 60_000
"""Bytes of a note's text; `note_bytes` of the members' providers may be less."""
_SECOND: Final = 1_000_000_000
_STATES: Final[Mapping[str, KeyState]] = {
    "pending": "next",
    "active": "current",
    "overlap": "overlap",
    "deactivated": "retired",
    "destroyed": "retired",
}
"""By the ring's."""


class KeySets:
    """The signed sets of an open key manager. Belongs to its event loop. `rotates`: as of create_key_manager; one that
    does not only hands out what others had signed."""

    def __init__(
        self,
        config: Config,
        rotates: bool,
        store: Store,
        rotation: RotationService,
        port: ManagerPort,
        parts: OwnTexts,
    ) -> None:
        rules = config.key_manager
        assert rules.policy is not None  # noqa: S101  # for the type checker: the guard is of it
        self._rotation, self._port, self._rotates = rotation, port, rotates
        self._guard, self._check, self._path, self._have = parts.guard, parts.check, parts.path, parts.sign
        self._record, self._fleet = parts.record, parts.fleet
        self._domain, self._kinds = rules.policy.domain, tuple(rules.policy.kinds)
        self._batches = rules.policy.chain(BATCH_ROOT)
        hours = None if rules.key_rotation is None else rules.key_rotation.key_set_good_for_hours
        self._good_for = None if hours is None else hours * 3600
        """Seconds after which verifiers may demand a newer set."""
        self._providers = {provider.name: provider for _, provider in rules.members()}
        most = (provider.descriptor.note_bytes for provider in self._providers.values())
        self._room = min(_ROOM, rules.max_message_bytes, *(each for each in most if each is not None))
        self._store, self._rows = store, KeySetNotes(store)
        self._seen = -1
        self._notes: dict[int, bytes] = {}
        self.latest: KeySet | None = None
        """The newest set. Replaced, never changed; any thread may read it."""
        self._bound: tuple[tuple[KeyEntry, ...], bytes, int] | None = None
        """What was bound and is not signed yet: keys, text, serial. It may be tried again."""
        self._said: dict[bytes, bytes] = {}
        """Digests of what devices said, by public key: of keys that no set lists yet."""
        self._last_batched: dict[bytes, int | None] = {}
        """By public key: of keys that no set lists as retired yet."""
        self._introduced: set[bytes] = set()
        self._others: dict[bytes, KeyVersion] = {}
        self._emergencies: dict[bytes, KeyEntry] = {}
        self._wake = asyncio.Event()
        self._callers: list[asyncio.Future[None]] = []
        """Who waits for the end of a look that has not begun."""
        self._role = store.leading(ROLE)
        self._scope = Scope()
        self._scope.defer(store.close)
        self._scope.defer(self._role.leave)
        self._scope.defer(lambda: _answer(self._callers, EngineClosed(_CLOSED)))

    @classmethod
    async def open(
        cls, config: Config, rotation: RotationService, port: ManagerPort, parts: OwnTexts, *, rotates: bool
    ) -> Self | None:
        """Open, and look from now on, if the policy lists the kind; None: it does not. Raises HsmError."""
        rules = config.key_manager
        if rules.policy is None or KEY_SET not in rules.policy.kinds:
            return None
        store = await Store.open(rules.state_place, config.state_secret)
        made = cls(config, rotates, store, rotation, port, parts)
        try:
            made._require_ed25519()
            await made._read()
        except BaseException:
            await made.close()
            raise
        pauses: Any = {"retry_seconds": 2 * LOOK_SECONDS, "most_seconds": _MOST_SECONDS}
        made._scope.every(LOOK_SECONDS, made._look_for_all, "the set of keys was not signed", wake=made._wake, **pauses)
        return made

    def _require_ed25519(self) -> None:
        if self._path.version.algorithm != "ed25519":
            raise AlgorithmUnsupported("a set of keys is signed with Ed25519, and the key is of another algorithm")

    def wake(self) -> None:
        """Look again soon: a key was changed."""
        self._wake.set()

    @property
    def newest(self) -> bytes:
        """The note of the newest set; b"" while there is none. Any thread."""
        return b"" if self.latest is None else self.latest.note

    def since(self, serial: int) -> bytes:
        """Return the notes after a serial, one after the other: what a verifier that knows that serial follows."""
        return b"".join(note for number, note in sorted(self._notes.items()) if number > serial)

    async def introduce(self, public_key: bytes) -> bool:
        """Have a set list a key that is to sign next. Returns whether the newest one does. Raises HsmError."""
        self._introduced.add(public_key)
        await self.look()
        found = None if self.latest is None else self.latest.entry(public_key)
        return found is not None and found.state in ("next", "current", "overlap")

    async def look(self) -> None:
        """Look now. The one task of this does it, since only that task has the role. Raises HsmError."""
        if not self._scope.is_open:
            raise EngineClosed(_CLOSED)
        looked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._callers.append(looked)
        self._wake.set()
        await looked

    def withdraw(self, public_key: bytes) -> None:
        """The key is in the ring by now, or will not sign."""
        self._introduced.discard(public_key)
        self.wake()

    async def close(self) -> None:
        """Stop. What is not signed yet is signed after the next start. Idempotent."""
        await self._scope.close()

    async def _look_for_all(self) -> float | None:
        callers, self._callers = self._callers, []
        ended: Exception | None = EngineClosed(_CLOSED)
        try:
            await self._look()
            ended = None
        except NotInitialized:  # the key manager is being opened: nothing is signed before it is
            callers, self._callers = [], callers + self._callers
            return _OPENING_SECONDS
        except EngineClosed:
            return _MOST_SECONDS
        except Exception as error:
            ended = error
            raise
        finally:
            _answer(callers, ended)
        return None

    async def _look(self) -> None:
        try:
            await self._read()
            led = self._role.held
            self._check()
            if not self._rotates or not await self._lead():
                return
            if not led:
                await self._read()  # what another process has kept before it lost the role
            keys = await self._wanted()
            last = self.latest
            if keys is not None and (last is None or not last.says(keys, self._kinds) or self._is_due(last)):
                await self._have_signed(keys)
        except RoleLost:
            await self._role.leave()  # another process took it while this one was held up; it may be free again later
            raise

    async def _read(self) -> None:
        for serial, note in await self._rows.since(self._domain, self._seen):
            self._seen = serial
            try:
                found = KeySet.remembered(note)
            except NoteError as error:
                get_logger().error("a set of keys in the state store is none", serial=serial, error=str(error))
                continue
            if (found.domain, found.serial) == (self._domain, serial):
                self._hand_out(found)

    def _is_due(self, last: KeySet) -> bool:
        """Whether a set is to be renewed, although it still says what is so: half of its time is over."""
        now = self._rotation.sure() // _SECOND
        return self._good_for is not None and (last.good_until or 0) < now + self._good_for // 2

    def _renewed(self, found: KeySet) -> int | None:
        """The serial of the newest set, if verifiers need it no more once they have this one."""
        return self.latest.serial if self.latest is not None and found.renews(self.latest) else None

    def _hand_out(self, found: KeySet) -> None:
        if (renewed := self._renewed(found)) is not None:
            self._notes.pop(renewed, None)
        self._notes[found.serial], self.latest = found.note, found

    async def _lead(self) -> bool:
        """Whether this process has sets signed: in a fleet the holder, else the first one that can."""
        holds = self._fleet is None or self._fleet.state == "holder"
        if not holds:
            await self._role.leave()
        else:
            with suppress(HsmError):
                await self._role.take()
        return self._role.held

    async def _wanted(self) -> tuple[KeyEntry, ...] | None:
        """What a set says now; None while the key of the ring does not sign here, or another level signs."""
        stored = [key for key in await self._rotation.keys.all() if key.public_key]
        rows = {key.public_key: key for key in stored}  # the last row of a key counts
        order = sorted((key.activated_ns, key.version) for key in rows.values() if key.activated_ns is not None)
        after = {version: following for (_, version), (_, following) in pairwise(order)}
        found: list[KeyEntry] = []
        for key in sorted(rows.values(), key=lambda key: key.version):
            entry = self._entry(key, after.get(key.version))
            if entry is not None and (entry.state == "retired" or await self._is_proven(key)):
                found.append(replace(entry, evidence=await self._evidence_of(entry, key.key_id)))
        [signs, *others] = self._port.signing()
        emergency = self._of_emergencies(others)
        current = any(entry.state == "current" and entry.public_key == signs.public_key for entry in found)
        if not current or self._path.version.public_key != signs.public_key:
            return None
        listed = {entry.public_key for entry in found}
        beside: list[tuple[KeyVersion, KeyState]] = [(key, "other") for key in self._others.values()]
        beside += [(key, "next") for key in self._loaded() if key.public_key in self._introduced]
        for version, state in beside:
            if version.public_key not in listed:
                listed.add(version.public_key)
                found.append(self._beside(version, state))
        found += (entry for entry in emergency if entry.public_key not in listed)
        revoked = {key.public_key for key in stored if key.note == BY_HAND}
        return self._fitting([await self._ended(entry, entry.public_key in revoked) for entry in found])

    async def _ended(self, entry: KeyEntry, revoked: bool) -> KeyEntry:
        """Say of a retired key which of its batches stay good: those that were numbered before its end. `revoked`: it
        was ended by hand, maybe since it was stolen; none of them is."""
        if entry.state != "retired" or revoked or entry.algorithm != "ed25519":
            return replace(entry, last_batched=None)
        was = None if self.latest is None else self.latest.entry(entry.public_key)
        if was is None or was.state == "retired":  # what it signed, and when, is not known any more
            return replace(entry, last_batched=None if was is None else was.last_batched)
        if entry.public_key not in self._last_batched:
            marks = await self._store.run(lambda connection: positions.marks(connection, [self._batches]))
            mark = marks.get(self._batches)
            self._last_batched[entry.public_key] = None if mark is None or mark.high < 0 else mark.high
        return replace(entry, last_batched=self._last_batched[entry.public_key])

    def _of_emergencies(self, others: Iterable[KeyVersion]) -> list[KeyEntry]:
        """The keys of the emergency level, those of emergencies that are over as retired. While one lasts, no other key
        can sign a set as a rule: so they are noted here, and listed as soon as the current key signs again."""
        levels = {one.public_key: one.level for one in self._path.members()}
        now, running = self._rotation.sure() // _SECOND, set()
        for entry in () if self.latest is None else self.latest.keys:
            if entry.version is None and entry.state in ("emergency", "retired"):
                self._emergencies.setdefault(entry.public_key, entry)
        for key in others:
            level = levels.get(key.public_key)  # None: it is being stopped
            if level == EMERGENCY:
                running.add(key.public_key)
                made = KeyEntry(None, key.algorithm, key.public_key, "emergency", now, None, None)
                self._emergencies.setdefault(key.public_key, made)
            elif level is not None:
                self._others[key.public_key] = key
        for public_key, entry in self._emergencies.items():
            if public_key in running:
                self._emergencies[public_key] = replace(entry, state="emergency", not_after=None)
            elif entry.state == "emergency":
                self._emergencies[public_key] = replace(entry, state="retired", not_after=now)
        return sorted(self._emergencies.values(), key=lambda entry: entry.not_before)

    def _entry(self, key: StoredKey, successor: int | None) -> KeyEntry | None:
        """What a set says of a version of the ring; None: nothing, since it never was to sign."""
        state: KeyState = _STATES[key.state]
        not_after = None
        if state == "next":
            was = None if self.latest is None else self.latest.entry(key.public_key)
            if key.public_key not in self._introduced and (was is None or was.state != "next"):
                return None
        elif key.activated_ns is None:
            return None
        if state == "overlap":
            not_after = -(-(key.retire_ns or 0) // _SECOND)
        elif state == "retired":
            not_after = (key.deactivated_ns or key.destroyed_ns or 0) // _SECOND
        begun = (key.activated_ns or key.created_ns) // _SECOND
        return KeyEntry(key.version, key.algorithm, key.public_key, state, begun, not_after, successor)

    async def _evidence_of(self, entry: KeyEntry, key_id: str) -> bytes | None:
        """The digest of what the device says of a key. It is asked once, before the first set that lists the key."""
        was = None if self.latest is None else self.latest.entry(entry.public_key)
        if was is not None or entry.state == "retired":
            return None if was is None else was.evidence
        # A document that is in the store already is of no set: it is left over, or of another writer.
        if entry.public_key not in self._said:
            document = await self._asked(entry.public_key, key_id)
            if document is None:
                return None
            self._said[entry.public_key] = hashlib.sha256(document).digest()
        return self._said[entry.public_key]

    async def _asked(self, public_key: bytes, key_id: str) -> bytes | None:
        for member in self._port.holders(public_key):
            provider = self._providers.get(member.name)
            if provider is not None and isinstance(member.token, ControlPlane):
                try:
                    document = await collect(member.token, provider, key_id)
                except HsmError as error:
                    get_logger().warning("the device said nothing of a key", key=key_id, error=str(error))
                    return None
                await self._rows.keep_evidence(public_key, document)
                digest = hashlib.sha256(document).digest()
                self._record.evidence(key_id, public_key, digest, member.name)
                return document
        return None

    def _beside(self, key: KeyVersion, state: KeyState) -> KeyEntry:
        """What a set says of a key that is in no ring: it is good since a set first said so."""
        was = None if self.latest is None else self.latest.entry(key.public_key)
        begun = self._rotation.sure() // _SECOND if was is None else was.not_before
        return KeyEntry(None, key.algorithm, key.public_key, state, begun, None, None)

    def _loaded(self) -> list[KeyVersion]:
        return [key for key in self._port.manager.keys() if key.index >= 0]  # noqa: SIM118  # a list

    async def _is_proven(self, key: StoredKey) -> bool:
        """Whether the device has the key, or a set said so which such a key has signed: a row alone, which a writer of
        the store may have made, gets no key into a set."""
        loaded = {one.public_key for one in self._loaded()}
        if key.public_key in loaded:
            return True
        last = self.latest
        if last is not None and last.signed_by(loaded) & loaded:
            was = last.entry(key.public_key)
            if was is not None and was.state != "retired":
                return True
        try:
            return (await self._port.load(key.key_id)).public_key == key.public_key
        except HsmError as error:
            get_logger().error("a key of the ring is not listed: no member has it", key=key.key_id, error=str(error))
            return False

    def _fitting(self, keys: list[KeyEntry]) -> tuple[KeyEntry, ...]:
        """Leave out the oldest keys that have ended, if a device could not sign so much. For a verifier that changes
        nothing: a key that is not listed is as good as one that has ended."""
        most = MOST_POSITION
        while len(text_of(self._domain, most, most, self._kinds, keys, self._good_for and most)) > self._room:
            oldest = next((key for key in keys if key.state == "retired"), None)
            if oldest is None:
                raise MessageTooLarge(f"a set of {len(keys)} keys is longer than {self._room} bytes")
            keys.remove(oldest)
        return tuple(keys)

    async def _have_signed(self, keys: tuple[KeyEntry, ...]) -> None:
        text, place, left = await self._bind(keys)
        [current] = (key.public_key for key in keys if key.state == "current")
        extra = audit_extra(**self._guard.shown(KEY_SET, place)) if self._record.enabled else None
        receipt = await self._have(text, left, extra, current)
        note = text + b"\n" + signature_line(signer(self._domain, receipt.public_key), receipt.signature)
        for key in keys:
            if key.state in ("next", "overlap") and key.algorithm == "ed25519":
                note += await self._endorsed(key.public_key, text)
        found = KeySet.remembered(note)
        if self.latest is not None:
            try:
                self.latest.follow(note)
            except NoteError as error:
                get_logger().error("verifiers cannot follow to the new set of keys", error=str(error))
        await self._rows.add(self._domain, place.position, note, self._renewed(found))
        self._bound, self._seen = None, max(self._seen, place.position)
        self._hand_out(found)

    async def _bind(self, keys: tuple[KeyEntry, ...]) -> tuple[bytes, PayloadPlace, float]:
        """Give the text a serial that no other text has, or had. A text that has one and was not signed keeps it."""
        least = 0 if self.latest is None else self.latest.serial + 1
        if self._bound is not None and self._bound[0] == keys and self._bound[2] >= least:
            _, text, serial = self._bound
        else:
            text, serial = b"", least
        while True:
            epoch = 0 if self._fleet is None else self._fleet.epoch
            now = self._rotation.sure() // _SECOND
            until = None if self._good_for is None else now + self._good_for
            text = text or text_of(self._domain, serial, now, self._kinds, keys, until)
            try:
                place, left = await self._guard.bind_own(KEY_SET, text, serial, serial, epoch, SIGN_SECONDS)
            except NotNext as moved:
                if moved.next < least:
                    raise moved.behind(least) from None
                text, serial = b"", moved.next
            else:
                self._bound = (keys, text, serial)
                return text, place, left

    async def _endorsed(self, public_key: bytes, text: bytes) -> bytes:
        """The signature of a key that does not sign now; nothing, if it cannot: one that is trusted has signed."""
        try:
            version = next((key for key in self._loaded() if key.public_key == public_key), None)
            if version is None:
                return b""
            return signature_line(signer(self._domain, public_key), await self._port.sign(version, text))
        except HsmError as error:
            get_logger().warning("a set of keys lacks a signature", key=public_key.hex(), error=str(error))
            return b""


def _answer(callers: Iterable[asyncio.Future[None]], error: Exception | None) -> None:
    for looked in callers:
        if not looked.done():
            looked.set_result(None) if error is None else looked.set_exception(error)
