"""The same random calls for the simulated engine and for the real one, and what each answers: the two must not differ.

`python -m tests.simulation.calls SEED COUNT` answers with the simulated one, a line a call. Only what no clock decides
is asked for.
"""

from __future__ import annotations

import random
import sys
from typing import Any, Final

OPTIONS: Final = {
    "member": "test",
    "slots": 8,
    "max_message": 200,
    "max_workers": 2,
    "coalesce_seconds": 0.0,
    "default_timeout": 20.0,
    "cache_size": 10_000,
    "single_flight": True,
    "cache_nondeterministic": False,
}
LABEL: Final = "simulated"
_ODD: Final = (b"", b"x" * 201, "text", None, 7)


async def answers(engine: Any, seed: int, count: int) -> list[str]:
    """Make `count` calls to an engine that has one key, at index 0. Return what each answers."""
    rng = random.Random(f"calls/{seed}")
    return [await _call(engine, rng) for _ in range(count)]


async def _call(engine: Any, rng: random.Random) -> str:
    kind = rng.choice(("submit", "submit", "ask", "many", "many", "odd", "leave", "both", "down", "clear", "stats"))
    message = b"message %d" % rng.randrange(12)
    if kind == "submit":
        return await _said(kind, lambda: engine.submit(message, rng.choice((None, 30, 25.5)), rng.choice((0, 0, 0, 9))))
    if kind == "ask":
        return await _said(kind, lambda: engine.ask(message, key=rng.choice((0, 0, 0, 9))))
    if kind == "many":
        batch = [message + b"+%d" % at for at in range(rng.randrange(14))]
        if batch and rng.random() < 0.3:
            batch[rng.randrange(len(batch))] = rng.choice((b"", b"x" * 201))
        return await _said(kind, lambda: engine.submit_many(batch, None, rng.random() < 0.5))
    if kind == "odd":
        odd, timeout = rng.choice((*_ODD, message)), rng.choice((None, 0, -1, float("nan"), "1", True))
        return await _said(kind, lambda: engine.submit(odd, timeout))
    if kind == "leave":
        return await _leave(engine, b"left %d" % rng.randrange(10**9))
    if kind == "both":
        one, other = engine.submit(message), engine.submit(message)
        return f"both {[x if isinstance(x, bytes) else await x for x in (one, other)]}"
    return await _state(engine, rng, kind, message)


async def _state(engine: Any, rng: random.Random, kind: str, message: bytes) -> str:
    if kind == "down":
        engine.set_down(True, rng.choice((None, "BUSY", "TOKEN_LOST")))
        said = await _said(kind, lambda: engine.submit(message))
        engine.set_down(False)
        return said
    if kind == "clear":
        engine.clear_cache()
    await engine.idle()
    stats, cache = engine.stats(), engine.cache_stats()
    names = ("failures", "waiting", "stuck", "down")
    return f"stats {[stats[name] for name in names]} {sorted(cache)} {engine.signs_with(0)} {engine.signs_with(9)}"


async def _leave(engine: Any, message: bytes) -> str:
    """A caller leaves at once: what is left of its request is the engine's own care."""
    asked = engine.submit(message)
    if not isinstance(asked, bytes):
        asked.cancel()
        engine.abandon(asked)
        await engine.idle()
    return f"leave {None if isinstance(asked, bytes) else engine.asked_for(asked)}"


async def _said(kind: str, call: Any) -> str:
    from hsmcore.base.receipt import Receipt
    from hsmcore.errors import HsmError

    try:
        found = call()
        found = found if isinstance(found, bytes) else await found
    except HsmError as error:
        return f"{kind} {_shown(error)} {error.index}"
    if isinstance(found, Receipt):
        named = (found.key_id, found.public_key.hex(), found.member, found.level, found.cached)
        return f"{kind} {found.signature.hex()} {named}"
    if isinstance(found, list):
        return f"{kind} {[one.hex() if isinstance(one, bytes) else _shown(one) for one in found]}"
    return f"{kind} {found.hex()}"


def _shown(error: Any) -> str:
    return f"{type(error).__name__} {error.status} {error.maybe_signed} {error.retryable}"


def _simulated(seed: int, count: int) -> list[str]:
    from tests.simulation import clock, engine, threads
    from tests.simulation.chance import Chance
    from tests.simulation.device import Device, Key, Ledger
    from tests.simulation.loop import Loop

    chance, time = Chance(seed), clock.Clock()
    loop = Loop(chance, time)
    engine.devices[LABEL] = Device(LABEL, [Key.of(LABEL)], 300_000, chance, time, Ledger())
    made = engine.Engine(**OPTIONS)

    async def run() -> list[str]:
        made.start(token_label=LABEL, workers=2, patience_seconds=1.0, verify_every=0)
        made.add_key(label=LABEL)
        made.attach(loop)
        return await answers(made, seed, count)

    clock.run(time)
    threads.worlds[:] = [loop]
    return loop.run_until_complete(run())


if __name__ == "__main__":
    from tests.simulation.install import install

    install()
    sys.stdout.write("\n".join(_simulated(int(sys.argv[1]), int(sys.argv[2]))))
