"""The exceptions: one tree, and one table from the native core's statuses to it.

Every exception says whether trying again can help (`retryable`), which status of `native/include/hsmcore/status.def` it
stands for (`status`), which module call and return value were behind it, on which member, and what to do next (`hint`).
None ever carries a PIN, a password or key material. All of them survive pickling and copying.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

from hsmcore.errors.statuses import MAY_PASS, RETRYABLE_CLASSES, STATUSES

UNSURE: Final = frozenset({"DEADLINE_EXCEEDED", "HOST_LOST", "SIGNATURE_MALFORMED", "SIGNATURE_INVALID", "CANCELLED"})
"""Statuses that leave it open whether a signature was made."""


class HsmError(Exception):
    """The root of every error that hsmcore raises.

    Attributes: `status`, the name of a row of status.def; `ckr` and `ckr_name`, the PKCS#11 return value behind it, or
    None; `call`, the function that failed, or ""; `member`, the token concerned, or None; `hint`, what to do next.
    """

    default_status: ClassVar[str] = "BAD_ARGUMENT"
    """Given as the class's `status`."""
    default_hint: ClassVar[str] = ""
    retry_after_ms: int = 0
    """Milliseconds after which the same call may succeed, where it is known, else 0."""
    told_retryable: bool | None = None
    """The `retryable` that a gateway told; None: the status decides."""
    index: int | None = None
    """Where a batch failed as a whole: the place, from 0, of the message that it failed for; None: no single one."""

    request: int | None = None
    """Of a gateway's refusal: the number of the request, which its audit records have as `via.request`."""

    def __init_subclass__(cls, status: str | None = None) -> None:
        super().__init_subclass__()
        if status is not None:
            cls.default_status = status

    def __init__(
        self,
        message: str = "",
        *,
        status: str | None = None,
        ckr: int | None = None,
        ckr_name: str | None = None,
        call: str = "",
        member: str | None = None,
        hint: str | None = None,
        maybe_signed: bool | None = None,
    ) -> None:
        # Only the message goes into args: args and __dict__ are what pickle and copy carry over.
        super().__init__(message)
        self.status = status if status is not None else self.default_status
        self.ckr = ckr
        self.ckr_name = ckr_name
        self.call = call
        self.member = member
        self.hint = hint if hint is not None else self.default_hint or STATUSES[self.status].hint
        self._maybe_signed = maybe_signed

    def __str__(self) -> str:
        """The message and, as a separate sentence, the hint; so a hint that is set later is shown too."""
        message = str(self.args[0]) if self.args else ""
        if not self.hint or message.endswith(self.hint):
            return message
        return f"{message}{'' if message.endswith(('.', '!', '?')) else '.'} {self.hint}"

    @property
    def maybe_signed(self) -> bool:
        """Whether a signature may exist although this was raised: true unless it is known that no worker and no service
        had begun to sign. Then no other key may sign the same message."""
        if self._maybe_signed is not None:
            return self._maybe_signed
        return self.status in UNSURE or (self.call == "C_Sign" and self.error_class not in ("RETRY", "REQUEST_FATAL"))

    @maybe_signed.setter
    def maybe_signed(self, known: bool | None) -> None:
        self._maybe_signed = known

    @property
    def error_class(self) -> str:
        """The class of the status in status.def, such as "MEMBER_DOWN": it says what mends the failure."""
        return STATUSES[self.status].class_

    @property
    def retryable(self) -> bool:
        """True if the same call may succeed a moment later or on another member."""
        told = self.told_retryable
        return RETRYABLE_CLASSES[self.error_class] if told is None else told

    @property
    def may_pass(self) -> bool:
        """True if time may mend it, or what is not this member's: it is worth trying again, now and then."""
        return self.retryable or self.status in MAY_PASS


class ModuleBusy(HsmError, status="BUSY"):
    """The module is throttled or short of a resource."""


class SessionFailed(HsmError, status="SESSION_LOST"):
    """A session, its login or its key handle was lost and could not be brought back in time."""


class MemberDown(HsmError, status="TOKEN_LOST"):
    """The token or its device does not answer, or answers outside the standard."""


