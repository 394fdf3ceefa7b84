"""What a policy's guard does around a signature, without one."""

from __future__ import annotations

import pytest
from tests.support.loops import one_loop

import hsmcore
from hsmcore.config.policy import Policy
from hsmcore.errors import BadArgument, DeadlineExceeded, DoubleSign, PolicyRefused, QueueFull
from hsmcore.manager.policy import guard as module
from hsmcore.manager.policy.callers import Callers
from hsmcore.manager.policy.guard import Guard
from hsmcore.manager.policy.wants import NotNext
from hsmcore.manager.policy.watermark import Asked
from hsmcore.state import StoreError


def guard(watermark=None, **policy):
    rules = Policy.model_validate({"kinds": ["prehashed"], **policy})
    return Guard(rules, (), watermark, lambda: [b"k" * 32], 7.0)


def test_a_digest_is_in_flight_until_it_is_answered():
    own = guard(callers={"app": {"inFlight": 2}})
    with hsmcore.caller("app"):

        def digest():
            return own.counted([own.judge_digest()])

        for _ in range(5):
            with digest(), digest(), pytest.raises(QueueFull, match="2 requests open") as caught:
                digest().__enter__()
            assert (caught.value.retryable, caught.value.retry_after_ms) == (True, 100)
        with pytest.raises(LookupError), digest():
            raise LookupError
        with digest(), digest():
            pass
    assert own.refused == {"limit": 5}


def test_digests_that_the_policy_does_not_list_are_refused_and_counted():
    own = guard(kinds=["tx-v0"])
    with pytest.raises(PolicyRefused, match="signs no digest as it is"):
        own.judge_digest()
    assert own.refused == {"prehashed": 1}


def test_a_refused_request_of_a_caller_counts_for_nothing():
    rules = Policy.model_validate({"kinds": ["tx-v0"], "callers": {"app": {"inFlight": 1, "kinds": ["tx-v0"]}}})
    caller = Callers(rules.callers).named("app")
    assert "kind block" in str(caller.refusal("block"))
    for _ in range(3):
        assert caller.refusal("tx-v0") is None
        caller.begin()
        with pytest.raises(QueueFull, match="1 requests open"):
            caller.begin()
        with pytest.raises(BadArgument, match="batch of 2; caller 'app' may have 1"):
            caller.begin(2)
        caller.end()


class Store:
    """In the place of a watermark: what is wanted is bound after `takes` seconds of the clock, or never."""

    def __init__(self, clock, takes):
        self.clock, self.takes, self.begun = clock, takes, False

    def require(self, want):
        asked = Asked(want)
        if self.takes is not None:
            self.clock[0] += self.takes
            asked.set_result(None)
        asked.begun = self.begun
        return asked


@pytest.fixture
def clock(monkeypatch):
    """Seconds that go on as the test says."""
    now = [1000.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(("timeout", "takes", "left"), [(5.0, 2.0, 3.0), (None, 2.0, 5.0), (1.0, 4.0, 1e-3)])
@one_loop
async def test_the_time_that_the_store_takes_is_the_request_s(clock, timeout, takes, left):
    own = guard(Store(clock, takes / 2))
    assert await own.require([object(), object()], timeout) == pytest.approx(left)


@pytest.mark.parametrize("begun", [False, True])
@one_loop
async def test_what_is_not_bound_in_time_says_whether_it_may_be(clock, begun):
    store = Store(clock, None)
    store.begun = begun
    with pytest.raises(DeadlineExceeded, match="and may still" if begun else "it is not bound") as caught:
        await guard(store).require([object()], 0.01)
    assert not caught.value.maybe_signed
    assert ("may be bound" in str(caught.value)) == begun


@pytest.mark.parametrize(
    ("error", "counted"),
    [(DoubleSign("twice"), {"double-sign": 1}), (StoreError("no"), {"state": 1}), (NotNext("later"), {})],
)
@one_loop
async def test_refusals_of_the_store_are_counted_by_their_kind(clock, error, counted):
    own = guard(Store(clock, None))
    asked = Asked(object())
    asked.set_exception(error)
    own.watermark.require = lambda want: asked
    with pytest.raises(type(error)):
        await own.require([object()], 1.0)
    assert own.refused == counted
