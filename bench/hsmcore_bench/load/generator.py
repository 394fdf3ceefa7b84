"""The processes that make the load: how they are told what to do, and what they say."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import orjson

from hsmcore._native import wipe
from hsmcore.config import Pkcs11Settings
from hsmcore.errors import HsmError, MemberDown, ModuleMissing, SystemFailure
from hsmcore.members.base import VERIFY_EVERY
from hsmcore.members.control.plane import find_token
from hsmcore.members.control.process import child_environment as module_environment
from hsmcore.members.control.process import python
from hsmcore_bench.harness.locate import native
from hsmcore_bench.harness.process import READY_SECONDS, Child, child_environment
from hsmcore_bench.load.mix import Kind, largest_of, table_of
from hsmcore_bench.load.problems import UsageProblem
from hsmcore_bench.load.shapes import Segment
from hsmcore_bench.load.target import Target

Path_ = Literal["facade", "ring", "raw"]
PATHS: Final[dict[Path_, str]] = {
    "facade": "await km.sign(message): the whole of hsmcore, Python and event loop included",
    "ring": "the engine alone: a generator in C submits straight into its request ring",
    "raw": "the reference: PKCS#11 in plain threads, without hsmcore",
}
PROGRAM: Final = "hsmcore-load"
_PIPE_BYTES: Final = 1 << 20
_F_SETPIPE_SZ: Final = 1031
_DIGITS: Final = b"0123456789abcdef"
_SEED_STEP: Final = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Share:
    """What one process does."""

    number: int
    processes: int
    segments: Sequence[Segment]
    kinds: Sequence[Kind]
    seed: int
    poisson: bool
    timeout: float
    """Seconds for each request."""
    interval: float
    spool: Path | None

    @property
    def own_seed(self) -> int:
        """Other messages, and other moments, than any other process has."""
        return (self.seed + self.number * _SEED_STEP) & ((1 << 64) - 1)

    def table(self) -> list[int]:
        """Its mix."""
        return table_of(self.kinds, self.own_seed)


class Generator(Child):
    """One process that makes load."""

    exit_seconds = 15.0
    interruptible = False

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        try:
            super().__init__(command, environment)
        except OSError as error:
            raise SystemFailure(f"{command[0]} can't be started: {error.strerror}") from None
        with contextlib.suppress(OSError):  # more than a user may have
            fcntl.fcntl(self, _F_SETPIPE_SZ, _PIPE_BYTES)

    def ready(self) -> dict[str, Any]:
        """Wait until it can sign. Raises HsmError."""
        line = self.answer(READY_SECONDS)
        if "error" in line:
            raise MemberDown(line["error"], status=line["status"], hint=line["hint"])
        return line

    def ended(self) -> HsmError:
        """The error for an end before its time."""
        return MemberDown(f"a generator ended: {self.how_it_ended().removeprefix(f'{PROGRAM}: ')}")

    def silent(self, seconds: float) -> HsmError:
        """The error for one that is not ready in time."""
        return MemberDown(f"a generator could not log in within {seconds:.0f} s")


def start(path: Path_, target: Target, share: Share) -> Generator:
    """Start a process and tell it what it will do. Raises HsmError, UsageProblem."""
    return _STARTERS[path](target, share)


def _start_facade(target: Target, share: Share) -> Generator:
    settings = {
        "config": target.document,
        "gateway": target.gateway,
        "segments": [[s.seconds, s.start, s.end] for s in share.segments],
        "mix": share.table(),
        "maxMessage": largest_of(share.kinds),
        "seed": share.own_seed,
        "phase": share.number / share.processes,
        "poisson": share.poisson,
        "timeout": share.timeout,
        "interval": share.interval,
        "spool": None if share.spool is None else str(share.spool),
    }
    generator = Generator(python("-m", "hsmcore_bench.load.facade"), child_environment(target.environment))
    generator.send(orjson.dumps(settings) + b"\n")
    return generator


def _start_native(target: Target, share: Share, *, raw: bool) -> Generator:
    program = native(PROGRAM)
    if program is None:
        raise ModuleMissing(f"{PROGRAM} was not built", hint="Build hsmcore again: make build.")
    lines = [*_member_settings(target), ("raw", "1" if raw else "0"), *_plan_settings(share)]
    inherited = module_environment(target.config.secret_variables, _settings_of(target).module_variables)
    environment = inherited | dict(target.environment)
    pin = _settings_of(target).resolve_pin()
    generator = Generator([str(program)], environment)
    try:
        generator.send("".join(f"{name} {value}\n" for name, value in lines).encode())
        if pin is not None:
            secret = _pin_line(pin)
            generator.send(secret)
            wipe(secret)
        generator.send(b"ready\n")
    except BaseException:
        generator.close()
        raise
    finally:
        if pin is not None:
            wipe(pin)
    return generator


def _pin_line(pin: bytearray) -> bytearray:
    """Nothing that can't be wiped is made of the PIN on the way."""
    line = bytearray(2 * len(pin) + 5)
    line[:4], line[-1:] = b"pin ", b"\n"
    for place, byte in enumerate(pin):
        line[4 + 2 * place], line[5 + 2 * place] = _DIGITS[byte >> 4], _DIGITS[byte & 15]
    return line


