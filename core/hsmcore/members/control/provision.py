"""Make a SoftHSM token and its key, in a short-lived child process.

SoftHSM reads its configuration, named by the environment variable SOFTHSM2_CONF, once when the module is initialized.
The child gets that variable, while the environment and the modules of this process do not change. The PINs go over its
standard input, so that no argument list has them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Final

from nacl.signing import SigningKey
from pkcs11 import TokenFlag
from pkcs11.types import Token

from hsmcore._native import Turn
from hsmcore.errors import SystemFailure
from hsmcore.members.control.admin import TokenAdmin
from hsmcore.members.control.adopt import AdoptedLibrary, adopt, hold_module
from hsmcore.members.control.calls import Calls
from hsmcore.members.control.curves import Algorithm
from hsmcore.members.control.faults import ControlError, translated
from hsmcore.members.control.keys import GenerateKey, ListKeys
from hsmcore.members.control.process import Child, ChildLost, child_environment, last_line
from hsmcore.members.control.records import KeyRecord, TokenAccess, TokenSelector
from hsmcore.members.control.sealed import create_pair
from hsmcore.members.control.verb import Verb

CHILD_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True, repr=False)
class TokenRequest(Verb[KeyRecord]):
    """Make a token, its user PIN and its key, as far as they are missing. Existing ones stay as they are."""

    needs_token: ClassVar[bool] = False
    module_path: str
    token_label: str
    key_label: str
    algorithm: Algorithm
    pin: bytearray
    so_pin: bytearray
    seed: bytearray = field(default_factory=bytearray)
    """The 32 bytes of an Ed25519 private key; empty: the token makes its own key."""
    key_id: bytes = b""
    """CKA_ID for the key of `seed`."""

    def run(self, _admin: TokenAdmin) -> KeyRecord:
        with Turn(self.module_path), hold_module(self.module_path):
            library = adopt(self.module_path)
            with translated(f"making token {self.token_label!r}"):
                token = _token(library, self.token_label) or _init_token(library, self)
                if not token.flags & TokenFlag.USER_PIN_INITIALIZED:
                    with token.open(rw=True, so_pin=self.so_pin.decode()) as officer:
                        officer.init_pin(self.pin.decode())
            access = TokenAccess(self.module_path, TokenSelector(label=self.token_label))
            with TokenAdmin(access, pin=lambda: bytearray(self.pin)) as admin:
                found = [key for key in ListKeys().run(admin) if key.label == self.key_label]
                if found:
                    return found[0]
                if not self.seed:
                    return GenerateKey(self.algorithm, self.key_label).run(admin)[0]
                seed = bytes(self.seed)
                public_key = bytes(SigningKey(seed).verify_key)
                with admin.session("putting a key on the token") as session:
                    return create_pair(session, admin, self.key_label, self.key_id, public_key, seed)


def provision(request: TokenRequest, softhsm_conf: Path) -> KeyRecord:
    """Run the request in a child. Blocks for about a second. Idempotent, also after an interruption."""
    environment = child_environment(frozenset(), frozenset()) | {"SOFTHSM2_CONF": str(softhsm_conf)}
    with ExitStack() as opened:
        try:
            errors = opened.enter_context(tempfile.TemporaryFile())
            child = opened.enter_context(Child(environment, errors))
        except OSError as error:
            why = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
            raise SystemFailure(
                f"making the token failed: its child cannot be started: {why}",
                hint="Correct that path: the interpreter that is to be started, or TMPDIR.",
            ) from error
        try:
            name, secrets = type(request).__name__, request.secrets
            return child.call(name, request.to_json(), request.result_of_json, CHILD_SECONDS, secrets)
        except ChildLost as lost:
            last = last_line(errors)
            raise SystemFailure(f"making the token failed: {lost}{': ' if last else ''}{last}") from None


def provision_twins(requests: Sequence[TokenRequest], softhsm_conf: Path) -> list[KeyRecord]:
    """Make SoftHSM tokens that hold one and the same new Ed25519 key, for demonstrations, benchmarks and tests of
    failover: the private key is outside of a token until then. A production key is copied by the vendor's way of
    cloning or wrapped backups, never like this. Blocks for about a second for each."""
    seed, key_id = bytearray(os.urandom(32)), os.urandom(16)
    return [provision(replace(request, seed=seed, key_id=key_id), softhsm_conf) for request in requests]


def _token(library: AdoptedLibrary, label: str) -> Token | None:
    for slot in library.get_slots(token_present=True):
        token = slot.get_token()
        if token.flags & TokenFlag.TOKEN_INITIALIZED and token.label == label:
            return token
    return None


def _init_token(library: AdoptedLibrary, request: TokenRequest) -> Token:
    for slot in library.get_slots(token_present=True):
        if not slot.get_token().flags & TokenFlag.TOKEN_INITIALIZED:
            Calls(request.module_path).init_token(slot.slot_id, request.so_pin, request.token_label)
            token = _token(library, request.token_label)  # SoftHSM gives the new token a new slot
            if token is not None:
                return token
    raise ControlError("no slot is free for a new token", hint="Check directories.tokendir in softhsm2.conf.")
