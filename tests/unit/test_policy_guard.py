"""What a policy's guard does around a signature, without one."""

from __future__ import annotations

import asyncio

import pytest
from solders.instruction import AccountMeta, Instruction
from solders.system_program import TransferParams, transfer
from spl.token.constants import TOKEN_PROGRAM_ID
from tests.support.loops import one_loop
from tests.support.policed import key, made

import hsmcore
from hsmcore.config.policy import Policy
from hsmcore.errors import DeadlineExceeded, DoubleSign, PolicyRefused, QueueFull
from hsmcore.manager.policy import callers
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


def test_what_a_caller_has_signed_counts_in_its_rate(minutes):
    """Each message of a batch; nothing of what is refused."""
    caller = Callers(Policy.model_validate({"kinds": ["raw"], "callers": {"app": {"perSecond": 3}}}).callers).named(
        "app"
    )
    caller.begin()
    caller.begin(2)
    with pytest.raises(QueueFull, match="its 3 signatures a second"):
        caller.begin()
    caller.end(3)
    assert caller.open == 0
    caller.begin(signs=False)


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
    own = guard(Store(clock, takes))
    assert await own.require(object(), timeout) == pytest.approx(left)


@pytest.mark.parametrize("begun", [False, True])
@one_loop
async def test_what_is_not_bound_in_time_says_whether_it_may_be(clock, begun):
    store = Store(clock, None)
    store.begun = begun
    with pytest.raises(DeadlineExceeded, match="and may still" if begun else "it is not bound") as caught:
        await guard(store).require(object(), 0.01)
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
        await own.require(object(), 1.0)
    assert own.refused == counted


# ---- what leaves owned accounts --------------------------------------------------------------------------------------

OWN, ACCOUNT, FRIEND, STRANGER = (key(number) for number in (1, 2, 3, 4))


def pays(amount, source=OWN, more=(), account=0):
    """A transaction by which `amount` leaves a wallet, and what `more` and `account` say beside."""
    moves = [transfer(TransferParams(from_pubkey=source, to_pubkey=FRIEND, lamports=n)) for n in (amount, *more)]
    if account:
        metas = [AccountMeta(at, at == OWN, True) for at in (ACCOUNT, FRIEND, OWN)]
        moves.append(Instruction(TOKEN_PROGRAM_ID, b"\3" + account.to_bytes(8, "little"), metas))
    return made(source, moves)


def owning(amounts=None, **policy):
    amounts = {OWN: 100} if amounts is None else amounts
    owned = {str(address): {"perMinute": amount} for address, amount in amounts.items()}
    rules = {"programs": {"System": ["Transfer"], "Token": ["Transfer"]}, "owned": owned}
    return guard(**{"kinds": ["tx-v0"], "transactions": rules, **policy})


def admits(own, message):
    permit = own.judge(message, None, None)
    asyncio.run(permit.begin(None))
    return permit


@pytest.fixture
def minutes(monkeypatch):
    """Nanoseconds of the clock of rates, which stands still."""
    now = [10**18]
    monkeypatch.setattr(callers, "monotonic_ns", lambda: now[0])
    return now


def test_each_message_is_counted_once_in_a_minute(minutes):
    own = owning()
    for _ in range(5):  # retries, and answers of the cache
        assert admits(own, pays(60)).message == pays(60)
    with pytest.raises(QueueFull, match=f"{OWN}.*owned lets leave") as caught:
        admits(own, pays(50))
    assert (caught.value.retryable, caught.value.retry_after_ms) == (True, 6_000)
    admits(own, pays(40))
    assert own.refused == {"limit": 1}
    minutes[0] += 59_999_999_999
    admits(own, pays(60))  # still known, so that the minute of others is whole
    admits(own, pays(99))
    minutes[0] += 1
    with pytest.raises(QueueFull):
        admits(own, pays(60))


def test_a_minute_comes_back_bit_by_bit(minutes):
    own = owning()
    admits(own, pays(100))
    for n in range(1, 4):
        with pytest.raises(QueueFull) as caught:
            admits(own, pays(25, more=[0] * n))
        assert caught.value.retry_after_ms == 15_000
        minutes[0] += 15_000_000_000
        admits(own, pays(25, more=[0] * n))


def test_more_than_a_minute_s_is_refused_for_good(minutes):
    own = owning()
    for message in (pays(101), pays(60, more=[41])):
        with pytest.raises(PolicyRefused, match=f"101 would leave {OWN}, and owned lets 100 leave it in a minute"):
            admits(own, message)
    admits(own, pays(100))
    assert own.refused == {"tx-v0": 2}


@pytest.mark.parametrize(("lamports", "tokens"), [(100, 1), (1, 100)])
def test_all_of_a_transaction_counts_or_nothing(minutes, lamports, tokens):
    own = owning({OWN: 100, ACCOUNT: 100})
    admits(own, pays(0, account=50))
    admits(own, pays(50))
    with pytest.raises(QueueFull):
        admits(own, pays(lamports, account=tokens))
    admits(own, pays(50, more=[0], account=50))


def test_strangers_use_up_nothing(minutes):
    own = owning()
    for n in range(9):
        assert own.passes(pays(10**9 + n, STRANGER), None)
    admits(own, pays(100))


def test_callers_share_the_minute(minutes):
    own = owning(callers={"a": {}, "b": {}})
    with hsmcore.caller("a"):
        admits(own, pays(60))
    with hsmcore.caller("b"):
        admits(own, pays(60))  # the same message
        with pytest.raises(QueueFull):
            admits(own, pays(60, more=[0]))
    with pytest.raises(PolicyRefused, match="does not say who"):
        admits(own, pays(40))
    with hsmcore.caller("b"):
        admits(own, pays(39))


def test_a_caller_beyond_its_limits_uses_up_nothing(minutes):
    own = owning(callers={"a": {"inFlight": 1}})
    with hsmcore.caller("a"), own.counted([own.judge(pays(1), None, None)]):
        for n in range(9):
            with pytest.raises(QueueFull, match="requests open"), own.counted([own.judge(pays(90 + n), None, None)]):
                pass
        admits(own, pays(100))


def test_only_the_fast_way_s_messages_leave_owned_accounts_alone(minutes):
    own = owning()
    assert not own.passes(pays(1), None)
    assert own.passes(pays(0), None)
    assert own.passes(made(OWN, []), None)  # the fee is no amount
