"""One token of an isolated module: a child process (child.py) has loaded it, and runs the verbs."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Self, TypeVar

from hsmcore.errors import EngineClosed, HostUnusable, HsmError, LoginError, error_of
from hsmcore.members.control.admin import PinSource
from hsmcore.members.control.faults import refused_before
from hsmcore.members.control.process import Child, ChildLost, child_environment
from hsmcore.members.control.records import TokenAccess
from hsmcore.members.control.refused import remembers
from hsmcore.members.control.verb import Verb
from hsmcore.members.control.wire import pack, unpack

T = TypeVar("T")
_Asked = tuple[str, Any, Callable[[Any], T], float, list[bytearray]]
"""As Child.call, but for the time, when it is over."""

CALL_SECONDS: Final = 30.0
"""How long one call may take, the start of the child included."""


class RemoteAdmin:
    """Runs verbs in a child process. Not thread-safe, but for `abandon`.

    The first call starts the child, which logs in; it stays until `close`, or until an error that is not the request's
    fault: then the next call starts another. It gets the part of this process's environment that `child_environment`
    says of `hidden` and `variables`. A call that takes longer than `timeout` seconds fails, and the child is killed.
    The work of a killed child may be done.
    """

    def __init__(
        self,
        access: TokenAccess,
        *,
        pin: PinSource | None = None,
        hidden: frozenset[str] = frozenset(),
        variables: frozenset[str] = frozenset(),
        timeout: float = CALL_SECONDS,
    ) -> None:
        self._access = access
        self._member = access.member
        self._pin = pin
        self._environment = hidden, variables
        self._seconds = timeout
        self._refused: LoginError | None = None
        self._child: Child | None = None
        self._abandoned = False

    def open(self) -> Self:
        """Start the child and have it open the token. Idempotent."""
        self._opened(time.monotonic() + self._seconds)
        return self

    def close(self) -> None:
        """Have the child close the token and end. Idempotent."""
        child, self._child = self._child, None
        if child is not None:
            child.close()

    def abandon(self) -> None:
        """End the child at once and start no other: the call under way fails, and so do all later ones. Any thread."""
        self._abandoned = True
        child = self._child
        if child is not None:
            child.kill()

    def do(self, verb: Verb[T]) -> T:
        """As verb.run, in the child. Raises TypeError for an argument of a wrong type, before it reaches the child."""
        until = time.monotonic() + self._seconds
        asked = (type(verb).__name__, verb.to_json(), verb.result_of_json, until, verb.secrets)
        if verb.needs_token:
            return self._ask(self._opened(until), *asked)
        # In a separate child: the other one has opened its token, and logged in.
        with self._started() as child:
            return self._answer(child, *asked)

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
            access = pack(TokenAccess, self._access)
            self._ask(child, "open", access, partial(unpack, type(None)), until, [] if pin is None else [pin])
        except LoginError as error:
            if not remembers(self._access, error):
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
        try:
            return Child(child_environment(*self._environment))
        except OSError as error:
            problem = f"the control child cannot be started: {error.strerror}"
            raise HostUnusable(problem, member=self._member) from error

    def _ask(self, child: Child, *asked: *_Asked[T]) -> T:
        try:
            return self._answer(child, *asked)
        except HsmError as error:
            if error.error_class != "REQUEST_FATAL":
                self.close()
            raise

    def _answer(self, child: Child, *asked: *_Asked[T]) -> T:
        name, arguments, read, until, secrets = asked
        try:
            return child.call(name, arguments, read, until - time.monotonic(), secrets)
        except ChildLost as lost:
            raise error_of("HOST_LOST", detail=f"control child: {lost}", member=self._member) from lost
