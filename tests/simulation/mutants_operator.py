"""As mutants.py, for the world `commands`: faults in what operators' commands do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from hsmcore.cli import recorded
from hsmcore.failover.levels import Levels
from hsmcore.manager.rotation import approvals
from hsmcore.manager.rotation.service import RotationService
from hsmcore.manager.rotation.steps import consent
from hsmcore.state import positions
from hsmcore.state.seal import Seal


def _unapproved() -> None:
    """A rotation counts no approvals at the step that waits for them, nor before one that cannot be undone."""
    consent.genuine = lambda approvers, _text, _given: ([one.name for one in approvers], [])  # type: ignore[attr-defined]


def _anybody_approves() -> None:
    """A signature by anybody, of anything, approves."""
    approvals._signed = lambda _approver, _text, _approval: True


def _not_aborted() -> None:
    """An order to abort is not followed."""

    async def no(_self: RotationService, _rotation: Any) -> bool:
        return False

    RotationService._wants_abort = no  # type: ignore[method-assign]


def _not_forbidden() -> None:
    """An order to forbid the emergency level is not followed."""
    permit = Levels.permit_emergency
    Levels.permit_emergency = lambda self, _permitted, reason, now: permit(self, True, reason, now)  # type: ignore[method-assign]


def _floor_passed() -> None:
    """A floor that is raised is not kept: only the rows below it go."""
    raise_floor = positions.raise_floor

    def forget(connection: Any, domain: str, floor: int, reason: str) -> int:
        before = raise_floor(connection, domain, floor, reason)
        mark = positions.WATERMARK
        connection.execute(mark.update().where(mark.c.name == domain).values(floor=0))
        return before

    positions.raise_floor = forget


def _seal_unread() -> None:
    """The digest of a scope is not compared."""
    Seal._problem = lambda *_arguments: ""  # type: ignore[method-assign]


def _adopts_nothing() -> None:
    """An adoption changes nothing."""
    Seal.adopt = lambda _self, _connection, _digest: 0  # type: ignore[method-assign]


def _unrecorded() -> None:
    """A command leaves no record."""

    @contextmanager
    def nothing(_rules: Any, _command: str, **_fields: object) -> Iterator[dict[str, object]]:
        yield {}

    recorded.recorded = nothing


MUTANTS: Final[dict[str, tuple[Callable[[], None], str]]] = {
    "unapproved": (_unapproved, "approved"),
    "anybody-approves": (_anybody_approves, "forged_approves_nothing"),
    "not-aborted": (_not_aborted, "aborted"),
    "not-forbidden": (_not_forbidden, "forbidden"),
    "floor-passed": (_floor_passed, "floored"),
    "seal-unread": (_seal_unread, "adopted"),
    "adopts-nothing": (_adopts_nothing, "adopted"),
    "unrecorded": (_unrecorded, "recorded"),
}
