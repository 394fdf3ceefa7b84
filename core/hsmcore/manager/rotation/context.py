"""What the steps of a rotation work with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from hsmcore.base.keyring import KeyVersion
from hsmcore.config import KeyCeremony, KeyRotation
from hsmcore.errors import MemberDown
from hsmcore.members import Member
from hsmcore.members.base import TokensTold
from hsmcore.members.control import ControlPlane

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from hsmcore.handover.base import Handover
    from hsmcore.manager.rotation.schedule import Schedule
    from hsmcore.manager.rotation.store import Rotation, Rotations
    from hsmcore.state import Approvals, Keys, StoredKey


@dataclass(frozen=True, slots=True)
class ManagerPort:
    """The key manager, as a rotation uses it. All in the key manager's event loop."""

    members: Callable[[], list[Member]]
    """Return the running members, in the order of the levels, without the emergency level."""
    holders: Callable[[bytes | None], list[Member]]
    """Return those of them that hold a key, by its public key; None: the current one. Raises MemberDown if there is
    none."""
    signing: Callable[[], Sequence[KeyVersion]]
    """Return the current key as this process knows it, then the keys of levels with other keys; none from the store."""
    load: Callable[[str], Awaitable[KeyVersion]]
    """Have the members find a key by its id and prove it by a signature."""
    sign: Callable[[KeyVersion, bytes], Awaitable[bytes]]
    """Sign with a key that need not be the current one."""
    deactivate: Callable[[str], Awaitable[TokensTold]]
    """Never sign with a key again, and have the tokens refuse it."""
    forget: Callable[[str], None]
    """Remove a key that was never current from the ring."""
    learn: Callable[[Sequence[StoredKey]], None]
    """Learn the keys of the store's ring."""
    switch: Callable[[KeyVersion], None]
    """Sign with a key from now on."""
    tell: Callable[..., None]
    """Send an event's name and details to the audit log and to listeners."""
    manager: Any
    """The key manager itself, for handovers."""
    introduce: Callable[[bytes], Awaitable[bool]]
    """Have the signed set of keys list a public key that is to sign next. Return whether it does, or there is no such
    set (manager/key_sets.py)."""


LOOK_AGAIN_NS: Final = 1_000_000_000
"""Nanoseconds until a step that waits looks again."""
Announce = Callable[[str, str, str, str], Awaitable[object]]
"""Put a notice into the outbox: kind, title, body, occasion."""


@dataclass(frozen=True, slots=True)
class Context:
    """One step of one rotation."""

    rules: KeyRotation
    schedule: Schedule
    port: ManagerPort
    keys: Keys
    rotations: Rotations
    rotation: Rotation
    old: StoredKey
    new: StoredKey
    approvals: Approvals
    announce: Announce
    handover: Handover | None
    aliases: Mapping[str, str]
    """By member of AWS KMS: the alias that the configuration names the key with."""
    configured: frozenset[str]
    """The names of the configuration's members. The ring may name others, which are gone."""
    drill: ControlPlane | None
    """The token for restore drills; None: the key's own."""
    signed: frozenset[str]
    """Ids and public keys (hexadecimal) of keys that have signed, as far as this process has seen them in the ring."""
    grace_ns: int
    """Longest time that a request routed to the old key may still be under way."""
    late: Callable[[], int]
    """Return the time from which a wait counts: the later one, if the clocks differ (see clock.py)."""
    clock: Callable[[], int]
    """Return the time by which something is due: no step of the wall clock that has not held (see clock.py)."""
    resumed: bool = False
    """Whether the step was begun before, by a process that did not end it."""

    @property
    def first(self) -> Member:
        """Return the member that makes the key."""
        return self.port.holders(None)[0]

    @property
    def ceremony(self) -> KeyCeremony | None:
        """Return the ceremony that makes the new key; None: its token makes it."""
        return ceremony_for(self.rules, self.new.algorithm)

    def all_holders(self) -> list[Member]:
        """Return every member that holds the old key, in the order of the levels. Raises MemberDown if one that the
        configuration names is not running."""
        holders = self.port.holders(None)
        missing = sorted(self.named(self.old) - {member.name for member in holders})
        if missing:
            verb = "hold the current key and are" if len(missing) > 1 else "holds the current key and is"
            raise MemberDown(
                f"{', '.join(missing)} {verb} not running: it would be left behind",
                hint="Bring it back, or take it out of the configuration.",
            )
        return holders

    def named(self, key: StoredKey) -> frozenset[str]:
        """Return the members that hold a key by the ring, and that the configuration still names."""
        return self.configured.intersection(key.members)

    def away(self, key: StoredKey) -> list[str]:
        """Return those of them that are not running."""
        return sorted(self.named(key) - {member.name for member in self.port.members()})


@dataclass(frozen=True, slots=True)
class Done:
    """A step was done, or undone. `also` is written in the same transaction; `then` runs once it is durable."""

    details: dict[str, Any] = field(default_factory=dict)
    also: Callable[[Connection], None] | None = None
    then: Callable[[], None] | None = None
    wait_ns: int = 0
    """Unix nanoseconds before which the next step does not begin."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A step cannot be done yet."""

    until_ns: int
    details: dict[str, Any] = field(default_factory=dict)


def ceremony_for(rules: KeyRotation, algorithm: str) -> KeyCeremony | None:
    """Return the key ceremony for keys of an algorithm: only Ed25519 keys are made outside of tokens."""
    return rules.key_ceremony if algorithm == "ed25519" else None


Effect = Callable[[Context], Awaitable[Done | Pending]]


def skipped(why: str) -> Done:
    """Return the result of a step with nothing to do."""
    return Done({"skipped": why})
