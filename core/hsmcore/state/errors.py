"""The errors of the state store."""

from __future__ import annotations

from hsmcore.errors import HsmError, PolicyRefused, SystemFailure


class StoreError(SystemFailure):
    """The state store cannot be opened, read or written. No operation that depends on it is carried out."""

    default_hint = "`hsmcore doctor` looks at the state store, and says what to do."


class StoreAway(StoreError):
    """The store's server cannot be reached now, or was too busy. Nothing was written."""


class StoreChanged(StoreError):
    """Another transaction has written a row since it was read, or what was relied on was not so. Nothing was
    written."""

    default_hint = "Try again: what is there now is read."


class RowInvalid(StoreError, ValueError):
    """A row of the state store is none that hsmcore writes: SQLite keeps a text in a column of numbers, if another
    writer puts it there."""

    default_hint = "Find out who else writes there; docs/RECOVERY.md has the ways back."


class StoreNotGenuine(StoreError):
    """Rows of the state store are not those that hsmcore wrote. Nothing is done for them; signing goes on."""

    default_hint = (
        "Find out who can write the state store; compare what `hsmcore state seal` shows, and then adopt it or put a "
        "good copy in its place."
    )


class StoreBehind(StoreError):
    """The audit log goes on after the state store: an older copy was put in its place, or another store. No key manager
    starts on it."""

    default_hint = (
        "Correct the token or stateFile that the configuration names, or put the newest store back; or raise this one "
        "to what the log says: `hsmcore state reconcile --reason TEXT`."
    )


class DomainMismatch(PolicyRefused):
    """The key has bound positions in another domain, or by forms of payloads that the policy lacks. No key manager
    starts with it, and nothing is bound."""

    default_hint = "Correct the policy, or name another key."


class StoreBusy(HsmError, status="BUSY"):
    """Another process has the role."""

    default_hint = "Let the other process end it, or stop that process."


class RoleLost(StoreBusy):
    """Another process has taken a role of this one, which was silent for too long. Nothing was written in it."""


class StoreUnknown(StoreError):
    """The connection failed while a transaction was being committed: whether it was written, and lasts, is unknown."""

    default_hint = "Read again: a transaction that reads after it says what was written."


class NotApproved(HsmError):
    """An approval was refused."""

    default_hint = "See `hsmcore rotate status` for what is to be approved, and by whom."
