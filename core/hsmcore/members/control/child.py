"""A control child: runs verbs on one token for the process that started it (process.py), which never loads the vendor's
module. started.py begins and ends it.
"""

from __future__ import annotations

import io
from typing import IO, Any, cast

from hsmcore.errors import EngineClosed
from hsmcore.members.control import attest, backup, keys, provision, sealed  # noqa: F401  # they fill VERBS
from hsmcore.members.control.admin import TokenAdmin
from hsmcore.members.control.answers import respond
from hsmcore.members.control.records import TokenAccess
from hsmcore.members.control.verb import VERBS
from hsmcore.members.control.wire import unpack


def serve(requests: io.FileIO, answers: IO[bytes]) -> None:
    """Run verbs on one token."""
    admin: TokenAdmin | None = None

    def work(call: str, arguments: Any, secrets: list[bytearray]) -> Any:
        nonlocal admin
        if call == "open":
            admin = _opened(arguments, secrets)
            return None
        verb = VERBS[call].of_json(arguments, secrets)
        if admin is None and verb.needs_token:
            raise EngineClosed("the token is closed")
        return verb.result_to_json(verb.perform(cast("TokenAdmin", admin)))

    try:
        respond(requests, answers, work)
    finally:
        if admin is not None:
            admin.close()


def _opened(access: Any, pins: list[bytearray]) -> TokenAdmin:
    """The token, logged in with the PIN, if there is one."""
    left = list(pins)  # given out once: what was wiped after its use is no PIN
    try:
        source = (lambda: left.pop() if left else None) if pins else None
        return TokenAdmin(unpack(TokenAccess, access), pin=source).open()
    finally:
        left.clear()
