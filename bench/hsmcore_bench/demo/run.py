"""The demonstration as a whole: a key manager, a ledger, the raw loop, and the sequencer between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from solders.pubkey import Pubkey

import hsmcore
from hsmcore.base.log import get_logger
from hsmcore.config import Config, Pkcs11Settings
from hsmcore.errors import AlgorithmUnsupported
from hsmcore_bench.demo.builder import TransferBuilder
from hsmcore_bench.demo.ledger import Ledger
from hsmcore_bench.demo.rawloop import RawLoop, RawLoopError
from hsmcore_bench.demo.report import summary
from hsmcore_bench.demo.runner import Sequencer

_ED25519_BYTES = 32


def run(config: Config, transactions: int, in_flight: int, advance: Callable[[int], None]) -> dict[str, Any]:
    """Run it under uvloop and return the summary; `advance` hears of executed transactions."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(config, transactions, in_flight, advance))


async def _run(config: Config, transactions: int, in_flight: int, advance: Callable[[int], None]) -> dict[str, Any]:
    async with hsmcore.create_key_manager(config) as manager:
        if len(manager.public_key) != _ED25519_BYTES:
            raise AlgorithmUnsupported("Solana accounts are Ed25519 keys, the configured key is not one")
        payer = Pubkey.from_bytes(manager.public_key)
        builder = TransferBuilder(payer)
        ledger = Ledger(history=transactions + 2)
        async with _raw_loop(config, len(builder.build(ledger.blockhash()).payload)) as raw:
            outcome = await Sequencer(manager, TransferBuilder(payer), ledger, raw, in_flight).run(
                transactions, advance
            )
    provider = config.key_manager
    sessions = provider.config.sessions if isinstance(provider.config, Pkcs11Settings) else 0
    return summary(outcome, account=str(payer), member=provider.name, sessions=sessions, in_flight=in_flight)


@asynccontextmanager
async def _raw_loop(config: Config, message_bytes: int) -> AsyncIterator[RawLoop | None]:
    """The raw loop on the configured key; None, with a warning, where it cannot run."""
    settings = config.key_manager.config
    arguments = _arguments(settings, message_bytes)
    if arguments is None or not isinstance(settings, Pkcs11Settings):
        get_logger().warning("the raw loop is not measured: it finds a key by the labels of token and key only")
        yield None
        return
    loop = RawLoop(arguments, settings.resolve_pin() or bytearray())
    try:
        started = await loop.start()
    except RawLoopError as error:
        get_logger().warning("the raw loop is not measured", reason=str(error))
        started = False
    try:
        yield loop if started else None
    finally:
        await loop.stop()


def _arguments(settings: object, message_bytes: int) -> list[str] | None:
    if not isinstance(settings, Pkcs11Settings) or settings.token_label is None or settings.key_label is None:
        return None
    return [
        *("--module", settings.module_path, "--token", settings.token_label, "--label", settings.key_label),
        *("--threads", str(settings.sessions), "--message-bytes", str(message_bytes)),
    ]