class ModuleFatal(HsmError, status="MODULE_FATAL"):
    """The module cannot work in this process any more."""


class SignatureMalformed(HsmError, status="SIGNATURE_MALFORMED"):
    """The module returned a signature of the wrong length or form; it was not handed out."""


class SignatureInvalid(HsmError, status="SIGNATURE_INVALID"):
    """The module returned a signature that does not verify; it was not handed out."""


class LoginError(HsmError, status="LOGIN_REFUSED"):
    """The token does not let us in. Not retried, except AccessDenied: one more attempt may lock the PIN."""


class PinIncorrect(LoginError, status="PIN_INCORRECT"):
    """The PIN was refused."""


class PinLocked(LoginError, status="PIN_LOCKED"):
    """The PIN is locked, or one attempt from it, and was not tried."""


class AccessDenied(LoginError, status="ACCESS_DENIED"):
    """A service refuses the credentials, or what they may do. That locks nothing: the service is asked again."""


class ModuleMissing(HsmError, status="MODULE_MISSING"):
    """The PKCS#11 module cannot be loaded."""


class ModuleInvalid(HsmError, status="MODULE_INVALID"):
    """The library is not a PKCS#11 module, or other users may write it."""


class HostUnusable(HsmError, status="HOST_MISSING"):
    """The program that a member's host process runs is missing or of another version."""


class TokenNotFound(HsmError, status="TOKEN_NOT_FOUND"):
    """No slot holds the token."""


class TokenAmbiguous(HsmError, status="TOKEN_AMBIGUOUS"):
    """Several tokens match."""


class KeyNotFound(HsmError, status="KEY_NOT_FOUND"):
    """The token holds no such key."""


class KeyAmbiguous(HsmError, status="KEY_AMBIGUOUS"):
    """Several keys match."""


class KeyMismatch(HsmError, status="KEY_MISMATCH"):
    """The key's public key is not the one that was pinned: nothing is signed with it until a restart."""

    @property
    def retryable(self) -> bool:
        return False


class KeyUnusable(HsmError, status="KEY_UNUSABLE"):
    """The key may not be used for this mechanism."""


class PublicKeyMissing(HsmError, status="PUBLIC_KEY_MISSING"):
    """The token does not hold the public half of the key."""


class AlgorithmUnsupported(HsmError, status="ALGORITHM_UNSUPPORTED"):
    """The token lacks the mechanism, or the key's type or curve is not supported."""


class KeyDeactivated(HsmError, status="KEY_DEACTIVATED"):
    """The key was deactivated and signs no more."""


class KeyNotCurrent(HsmError, status="KEY_NOT_CURRENT"):
    """Another key than the one that was asked for would sign: it was rotated, or signing has failed over. Nothing was
    signed with another one; `maybe_signed` says whether a signature under another one may exist from before."""

    @classmethod
    def of(cls, asked: bytes, found: bytes, *, bound: bool = False) -> Self:
        """Make the error from two public keys. `bound`: a signature of the message may exist under `found`."""
        what = "a signature of this message may exist under" if bound else "what signs now is"
        error = cls(f"key {asked.hex()} was asked for, and {what} {found.hex()}")
        error.maybe_signed = bound
        return error


class RequestRejected(HsmError, status="REQUEST_REJECTED"):
    """The module refuses this message or call."""


class PolicyRefused(HsmError, status="POLICY_REFUSED"):
    """The policy does not let this key sign the message, or not for this caller. No member was asked."""


class DoubleSign(HsmError, status="DOUBLE_SIGN"):
    """Another payload was bound to this position before. Attributes: `domain`, `position`; `digest`, the SHA-256 of
    that payload (32 bytes); `holder`, who bound it; `bound_ns`, when, in nanoseconds since 1970."""

    domain: str = ""
    position: int = -1
    digest: bytes = b""
    holder: str = ""
    bound_ns: int = 0


class NotHolder(HsmError, status="NOT_HOLDER"):
    """This host does not hold the fleet's epoch, or cannot prove any more that it does. Nothing was handed out.
    Attributes: `holder`, who holds it as far as is known, or ""; `epoch`, the fleet's as far as is known, or 0."""

    holder: str = ""
    epoch: int = 0


