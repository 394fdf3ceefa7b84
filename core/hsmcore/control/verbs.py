"""The verbs of the control plane: what can be done with a token and its keys. Each is one class.

ControlPlane.do runs a verb in this process (`run`), or sends it as JSON to a child (remote.py, child.py), which looks
its class up in VERBS. The types of its fields and of its result decide the JSON (wire.py); a value of another type is
refused on both sides.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, Self, TypeVar, get_args

from hsmcore.control import backup, keys, sealed
from hsmcore.control.admin import TokenAdmin
from hsmcore.control.backup import WRAPPING_KEY_LABEL
from hsmcore.control.curves import Algorithm
from hsmcore.control.locked import TransportKey
from hsmcore.control.quirks import KeyForm
from hsmcore.control.records import Deactivation, KeyRecord, TokenRecord
from hsmcore.control.tokens import list_tokens
from hsmcore.control.wire import pack, secret_of, unpack, unpack_fields
from hsmcore.errors import EngineClosed, HsmError, MemberDown, ModuleBusy

_GENERATE_ATTEMPTS: Final = 4
_GENERATE_PAUSE: Final = 0.02  # seconds, more with each attempt

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

    def __init_subclass__(cls) -> None:
        VERBS[cls.__name__] = cls

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"  # an argument may be a secret

    @abstractmethod
    def run(self, admin: TokenAdmin, /) -> T_co:
        """Do it. Blocks as long as the module does. Raises HsmError."""

    @property
    def secret(self) -> bytearray | None:
        """The secret among the arguments."""
        name = secret_of(type(self))
        return None if name is None else getattr(self, name)

    def to_json(self) -> dict[str, Any]:
        """The request to a child, without the secret. Raises TypeError for an argument of a wrong type."""
        size = None if self.secret is None else len(self.secret)
        return {"call": type(self).__name__, "arguments": pack(type(self), self), "secret_bytes": size}

    @classmethod
    def of_json(cls, arguments: Any, secret: bytearray | None = None) -> Self:
        """The verb with what `to_json` wrote. Raises TypeError or ValueError for anything else."""
        name = secret_of(cls)
        if (name is None) != (secret is None):
            raise TypeError("a secret is missing or is one too many")
        return cls(**unpack_fields(cls, arguments), **({} if name is None else {name: secret}))

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
        return list_tokens(self.module_path, self.module_args)


@dataclass(frozen=True, slots=True, repr=False)
class ListKeys(Verb[list[KeyRecord]]):
    """Every private key on the token, by label, then id."""

    def run(self, admin: TokenAdmin) -> list[KeyRecord]:
        with admin.session("listing keys") as session:
            return keys.list_keys(session)


@dataclass(frozen=True, slots=True, repr=False)
class GenerateKey(Verb[tuple[KeyRecord, KeyForm]]):
    """Make a key pair that can only sign. Its CKA_ID is random unless given. `extractable` lets the HSM wrap the key
    for a backup; it cannot be changed afterwards. The result is the key and the form that the token accepted. With
    `form`, no other one is tried."""

    algorithm: Algorithm
    label: str
    key_id: bytes | None = None
    extractable: bool = False
    form: KeyForm | None = None

    def run(self, admin: TokenAdmin) -> tuple[KeyRecord, KeyForm]:
        key_id = self.key_id
        attempt = 1
        while True:
            try:
                with admin.session(f"generating an {self.algorithm} key") as session:
                    if key_id is None:  # chosen here, so that what a failure leaves can be found
                        key_id = keys.new_id(session, admin.quirks)
                    return keys.generate_key(
                        session, admin.quirks, self.algorithm, self.label, key_id, self.extractable, self.form
                    )
            except (MemberDown, ModuleBusy):
                # SoftHSM fails now and then when its token is searched while an object is being made; others are
                # throttled.
                if attempt == _GENERATE_ATTEMPTS:
                    raise
            if key_id is not None:
                with suppress(HsmError), admin.session("erasing half a key") as session:
                    keys.destroy_key(session, key_id.hex())
            time.sleep(_GENERATE_PAUSE * attempt)
            attempt += 1


@dataclass(frozen=True, slots=True, repr=False)
class Deactivate(Verb[Deactivation]):
    """Take CKA_SIGN away from a key; the result says whether the token enforces that from now on."""

    key_id: str

    def run(self, admin: TokenAdmin) -> Deactivation:
        with admin.session(f"deactivating key {self.key_id}") as session:
            return keys.deactivate_key(session, self.key_id)


@dataclass(frozen=True, slots=True, repr=False)
class Destroy(Verb[None]):
    """Erase a key pair for good."""

    key_id: str

    def run(self, admin: TokenAdmin) -> None:
        with admin.session(f"destroying key {self.key_id}") as session:
            keys.destroy_key(session, self.key_id)


@dataclass(frozen=True, slots=True, repr=False)
class Sweep(Verb[int]):
    """Erase what a killed process left of a key; with `nameless` also halves without a name (keys.sweep). The result is
    the number of objects."""

    key_id: str
    nameless: bool = False

    def run(self, admin: TokenAdmin) -> int:
        with admin.session(f"clearing up after key {self.key_id}") as session:
            return keys.sweep(session, self.key_id, nameless=self.nameless)


@dataclass(frozen=True, slots=True, repr=False)
class NewKeyId(Verb[bytes]):
    """A CKA_ID that no key has yet."""

    def run(self, admin: TokenAdmin) -> bytes:
        with admin.session("choosing a key id") as session:
            return keys.new_id(session, admin.quirks)


@dataclass(frozen=True, slots=True, repr=False)
class Prove(Verb[bytes]):
    """Sign once outside of the signing engine, to try a key: Ed25519 of `message`, or ECDSA of its SHA-256."""

    key_id: str
    message: bytes

    def run(self, admin: TokenAdmin) -> bytes:
        with admin.session(f"trying key {self.key_id}") as session:
            return keys.prove(session, self.key_id, self.message)


@dataclass(frozen=True, slots=True, repr=False)
class ExportWrapped(Verb[bytes]):
    """A backup of a key, wrapped inside the HSM. Raises KeyNotExportable when the key or token does not allow it."""

    key_id: str
    wrapping_label: str = WRAPPING_KEY_LABEL

    def run(self, admin: TokenAdmin) -> bytes:
        with admin.session(f"exporting key {self.key_id}") as session:
            return backup.export_wrapped(session, admin.quirks, self.key_id, self.wrapping_label)


@dataclass(frozen=True, slots=True, repr=False)
class ImportWrapped(Verb[KeyRecord]):
    """Put a key back from a backup, on the token that made it or one that holds the same wrapping key. `key_id` and
    `label` replace its own; ControlError where the token does not allow that (YubiHSM)."""

    backup: bytes
    key_id: str | None = None
    label: str | None = None

    def run(self, admin: TokenAdmin) -> KeyRecord:
        with admin.session("importing a key") as session:
            return backup.import_wrapped(session, admin.quirks, self.backup, self.key_id, self.label)


@dataclass(frozen=True, slots=True, repr=False)
class WhyNoBackup(Verb[str | None]):
    """Why the token cannot wrap keys of an algorithm; None if it can."""

    algorithm: str

    def run(self, admin: TokenAdmin) -> str | None:
        with admin.session("asking how keys are wrapped") as session:
            return backup.why_not(session, admin.quirks, admin.library_version, self.algorithm)


@dataclass(frozen=True, slots=True, repr=False)
class GenerateSealed(Verb[tuple[KeyRecord, list[bytes]]]):
    """A key ceremony: make an Ed25519 key in locked memory, seal it to X25519 public keys (32 bytes each) and import it
    so that it cannot leave the token. The result is the key and its sealed copies, in the order of the public keys."""

    label: str
    key_id: bytes
    seal_to: Sequence[bytes]

    def run(self, admin: TokenAdmin) -> tuple[KeyRecord, list[bytes]]:
        with admin.session("making a sealed key") as session:
            made = sealed.generate(session, admin.cryptoki, admin.quirks, self.label, self.key_id, self.seal_to)
            return keys.describe_key(*keys.find_key(session, self.key_id.hex())), made


@dataclass(frozen=True, slots=True, repr=False)
class MakeTransportKey(Verb[bytes]):
    """Make an X25519 key pair and return its public key, to which another token's key ceremony can seal a copy for this
    token. The private half is in the locked memory of the process that has loaded the module, good for one import."""

    def run(self, admin: TokenAdmin) -> bytes:
        return admin.make_transport_key().public_key


@dataclass(frozen=True, slots=True, repr=False)
class ImportTransported(Verb[KeyRecord]):
    """Import a key that was sealed to the last transport key, so that it cannot leave the token. EngineClosed if that
    transport key is gone."""

    label: str
    key_id: bytes
    sealed: bytes

    def run(self, admin: TokenAdmin) -> KeyRecord:
        if admin.transport is None:
            raise EngineClosed("the transport key is gone", member=admin.member)
        try:
            return _import_sealed(admin, self.label, self.key_id, self.sealed, admin.transport)
        finally:
            admin.wipe_transport()


@dataclass(frozen=True, slots=True, repr=False)
class ImportSealed(Verb[KeyRecord]):
    """Put a key back that a ceremony sealed. `recovery` is the X25519 private key (32 bytes): the caller wipes it."""

    label: str
    key_id: bytes
    sealed: bytes
    recovery: bytearray

    def run(self, admin: TokenAdmin) -> KeyRecord:
        return _import_sealed(admin, self.label, self.key_id, self.sealed, self.recovery)


def _import_sealed(
    admin: TokenAdmin, label: str, key_id: bytes, blob: bytes, recovery: bytearray | TransportKey
) -> KeyRecord:
    with admin.session("importing a sealed key") as session:
        sealed.restore(session, admin.cryptoki, admin.quirks, label, key_id, blob, recovery)
        return keys.describe_key(*keys.find_key(session, key_id.hex()))
