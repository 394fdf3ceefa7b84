"""Make a SoftHSM token and its key, in a short-lived child process.

SoftHSM reads its configuration, named by the environment variable SOFTHSM2_CONF, once when the module is initialized.
A child of its own gets that variable without this process's environment being changed or its modules being touched;
the PINs go to it over its standard input, so that they stand in no argument list. Run as a module, this is the child.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import orjson
from pkcs11 import TokenFlag
from pkcs11.types import Token

from hsmcore.control.admin import TokenAdmin
from hsmcore.control.adopt import AdoptedLibrary, adopt, hold_module
from hsmcore.control.cryptoki import Cryptoki
from hsmcore.control.curves import Algorithm
from hsmcore.control.faults import ControlError, translated
from hsmcore.control.records import KeyRecord, TokenSelector
from hsmcore.errors import EXCEPTION_OF_STATUS, HsmError, SystemFailure

CHILD_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """What the token should be; what is there already is left as it is."""

    module_path: str
    token_label: str
    key_label: str
    algorithm: Algorithm
    pin: str
    so_pin: str

    def __repr__(self) -> str:
        return f"TokenRequest({self.token_label!r}, {self.key_label!r})"


def provision(request: TokenRequest, softhsm_conf: Path) -> KeyRecord:
    """Make the token, its user PIN and its key, as far as they are missing. Blocks for about a second.

    Repeating it after an interruption goes on where it ended.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "hsmcore.control.provision"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "SOFTHSM2_CONF": str(softhsm_conf)},
    )
    with child:
        try:
            output, errors = child.communicate(orjson.dumps(asdict(request)), CHILD_SECONDS)
        except BaseException as error:
            child.kill()
            if isinstance(error, subprocess.TimeoutExpired):
                raise SystemFailure(f"making the token took longer than {CHILD_SECONDS:.0f} s") from None
            raise
    try:
        answer = orjson.loads(output)
    except orjson.JSONDecodeError:
        last = errors.decode(errors="replace").strip().rpartition("\n")[2]
        raise SystemFailure(f"making the token failed with exit code {child.returncode}: {last}") from None
    if "error" in answer:
        fault = answer["error"]
        raise EXCEPTION_OF_STATUS[fault["status"]](fault["message"], status=fault["status"], hint=fault["hint"])
    key = answer["key"]
    return KeyRecord(**{**key, "public_key": bytes.fromhex(key["public_key"])})


def make_token(request: TokenRequest) -> KeyRecord:
    """What the child does, in this process."""
    holder = hold_module(request.module_path)
    try:
        library = adopt(request.module_path)
        with translated(f"making token {request.token_label!r}"):
            token = _token(library, request.token_label) or _init_token(library, request)
            if not token.flags & TokenFlag.USER_PIN_INITIALIZED:
                with token.open(rw=True, so_pin=request.so_pin) as officer:
                    officer.init_pin(request.pin)
        with TokenAdmin(
            request.module_path, TokenSelector(label=request.token_label), pin=lambda: bytearray(request.pin.encode())
        ) as admin:
            found = [key for key in admin.list_keys() if key.label == request.key_label]
            return found[0] if found else admin.generate_key(request.algorithm, request.key_label)
    finally:
        holder.close()


def _token(library: AdoptedLibrary, label: str) -> Token | None:
    for slot in library.get_slots(token_present=True):
        token = slot.get_token()
        if token.flags & TokenFlag.TOKEN_INITIALIZED and token.label == label:
            return token
    return None


def _init_token(library: AdoptedLibrary, request: TokenRequest) -> Token:
    for slot in library.get_slots(token_present=True):
        if not slot.get_token().flags & TokenFlag.TOKEN_INITIALIZED:
            Cryptoki(request.module_path).init_token(slot.slot_id, request.so_pin.encode(), request.token_label)
            token = _token(library, request.token_label)  # SoftHSM gives the new token a slot of its own
            if token is not None:
                return token
    raise ControlError("no slot is free for a new token", hint="Check directories.tokendir in softhsm2.conf.")


def _child() -> int:
    os.umask(0o077)
    try:
        key = make_token(TokenRequest(**orjson.loads(sys.stdin.buffer.read())))
    except HsmError as error:
        answer: dict[str, Any] = {"error": {"status": error.status, "message": str(error), "hint": error.hint}}
    else:
        answer = {"key": {**asdict(key), "public_key": (key.public_key or b"").hex()}}
    sys.stdout.buffer.write(orjson.dumps(answer))
    return 1 if "error" in answer else 0


if __name__ == "__main__":
    sys.exit(_child())
