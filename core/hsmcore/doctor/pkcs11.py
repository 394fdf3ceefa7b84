"""The probe of a PKCS#11 module: checks from outside, then the checks of a child process that loads the module."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

from pydantic.alias_generators import to_camel

from hsmcore._native import wipe
from hsmcore.base.log import printable
from hsmcore.base.ownership import FOREIGN_HINT, foreign
from hsmcore.config import Pkcs11Settings
from hsmcore.doctor.attestation import check_attestation
from hsmcore.doctor.common import check_configuration
from hsmcore.doctor.context import ProbeQuestion
from hsmcore.doctor.plan import CHECKS, Check
from hsmcore.doctor.report import Identity, Step, fail, failed, ok, skipped, warn
from hsmcore.doctor.signing import small_engine
from hsmcore.doctor.subject import CheckBegun, Subject
from hsmcore.errors import HsmError
from hsmcore.members.control.process import Child, ChildLost, child_environment, last_line, lines
from hsmcore.members.control.records import TokenAccess, TokenRecord, TokenSelector
from hsmcore.members.control.refused import RefusedLogins
from hsmcore.members.control.wire import pack, unpack, unpack_fields
from hsmcore.members.supervisor import HOST_PROGRAM

_SIGN_SHARE: Final = 0.8
"""The share of a check's time that a signature gets, so that the child reports a hanging C_Sign before it is killed."""
_START_SECONDS: Final = 30.0
"""Timeout of the child's start, which depends on the machine and not on the module."""


def probe_module(subject: Subject) -> Generator[Step | CheckBegun, None, Identity | None]:
    """Yield all steps of one PKCS#11 provider. The module is never loaded into this process."""
    settings: Pkcs11Settings = subject.settings
    yield CheckBegun("configuration")
    steps = list(check_configuration(subject, settings.resolve_pin if settings.pin_secret is not None else None))
    steps.append(_module_file(subject, settings))
    yield from steps
    if any(step.outcome == "fail" for step in steps):
        yield from (skipped(check.name, "something before it failed") for check in CHECKS)
        return None
    found: dict[str, Step] = {}
    for event in _inside(subject, settings):
        if isinstance(event, Step):
            found.setdefault(event.name, event)
        yield event
    if found["token"].outcome == "ok" and settings.isolation == "process":
        yield CheckBegun("host")
        yield from _host(subject, settings, found["token"])
    yield from check_attestation(subject.provider, found)
    return _identity(found)


def _module_file(subject: Subject, settings: Pkcs11Settings) -> Step:
    path = Path(settings.module_path)
    try:
        with path.open("rb") as file:
            magic, problem = file.read(4), foreign(path, file.fileno())
    except OSError as error:
        hint = subject.provider.install_hint
        return fail("module-file", f"{path}: {error.strerror}", hint, path=str(path))
    if magic != b"\x7fELF":
        return fail("module-file", f"{path} is no shared library", "Correct modulePath.", path=str(path))
    if problem:
        return fail("module-file", problem, FOREIGN_HINT, path=str(path))
    return ok("module-file", str(path), path=str(path))


