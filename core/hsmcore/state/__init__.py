"""State that survives a crash: one small store, and what its tables mean.

Reading order: schema, store, then emergency, history, desired.
"""

from hsmcore.state.desired import Desired, Wish
from hsmcore.state.emergency import Emergency, EmergencyStatus, Limits
from hsmcore.state.history import History
from hsmcore.state.store import Store, StoreBusy, StoreError

__all__ = [
    "Desired",
    "Emergency",
    "EmergencyStatus",
    "History",
    "Limits",
    "Store",
    "StoreBusy",
    "StoreError",
    "Wish",
]
