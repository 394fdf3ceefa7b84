"""A control child: administers one token for the process that started it (process.py), so that the vendor's module is
never loaded there.

It ends when its input ends or its parent does. A thread sees to that while the module hangs: a death signal of the
kernel's would be tied to the parent's thread, which may end long before the parent.
"""

from __future__ import annotations

import ctypes
import io
import os
import resource
import select
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import IO, Any, Final, NoReturn

import orjson
from pkcs11.mechanisms import Mechanism

from hsmcore.control.admin import TokenAdmin
from hsmcore.control.curves import Algorithm
from hsmcore.control.provision import TokenRequest, make_token
from hsmcore.control.quirks import KeyForm
from hsmcore.control.records import TokenSelector
from hsmcore.control.tokens import list_tokens
from hsmcore.control.wire import error_to_json, record_to_json
from hsmcore.errors import HsmError, InternalError

_GRACE_SECONDS: Final = 2.0
"""How long a call may go on when nobody is left to hear its answer."""
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38

Call = Callable[..., Any]


def _generated(
    admin: TokenAdmin, algorithm: Algorithm, label: str, key_id: str | None, extractable: bool, forms: dict[str, Any]
) -> dict[str, Any]:
    """The new key, and how the token makes keys: another child may make the next one."""
    admin.forms |= {
        name: KeyForm(int.__new__(Mechanism, number), bytes.fromhex(params)) for name, (number, params) in forms.items()
    }
    record = admin.generate_key(algorithm, label, _bytes(key_id), extractable=extractable)
    known = {name: [int(form.mechanism), form.params.hex()] for name, form in admin.forms.items()}
    return {"key": record_to_json(record), "forms": known}


def _sealed(admin: TokenAdmin, label: str, key_id: str, seal_to: list[str]) -> dict[str, Any]:
    record, sealed = admin.generate_sealed(label, bytes.fromhex(key_id), [bytes.fromhex(key) for key in seal_to])
    return {"key": record_to_json(record), "sealed": [blob.hex() for blob in sealed]}


def _unsealed(
    requests: io.FileIO, admin: TokenAdmin, label: str, key_id: str, sealed: str, secret_bytes: int
) -> dict[str, Any]:
    """The recovery key follows the request on the same stream."""
    recovery = read_exactly(requests, secret_bytes)
    try:
        return record_to_json(admin.import_sealed(label, bytes.fromhex(key_id), bytes.fromhex(sealed), recovery))
    finally:
        recovery[:] = bytes(len(recovery))


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else bytes.fromhex(text)


_CALLS: Final[dict[str, Call]] = {
    "list_keys": lambda admin: [record_to_json(record) for record in admin.list_keys()],
    "generate_key": _generated,
    "deactivate": lambda admin, key_id: asdict(admin.deactivate(key_id)),
    "destroy": lambda admin, key_id: admin.destroy(key_id),
    "export_wrapped": lambda admin, key_id, wrapping_label: admin.export_wrapped(key_id, wrapping_label).hex(),
    "import_wrapped": lambda admin, backup, key_id, label: record_to_json(
        admin.import_wrapped(bytes.fromhex(backup), key_id, label)
    ),
    "sweep": lambda admin, key_id, nameless: admin.sweep(key_id, nameless=nameless),
    "new_key_id": lambda admin: admin.new_key_id().hex(),
    "prove": lambda admin, key_id, message: admin.prove(key_id, bytes.fromhex(message)).hex(),
    "why_no_backup": lambda admin, algorithm: admin.why_no_backup(algorithm),
    "generate_sealed": _sealed,
    "transport_key": lambda admin: admin.transport_key().hex(),
    "import_transported": lambda admin, label, key_id, sealed: record_to_json(
        admin.import_transported(label, bytes.fromhex(key_id), bytes.fromhex(sealed))
    ),
}


def main(parent: int) -> NoReturn:
    """What the child does from its start, given its parent's process id."""
    run(parent, serve)


def run(parent: int, work: Callable[[io.FileIO, IO[bytes]], None]) -> NoReturn:
    """Have `work` answer requests, with no core file, no debugger and no life beyond the parent's."""
    code = 1
    try:
        _harden()
        answers = _take_output()
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
        # Unbuffered: it reads no byte ahead, so a PIN that follows a line is in no buffer but ours.
        work(io.FileIO(0), answers)
        code = 0
    except BrokenPipeError:
        pass  # nobody listens any more
    except BaseException:  # noqa: BLE001  # the process ends with it
        traceback.print_exc()
    finally:
        os._exit(code)  # exit handlers of the module may hang


def serve(requests: io.FileIO, answers: IO[bytes]) -> None:
    """Answer each line of `requests` with one of `answers`, until the last or the request to close."""
    admin: TokenAdmin | None = None
    try:
        while line := requests.readline():
            request = orjson.loads(line)
            call = request.pop("call")
            result: Any
            if call == "close":
                break
            try:
                if call == "open":
                    admin = _opened(requests, **request)
                    result = None
                elif call == "list_tokens":
                    result = [asdict(record) for record in list_tokens(**request)]
                elif call == "provision":
                    result = record_to_json(make_token(TokenRequest(**request)))
                elif call == "import_sealed" and admin is not None:
                    result = _unsealed(requests, admin, **request)
                else:
                    result = _CALLS[call](admin, **request)
                answer: dict[str, Any] = {"result": result}
            except HsmError as error:
                answer = {"error": error_to_json(error)}
            except Exception as error:  # noqa: BLE001  # the parent is told, whatever it was
                answer = {"error": error_to_json(InternalError(f"{call}: {type(error).__name__}: {error}"))}
            answers.write(orjson.dumps(answer, option=orjson.OPT_APPEND_NEWLINE))
            answers.flush()
    finally:
        if admin is not None:
            admin.close()


def _opened(
    requests: io.FileIO,
    pin_bytes: int | None,
    module_path: str,
    token: dict[str, Any],
    quirks: str | None,
    module_args: str | None,
    member: str | None,
    mechanisms: dict[str, int],
) -> TokenAdmin:
    """The token, logged in with the PIN that follows the request on the same stream."""
    pin = None if pin_bytes is None else read_exactly(requests, pin_bytes)
    left = [pin]  # given out once: what was wiped after its use must not be tried as a PIN
    try:
        return TokenAdmin(
            module_path,
            TokenSelector(**token),
            quirks=quirks,
            pin=None if pin is None else lambda: left.pop() if left else None,
            module_args=module_args,
            member=member,
            mechanisms=mechanisms,
        ).open()
    finally:
        if pin is not None:
            pin[:] = bytes(len(pin))
            left.clear()


def read_exactly(requests: io.FileIO, size: int) -> bytearray:
    """The next `size` bytes, straight into memory that the caller wipes."""
    data = bytearray(size)
    read = 0
    with memoryview(data) as view:
        while read < size:
            count = requests.readinto(view[read:])
            if not count:
                raise EOFError("the input ended within a secret")
            read += count
    return data


def _take_output() -> IO[bytes]:
    """The answers' stream. Whatever else writes to standard output, a module for one, writes to standard error."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def _harden() -> None:
    """No core file with a PIN in it, no debugger, no new privileges, no files for others."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _end_with(parent: int) -> None:
    """End this process soon after its parent or its input has ended."""
    poll = select.poll()
    poll.register(0, 0)  # of an input only its end is reported
    with suppress(OSError):  # a kernel without it: the input is enough, unless a fork of the parent's holds it open
        poll.register(os.pidfd_open(parent), select.POLLIN)
    if os.getppid() == parent:
        poll.poll()
    time.sleep(_GRACE_SECONDS)
    os._exit(1)
