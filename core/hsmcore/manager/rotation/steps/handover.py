"""Tell the chain which key to obey, while the old one still signs.

From the moment that a handover is called the chain may obey either key. The call is noted before it is made; from then
on only a process with a handover does or undoes this step, and it asks the chain (`settled`): the new key signs only
after "new" and is destroyed only after "old". While the answer is "unknown", the rotation waits and people are told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, get_args

from hsmcore.base.log import get_logger
from hsmcore.errors import HsmError
from hsmcore.handover.base import Handover, HandoverKey, Settled, can_be_asked
from hsmcore.manager.rotation.context import LOOK_AGAIN_NS, Announce, Context, Done, Pending, skipped
from hsmcore.manager.rotation.steps import consent
from hsmcore.manager.rotation.store import Rotation, Rotations
from hsmcore.state import StoreBusy

NONE_REGISTERED: Final = "keyRotation.requireHandover is true, and the application has registered no handover"
NONE_REGISTERED_HINT: Final = "Rotate in the process that does, or call KeyManager.on_rotation() with one."
UNKNOWN_HINT: Final = (
    "Bring the chain's node back; or `hsmcore rotate abort`, which gives everything back to the old key."
)
ASK_AGAIN_NS: Final = 5_000_000_000
"""Nanoseconds until the chain is asked again."""
HELD_HINT: Final = "Start the application, which calls KeyManager.on_rotation(): it goes on, or undoes it."


async def plan(ctx: Context) -> Done:
    """Note whether a handover is about to be called."""
    return Done({"handover": ctx.handover is not None})


async def do(ctx: Context) -> Done | Pending:
    """Hand over, and see the chain obey the new key. A call that an earlier life made is not repeated before the chain
    has said that it obeys the old key."""
    await consent.require(ctx)
    called = await _called(ctx)
    if ctx.handover is None:
        if called:
            return await _held(ctx)
        if ctx.rules.require_handover:
            raise HsmError(NONE_REGISTERED, hint=NONE_REGISTERED_HINT)
        return skipped("no handover is registered")
    if not called:  # a process without a handover had begun the step
        await ctx.rotations.note(ctx.rotation.id, "handover", "begun", {"handover": True})
    old, new = await _keys(ctx)
    if called and ctx.resumed:
        obeyed, why = await _ask(ctx.handover, old, new, said="old")
        if obeyed != "old":
            return Done({"settled": "new"}) if obeyed == "new" else await _unknown(ctx, why)
    details = await ctx.handover.handover(old, new, ctx.port.manager)
    obeyed, why = await _ask(ctx.handover, old, new, said="new")
    if obeyed == "old":
        raise HsmError("the handover has returned, and the chain obeys the old key")
    return await _unknown(ctx, why) if obeyed == "unknown" else Done({**(details or {}), "settled": "new"})


async def undo(ctx: Context) -> Done | Pending:
    """Give every authority back to the old key, and see the chain obey it."""
    called = await _called(ctx)
    if ctx.handover is None:
        return await _held(ctx) if called else skipped("nothing was handed over")
    if not ctx.new.public_key:
        if called:
            raise HsmError("a handover was called, and the key ring does not say to which key")
        return skipped("nothing was handed over")
    old, new = await _keys(ctx)
    obeyed, _ = await _ask(ctx.handover, old, new, said="unknown")
    if obeyed == "old":
        return Done({"settled": "old"})
    details = await ctx.handover.revert(old, new, ctx.port.manager)
    obeyed, why = await _ask(ctx.handover, old, new, said="old")
    if obeyed == "old":
        return Done({**(details or {}), "settled": "old" if can_be_asked(ctx.handover) else "not asked"})
    return await _unknown(ctx, why if obeyed == "unknown" else "it was reverted, and the chain obeys the new key")


async def give_back(ctx: Context) -> Pending | None:
    """Undo a handover that was called, whatever the rotation's row says, before the new key is destroyed. Returns None
    if the chain does not obey the new key."""
    if not await _called(ctx):
        return None
    outcome = await undo(ctx)
    return outcome if isinstance(outcome, Pending) else None


async def waiting(rotations: Rotations) -> Rotation | None:
    """Return the rotation that only a process with a handover can continue: its handover was called, and did not
    end."""
    for rotation in await rotations.open():
        run = rotation.run
        before = run.status == "undoing" or (run.status == "running" and run.step == "handover")
        if before and _may_be_over(rotation, await rotations.steps(rotation.id, ["handover"])):
            return rotation
    return None


def refusal(rotation: Rotation) -> HsmError:
    """Return the error that a process without the handover raises."""
    text = f"rotation {rotation.id} was cut off in its handover and waits for the application, which has the handover"
    return StoreBusy(text, hint=HELD_HINT)


async def tell(rotation: Rotation, announce: Announce) -> None:
    """Log that a rotation waits for the process with the handover, and what to do."""
    get_logger().error("a rotation waits for the process that has its handover", rotation=rotation.id, hint=HELD_HINT)
    await announce(
        "failure",
        f"rotation {rotation.id} waits for the application",
        "it was cut off after its handover had been called, so the chain may obey either key: nothing is done, undone "
        f"or destroyed without the handover. {HELD_HINT}",
        f"rotation-{rotation.id}-handover-open",
    )


async def why_not_settled(ctx: Context) -> str | None:
    """Return why the new key may not be destroyed although it was given back: nobody has asked the chain."""
    steps = await ctx.rotations.steps(ctx.rotation.id, ["handover"])
    called = _last_call(steps, over=lambda undone: undone["details"].get("settled") == "old")
    return "a handover was called that cannot say which key the chain obeys" if called else None


async def _ask(asked: Handover, old: HandoverKey, new: HandoverKey, *, said: Settled) -> tuple[Settled, str]:
    """Return the key that the chain obeys, and why that is unknown. An error of the application's code is no answer.
    `said`: what the last call's return says, for a handover that cannot be asked."""
    if not can_be_asked(asked):
        return said, "the handover has no `settled`"
    try:
        obeyed: object = await asked.settled(old, new)
    except Exception as error:  # noqa: BLE001  # the application's code: it may raise anything
        text = str(error.args[0]) if isinstance(error, HsmError) and error.args else type(error).__name__
        return "unknown", f"settled() failed: {text}"
    for known in get_args(Settled):
        if isinstance(obeyed, str) and obeyed == known:
            return known, "the chain does not obey one key in everything, or does not say"
    return "unknown", f"settled() returned {type(obeyed).__name__}, not one of {', '.join(get_args(Settled))}"


