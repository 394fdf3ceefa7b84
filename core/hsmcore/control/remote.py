"""The control plane's blocking half for an isolated module: the same calls as TokenAdmin's, made by a child process."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final, Self

from hsmcore.control import tokens
from hsmcore.control.admin import PinSource
from hsmcore.control.backup import WRAPPING_KEY_LABEL
from hsmcore.control.curves import Algorithm
from hsmcore.control.faults import refused_before
from hsmcore.control.process import Child, ChildLost, child_environment
from hsmcore.control.records import Deactivation, KeyRecord, TokenRecord, TokenSelector
from hsmcore.control.wire import record_of_json
from hsmcore.errors import EngineClosed, HostUnusable, HsmError, LoginError, error_of

CALL_SECONDS: Final = 30.0
"""How long one call may take, the start of the child included."""


class RemoteAdmin:
    """Sessions and keys of one token, in a child process. Not thread-safe, but for `abandon`.

    The child is started by the first call and logs in; it is there until `close`, or until something fails that is not
    the request's fault: then the next call starts another. It gets this process's environment without `hidden`. A call
    that takes longer than `timeout` seconds fails, and the child is killed. What a killed child was doing may be done.
    """

    def __init__(
        self,
        module_path: str,
        token: TokenSelector,
        *,
        quirks: str | None = None,
        pin: PinSource | None = None,
        module_args: str | None = None,
        member: str | None = None,
        hidden: frozenset[str] = frozenset(),
        timeout: float = CALL_SECONDS,
        mechanisms: Mapping[str, int] | None = None,
    ) -> None:
        self._request = {
            "call": "open",
            "module_path": module_path,
            "token": asdict(token),
            "quirks": quirks,
            "module_args": module_args,
            "member": member,
            "mechanisms": dict(mechanisms or {}),
        }
        self._forms: dict[str, Any] = {}  # how the token makes keys: what one child found out, the next one is told
        self._pin = pin
        self._hidden = hidden
        self._seconds = timeout
        self._member = member
        self._refused: LoginError | None = None
        self._child: Child | None = None
        self._abandoned = False

    def open(self) -> Self:
        """Start the child and have it open the token. Doing it twice is no error."""
        self._opened(time.monotonic() + self._seconds)
        return self

    def close(self) -> None:
        """Have the child close the token and end. Doing it twice is no error."""
        child, self._child = self._child, None
        if child is not None:
            child.close()

    def abandon(self) -> None:
        """End the child at once and start no other: the call that waits for it fails, and so do all later ones. Any
        thread."""
        self._abandoned = True
        child = self._child
        if child is not None:
            child.kill()

    def list_tokens(self) -> list[TokenRecord]:
        until = time.monotonic() + self._seconds
        request = {name: self._request[name] for name in ("module_path", "module_args")}
        # In a child of its own: the other one has opened its token, and logged in.
        with self._started() as child:
            try:
                found = child.call({"call": "list_tokens", **request}, until - time.monotonic())
            except ChildLost as lost:
                raise error_of("HOST_LOST", detail=f"control child: {lost}", member=self._member) from lost
        return [tokens.record_of_json(record) for record in found]

    def list_keys(self) -> list[KeyRecord]:
        return [record_of_json(record) for record in self._call("list_keys")]

    def generate_key(
        self, algorithm: Algorithm, label: str, key_id: bytes | None = None, *, extractable: bool = False
    ) -> KeyRecord:
        identity = None if key_id is None else key_id.hex()
        made = self._call(
            "generate_key",
            algorithm=algorithm,
            label=label,
            key_id=identity,
            extractable=extractable,
            forms=self._forms,
        )
        self._forms = made["forms"]
        return record_of_json(made["key"])

    def deactivate(self, key_id: str) -> Deactivation:
        return Deactivation(**self._call("deactivate", key_id=key_id))

    def destroy(self, key_id: str) -> None:
        self._call("destroy", key_id=key_id)

    def export_wrapped(self, key_id: str, wrapping_label: str = WRAPPING_KEY_LABEL) -> bytes:
        return bytes.fromhex(self._call("export_wrapped", key_id=key_id, wrapping_label=wrapping_label))

    def import_wrapped(self, blob: bytes, key_id: str | None = None, label: str | None = None) -> KeyRecord:
        return record_of_json(self._call("import_wrapped", backup=blob.hex(), key_id=key_id, label=label))

    def sweep(self, key_id: str, *, nameless: bool) -> int:
        return int(self._call("sweep", key_id=key_id, nameless=nameless))

    def new_key_id(self) -> bytes:
        return bytes.fromhex(self._call("new_key_id"))

    def prove(self, key_id: str, message: bytes) -> bytes:
        return bytes.fromhex(self._call("prove", key_id=key_id, message=message.hex()))

    def why_no_backup(self, algorithm: str) -> str | None:
        answer = self._call("why_no_backup", algorithm=algorithm)
        return None if answer is None else str(answer)

    def generate_sealed(self, label: str, key_id: bytes, seal_to: Sequence[bytes]) -> tuple[KeyRecord, list[bytes]]:
        made = self._call("generate_sealed", label=label, key_id=key_id.hex(), seal_to=[key.hex() for key in seal_to])
        return record_of_json(made["key"]), [bytes.fromhex(blob) for blob in made["sealed"]]

    def transport_key(self) -> bytes:
        return bytes.fromhex(self._call("transport_key"))

    def import_transported(self, label: str, key_id: bytes, blob: bytes) -> KeyRecord:
        return record_of_json(self._call("import_transported", label=label, key_id=key_id.hex(), sealed=blob.hex()))

    def import_sealed(self, label: str, key_id: bytes, blob: bytes, recovery: bytearray) -> KeyRecord:
        until = time.monotonic() + self._seconds
        request: dict[str, Any] = {"call": "import_sealed", "label": label, "key_id": key_id.hex()}
        request |= {"sealed": blob.hex(), "secret_bytes": len(recovery)}
        return record_of_json(self._ask(self._opened(until), request, until, recovery))

    def _call(self, call: str, **arguments: Any) -> Any:
        until = time.monotonic() + self._seconds
        return self._ask(self._opened(until), {"call": call, **arguments}, until)

    def _opened(self, until: float) -> Child:
        if self._child is not None:
            return self._child
        if self._abandoned:
            raise EngineClosed("the control plane is closed", member=self._member)
        if self._refused is not None:
            raise refused_before(self._refused)
        pin = self._pin() if self._pin is not None else None
        try:
            child = self._child = self._started()
            self._ask(child, {**self._request, "pin_bytes": None if pin is None else len(pin)}, until, pin)
        except LoginError as error:
            self._refused = error
            raise
        except HsmError:
            self.close()  # a child that opened nothing is of no use
            raise
        finally:
            if pin is not None:
                pin[:] = bytes(len(pin))
        return child

    def _started(self) -> Child:
        environment = child_environment(self._hidden)
        try:
            return Child({name: value for name, _, value in (v.partition(b"=") for v in environment)})
        except OSError as error:
            problem = f"the control child cannot be started: {error.strerror}"
            raise HostUnusable(problem, member=self._member) from error

    def _ask(self, child: Child, request: dict[str, Any], until: float, secret: bytearray | None = None) -> Any:
        try:
            return child.call(request, until - time.monotonic(), secret)
        except ChildLost as lost:
            self._child = None
            raise error_of("HOST_LOST", detail=f"control child: {lost}", member=self._member) from lost
        except HsmError as error:
            if error.error_class != "REQUEST_FATAL":
                self.close()
            raise