class FleetBehind(HsmError, status="FLEET_BEHIND"):
    """The fleet's database has lost positions that were bound: payloads with a position are refused on every host until
    the fleet is reconciled. Attributes: `domain`; `position`, the highest that was bound; `high`, the database's."""

    domain: str = ""
    position: int = -1
    high: int = -1


class MessageTooLarge(HsmError, ValueError, status="MESSAGE_TOO_LARGE"):
    """The message is longer than `maxMessageBytes`."""


class BadArgument(HsmError, ValueError, status="BAD_ARGUMENT"):
    """An argument is out of range."""


class InvalidTimeout(BadArgument):
    """A timeout that is not a positive, finite number of seconds."""


class InvalidMessage(HsmError):
    """The message cannot be signed as it is: see InvalidMessageType and EmptyMessage."""


class InvalidMessageType(InvalidMessage, TypeError):
    """The message is not bytes-like and contiguous."""


class EmptyMessage(InvalidMessage, ValueError):
    """The message has no bytes, which is taken for a mistake of the caller's (docs/decisions/0048)."""

    def __init__(self, message: str = "a message must have at least one byte", **more: Any) -> None:
        super().__init__(message, **more)


class DeadlineExceeded(HsmError, TimeoutError, status="DEADLINE_EXCEEDED"):
    """The deadline passed before a signature was ready."""


class QueueFull(DeadlineExceeded, status="QUEUE_FULL"):
    """The queue is so long that the request could not meet its deadline, so it is rejected at once. Nothing was signed.
    A handler of DeadlineExceeded handles this too."""


class RequestCancelled(HsmError, status="CANCELLED"):
    """The request was withdrawn by its caller."""


class EngineClosed(HsmError, status="CLOSED"):
    """The engine is closed."""


class NotInitialized(EngineClosed):
    """Used before `initialize()`."""

    default_hint = "Call initialize() first, or use `async with`."


class WrongEventLoop(HsmError):
    """Used from another event loop than the one that ran `initialize()`."""

    default_hint = "Make one key manager for each event loop."


class EngineForked(HsmError, status="FORKED"):
    """The engine belongs to the process that was forked."""


class OutOfMemory(HsmError, MemoryError, status="OUT_OF_MEMORY"):
    """Memory could not be had."""


class SystemFailure(HsmError, status="SYSTEM"):
    """A system call failed."""


class AuditUnavailable(HsmError, status="SYSTEM"):
    """The audit log cannot be written, or was changed: nothing may happen unrecorded (`audit.onFailure`: "closed")."""

    default_hint = "Free space or repair the disk; `hsmcore audit verify` says what is wrong with a log."


class InternalError(HsmError, status="OK"):
    """hsmcore contradicts itself: a success, or a status that does not exist, was reported as a failure."""


@dataclass(frozen=True, slots=True)
class ConfigFault:
    """One thing that is wrong: where, as a JSON path such as `$.keyManager.config.pin`, and what."""

    path: str
    problem: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


