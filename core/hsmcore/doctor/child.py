"""The probe's child process: the only process that loads the vendor's module, so the module may hang or crash.

Before each C_* call the child sends a note with the call's name, so its parent can say which call hangs.
"""

from __future__ import annotations

import io
from typing import IO, Any, NoReturn

import orjson
from pydantic import TypeAdapter

from hsmcore.doctor.context import ProbeContext, ProbeQuestion
from hsmcore.doctor.plan import BY_NAME
from hsmcore.doctor.report import Step, failed
from hsmcore.errors import HsmError, InternalError
from hsmcore.members.control.child import read_exactly, run
from hsmcore.members.control.wire import error_to_json


def main(parent: int) -> NoReturn:
    """Run the child; `parent` is its parent's process id."""
    run(parent, serve)


def serve(requests: io.FileIO, answers: IO[bytes]) -> None:
    """Carry out one check for each line of `requests`, until the last line or the request to close."""

    def send(line: Any) -> None:
        answers.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        answers.flush()

    context: ProbeContext | None = None
    try:
        while line := requests.readline():
            request = orjson.loads(line)
            if request["call"] == "close":
                break
            if request["call"] == "begin":
                question = TypeAdapter(ProbeQuestion).validate_python(request["question"])
                context = ProbeContext(question, announce=lambda call: send({"note": call}))
                send({"result": None})
                continue
            pin = read_exactly(requests, request["pin_bytes"])
            try:
                send({"result": _steps(context, request["call"], pin)})
            except Exception as error:  # noqa: BLE001  # the parent is told, whatever it was
                send({"error": error_to_json(InternalError(f"{type(error).__name__}: {error}"))})
            finally:
                pin[:] = bytes(len(pin))
    finally:
        if context is not None and not context.hung:
            context.close()


def _steps(context: ProbeContext | None, name: str, pin: bytearray) -> list[dict[str, Any]]:
    if context is None:
        raise LookupError("a check before the question")
    context.pin = pin
    steps: list[Step] = []
    try:
        steps += BY_NAME[name].work(context)
    except HsmError as error:
        steps.append(failed(name, error))
    return [step.model_dump(by_alias=True) for step in steps]
