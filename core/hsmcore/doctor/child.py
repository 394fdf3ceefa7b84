"""The probe's child process: the only process that loads the vendor's module, so the module may hang or crash.

Before each C_* call the child sends a note with the call's name, so its parent can say which call hangs.
"""

from __future__ import annotations

import io
from typing import IO, Any

from hsmcore.doctor.context import ProbeContext, ProbeQuestion
from hsmcore.doctor.plan import BY_NAME
from hsmcore.doctor.report import Step, failed
from hsmcore.errors import HsmError
from hsmcore.members.control.answers import respond, send
from hsmcore.members.control.wire import unpack


def serve(requests: io.FileIO, answers: IO[bytes]) -> None:
    """Carry out the checks of one module."""
    context: ProbeContext | None = None

    def work(call: str, arguments: Any, secrets: list[bytearray]) -> Any:
        nonlocal context
        if call == "begin":
            question = unpack(ProbeQuestion, arguments)
            context = ProbeContext(question, announce=lambda function: send(answers, {"note": function}))
            return None
        if context is None:
            raise LookupError("a check before the question")
        [context.pin] = secrets or [bytearray()]
        return [step.model_dump(by_alias=True) for step in _steps(context, call)]

    try:
        respond(requests, answers, work)
    finally:
        if context is not None and not context.hung:
            context.close()


def _steps(context: ProbeContext, name: str) -> list[Step]:
    steps: list[Step] = []
    try:
        steps += BY_NAME[name].work(context)
    except HsmError as error:
        steps.append(failed(name, error))
    return steps
