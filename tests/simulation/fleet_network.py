"""What lies between the hosts and their database: messages take a while, and may be held up."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal

from tests.simulation.hosts import HostsLoop, Process

if TYPE_CHECKING:
    from tests.simulation.server import Session

Direction = Literal["requests", "replies"]
_SPREAD: Final = 0.5


class Network:
    """`usual_ns`: of a message, one way, by host."""

    def __init__(self, loop: HostsLoop, usual_ns: dict[str, int]) -> None:
        self._loop, self._usual = loop, usual_ns
        self.slow_ns: dict[str, int] = {}
        """What each message takes in addition, by host."""
        self._silent: dict[str, int] = {}
        """Until when all bytes of a host are lost."""
        self._held: dict[tuple[str, Direction], int] = {}
        """Until when a direction is held up."""

    def hold(self, host: str, directions: tuple[Direction, ...], until_ns: int) -> None:
        for one in directions:
            self._held[host, one] = max(until_ns, self._held.get((host, one), 0))

    def silence(self, host: str, until_ns: int) -> None:
        self._silent[host] = max(until_ns, self._silent.get(host, 0))

    def loses(self, host: str, session: Session | None) -> bool:
        """Whether a message is lost: a connection that has lost one passes none any more, and stays open."""
        now = self._loop.clock.ns < self._silent.get(host, 0)
        if session is not None:
            session.silent = now = session.silent or now
        return now

    def holds_up(self, host: str) -> bool:
        now = self._loop.clock.ns
        return any(until > now for (one, _), until in self._held.items() if one == host)

    def carry(self, host: str, direction: Direction, process: Process | None, event: Callable[[], object]) -> None:
        """Have `event` happen at the other end, in `process` (None: the server)."""
        happens = self._loop.happens_around
        takes = int(self._usual[host] * (1 + _SPREAD * self._loop.chance.time.random())) + self.slow_ns.get(host, 0)

        def come() -> None:
            rest = self._held.get((host, direction), 0) - self._loop.clock.ns if self._held else 0
            if rest > 0:
                happens(rest + takes, come)
            elif process is None:
                event()
            else:
                self._loop.in_process(process, event)

        happens(takes, come)
