"""As mutants.py, of a fleet: some are those of the campaign in real time (tests/fleet/breakages.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import delete
from tests.simulation.database import ServerDatabase

from hsmcore.fleet import rows
from hsmcore.fleet.machine import Machine
from hsmcore.fleet.membership import Membership
from hsmcore.fleet.placement import Placement
from hsmcore.manager.policy.watermark import Watermark
from hsmcore.recovery.witness import Witness
from hsmcore.state.mark import Mark
from hsmcore.state.schema import BOUND, FLEET, WATERMARK
from hsmcore.state.sealed_rows import HOT


def _unfenced() -> None:
    """Positions are bound by each host that is asked: neither it nor the transaction looks who holds the epoch."""
    Membership.fence = lambda _self, found: rows.shared(found).epoch
    Membership.require = lambda _self: None


def _unshared() -> None:
    """A bind reads who holds the epoch, and does not lock it: a claim may come between that and its end."""
    rows._SHARE = rows._LOOK


def _unwitnessed() -> None:
    """No host compares its audit log with the database."""

    async def no_look(_self: Membership, _log: Any) -> None:
        pass

    Membership.watch_over = no_look


def _reclaimed() -> None:
    """A bound position is given up before each bind, as if its signer had failed."""
    taken = Watermark._taken

    def forget(connection: Any) -> None:
        connection.execute(delete(BOUND))
        connection.execute(WATERMARK.update().values(bits="0"))

    async def forgetful(self: Watermark, wants: Any, now: int) -> Any:
        await self._store.run(forget, turn=False)
        return await taken(self, wants, now)

    Watermark._taken = forgetful


def _long_lease() -> None:
    """A lease counts from the answer to its renewal, and has no margin."""
    renewed = Machine.renewed

    def late(self: Machine, row: Any, began: int, now: int) -> None:
        renewed(self, row, began, now)
        self.until = now + self.ttl + 2 * self.margin if self.until else 0

    Machine.renewed = late


def _impatient() -> None:
    """A host claims the epoch as soon as a renewal is late."""
    free_at = Machine.free_at

    def soon(self: Machine) -> int | None:
        found = free_at(self)
        return found and found - self.ttl // 2

    Machine.free_at = soon


def _idle() -> None:
    """A host takes over two lives of a lease later."""
    free_at = Machine.free_at

    def late(self: Machine) -> int | None:
        found = free_at(self)
        return found and found + 2 * self.ttl

    Machine.free_at = late


def _kept_open() -> None:
    """An incident is answered, and its host goes on as if it was not."""

    async def unanswered(_self: Witness, _number: int, _compared: Any) -> None:
        pass

    Witness._answer = unanswered


def _shy() -> None:
    """A lease is over long before its next renewal."""
    renewed = Machine.renewed

    def short(self: Machine, row: Any, began: int, now: int) -> None:
        renewed(self, row, began, now)
        self.until = min(self.until, began + self.ttl // 64)

    Machine.renewed = short


def _doubled() -> None:
    """A process does not mind that a copy of it renews."""
    Machine.is_copied = lambda _self, _row: False


def _anywhere() -> None:
    """Where each host hands out transactions, each one binds positions, too."""
    fence, require = Membership.fence, Membership.require
    Membership.fence = lambda self, found: rows.shared(found).epoch if self.unordered == "any" else fence(self, found)
    Membership.require = lambda self: None if self.unordered == "any" else require(self)


def _leased() -> None:
    """Under "any", too, transactions are handed out under the lease alone."""
    made = Membership.__init__

    def leased(self: Membership, *given: Any) -> None:
        made(self, *given)
        self.unordered = "lease"

    Membership.__init__ = leased  # type: ignore[method-assign]


def _eager() -> None:
    """Each host claims a free epoch at once, whatever the order."""
    Placement.delay = lambda _self, _gone: 0


def _sunk() -> None:
    """A floor is not looked at."""
    refusal = Watermark._refusal

    def sunk(self: Watermark, mark: Any, row: Any, want: Any, epoch: int) -> Exception | None:
        return refusal(self, Mark(-1, mark.high, mark.bits), row, want, epoch)

    Watermark._refusal = sunk


def _unchecked() -> None:
    """Under a seal, a host believes what was changed since it was last checked."""
    ServerDatabase._is_as_checked = lambda _self, _seal, _link: True


def _too_hot() -> None:
    """The seal has a digest of what renewals write."""
    HOT[FLEET.name] = frozenset({"renewed_by"})


FLEET_MUTANTS: Final[dict[str, tuple[Callable[[], None], str]]] = {
    "unfenced": (_unfenced, "binds_in_order"),
    "unshared": (_unshared, "binds_in_order"),
    "unwitnessed": (_unwitnessed, "bound_in_the_end"),
    "reclaimed": (_reclaimed, "one_digest_of_all"),
    "long-lease": (_long_lease, "leases_apart"),
    "impatient": (_impatient, "leases_apart"),
    "idle": (_idle, "taken_over"),
    "kept-open": (_kept_open, "healed"),
    "doubled": (_doubled, "copies_stop"),
    "shy": (_shy, "served_by_holder"),
    "anywhere": (_anywhere, "claimed_before"),
    "leased": (_leased, "signed_anywhere"),
    "eager": (_eager, "left_to_the_preferred"),
    "sunk": (_sunk, "nothing_below_floors"),
    "unchecked": (_unchecked, "claimed_before"),
    "too-hot": (_too_hot, "served_by_holder"),
}