def _inside(subject: Subject, settings: Pkcs11Settings) -> Iterator[Step | CheckBegun]:
    """Run the checks of the plan in a child process."""
    outcomes: dict[str, bool] = {}
    token: TokenRecord | None = None
    environment = child_environment(subject.config.secret_variables, settings.module_variables)
    with tempfile.TemporaryFile() as errors, Child(environment, errors, main="hsmcore.doctor.child") as child:
        lost: ChildLost | None = None
        notes = deque(["the start of the process"], maxlen=1)
        try:
            question = pack(ProbeQuestion, _question(subject, settings))
            child.call("begin", question, partial(unpack, type(None)), _START_SECONDS)
        except ChildLost as error:
            lost = error
            yield fail("module", _how_it_was_lost(error, notes, errors), "Look at the process's memory limits.")
            outcomes["module"] = False
        for check in CHECKS:
            if check.name in outcomes:
                continue
            missing = [need for need in check.needs if not outcomes.get(need, False)]
            if missing or lost is not None:
                outcomes[check.name] = False
                yield skipped(check.name, f"needs {', '.join(missing)}" if missing else "the module's process is gone")
                continue
            yield CheckBegun(check.name)
            steps: list[Step] = []
            try:
                steps = _asked(child, check, subject, token, notes)
            except ChildLost as error:
                lost = error
                hint = (
                    'Look at the device and its connection; isolation "process" keeps this away from the application.'
                )
                data = {"call": notes[-1]}
                steps = [fail(check.name, _how_it_was_lost(error, notes, errors), hint, **data)]
            except HsmError as error:
                steps = [failed(check.name, error)]
            outcomes[check.name] = all(step.outcome != "fail" for step in steps)
            if check.name == "token" and outcomes["token"]:
                token = _record(steps[0])
            yield from steps


def _read(answer: Any) -> list[Step]:
    """The steps of a check: at least one, and a token in one that has found it."""
    steps = [Step.model_validate(step) for step in answer]
    if steps[0].name == "token" and steps[0].outcome == "ok":
        _record(steps[0])
    return steps


def _record(step: Step) -> TokenRecord:
    found = {one.name: step.data[to_camel(one.name)] for one in fields(TokenRecord)}
    return TokenRecord(**unpack_fields(TokenRecord, found))


def _asked(child: Child, check: Check, subject: Subject, token: TokenRecord | None, notes: deque[str]) -> list[Step]:
    settings: Pkcs11Settings = subject.settings
    pin = settings.resolve_pin() if check.wants_pin else None
    refused = str(subject.config.key_manager.refused_logins)
    access = TokenAccess.of(settings, subject.provider.name, refused)
    try:
        with RefusedLogins(access, lambda: token).attempt(pin, force=subject.options.force_login) as attempt:
            secrets = [] if pin is None else [pin]
            steps = child.call(check.name, None, _read, subject.options.timeout, secrets, notes.append)
            attempt.sent = any(step.data.get("attempts") for step in steps)
            attempt.refused = any(step.data.get("status") == "PIN_INCORRECT" for step in steps)
    finally:
        if pin is not None:
            wipe(pin)
    return steps


def _how_it_was_lost(lost: ChildLost, notes: deque[str], errors: IO[bytes]) -> str:
    """Return where the child was, how it ended, and its last line on standard error."""
    last = last_line(errors)
    return f"in {printable(notes[-1])}: {printable(str(lost))}" + (f" ({last})" if last else "")


def _question(subject: Subject, settings: Pkcs11Settings) -> ProbeQuestion:
    rotation = subject.config.key_manager.active_rotation
    return ProbeQuestion(
        member=subject.provider.name,
        module_path=settings.module_path,
        module_args=settings.initialize_args,
        quirks=settings.quirks,
        token=TokenSelector.of(settings),
        key_label=settings.key_label,
        key_id=settings.key_id,
        key_handle=settings.key_handle_number(),
        algorithm=settings.algorithm,
        public_key=settings.public_key,
        sessions=settings.sessions,
        sessions_given="sessions" in settings.model_fields_set,
        isolation=settings.isolation,
        has_pin=settings.pin_secret is not None,
        rotates=rotation is not None,
        backs_up=rotation is not None and rotation.backup_enabled,
        backup_is_required=rotation is None or rotation.backup_policy == "require",
        shares=rotation is not None and _tokens(subject) > 1,
        seals=rotation is not None and rotation.key_ceremony is not None,
        force_login=subject.options.force_login,
        seconds=subject.options.timeout * _SIGN_SHARE,
    )


