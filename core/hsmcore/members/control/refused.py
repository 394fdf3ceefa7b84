"""The PINs that tokens have refused, in a file in the folder of the state store: a token that counts wrong attempts
gets no PIN twice, however often processes start again.

The file names each token, when it refused, and a digest of the PIN: two bytes of scrypt (32 MiB of memory, some 0.1 s a
guess) under a salt of the file. They do not tell a PIN: of a million PINs of six digits fifteen have the digest of the
refused one, which is a wrong PIN for this token anyway. The price is that one new PIN in 65,536 is taken for a refused
one. The file is neither secret nor evidence: its writer can have a PIN sent once more, or keep it from being sent.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hsmcore.base.log import tell
from hsmcore.base.ownership import make_folder
from hsmcore.base.ownership import replace as replace_file
from hsmcore.errors import HsmError, LoginError, PinIncorrect

if TYPE_CHECKING:
    from hsmcore.members.control.records import TokenAccess, TokenRecord

TURN_SECONDS: Final = 5.0
"""How long a login waits for another process that logs in to the same token; then it goes on: that one hangs."""
_CHANGE_SECONDS: Final = 1.0
_MOST: Final = 64
_MOST_BYTES: Final = 1 << 16
_PAUSE_SECONDS: Final = 0.01

_unwritten: dict[str, tuple[bytes, list[_Refusal]]] = {}
"""By path: salt and rows that the file did not take. This process remembers them."""


@dataclass(frozen=True, slots=True)
class _Refusal:
    time_ns: int
    digest: str
    names: list[str]
    """The digests of the selectors by which configurations name the token."""
    label: str | None = None
    serial: str | None = None
    """None: it could not be asked after the refusal."""

    def is_of(self, name: str, token: TokenRecord | None) -> bool:
        if self.serial is None or token is None:
            return name in self.names
        return (self.label, self.serial) == (token.label, token.serial)

    @property
    def when(self) -> str:
        return datetime.fromtimestamp(self.time_ns / 1e9, UTC).isoformat(timespec="seconds")


class LoginAttempt:
    """One login. Set what was found otherwise than by an exception."""

    sent = True
    """Whether the PIN was presented."""
    refused = False
    """Whether the token refused it."""


class RefusedLogins:
    """The memory of one token's logins. Any thread; every method may block.

    `find` finds the token without a login; it is asked only after a refusal, or where one is remembered of this PIN.
    """

    def __init__(self, access: TokenAccess, find: Callable[[], TokenRecord | None]) -> None:
        self._path = access.refused
        self._member = access.member
        self._find = find
        named = [access.module_path, access.module_args, str(access.token)]
        self._name = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:32]

    @contextmanager
    def attempt(self, pin: bytes | bytearray | None, *, force: bool = False) -> Iterator[LoginAttempt]:
        """Surround the only call that presents this PIN to the token. Raises PinIncorrect, before anything is sent, if
        the token has refused it, and what `find` raises. `force`: an operator knows better. Other processes take
        turns."""
        attempt = LoginAttempt()
        if pin is None or self._path is None:
            yield attempt
            return
        with self._turn():
            if not force:
                self._check(pin)
            try:
                yield attempt
            except PinIncorrect as error:
                attempt.refused = error.ckr is not None  # else nothing was sent
                raise
            else:
                if attempt.sent and not attempt.refused:
                    self.forget()
            finally:
                if attempt.refused:
                    self.remember(pin)

    def holds(self) -> bool:
        """Whether a refusal of the token is remembered, of whatever PIN."""
        return any(self._name in one.names for one in self._read()[1])

    def forget(self) -> int:
        """Forget what the token has refused. Returns how many PINs that were."""
        if not self.holds():
            return 0
        with self._changing():
            salt, known = self._read()
            tokens = {(one.label, one.serial) for one in known if one.serial is not None and self._name in one.names}
            left = [one for one in known if self._name not in one.names and (one.label, one.serial) not in tokens]
            self._write(salt, left)
        return len(known) - len(left)

    def _check(self, pin: bytes | bytearray) -> None:
        salt, known = self._read()
        if not known:
            return
        digest = _digest(pin, salt)
        same = [one for one in known if one.digest == digest]
        if not same:
            return
        token = self._find()
        for one in same:
            if one.is_of(self._name, token):
                if self._name not in one.names:  # it is forgotten by any name
                    self._exchange(one, replace(one, names=[*one.names, self._name]))
                raise self._refused_before(one)

    def _refused_before(self, one: _Refusal) -> PinIncorrect:
        return PinIncorrect(
            f"the PIN was refused at {one.when}, and is not sent again",
            member=self._member,
            hint="Give another PIN where the configuration says it is. If the token takes this one by now: "
            f"`hsmcore failover readmit {self._member or 'MEMBER'} --reason TEXT`.",
        )

    def remember(self, pin: bytes | bytearray) -> None:
        """Remember that the token has refused this PIN."""
        with self._changing():
            salt, known = self._read()
            made = _Refusal(time.time_ns(), _digest(pin, salt), [self._name])
            self._write(salt, [*known, made])  # at once: the process may be ended while the module is asked
        with suppress(HsmError):
            if (token := self._find()) is not None:
                self._exchange(made, replace(made, label=token.label, serial=token.serial))

    def _exchange(self, old: _Refusal, new: _Refusal) -> None:
        with self._changing():
            salt, known = self._read()
            self._write(salt, [new if one == old else one for one in known])

    def _turn(self) -> AbstractContextManager[None]:
        return _alone(f"{self._path}\0{self._name}", TURN_SECONDS)

    def _changing(self) -> AbstractContextManager[None]:
        return _alone(str(self._path), _CHANGE_SECONDS)

    def _read(self) -> tuple[bytes, list[_Refusal]]:
        if self._path is None:
            return b"", []
        here = _unwritten.get(self._path)
        if here is not None:
            return here
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                document = json.loads(file.read(_MOST_BYTES))
            return bytes.fromhex(document["salt"]), [_refusal(one) for one in document["refused"]][-_MOST:]
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            tell("warning", "the file of refused PINs cannot be read", file=self._path, error=str(error))
        return secrets.token_bytes(16), []

    def _write(self, salt: bytes, known: list[_Refusal]) -> None:
        if self._path is None:
            return
        path = Path(self._path)
        document = {"salt": salt.hex(), "refused": [asdict(one) for one in known[-_MOST:]]}
        try:
            make_folder(path.parent, parents=True)
            replace_file(path, json.dumps(document).encode())
        except OSError as error:
            tell(
                "error",
                "refused PINs are remembered by this process only",
                member=self._member,
                file=self._path,
                error=str(error),
            )
            _unwritten[self._path] = salt, known
        else:
            _unwritten.pop(self._path, None)


def remembers(access: TokenAccess, error: LoginError) -> bool:
    """Whether the stored memory keeps this refused login from being repeated."""
    return access.refused is not None and isinstance(error, PinIncorrect)


@contextmanager
def _alone(what: str, seconds: float) -> Iterator[None]:
    """Wait for a lock, `seconds` at most. It is a name in the kernel, not a file: a login that succeeds leaves nothing
    behind, and the lock ends with its process."""
    name = f"\0hsmcore-{hashlib.sha256(what.encode()).hexdigest()}"
    until = time.monotonic() + seconds
    with ExitStack() as rest:
        while True:
            try:
                rest.enter_context(socket.socket(socket.AF_UNIX)).bind(name)
                break
            except OSError as error:
                rest.close()
                if error.errno != errno.EADDRINUSE or time.monotonic() >= until:
                    break
                time.sleep(_PAUSE_SECONDS)
        yield


def _digest(pin: bytes | bytearray, salt: bytes) -> str:
    return hashlib.scrypt(pin, salt=salt, n=1 << 15, r=8, p=1, maxmem=64 << 20, dklen=2).hex()


def _refusal(one: dict[str, Any]) -> _Refusal:
    texts = (one["label"], one["serial"])
    made = _Refusal(int(one["time_ns"]), str(one["digest"]), [str(name) for name in one["names"]], *texts)
    if not all(text is None or isinstance(text, str) for text in texts):
        raise TypeError("a row of another form")
    datetime.fromtimestamp(made.time_ns / 1e9, UTC)  # raises what `_read` catches
    return made