def has_ring(target: Target) -> bool:
    """Whether the target is one PKCS#11 member, which the generator in C can drive."""
    manager = target.config.key_manager
    return isinstance(manager.config, Pkcs11Settings) and not manager.has_levels


def _settings_of(target: Target) -> Pkcs11Settings:
    manager = target.config.key_manager
    if not isinstance(manager.config, Pkcs11Settings):
        raise UsageProblem(f"a provider of type {manager.type} has no ring: use --path facade")
    if manager.has_levels:
        raise UsageProblem("with several members only the key manager as a whole can be loaded: use --path facade")
    return manager.config


def _member_settings(target: Target) -> list[tuple[str, object]]:
    """As members/pkcs11.py gives them to the engine."""
    settings, rules = _settings_of(target), target.config.key_manager
    label, serial = settings.token_label, settings.token_serial
    if settings.token_manufacturer is not None or settings.token_model is not None:
        found = find_token(settings, rules.name, target.config.secret_variables)
        label, serial = found.label or None, found.serial or None
    optional = {
        "module-args": settings.initialize_args,
        "quirks": settings.quirks,
        "token-label": label,
        "token-serial": serial,
        "slot-id": settings.slot_id,
        "key-label": settings.key_label,
        "key-id": None if settings.key_id is None else settings.key_id.lower(),
        "key-handle": settings.key_handle_number(),
        "algorithm": settings.algorithm,
        "public-key": None if settings.public_key is None else settings.public_key.lower(),
    }
    return [
        ("module", settings.module_path),
        *((name, value) for name, value in optional.items() if value is not None),
        ("workers", settings.sessions),
        ("slots", rules.queue_size),
        ("verify-every", VERIFY_EVERY[settings.verify_signatures]),
        ("digests", 1 if rules.audit_log_file is not None else 0),
        ("coalesce-ns", rules.wake_coalesce_micros * 1000),
        ("spin-ns", rules.spin_micros * 1000),
        ("patience-ns", (settings.hang_after_ms or 0) * 1_000_000),
        ("cache", rules.max_cache_size),
    ]


def _plan_settings(share: Share) -> list[tuple[str, object]]:
    lines: list[tuple[str, object]] = [
        ("timeout-ns", max(1, round(share.timeout * 1e9))),
        ("interval-ns", round(share.interval * 1e9)),
        ("seed", share.own_seed),
        ("poisson", int(share.poisson)),
        ("phase", share.number / share.processes),
        ("max-message", largest_of(share.kinds)),
        ("mix", " ".join(map(str, share.table()))),
    ]
    lines += [("segment", f"{part.seconds!r} {part.start!r} {part.end!r}") for part in share.segments]
    if share.spool is not None:
        lines.append(("spool", share.spool))
    return lines


def _start_ring(target: Target, share: Share) -> Generator:
    return _start_native(target, share, raw=False)


def _start_raw(target: Target, share: Share) -> Generator:
    return _start_native(target, share, raw=True)


_STARTERS: Final[dict[Path_, Callable[[Target, Share], Generator]]] = {
    "facade": _start_facade,
    "ring": _start_ring,
    "raw": _start_raw,
}
