"""State that survives a crash: one small store, its schema, and the tables that several policies share.

The tables of a policy are defined with it: failover/budget.py, failover/history.py, manager/rotation/store.py.

Reading order: schema, seal, exchange, database, sqlite, postgres, store; then keys, positions,
desired, backups, approvals, outbox; backup is of the store itself.
"""

from hsmcore.state.approvals import Approval, Approvals, NotApproved
from hsmcore.state.backups import Backups
from hsmcore.state.desired import Desired, Wish
from hsmcore.state.keys import Keys, StoredKey
from hsmcore.state.outbox import Outbox
from hsmcore.state.seal import StoreBehind, StoreError, StoreNotGenuine
from hsmcore.state.store import RoleLost, Store, StoreBusy, StoreUnknown

__all__ = [
    "Approval",
    "Approvals",
    "Backups",
    "Desired",
    "Keys",
    "NotApproved",
    "Outbox",
    "RoleLost",
    "Store",
    "StoreBehind",
    "StoreBusy",
    "StoreError",
    "StoreNotGenuine",
    "StoreUnknown",
    "StoredKey",
    "Wish",
]