async def _unknown(ctx: Context, why: str) -> Pending:
    """Wait; log and note it once."""
    steps = await ctx.rotations.steps(ctx.rotation.id, ["handover"])
    details = {"waitsFor": "the chain to obey one key", "why": why}
    if steps[-1]["details"] != details:
        get_logger().error("a rotation waits for its chain", rotation=ctx.rotation.id, reason=why, hint=UNKNOWN_HINT)
    await ctx.announce(
        "failure",
        f"rotation {ctx.rotation.id} waits for the chain",
        f"its handover was called, and which key the chain obeys is unknown: {why}. The old key signs, and no key is "
        f"destroyed. {UNKNOWN_HINT}",
        f"rotation-{ctx.rotation.id}-handover-unknown-{ctx.rotation.run.status}",
    )
    return Pending(ctx.clock() + ASK_AGAIN_NS, details)


def _may_be_over(rotation: Rotation, steps: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the chain may obey the new key. `steps`: those of the handover, oldest first."""
    begun = any(step["outcome"] == "begun" for step in steps)
    lost = rotation.run.status == "running" and rotation.run.step == "handover" and rotation.run.begun and not begun
    return lost or _last_call(steps, over=lambda _undone: True)


def _last_call(steps: Iterable[Mapping[str, Any]], *, over: Callable[[Mapping[str, Any]], bool]) -> bool:
    """Return whether a handover was called and is not `over` by a step that undid it. A beginning that does not say
    whether a handover was called counts as a call."""
    called = False
    for step in steps:
        if step["outcome"] == "begun":
            called = called or bool(step["details"].get("handover", True))
        elif step["outcome"] == "undone":
            called = called and not over(step)
    return called


async def _called(ctx: Context) -> bool:
    return _may_be_over(ctx.rotation, await ctx.rotations.steps(ctx.rotation.id, ["handover"]))


async def _held(ctx: Context) -> Pending:
    await tell(ctx.rotation, ctx.announce)
    return Pending(ctx.clock() + LOOK_AGAIN_NS, {"waitsFor": "a process with the handover"})


async def _keys(ctx: Context) -> tuple[HandoverKey, HandoverKey]:
    old, new = await ctx.port.load(ctx.old.key_id), await ctx.port.load(ctx.new.key_id)
    return HandoverKey(old, ctx.port.sign), HandoverKey(new, ctx.port.sign)
