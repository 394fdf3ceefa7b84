"""Every metric: its name, kind, labels and meaning. Named by Prometheus' conventions, in base units.

docs/MONITORING.md has the same as a table, and a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["counter", "gauge", "histogram"]
_MEMBER: Final = ("member", "level")


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One metric. Two are the same only if they are the same object, which makes them cheap keys."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


BUILD = Metric("hsmcore_build_info", "gauge", "1, with the version of hsmcore.", ("version",))
OPEN = Metric("hsmcore_key_manager_open", "gauge", "1 while the key manager takes requests.")
KEY = Metric("hsmcore_key_info", "gauge", "1, with the key that signs now.", ("key_id", "algorithm", "public_key"))
LEVEL = Metric("hsmcore_level_active", "gauge", "1 for the level that signs now; 0 for all: no level can.", ("level",))
UNSIGNED = Metric("hsmcore_requests_unsigned_total", "counter", "Requests that ended without a signature on any level.")
HEDGES = Metric("hsmcore_hedges_total", "counter", "Requests that a second member was asked for.")


UP = Metric("hsmcore_member_up", "gauge", "1 while requests may go to the member.", _MEMBER)
CONDITION = Metric(
    "hsmcore_member_condition", "gauge", "1 for the condition that the member is in.", (*_MEMBER, "condition")
)
BREAKER = Metric(
    "hsmcore_breaker_state", "gauge", "0: closed, 1: half-open, 2: open; by kind of failure.", (*_MEMBER, "kind")
)
SIGNATURES = Metric("hsmcore_signatures_total", "counter", "Good signatures.", _MEMBER)
FAILURES = Metric(
    "hsmcore_signature_failures_total", "counter", "Requests that failed at the member.", (*_MEMBER, "error_class")
)
DROPPED = Metric(
    "hsmcore_requests_dropped_total",
    "counter",
    "Requests that were not begun: their deadline had passed, no caller waited any more, or too many waited already.",
    (*_MEMBER, "reason"),
)
WRONG = Metric("hsmcore_wrong_signatures_total", "counter", "Signatures that did not verify.", _MEMBER)
QUEUE = Metric("hsmcore_queue_seconds", "histogram", "From a request's submission to its beginning.", _MEMBER)
HSM = Metric(
    "hsmcore_hsm_seconds", "histogram", "From a request's beginning to its end, without verification.", _MEMBER
)
VERIFY = Metric("hsmcore_verify_seconds", "histogram", "Verification of a signature in software.", _MEMBER)
IN_FLIGHT = Metric("hsmcore_requests_in_flight", "gauge", "Requests submitted and not answered.", _MEMBER)
QUEUED = Metric("hsmcore_requests_queued", "gauge", "Requests submitted and not begun.", _MEMBER)
WAITING = Metric("hsmcore_requests_waiting", "gauge", "Requests that wait for room in the queue.", _MEMBER)
QUEUE_OLDEST = Metric("hsmcore_queue_oldest_seconds", "gauge", "Age of the oldest request not begun.", _MEMBER)
CALL_OLDEST = Metric("hsmcore_call_oldest_seconds", "gauge", "Age of the oldest call inside the HSM.", _MEMBER)
SESSIONS = Metric("hsmcore_sessions", "gauge", "Workers, each with a session of its own.", _MEMBER)
BUSY = Metric("hsmcore_sessions_busy", "gauge", "Workers that are inside the HSM.", _MEMBER)
QUARANTINED = Metric("hsmcore_sessions_quarantined", "gauge", "Workers whose call hangs.", _MEMBER)
RECOVERIES = Metric("hsmcore_recoveries_total", "counter", "Attempts to repair a failure, by rung.", (*_MEMBER, "rung"))
REFUSED = Metric("hsmcore_login_refused", "gauge", "1 while the token's refusal of the login keeps it out.", _MEMBER)
RESTARTS = Metric("hsmcore_host_restarts_total", "counter", "Restarts of the host process.", _MEMBER)
CACHE_HITS = Metric("hsmcore_cache_hits_total", "counter", "Requests that the cache answered.", _MEMBER)
CACHE_MISSES = Metric("hsmcore_cache_misses_total", "counter", "Requests that it did not.", _MEMBER)
CACHE_JOINED = Metric("hsmcore_cache_joined_total", "counter", "Requests that joined one in flight.", _MEMBER)
CACHE_EVICTIONS = Metric("hsmcore_cache_evictions_total", "counter", "Signatures evicted from the cache.", _MEMBER)
CACHE_ENTRIES = Metric("hsmcore_cache_entries", "gauge", "Signatures in the cache.", _MEMBER)
CACHE_BYTES = Metric("hsmcore_cache_bytes", "gauge", "Memory of the cache.", _MEMBER)
CLUSTER_OK = Metric("hsmcore_cloudhsm_cluster_ok", "gauge", "1 while AWS knows no problem of the cluster.", ("member",))
CLUSTER_CHECKED = Metric(
    "hsmcore_cloudhsm_checked_timestamp_seconds", "gauge", "When AWS last answered, Unix time.", ("member",)
)
CLUSTER_HSMS = Metric("hsmcore_cloudhsm_hsms", "gauge", "HSMs of the cluster.", ("member", "zone", "state"))


EMERGENCY_LEFT = Metric("hsmcore_emergency_signatures_left", "gauge", "What is left of the emergency budget.")
EMERGENCY_LIMIT = Metric("hsmcore_emergency_signatures_limit", "gauge", "The whole emergency budget.")
EMERGENCY_EXPIRES = Metric(
    "hsmcore_emergency_expires_timestamp_seconds", "gauge", "When the emergency key's time is over, Unix time."
)
EMERGENCY_ALLOWED = Metric("hsmcore_emergency_permitted", "gauge", "1 while the emergency level may be entered.")


KEY_CREATED = Metric("hsmcore_key_created_timestamp_seconds", "gauge", "When the current key was made, Unix time.")
ROTATION_DUE = Metric("hsmcore_rotation_due_timestamp_seconds", "gauge", "When it is to be replaced, Unix time.")
ROTATION_RUNNING = Metric("hsmcore_rotation_in_progress", "gauge", "1 while a rotation is under way.")
ROTATION_FAILURES = Metric("hsmcore_rotation_failures", "gauge", "Rotations that failed since the last good one.")
BACKUP = Metric(
    "hsmcore_backup_timestamp_seconds", "gauge", "When the current key was last backed up, Unix time; 0: never."
)
DRILL = Metric(
    "hsmcore_restore_drill_timestamp_seconds",
    "gauge",
    "When a backup of the current key was last restored and signed, Unix time; 0: never.",
)


AUDIT_RECORDS = Metric("hsmcore_audit_records_total", "counter", "Records in the audit log.")
AUDIT_LAG = Metric("hsmcore_audit_lag_records", "gauge", "Records that are not kept yet.")
AUDIT_LAG_SECONDS = Metric("hsmcore_audit_lag_seconds", "gauge", "Age of the oldest record that is not in the file.")
AUDIT_PENDING = Metric("hsmcore_audit_pending_bytes", "gauge", "Records that wait for the disk.")
AUDIT_COMMIT = Metric(
    "hsmcore_audit_commit_seconds", "histogram", "From the oldest record of a group until the group is kept."
)
AUDIT_FAILING = Metric("hsmcore_audit_failing", "gauge", "1 while the audit log cannot be written.")
AUDIT_UNSEALED = Metric("hsmcore_audit_unsealed_records", "gauge", "Records that no checkpoint covers yet.")
SHIPPING_LAG = Metric(
    "hsmcore_audit_shipping_lag_records", "gauge", "Records that are not at the destination yet.", ("destination",)
)
SHIPPING_FAILING = Metric(
    "hsmcore_audit_shipping_failing", "gauge", "1 while nothing can be shipped there.", ("destination",)
)
DISK_FREE = Metric(
    "hsmcore_disk_free_bytes", "gauge", "Room for hsmcore on the file system of what is stored.", ("use",)
)
DISK_SIZE = Metric("hsmcore_disk_size_bytes", "gauge", "Size of that file system.", ("use",))

METRICS: Final[tuple[Metric, ...]] = tuple(value for value in globals().values() if isinstance(value, Metric))
