"""Finding a token by more than the engine selects by, before anybody logs in to one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

from hsmcore.config import Pkcs11Settings
from hsmcore.control.process import Child, ChildLost, child_environment
from hsmcore.control.records import TokenSelector
from hsmcore.doctor.context import Question
from hsmcore.doctor.report import Step
from hsmcore.errors import HsmError, error_of

_SECONDS: Final = 30.0
_STATUS: Final = {"module": "MODULE_INVALID", "token": "TOKEN_NOT_FOUND"}


def find_token(settings: Pkcs11Settings, member: str, hidden: frozenset[str]) -> tuple[str | None, str | None]:
    """Label and serial number of the one token that matches all of a configuration's selectors; None: it has none.

    Blocks: a child process loads the module, without logging in and without the environment variables `hidden`.
    Raises HsmError."""
    variables = (line.partition(b"=") for line in child_environment(hidden))
    try:
        with Child({name: value for name, _, value in variables}, main="hsmcore.doctor.child") as child:
            child.call({"call": "begin", "question": asdict(question(settings, member))}, _SECONDS)
            _asked(child, "module", member)
            token = _asked(child, "token", member).data
    except ChildLost as lost:
        raise error_of("HOST_LOST", detail=f"looking for the token: {lost}", member=member) from lost
    return token["label"] or None, token["serial"] or None


def _asked(child: Child, check: str, member: str) -> Step:
    answer = child.call({"call": check, "pin_bytes": 0}, _SECONDS)
    step = Step.model_validate(answer[-1])
    if step.outcome == "fail":
        raise _error(step, member)
    return step


def question(settings: Pkcs11Settings, member: str) -> Question:
    """What a configuration says of module, token and key."""
    return Question(
        member=member,
        module_path=settings.module_path,
        module_args=settings.initialize_args,
        quirks=settings.quirks,
        token=asdict(TokenSelector.of(settings)),
        key_label=settings.key_label,
        key_id=settings.key_id,
        key_handle=settings.key_handle_number(),
        algorithm=settings.algorithm,
        public_key=settings.public_key,
        sessions=settings.sessions,
        isolation=settings.isolation,
        has_pin=settings.pin_secret is not None,
    )


def _error(step: Step, member: str) -> HsmError:
    status = step.data.get("status", _STATUS[step.name])
    return error_of(str(status), detail=step.found, member=member, hint=step.hint or None)
