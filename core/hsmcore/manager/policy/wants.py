"""What a payload asks of the state store before it is signed, and what keeps the hosts of a fleet apart there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from hsmcore.errors import PolicyRefused
from hsmcore.state import StoreNotGenuine

if TYPE_CHECKING:
    from hsmcore.base.receipt import Unfinished
    from hsmcore.state.domains import Binder
    from hsmcore.state.exchange import Question
    from hsmcore.state.mark import Mark


class PayloadPlace(NamedTuple):
    """A payload's place in its chain. `digest`: SHA-256 of the whole payload, in hexadecimal."""

    domain: str
    position: int
    digest: str
    first: int | None = None
    """Of a payload that takes a range of positions up to `position`: where it begins, which must be the position behind
    the highest one."""
    epoch: int = 0
    """Of such a payload: the fleet's epoch that it names; 0 without a fleet."""
    message: bytes = b""
    """The payload, if it is to be kept."""


class NotNext(PolicyRefused):
    """A range does not begin at the next position, or names another epoch than the fleet's. Nothing was bound."""

    next: int = 0
    """The position at which it must begin."""

    @staticmethod
    def behind(least: int) -> StoreNotGenuine:
        """Return the error of a store that went back: it begins before `least`, up to which this process has bound."""
        return StoreNotGenuine(f"the state store went back behind {least}, which was bound here")


LEADS: Final = ("holder", "doubtful")
"""The states of a fleet's host in which the epoch is its own, as far as is known."""


HOPES: Final = ("claiming", *LEADS)
"""Those in which it is, or may be in a moment."""


class Fence(Protocol):
    """What keeps the hosts of a fleet apart: hsmcore.fleet.membership."""

    @property
    def host(self) -> str:
        """This host's name."""

    @property
    def epoch(self) -> int:
        """The fleet's epoch as far as is known. In the event loop."""

    @property
    def state(self) -> str:
        """As Membership.state. In the event loop."""

    @property
    def incident(self) -> int:
        """The number of the loss that is being answered, or 0. In the event loop."""

    binder: Binder
    """Of the keys that sign: no epoch is claimed while they must not bind."""
    unfinished: Callable[[str], Awaitable[Unfinished | None]]
    """As KeyManager.unfinished."""

    def require(self) -> None:
        """Raise NotHolder or FleetBehind if positions are not to be tried now. In the event loop."""

    @property
    def asks(self) -> Question:
        """What each transaction that binds asks first: who holds the epoch, which keeps it so until the end of the
        transaction."""

    @property
    def keeps(self) -> Question:
        """As `asks` and `fence`, for a transaction that relies on what is known now: it finds a row if that is so, and
        keeps it so until the end of the transaction. Raises as `fence`. In the event loop."""

    def fence(self, rows: Sequence[Sequence[Any]]) -> int:
        """Raise NotHolder or FleetBehind unless by these rows, the answer, this host holds the epoch. Returns the
        epoch. In the store's thread."""

    def require_kept(self, domain: str, position: int, mark: Mark, row: Mapping[str, Any] | None) -> None:
        """Raise FleetBehind where the store lacks what this process knows to be bound: `mark` and `row` are what it
        has. In the store's thread."""

    def is_behind(self, domain: str, position: int, high: int) -> bool:
        """Whether a new payload shows that this host has not caught up with the fleet. In the store's thread."""

    def has_bound(self, domain: str, position: int, digest: str, *, new: bool) -> None:
        """A payload may be signed at a position. `new`: it was bound now."""
