"""Who asks for a signature, and how much each may ask for: callers in this process, and clients of a gateway."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from time import monotonic_ns
from typing import Final, Self

from hsmcore.audit.record import current_caller
from hsmcore.config import CallerRules
from hsmcore.errors import BadArgument, PolicyRefused, QueueFull

ROOM_MS: Final = 100
"""When to come back to a caller's own limit of open requests: as long as few signatures take, many for a fast HSM. A
client of a gateway that counts its credits never waits for it."""
_MS: Final = 1_000_000
_SECOND: Final = 1_000_000_000
_MINUTE: Final = 60
_MOST_COUNTED: Final = 65_536
"""Messages of a minute that are known again; of more, the oldest would be counted again."""


def full(text: str, retry_after_ms: int) -> QueueFull:
    """Return the refusal of a request for which there is no room now."""
    error = QueueFull(text, hint="Send the request again later.")
    error.retry_after_ms = retry_after_ms
    return error


def unlisted(client: str | None, key_manager: str) -> PolicyRefused:
    """Return the refusal of a gateway's client that may not use a key manager."""
    return PolicyRefused(f"client {client!r} may not use a key manager {key_manager!r:.40}")


class Rate:
    """So many units in a period, with bursts of as many. Counts whole nanoseconds, so that nothing is lost or won by
    rounding. Belongs to one event loop."""

    __slots__ = ("_balance", "_filled", "_period", "units")

    def __init__(self, units: int, seconds: int = 1) -> None:
        self.units, self._period = units, seconds * _SECOND
        self._balance, self._filled = units * self._period, monotonic_ns()
        """In units times the nanoseconds of the period; below 0 it is owed."""

    @classmethod
    def of(cls, rules: CallerRules) -> Self | None:
        """Return that of a caller; None: it has no limit."""
        return None if rules.per_second is None else cls(rules.per_second)

    def take(self, units: int = 1) -> int:
        """Take units. Returns 0; or after how many milliseconds to come back, and takes none then.

        As soon as there is one unit, all are given, and what lacks is owed: so what is larger than a burst has its
        time, too, and smaller ones do not keep it out."""
        if wait := self.wait():
            return wait
        self._balance -= units * self._period
        return 0

    def wait(self, units: int = 1) -> int:
        """Return after how many milliseconds there are so many units; 0: there are. Takes none."""
        now = monotonic_ns()
        self._balance = min(self._balance + (now - self._filled) * self.units, self.units * self._period)
        self._filled = now
        return -min(0, (self._balance - units * self._period) // (self.units * _MS))


class Outflow:
    """What may leave accounts in a minute, each message counted once in it. Belongs to one event loop."""

    def __init__(self, per_minute: Mapping[str, int]) -> None:
        """`per_minute`: of each account, by its address. A sum begins with a whole minute's."""
        self._rates = {address: Rate(amount, _MINUTE) for address, amount in per_minute.items()}
        self._counted: dict[bytes, int] = {}
        """SHA-256 of messages, and when they were counted, the oldest first."""

    def require(self, moves: Sequence[tuple[str, int]]) -> None:
        """Raise PolicyRefused for more than ever leaves in a minute."""
        for address, amount in moves:
            if amount > (most := self._rates[address].units):
                raise PolicyRefused(f"{amount} would leave {address}, and owned lets {most} leave it in a minute")

    def count(self, message: bytes, moves: Sequence[tuple[str, int]]) -> None:
        """Count what leaves by a message, all or nothing. Raises QueueFull."""
        now = monotonic_ns()
        while (oldest := next(iter(self._counted), None)) and (
            self._counted[oldest] <= now - _MINUTE * _SECOND or len(self._counted) >= _MOST_COUNTED
        ):
            del self._counted[oldest]
        digest = hashlib.sha256(message).digest()
        if digest in self._counted:
            return
        wait, address = max((self._rates[address].wait(amount), address) for address, amount in moves)
        if wait:
            raise full(f"less than what would leave {address} is left of what owned lets leave it in a minute", wait)
        for address, amount in moves:
            self._rates[address].take(amount)
        self._counted[digest] = now


class CallerAccount:
    """What one caller may have signed, and what it has used up of that. Belongs to one event loop."""

    def __init__(self, who: str, rules: CallerRules, rate: Rate | None, most: int | None) -> None:
        """`who`: it, in errors. `most`: requests that may be open; None: any number."""
        self.who, self.rate, self.most = who, rate, sys.maxsize if most is None else most
        self.kinds = None if rules.kinds is None else frozenset(rules.kinds)
        """None: all that the policy lists."""
        self.batches = rules.batches
        self.open = 0
        """Requests that are not answered; each message of a batch is one."""

    def refusal(self, kind: str | None) -> PolicyRefused | None:
        """Return why it may not have a payload of this kind signed, or, if it is None, a batch; None: it may."""
        if kind is None:
            return (
                None if self.batches else PolicyRefused(f'{self.who} may have no batch signed: give it "batch": true')
            )
        if self.kinds is None or kind in self.kinds:
            return None
        return PolicyRefused(f"{self.who} may not have a payload of kind {kind} signed")

    def begin(self, count: int = 1, *, signs: bool = True) -> None:
        """Count requests as open, and those for signatures in the rate. Raises QueueFull, BadArgument for more than can
        ever be open, and counts nothing then."""
        if count > self.most:
            raise BadArgument(f"a batch of {count}; {self.who} may have {self.most} requests open")
        if self.open + count > self.most:
            raise full(f"{self.who} has {self.open} requests open and may have {self.most}", ROOM_MS)
        if signs and self.rate is not None and (wait := self.rate.take(count)):
            raise full(f"{self.who} has used up its {self.rate.units} signatures a second", wait)
        self.open += count

    def end(self, count: int = 1) -> None:
        """They are answered."""
        self.open -= count


class Callers:
    """The callers that a policy names."""

    def __init__(self, rules: Mapping[str, CallerRules]) -> None:
        self._accounts = {
            name: CallerAccount(f"caller {name!r}", rule, Rate.of(rule), rule.in_flight) for name, rule in rules.items()
        }

    def present(self) -> CallerAccount:
        """Return the account of the caller of this context. Raises PolicyRefused for one that the policy does not
        name."""
        return self.named(current_caller())

    def named(self, name: str | None) -> CallerAccount:
        """As `present`, for a caller of this name; None: it does not say who it is."""
        found = self._accounts.get(name) if name is not None else None
        if found is None:
            who = "a caller that does not say who it is" if name is None else f"caller {name!r}"
            raise PolicyRefused(
                f"the policy names its callers, and {who} is none of them",
                hint=f"Sign within `with hsmcore.caller({next(iter(self._accounts), 'name')!r}):`.",
            )
        return found
