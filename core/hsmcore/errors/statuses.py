"""Every status of the native core, as a table: its class, its text, and what to do about it.

Names, classes and texts are those of native/include/hsmcore/status.def; a test compares the two.
"""

from __future__ import annotations

from typing import NamedTuple

# Whether the same call may succeed later, or on another member, by the class of the status.
RETRYABLE_CLASSES: dict[str, bool] = {
    "OK": False,
    "RETRY": True,
    "RESET": True,
    "REOPEN": True,
    "RELOGIN": True,
    "REFIND": True,
    "MEMBER_DOWN": True,
    "REINIT": True,
    "AUTH_FATAL": False,
    "REQUEST_FATAL": False,
    "PROCESS_FATAL": False,
}


# Not retryable, since the same call fails again a moment later; yet an absent part may come, and a service may accept
# it later.
MAY_PASS = frozenset({"TOKEN_NOT_FOUND", "ACCESS_DENIED"})


class StatusRow(NamedTuple):
    """A row of status.def, and a hint: what to do next ("" if there is no general advice)."""

    class_: str
    text: str
    hint: str


_AGAIN = "Try again; if it lasts, look at the device and its connection."
_REPORT = "Please report this with the log around it."

STATUSES: dict[str, StatusRow] = {
    "OK": StatusRow("OK", "success", _REPORT),
    "BUSY": StatusRow(
        "RETRY",
        "the module is busy, throttled or out of a resource",
        "Try again in a moment; if it lasts, use fewer sessions or a larger device.",
    ),
    "OPERATION_STATE": StatusRow("RESET", "the session is stuck in another operation", _AGAIN),
    "SESSION_LOST": StatusRow("REOPEN", "the session was closed by the module", _AGAIN),
    "NOT_LOGGED_IN": StatusRow("RELOGIN", "the token is no longer logged in", _AGAIN),
    "KEY_HANDLE_STALE": StatusRow(
        "REFIND",
        "the key's handle is no longer valid",
        "Try again; if it lasts, check that the key is still on the token.",
    ),
    "TOKEN_LOST": StatusRow(
        "MEMBER_DOWN",
        "the token or its device is not answering",
        "Check the device and its connection; it is used again once it answers.",
    ),
    "MODULE_NOT_INITIALIZED": StatusRow("REINIT", "the module lost its initialization", _AGAIN),
    "PIN_INCORRECT": StatusRow(
        "AUTH_FATAL",
        "the PIN was refused; it is not tried again",
        "Check the PIN or password that the configuration refers to before you start again: attempts are counted.",
    ),
    "PIN_LOCKED": StatusRow(
        "AUTH_FATAL",
        "the PIN is locked, or one attempt from it",
        "Have the security officer reset the PIN.",
    ),
    "LOGIN_REFUSED": StatusRow(
        "AUTH_FATAL",
        "the token refuses this login",
        "Check that the user exists, that its PIN is set and has not expired, and that no other user is logged in.",
    ),
    "ACCESS_DENIED": StatusRow(
        "AUTH_FATAL",
        "the service refuses these credentials",
        "Check the credentials, their policy and this machine's clock; the service is asked again now and then.",
    ),
    "MESSAGE_REJECTED": StatusRow(
        "REQUEST_FATAL",
        "the token refuses this message",
        "Check the message's length against the device's limit.",
    ),
    "MECHANISM_UNSUPPORTED": StatusRow(
        "REQUEST_FATAL",
        "the token has no such mechanism",
        "Use a key of an algorithm that the token signs with, or another token.",
    ),
    "KEY_UNUSABLE": StatusRow(
        "REQUEST_FATAL",
        "the key may not be used for this mechanism",
        "Check the key's type and that its CKA_SIGN is true.",
    ),
    "REQUEST_REJECTED": StatusRow("REQUEST_FATAL", "the module refuses this call", _REPORT),
    "MODULE_FATAL": StatusRow(
        "PROCESS_FATAL",
        "the module cannot work in this process any more",
        "Restart the process.",
    ),
    "CKR_UNKNOWN": StatusRow(
        "MEMBER_DOWN",
        "the module returned a value outside the standard",
        "Look the value up in the vendor's documentation.",
    ),
    "SIGNATURE_MALFORMED": StatusRow("RETRY", "the module returned a signature of the wrong length or form", _AGAIN),
    "SIGNATURE_INVALID": StatusRow(
        "MEMBER_DOWN",
        "the module returned a signature that does not verify",
        "Take the device out of service and examine it.",
    ),
    "MODULE_MISSING": StatusRow(
        "REQUEST_FATAL",
        "the PKCS#11 module cannot be loaded",
        "Install the module, or correct modulePath.",
    ),
    "MODULE_INVALID": StatusRow(
        "REQUEST_FATAL",
        "the library is not a PKCS#11 module",
        "Correct modulePath: it must name the vendor's PKCS#11 library.",
    ),
    "HOST_MISSING": StatusRow(
        "REQUEST_FATAL",
        "the host program cannot be run",
        'Install hsmcore again, or use isolation "thread".',
    ),
    "HOST_MISMATCH": StatusRow(
        "REQUEST_FATAL",
        "the host program belongs to another version",
        "Install hsmcore again: the library and its host program must be of one build.",
    ),
    "HOST_LOST": StatusRow("MEMBER_DOWN", "the host process ended or does not answer", _AGAIN),
    "TOKEN_NOT_FOUND": StatusRow(
        "REQUEST_FATAL",
        "no slot holds the token",
        "Check tokenLabel, tokenSerial and slotId; `hsmcore doctor` shows which tokens are there and which was meant.",
    ),
    "TOKEN_AMBIGUOUS": StatusRow(
        "REQUEST_FATAL", "several tokens match", "Add tokenSerial or slotId to tell them apart."
    ),
    "KEY_NOT_FOUND": StatusRow(
        "REQUEST_FATAL",
        "the token holds no such key",
        "Check keyLabel, keyId and keyHandle; `hsmcore doctor` shows which keys are there and which was meant.",
    ),
    "KEY_AMBIGUOUS": StatusRow(
        "REQUEST_FATAL", "several keys match", "Add keyId to tell them apart; `hsmcore keys` lists them."
    ),
    "KEY_MISMATCH": StatusRow(
        "MEMBER_DOWN",
        "the key's public key is not the one that was pinned",
        "Find out who replaced the key before anything is signed with it.",
    ),
    "KEY_DEACTIVATED": StatusRow("REQUEST_FATAL", "the key was deactivated", "Sign with the current key."),
    "KEY_NOT_CURRENT": StatusRow(
        "REQUEST_FATAL",
        "another key than the one that was asked for would sign",
        "Build the message for the key that signs now, and ask again.",
    ),
    "PUBLIC_KEY_MISSING": StatusRow(
        "REQUEST_FATAL",
        "the token does not hold the public half of the key",
        "Give publicKey in the configuration, or put the public key object on the token.",
    ),
    "ALGORITHM_UNSUPPORTED": StatusRow(
        "REQUEST_FATAL",
        "the key's type or curve is not supported",
        "Use an Ed25519, P-256 or secp256k1 key.",
    ),
    "MESSAGE_TOO_LARGE": StatusRow(
        "REQUEST_FATAL",
        "the message is longer than the configured maximum",
        "Sign a shorter message, or raise maxMessageBytes.",
    ),
    "QUEUE_FULL": StatusRow(
        "RETRY",
        "too many requests wait to be answered in time",
        "Ask again later, for less, or with a longer timeout; if it lasts, the device is too slow for what is asked.",
    ),
    "DEADLINE_EXCEEDED": StatusRow(
        "RETRY",
        "the deadline passed before a signature was ready",
        "Try again; if it lasts, the device is overloaded or hangs, or requestTimeoutMs is too short for it.",
    ),
    "CANCELLED": StatusRow("REQUEST_FATAL", "the request was withdrawn by its caller", ""),
    "CLOSED": StatusRow("REQUEST_FATAL", "the engine is closed", "Make a new key manager."),
    "FORKED": StatusRow(
        "PROCESS_FATAL",
        "the engine belongs to the process that was forked",
        "Make the key manager after the fork, or start the child with spawn.",
    ),
    "BAD_ARGUMENT": StatusRow("REQUEST_FATAL", "an argument is out of range", ""),
    "POLICY_REFUSED": StatusRow(
        "REQUEST_FATAL",
        "the policy does not let this key sign the message",
        "See what it is and why it is refused, to whom: `hsmcore policy explain --help`.",
    ),
    "DOUBLE_SIGN": StatusRow(
        "REQUEST_FATAL",
        "another payload was bound to this position",
        "Sign the payload that was bound first, or go on at the next position.",
    ),
    "NOT_HOLDER": StatusRow(
        "RETRY",
        "this host does not hold the fleet's epoch",
        "Ask the holder, or claim the epoch: `hsmcore fleet claim --help`.",
    ),
    "FLEET_BEHIND": StatusRow(
        "REQUEST_FATAL",
        "the fleet's database has lost what was bound",
        "Start each host of the fleet, or raise what is lost by hand: `hsmcore fleet reconcile --help`.",
    ),
    "OUT_OF_MEMORY": StatusRow(
        "PROCESS_FATAL",
        "memory could not be had",
        "Check the memory limits (also RLIMIT_MEMLOCK), queueSize and maxMessageBytes.",
    ),
    "SYSTEM": StatusRow(
        "PROCESS_FATAL", "a system call failed", "Check the process's limits on descriptors and threads."
    ),
}
