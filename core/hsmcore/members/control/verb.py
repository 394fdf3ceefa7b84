"""A verb of the control plane: one thing to do with a token or its keys. Each verb is one class, and stands once.

ControlPlane.do runs a verb in this process (`run`), or sends it as JSON to a child (remote.py, child.py), which looks
its class up in VERBS. The types of its fields and of its result decide the JSON (wire.py); a value of another type is
refused on both sides. The verbs are in keys.py, backup.py, sealed.py and provision.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from time import sleep
from typing import Any, ClassVar, Final, Generic, Self, TypeVar, get_args

from hsmcore._native import Turn
from hsmcore.errors import HsmError
from hsmcore.members.control.admin import PASSING, PAUSES, TokenAdmin
from hsmcore.members.control.adopt import adopt, hold_module
from hsmcore.members.control.faults import translated
from hsmcore.members.control.records import TokenRecord
from hsmcore.members.control.tokens import present
from hsmcore.members.control.wire import pack, secrets_of, unpack, unpack_fields

T_co = TypeVar("T_co", covariant=True)

VERBS: Final[dict[str, type[Verb[Any]]]] = {}
"""Every verb by its name."""


class Verb(ABC, Generic[T_co]):
    """Base class of the verbs. Its parameter is the type of the result.

    Decorate a subclass with `@dataclass(frozen=True, slots=True, repr=False)`. A field of type bytearray is a secret:
    it follows the request to a child and is not in it. The child wipes its copy, the caller the original.
    """

    __slots__ = ()
    needs_token: ClassVar[bool] = True
    """Whether the token has to be opened first. Without it, `run` uses nothing of `admin`."""
    repeatable: ClassVar[bool] = False
    """Whether doing it twice is as good as doing it once."""

    def __init_subclass__(cls) -> None:
        VERBS[cls.__name__] = cls

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"  # an argument may be a secret

    def perform(self, admin: TokenAdmin, /) -> T_co:
        """Do it; a repeatable verb again, each time in a new session, after errors that may have been passing ones
        (PASSING). A PIN is presented at most once. Raises HsmError."""
        logins = admin.logins if self.repeatable else 0
        for pause in PAUSES if self.repeatable else ():
            try:
                return self.run(admin)
            except HsmError as error:
                if error.ckr not in PASSING or admin.logins != logins:
                    raise
            sleep(pause)
        return self.run(admin)

    @abstractmethod
    def run(self, admin: TokenAdmin, /) -> T_co:
        """Do the work. Blocks as long as the module does. Raises HsmError."""

    @property
    def secrets(self) -> list[bytearray]:
        """The secrets among the arguments."""
        return [getattr(self, name) for name in secrets_of(type(self))]

    def to_json(self) -> Any:
        """The arguments for a child, without the secrets. Raises TypeError for an argument of a wrong type."""
        return pack(type(self), self)

    @classmethod
    def of_json(cls, arguments: Any, secrets: Sequence[bytearray] = ()) -> Self:
        """The verb with what `to_json` wrote, and its secrets. Raises TypeError or ValueError for anything else."""
        return cls(**unpack_fields(cls, arguments), **dict(zip(secrets_of(cls), secrets, strict=True)))

    @classmethod
    def result_to_json(cls, result: Any) -> Any:
        """The answer to the parent."""
        return pack(cls._result(), result)

    @classmethod
    def result_of_json(cls, data: Any) -> T_co:
        """The result in a child's answer. Raises TypeError or ValueError for anything else."""
        result: T_co = unpack(cls._result(), data)
        return result

    @classmethod
    def _result(cls) -> Any:
        [base] = cls.__orig_bases__  # type: ignore[attr-defined]  # of every class with a generic base
        return get_args(base)[0]


@dataclass(frozen=True, slots=True, repr=False)
class ListTokens(Verb[list[TokenRecord]]):
    """Every token that a module shows, without a login."""

    needs_token: ClassVar[bool] = False
    module_path: str
    module_args: str | None

    def run(self, _admin: TokenAdmin) -> list[TokenRecord]:
        with Turn(self.module_path), hold_module(self.module_path, self.module_args) as module:
            module.enter()
            try:
                with translated("listing tokens"):
                    return [record for record, _ in present(adopt(self.module_path))]
            finally:
                module.exit()
