"""Tell the chain which key to obey, while the old one still signs.

From the moment that a handover is called the chain may obey either key, until the handover itself says otherwise. The
call is noted before it is made; from then on only a process with a handover does or undoes this step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from hsmcore.errors import HsmError
from hsmcore.handover.base import HandoverKey
from hsmcore.log import get_logger
from hsmcore.rotation.context import LOOK_AGAIN_NS, Announce, Context, Done, Pending, skipped
from hsmcore.rotation.steps import consent
from hsmcore.rotation.store import Rotation, Rotations
from hsmcore.state import StoreBusy

NONE_REGISTERED: Final = "keyRotation.requireHandover is true, and the application has registered no handover"
NONE_REGISTERED_HINT: Final = "Rotate in the process that does, or call KeyManager.on_rotation() with one."
HELD_HINT: Final = "Start the application, which calls KeyManager.on_rotation(): it goes on, or undoes it."


async def plan(ctx: Context) -> Done:
    """Note whether a handover is about to be called."""
    return Done({"handover": ctx.handover is not None})


async def do(ctx: Context) -> Done | Pending:
    """Hand over. After a crash it runs again, so it looks at the present state first."""
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
    details = await ctx.handover.handover(old, new, ctx.port.manager)
    return Done(dict(details or {}))


async def undo(ctx: Context) -> Done | Pending:
    """Give every authority back to the old key."""
    called = await _called(ctx)
    if ctx.handover is None:
        return await _held(ctx) if called else skipped("nothing was handed over")
    if not ctx.new.public_key:
        if called:
            raise HsmError("a handover was called, and the key ring does not say to which key")
        return skipped("nothing was handed over")
    old, new = await _keys(ctx)
    details = await ctx.handover.revert(old, new, ctx.port.manager)
    return Done(dict(details or {}))


async def give_back(ctx: Context) -> Pending | None:
    """Before the new key is destroyed: undo a handover that was called, whatever the rotation's row says. None: the
    chain does not obey the new key."""
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


def _may_be_over(rotation: Rotation, steps: Iterable[Mapping[str, Any]]) -> bool:
    """`steps`: those of the handover, oldest first. A beginning that does not say whether a handover was called counts
    as a call."""
    begun, called = False, False
    for step in steps:
        if step["outcome"] == "begun":
            begun, called = True, called or bool(step["details"].get("handover", True))
        elif step["outcome"] == "undone":
            called = False
    lost = rotation.run.status == "running" and rotation.run.step == "handover" and rotation.run.begun and not begun
    return called or lost


async def _called(ctx: Context) -> bool:
    return _may_be_over(ctx.rotation, await ctx.rotations.steps(ctx.rotation.id, ["handover"]))


async def _held(ctx: Context) -> Pending:
    await tell(ctx.rotation, ctx.announce)
    return Pending(ctx.clock() + LOOK_AGAIN_NS, {"waitsFor": "a process with the handover"})


async def _keys(ctx: Context) -> tuple[HandoverKey, HandoverKey]:
    old, new = await ctx.port.load(ctx.old.key_id), await ctx.port.load(ctx.new.key_id)
    return HandoverKey(old, ctx.port.sign), HandoverKey(new, ctx.port.sign)
