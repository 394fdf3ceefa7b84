"""State that survives a crash: one small store, and what its tables mean.

Reading order: schema, store, then emergency, history, desired; keys, rotations, backups, approvals, outbox.
"""

from hsmcore.state.approvals import Approval, Approvals, NotApproved
from hsmcore.state.backups import Backups
from hsmcore.state.desired import Desired, Wish
from hsmcore.state.emergency import Emergency, EmergencyStatus, Limits
from hsmcore.state.history import History
from hsmcore.state.keys import Keys, StoredKey
from hsmcore.state.outbox import Outbox
from hsmcore.state.rotations import Rotation, Rotations
from hsmcore.state.store import Store, StoreBusy, StoreError

__all__ = [
    "Approval",
    "Approvals",
    "Backups",
    "Desired",
    "Emergency",
    "EmergencyStatus",
    "History",
    "Keys",
    "Limits",
    "NotApproved",
    "Outbox",
    "Rotation",
    "Rotations",
    "Store",
    "StoreBusy",
    "StoreError",
    "StoredKey",
    "Wish",
]