class ConfigurationError(HsmError, ValueError):
    """The configuration is wrong. `faults` lists everything that was found, `path` is where the first one is."""

    default_hint = "Correct the configuration and start again."

    def __init__(self, message: str = "", *, faults: Iterable[ConfigFault] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.faults = tuple(faults)

    def __str__(self) -> str:
        # The faults say what to do; a hint after a list of them would read as one more.
        return str(self.args[0]) if self.args else ""

    @property
    def path(self) -> str:
        """The JSON path of the first fault; `$` when the document as a whole is at fault."""
        return self.faults[0].path if self.faults else "$"

    @classmethod
    def of(cls, faults: Iterable[ConfigFault], *, source: str = "configuration", hint: str | None = None) -> Self:
        """Build the error from its faults; `source` names the file or says "configuration"."""
        found = tuple(faults)
        if len(found) == 1:
            text = f"{source}: {found[0]}"
        else:
            text = f"{source}: {len(found)} faults" + "".join(f"\n  {fault}" for fault in found)
        return cls(text, faults=found, hint=hint)


class SecretUnavailable(ConfigurationError):
    """A PIN or password cannot be had from where the configuration says it is."""

    default_hint = "Provide the secret where the configuration says it is, and start again."


EXCEPTION_OF_STATUS: dict[str, type[HsmError]] = {
    "OK": InternalError,
    "BUSY": ModuleBusy,
    "OPERATION_STATE": SessionFailed,
    "SESSION_LOST": SessionFailed,
    "NOT_LOGGED_IN": SessionFailed,
    "KEY_HANDLE_STALE": SessionFailed,
    "TOKEN_LOST": MemberDown,
    "MODULE_NOT_INITIALIZED": SessionFailed,
    "PIN_INCORRECT": PinIncorrect,
    "PIN_LOCKED": PinLocked,
    "LOGIN_REFUSED": LoginError,
    "ACCESS_DENIED": AccessDenied,
    "MESSAGE_REJECTED": RequestRejected,
    "MECHANISM_UNSUPPORTED": AlgorithmUnsupported,
    "KEY_UNUSABLE": KeyUnusable,
    "REQUEST_REJECTED": RequestRejected,
    "MODULE_FATAL": ModuleFatal,
    "CKR_UNKNOWN": MemberDown,
    "SIGNATURE_MALFORMED": SignatureMalformed,
    "SIGNATURE_INVALID": SignatureInvalid,
    "MODULE_MISSING": ModuleMissing,
    "MODULE_INVALID": ModuleInvalid,
    "HOST_MISSING": HostUnusable,
    "HOST_MISMATCH": HostUnusable,
    "HOST_LOST": MemberDown,
    "TOKEN_NOT_FOUND": TokenNotFound,
    "TOKEN_AMBIGUOUS": TokenAmbiguous,
    "KEY_NOT_FOUND": KeyNotFound,
    "KEY_AMBIGUOUS": KeyAmbiguous,
    "KEY_MISMATCH": KeyMismatch,
    "KEY_DEACTIVATED": KeyDeactivated,
    "KEY_NOT_CURRENT": KeyNotCurrent,
    "PUBLIC_KEY_MISSING": PublicKeyMissing,
    "ALGORITHM_UNSUPPORTED": AlgorithmUnsupported,
    "MESSAGE_TOO_LARGE": MessageTooLarge,
    "QUEUE_FULL": QueueFull,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "CANCELLED": RequestCancelled,
    "CLOSED": EngineClosed,
    "FORKED": EngineForked,
    "BAD_ARGUMENT": BadArgument,
    "POLICY_REFUSED": PolicyRefused,
    "DOUBLE_SIGN": DoubleSign,
    "NOT_HOLDER": NotHolder,
    "FLEET_BEHIND": FleetBehind,
    "OUT_OF_MEMORY": OutOfMemory,
    "SYSTEM": SystemFailure,
}


def error_of(
    status: str,
    *,
    ckr: int = 0,
    ckr_name: str | None = None,
    call: str = "",
    detail: str = "",
    member: str | None = None,
    hint: str | None = None,
) -> HsmError:
    """Make the exception for a status that the native core reported; it is returned, not raised.

    `ckr` is 0 when no module call failed; `hint` replaces the status's own. A status that is not in the table gives an
    InternalError, because a failure must not be hidden by another one.
    """
    row = STATUSES.get(status)
    if row is None:
        message = f"{call or 'native core'}: unknown status {status!r} {detail}".rstrip()
        return InternalError(message, call=call, member=member)
    subject = call
    if ckr:
        subject += (": " if call else "") + f"{ckr_name or 'CKR'} (0x{ckr:X})"
    if member is not None:
        subject += (" on " if subject else "") + f"member {member!r}"
    message = (f"{subject}: " if subject else "") + row.text + (f" ({detail})" if detail else "") + "."
    # The row's hint and not the class's: a class may stand for several rows.
    advice = row.hint if hint is None else hint
    return EXCEPTION_OF_STATUS[status](
        message, status=status, ckr=ckr or None, ckr_name=ckr_name, call=call, member=member, hint=advice
    )
