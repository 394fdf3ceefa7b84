"""Faults that are put back on purpose: proof that the simulation would see them. Each names the rule that it breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from tests.simulation import requests

from hsmcore.failover import levels, router
from hsmcore.failover.policy import GiveUp
from hsmcore.failover.request import Request
from hsmcore.failover.resumed import Resumed
from hsmcore.failover.router import Router
from hsmcore.manager.policy.guard import Permit


def _second_key() -> None:
    """After an attempt that may have signed, another level signs with its own key."""
    failed = Router._failed

    def forget(self: Router, endpoint: Any, key: bytes, error: Any, request: Request) -> None:
        failed(self, endpoint, key, error, request)
        request.attempts.bound_to = None

    Router._failed = forget


def _left_unbound() -> None:
    """A caller that leaves lets its message go: it asks again, and another key signs."""
    Resumed.abandon = lambda _self, _asked, _message: None


def _bound_late() -> None:
    """A message is bound some time after its error is out."""
    bind = Router.bind

    def later(self: Router, messages: Any, key: bytes) -> None:
        asyncio.get_running_loop().call_later(0.2, bind, self, tuple(messages), key)

    Router.bind = later


def _bound_after() -> None:
    """A position is bound after its payload is out."""
    begin = Permit.begin

    async def at_once(self: Permit, timeout: float | None) -> float | None:
        binding = asyncio.get_running_loop().create_task(begin(self, timeout))
        binding.add_done_callback(lambda task: task.cancelled() or task.exception())
        return timeout

    Permit.begin = at_once


def _another_answer() -> None:
    """The late answer of a caller that has left goes to the next one that waits at the same member."""
    collect = requests.Requests._collect

    def mixed(self: requests.Requests) -> None:
        for at, (one, answer) in enumerate(self.done):
            if not one.claimed and isinstance(answer, bytes):
                other = next((x for x in self.all if x.claimed and x.state == "sent" and x.stage == "begun"), None)
                if other is not None:
                    self.done[at] = one, answer
                    other.answer = answer
                    self._settle(other)
        collect(self)

    requests.Requests._collect = mixed


def _dishonest() -> None:
    """An error says that nothing is signed if the caller allows another key."""
    Request.unsure = property(lambda self: self.attempts.bound_to is not None)


def _no_weight() -> None:
    """A member's ramp begins with no weight."""
    levels._FIRST = 0


def _gives_up() -> None:
    """A request ends with its first failure."""
    router.next_step = lambda _levels, _attempts, _now: GiveUp()


def _deaf() -> None:
    """A request that waits for a member does not look at its deadline."""

    async def wait(_self: Router, _until: int, _eager: bool) -> None:
        await asyncio.sleep(3)

    Router._wait = wait


MUTANTS: Final[dict[str, tuple[Callable[[], None], str]]] = {
    "second-key": (_second_key, "one_key"),
    "left-unbound": (_left_unbound, "one_key"),
    "bound-late": (_bound_late, "one_key"),
    "bound-after": (_bound_after, "one_digest"),
    "another-answer": (_another_answer, "genuine"),
    "dishonest": (_dishonest, "honest"),
    "no-weight": (_no_weight, "told"),
    "gives-up": (_gives_up, "served"),
    "deaf": (_deaf, "punctual"),
}
