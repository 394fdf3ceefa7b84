"""What a key manager signs with: a single member, or the levels of failover; and what its parts take of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from hsmcore.audit import AuditLog
from hsmcore.base.events import Events
from hsmcore.base.receipt import Receipt
from hsmcore.config import Config
from hsmcore.errors import NotInitialized
from hsmcore.failover.path import SigningPath
from hsmcore.failover.single import SingleMember
from hsmcore.manager.policy import Guard
from hsmcore.manager.recording import AuditNotes
from hsmcore.members import Member

if TYPE_CHECKING:
    from hsmcore.failover.health import Verify
    from hsmcore.fleet.membership import Membership


def running(path: SigningPath) -> list[Member]:
    """Return the running members, those in service first."""
    started = sorted(path.members(), key=lambda one: one.condition not in ("ready", "ramping"))
    return [one.member for one in started if one.member is not None]


@dataclass(frozen=True, slots=True)
class OwnTexts:
    """What batches and sets of keys need of a key manager, to have texts of their own signed."""

    guard: Guard
    check: Callable[[], None]
    """Raises where a request is not allowed."""
    path: SigningPath
    sign: Callable[[bytes, float, bytes | None, bytes | None], Awaitable[Receipt]]
    """KeyManager._sign_own: text, timeout, what is added to the audit record, the only public key."""
    record: AuditNotes
    fleet: Membership | None


class Ring(Protocol):
    """What the key ring makes of a configuration."""

    config: Config
    """The configuration, with the key ring's current key put into it."""
    pinned: frozenset[str]
    """Names of the members that start with that key."""


async def open_path(ring: Ring, configured: Config, verify: Verify, audit: AuditLog, events: Events) -> SigningPath:
    """Start the members of a configuration. Raises HsmError, and leaves nothing open then."""
    if ring.config.key_manager.has_levels:
        from hsmcore.failover.service import FailoverService

        return await FailoverService.open(ring.config, verify, audit, events, ring.pinned, configured)
    return await SingleMember.open(ring.config, audit, events)


def _refuse(*_request: object, **_more: object) -> Any:
    raise NotInitialized("used before initialize()")


class _Unopened(SigningPath):
    """Has no members, and raises NotInitialized for what needs one."""

    version = member = property(_refuse)
    ask: Any = _refuse
    submit_many = abandon = keep = load_key = check_operation = refuse = idle = close = ask

    def __init__(self) -> None:
        self.endpoints = ()
        self.submit = self.receipt = _refuse

    def members(self) -> tuple[()]:
        return ()


UNOPENED: Final = _Unopened()
"""The path before `initialize()`."""