def _tokens(subject: Subject) -> int:
    """Return the number of tokens that hold the key ring's keys, by the configuration."""
    members = [member.config for level, member in subject.config.key_manager.members() if level != "emergency"]
    return len(
        {(s.module_path, s.initialize_args, TokenSelector.of(s)) for s in members if isinstance(s, Pkcs11Settings)}
    )


def _host(subject: Subject, settings: Pkcs11Settings, token: Step) -> Iterator[Step]:
    """Start the host process with the module, without a login: the PIN is presented once only."""
    if shutil.which(str(HOST_PROGRAM)) is None:
        yield fail("host", f"{HOST_PROGRAM.name} is not there or cannot be run", "Install hsmcore again.")
        return
    engine = small_engine(subject.provider.name, subject.options.timeout)
    begun = time.monotonic()
    try:
        engine.start(
            module_path=settings.module_path,
            module_args=settings.initialize_args,
            quirks=settings.quirks,
            # The token check found the token with more selectors than the engine has.
            token_label=token.data["label"],
            token_serial=token.data["serial"] or None,
            slot_id=-1 if settings.slot_id is None else settings.slot_id,
            workers=1,
            host_program=str(HOST_PROGRAM),
            environment=lines(child_environment(subject.config.secret_variables, settings.module_variables)),
            memory_limit=settings.host_memory_limit_bytes or 0,
            host_timeout=subject.options.timeout,
        )
        hardening = engine.hardening
    except HsmError as error:
        yield failed("host", error)
        return
    finally:
        engine.refuse()
        engine.stop(1.0)
        engine.release()
    milliseconds = (time.monotonic() - begun) * 1e3
    yield ok("host", f"starts, finds the token and ends within {milliseconds:.0f} ms", milliseconds=round(milliseconds))
    if hardening is not None:
        yield judge(*hardening, ptrace_scope())


def _identity(found: dict[str, Step]) -> Identity | None:
    key, public = found.get("key"), found.get("public-key")
    if key is None or public is None or not isinstance(key.data.get("algorithm"), str):
        return None
    data: dict[str, Any] = key.data
    return Identity(
        fixed=True,
        algorithm=data["algorithm"],
        key_id=data["id"] or None,
        label=data["label"] or None,
        public_key=public.data.get("publicKey"),
        address=public.data.get("address"),
    )


_SCOPE: Final = Path("/proc/sys/kernel/yama/ptrace_scope")
_LANDLOCK: Final = (
    'Boot Linux 5.13 or newer with landlock in "lsm=", and let a container\'s seccomp profile pass landlock_*'
)

_SINCE: Final = {
    2: "the module cannot move or link a file into another folder (Linux 5.19)",
    6: "this version keeps signals from no other process: signals only by the filter (Linux 6.12)",
}
"""By version of Landlock: the consequence of a kernel that lacks it."""


def ptrace_scope() -> int | None:
    """Return Yama's setting; None: the kernel has no Yama."""
    try:
        return int(_SCOPE.read_text())
    except (OSError, ValueError):
        return None


def judge(lacking: tuple[str, ...], landlock: int, scope: int | None) -> Step:
    """Judge what a host process said about itself, as in Engine.hardening."""
    data = {"lacking": list(lacking), "landlockAbi": landlock, "ptraceScope": scope}
    if not lacking:
        found = f"Landlock (version {landlock}) and seccomp keep the module to its process, its files and its network"
        lacks = [what for version, what in _SINCE.items() if landlock < version]
        return ok("isolation", "; ".join([found, *lacks]), **data)
    found = f"the host process lacks {', '.join(lacking)}"
    if "landlock" not in lacking:
        return warn("isolation", found, "Look for what refuses prctl and seccomp here: a container's profile?", **data)
    if scope:
        return warn("isolation", f"{found}: the module can read much of /proc", f"{_LANDLOCK}.", **data)
    hint = f"{_LANDLOCK}; or set kernel.yama.ptrace_scope to 1; or make the application's process not dumpable."
    return warn("isolation", f"{found}: the module can read and write the application's memory", hint, **data)
