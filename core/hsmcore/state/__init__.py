"""State that survives a crash: one small store, its schema, and the tables that several policies share.

The tables of a policy are defined with it: failover/budget.py, failover/history.py, manager/rotation/store.py.

Reading order: errors, schema, seal, exchange, database, sqlite, postgres, store; then keys, clock, mark, positions,
domains, desired, backups, approvals, outbox; backup is of the store itself.
"""

from typing import TYPE_CHECKING

from hsmcore.base.lazy import names
from hsmcore.state.errors import (
    DomainMismatch,
    NotApproved,
    RoleLost,
    StoreAway,
    StoreBehind,
    StoreBusy,
    StoreChanged,
    StoreError,
    StoreNotGenuine,
    StoreUnknown,
)

if TYPE_CHECKING:
    from hsmcore.state.approvals import Approval, Approvals
    from hsmcore.state.backups import Backups
    from hsmcore.state.desired import Desired, Wish
    from hsmcore.state.keys import Keys, StoredKey
    from hsmcore.state.outbox import Outbox
    from hsmcore.state.store import Store

__all__ = [
    "Approval",
    "Approvals",
    "Backups",
    "Desired",
    "DomainMismatch",
    "Keys",
    "NotApproved",
    "Outbox",
    "RoleLost",
    "Store",
    "StoreAway",
    "StoreBehind",
    "StoreBusy",
    "StoreChanged",
    "StoreError",
    "StoreNotGenuine",
    "StoreUnknown",
    "StoredKey",
    "Wish",
]

if not TYPE_CHECKING:
    # Most key managers keep no state, and SQLAlchemy takes as long to load as all the rest.
    __getattr__ = names(
        __name__,
        {
            "approvals": ["Approval", "Approvals"],
            "backups": ["Backups"],
            "desired": ["Desired", "Wish"],
            "keys": ["Keys", "StoredKey"],
            "outbox": ["Outbox"],
            "store": ["Store"],
        },
    )
