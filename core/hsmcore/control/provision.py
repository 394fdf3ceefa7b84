"""Make a SoftHSM token and its key, in a short-lived child process.

SoftHSM reads its configuration, named by the environment variable SOFTHSM2_CONF, once when the module is initialized.
A child of its own gets that variable without this process's environment being changed or its modules being touched;
the PINs go to it over its standard input, so that they stand in no argument list.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from pkcs11 import TokenFlag
from pkcs11.types import Token

from hsmcore.control.admin import TokenAdmin
from hsmcore.control.adopt import AdoptedLibrary, adopt, hold_module
from hsmcore.control.cryptoki import Cryptoki
from hsmcore.control.curves import Algorithm
from hsmcore.control.faults import ControlError, translated
from hsmcore.control.process import Child, ChildLost
from hsmcore.control.records import KeyRecord, TokenSelector
from hsmcore.control.wire import record_of_json
from hsmcore.errors import SystemFailure

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
    environment = {**os.environb, b"SOFTHSM2_CONF": os.fsencode(softhsm_conf)}
    with tempfile.TemporaryFile() as errors, Child(environment, errors) as child:
        try:
            made = child.call({"call": "provision", **asdict(request)}, CHILD_SECONDS)
        except ChildLost as lost:
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise SystemFailure(f"making the token failed: {lost}{': ' if last else ''}{last}") from None
    return record_of_json(made)


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
