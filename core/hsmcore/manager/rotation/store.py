"""Rotations and their steps, as the store keeps them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import orjson
from sqlalchemy import Connection, func, select, update
from sqlalchemy.exc import IntegrityError

from hsmcore.errors import HsmError
from hsmcore.manager.rotation.machine import MOST_WAIT_NS, OPEN, Run
from hsmcore.state.errors import StoreBusy
from hsmcore.state.keys import StoredKey, activate_key, active_key, change_key, get_key, insert_key, known_version
from hsmcore.state.schema import KEY_VERSION as KEY
from hsmcore.state.schema import ROTATION, insert_row, is_old, remove_oldest
from hsmcore.state.schema import ROTATION_STEP as STEP
from hsmcore.state.store import Store, Tables

Work = Callable[[Connection], None]
LEAST, MOST = 30, 100
"""Rotations whose steps stay whatever their age, and the most that have them: a seal digests all steps with each one
that is written."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """One rotation: its `run` (see machine.py) and its keys. `old` and `new` are versions of the key ring."""

    id: int
    cause: str
    """"schedule" or "manual"; "chosen" or "adopted": an operator made a key current, and only the end of the former key
    is left to do."""
    reason: str
    slot_ns: int | None
    begun_ns: int
    ended_ns: int | None
    old: int
    new: int
    run: Run
    error: str

    @property
    def by_hand(self) -> bool:
        """Whether no key was made: an operator made another one current."""
        return self.cause in ("chosen", "adopted")

    def to_json(self) -> dict[str, Any]:
        """Return the row for output."""
        return {
            "id": self.id,
            "cause": self.cause,
            "reason": self.reason,
            "status": self.run.status,
            "step": self.run.step if self.run.status in OPEN else None,
            "oldVersion": self.old,
            "newVersion": self.new,
            "slotNs": self.slot_ns,
            "begunNs": self.begun_ns,
            "endedNs": self.ended_ns,
            "waitsUntilNs": self.run.wait_ns or None,
            "error": self.error or None,
        }


def _of(row: Any) -> Rotation:
    run = Run(row["status"], row["step"], bool(row["step_begun"]), row["wait_ns"], row["tries"], bool(row["aborted"]))
    same = {name: row[name] for name in ("id", "cause", "reason", "slot_ns", "begun_ns", "ended_ns", "error")}
    return Rotation(**same, old=row["old_version"], new=row["new_version"], run=run)


class Rotations(Tables):
    """Reads and writes `rotation` and `rotation_step`. A caller that changes a rotation holds the store's role
    "rotation". `clock`: by which its dates are, in Unix nanoseconds; called in the event loop's thread."""

    def __init__(self, store: Store, clock: Callable[[], int] = time.time_ns) -> None:
        super().__init__(store)
        self._clock = clock

    async def begin(
        self, cause: str, old: int, label: str, slot_ns: int | None, reason: str = "", also: Work | None = None
    ) -> Rotation:
        """Begin a rotation of version `old`; the next key gets its place in the ring. `also` is written in the same
        transaction. Raises StoreBusy if one is under way, HsmError if `old` does not sign any more."""
        now = self._clock()

        def work(connection: Connection) -> Rotation:
            if also is not None:
                also(connection)
            current = active_key(connection)
            if current is None or current.version != old:
                raise HsmError(f"key version {old} is no longer the one that signs; nothing is rotated")
            new = insert_key(connection, "", b"", current.algorithm, label, (), "rotation")
            try:
                made = _insert(connection, Run(), cause, old, new, now, reason, slot_ns)
            except IntegrityError:
                raise StoreBusy("a rotation is under way", hint="See `hsmcore rotate status`.") from None
            return _get(connection, made)

        return await self._store.run(work)

    async def choose(
        self,
        cause: Literal["chosen", "adopted"],
        key_id: str,
        public_key: bytes,
        algorithm: str,
        label: str,
        members: Iterable[str],
        retire_ns: int,
    ) -> StoredKey:
        """Make a key current on request; an unknown one joins the ring. The former one verifies until `retire_ns` and
        is then deactivated, as after a rotation. Durable when this returns. Raises StoreBusy while a rotation is under
        way, KeyDeactivated."""
        holders, now = list(members), self._clock()

        def work(connection: Connection) -> StoredKey:
            busy = select(ROTATION.c.id).where(ROTATION.c.status.in_(("running", "undoing")))
            if connection.execute(busy).first() is not None:
                raise StoreBusy("a rotation is under way", hint="Wait for its end, or `hsmcore rotate abort`.")
            version = known_version(connection, public_key) or insert_key(
                connection, key_id, public_key, algorithm, label, holders, "chosen"
            )
            old = active_key(connection)
            activate_key(connection, version, now, now, retire_ns, f"displaced by hand: version {version} was {cause}")
            new = get_key(connection, version)
            if old is not None and old.version != version:
                _displaced(connection, cause, old, new, retire_ns, now)
            return new

        return await self._store.run(work)

    async def account_for_displaced(self, now_ns: int) -> int:
        """Have every key deactivated when its overlap ends, also one that an earlier version of hsmcore left alone.
        Returns how many of those there were."""

        def work(connection: Connection) -> int:
            new = active_key(connection)
            followed = select(ROTATION.c.old_version).where(ROTATION.c.status.in_(OPEN))
            alone = select(KEY.c.id).where(KEY.c.state == "overlap", KEY.c.id.not_in(followed))
            found = [get_key(connection, version) for version in connection.execute(alone).scalars().all()]
            for old in found:
                _displaced(connection, "chosen", old, new or old, old.retire_ns or now_ns, now_ns)
            return len(found)

        return await self._store.run(work)

    async def record(
        self,
        rotation: int,
        run: Run,
        step: str,
        outcome: str,
        details: dict[str, Any],
        error: str = "",
        also: Work | None = None,
    ) -> Rotation:
        """Note the result of a step and the state of the rotation, with the writes of `also`, in one transaction."""
        now = self._clock()

        def work(connection: Connection) -> Rotation:
            if also is not None:
                also(connection)
            values: dict[str, Any] = _columns(run)
            if error:
                values["error"] = error
            if run.status not in OPEN:
                values["ended_ns"] = now
            if run.status in ("failed", "aborted"):
                _account(connection, _get(connection, rotation).new, now, run.status)
            connection.execute(update(ROTATION).where(ROTATION.c.id == rotation).values(**values))
            insert_step(connection, rotation, step, outcome, details, now)
            return _get(connection, rotation)

        return await self._store.run(work)

    async def redate(self, now_ns: int, retire_ns: int, destroy_ns: int) -> bool:
        """Let what a clock that was ahead has dated count from now: a moment of the past cannot lie ahead. `retire_ns`,
        `destroy_ns`: when an overlap and a deactivation that began now would be over. Returns whether there was any."""

        def work(connection: Connection) -> bool:
            ahead = False
            opened = connection.execute(select(ROTATION).where(ROTATION.c.status.in_(OPEN))).mappings()
            for rotation in [_of(row) for row in opened]:
                old, new, run = get_key(connection, rotation.old), get_key(connection, rotation.new), rotation.run
                last = select(func.max(STEP.c.time_ns)).where(STEP.c.rotation_id == rotation.id)
                dates = (rotation.begun_ns, old.deactivated_ns, new.activated_ns, connection.execute(last).scalar())
                if max(date or 0 for date in dates) <= now_ns:
                    continue
                ahead, retire = True, old.retire_ns or 0
                if old.state == "overlap" and (new.activated_ns or 0) > now_ns:
                    retire = min(retire, retire_ns)
                    change_key(connection, old.version, retire_ns=retire)
                most = max({"deactivate": retire, "destroy": destroy_ns}.get(run.step, 0), now_ns + MOST_WAIT_NS)
                wait = update(ROTATION).where(ROTATION.c.id == rotation.id).values(wait_ns=min(run.wait_ns, most))
                connection.execute(wait)
            for date in (KEY.c.activated_ns, KEY.c.base_ns, KEY.c.deactivated_ns):
                done = connection.execute(update(KEY).where(date > now_ns).values({date.name: now_ns}))
                ahead |= done.rowcount > 0
            return ahead

        return await self._store.run(work)

    async def note(self, rotation: int, step: str, outcome: str, details: dict[str, Any]) -> None:
        """Add to the history of a rotation whose state does not change."""
        now = self._clock()
        await self._store.run(lambda connection: insert_step(connection, rotation, step, outcome, details, now))

    async def open(self) -> list[Rotation]:
        """Return the rotations that have not ended, oldest first."""
        query = select(ROTATION).where(ROTATION.c.status.in_(OPEN)).order_by(ROTATION.c.id)
        return [_of(row) for row in await self._store.rows(query)]

    async def last(self, count: int = 50) -> list[Rotation]:
        """Return the latest rotations, oldest first."""
        query = select(ROTATION).order_by(ROTATION.c.id.desc()).limit(count)
        return [_of(row) for row in reversed(await self._store.rows(query))]

    async def get(self, rotation: int) -> Rotation:
        """Raises HsmError."""
        return await self._store.run(lambda connection: _get(connection, rotation))

    async def steps(self, rotation: int | None = None, names: Sequence[str] = ()) -> list[dict[str, Any]]:
        """Return the steps done, oldest first: rotation_id, time_ns, step, outcome, details."""
        query = select(STEP).order_by(STEP.c.id)
        if rotation is not None:
            query = query.where(STEP.c.rotation_id == rotation)
        if names:
            query = query.where(STEP.c.step.in_(names))
        return await self._store.rows(query, "details")

    async def forget(self, now_ns: int) -> None:
        """Remove the steps of the oldest rotations that have ended (schema.is_old), in portions."""
        old = is_old(ROTATION.c.id, ROTATION.c.begun_ns, LEAST, MOST, now_ns) & ROTATION.c.status.not_in(OPEN)
        of_old = STEP.c.rotation_id.in_(select(ROTATION.c.id).where(old))
        await self._store.run_out(lambda connection: remove_oldest(connection, STEP, of_old))

    async def detail(self, rotation: int, step: str, name: str) -> Any:
        """Return the latest value of a detail of a step; None if the step has noted none."""
        steps = await self.steps(rotation, [step])
        return next((found["details"][name] for found in reversed(steps) if name in found["details"]), None)

    async def failures_in_a_row(self) -> tuple[int, int]:
        """Return how many rotations in a row have failed since the last success, and when the last one ended."""
        count, ended = 0, 0
        for rotation in reversed(await self.last(100)):
            if rotation.run.status != "failed":
                break
            count, ended = count + 1, ended or rotation.ended_ns or 0
        return count, ended


def _displaced(connection: Connection, cause: str, old: StoredKey, new: StoredKey, retire_ns: int, now_ns: int) -> None:
    """Take a change of keys that was no rotation into the history, and let the old key end as after one."""
    run = Run("overlap", "deactivate", wait_ns=retire_ns)
    made = _insert(connection, run, cause, old.version, new.version, now_ns)
    details = {"keyId": new.key_id, "previous": old.key_id, "overlapUntilNs": retire_ns}
    insert_step(connection, made, "activate", "done", details, now_ns)


def _insert(
    connection: Connection,
    run: Run,
    cause: str,
    old: int,
    new: int,
    now_ns: int,
    reason: str = "",
    slot_ns: int | None = None,
) -> int:
    return insert_row(
        connection,
        ROTATION,
        cause=cause,
        reason=reason,
        slot_ns=slot_ns,
        begun_ns=now_ns,
        old_version=old,
        new_version=new,
        error="",
        **_columns(run),
    )


def insert_step(
    connection: Connection, rotation: int, step: str, outcome: str, details: dict[str, Any], now: int
) -> None:
    """Add a row to the history."""
    text = orjson.dumps(details).decode()
    insert_row(connection, STEP, rotation_id=rotation, time_ns=now, step=step, outcome=outcome, details=text)


def _account(connection: Connection, version: int, now: int, status: str) -> None:
    """Mark as destroyed the key that a failed rotation reserved, or made and destroyed again."""
    key = get_key(connection, version)
    if key.state == "pending":
        note = f"the rotation {status}; " + ("its key was destroyed" if key.key_id else "no key was made")
        change_key(connection, version, state="destroyed", destroyed_ns=now, note=note)


def _columns(run: Run) -> dict[str, Any]:
    values = asdict(run) | {"step_begun": int(run.begun), "aborted": int(run.aborted)}
    del values["begun"]
    return values


def _get(connection: Connection, rotation: int) -> Rotation:
    row = connection.execute(select(ROTATION).where(ROTATION.c.id == rotation)).mappings().one_or_none()
    if row is None:
        raise HsmError(f"there is no rotation {rotation}")
    return _of(row)
