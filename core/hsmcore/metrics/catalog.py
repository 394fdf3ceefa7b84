"""Every metric: name, kind, labels and meaning, by Prometheus' conventions and in base units.

docs/MONITORING.md has the same as a table; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["counter", "gauge", "histogram"]
_MEMBER: Final = ("member", "level")


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One metric. Compared by identity, so it is a cheap key of a dict."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


def _of_kind(kind: Kind) -> Callable[..., Metric]:
    def make(name: str, text: str, *labels: str) -> Metric:
        return Metric(name, kind, text, labels)

    return make


_counter, _gauge, _histogram = _of_kind("counter"), _of_kind("gauge"), _of_kind("histogram")

BUILD = _gauge("hsmcore_build_info", "1, with the version of hsmcore.", "version")
OPEN = _gauge("hsmcore_key_manager_open", "1 while the key manager takes requests.")
KEY = _gauge("hsmcore_key_info", "1, with the key that signs now.", "key_id", "algorithm", "public_key")
LEVEL = _gauge("hsmcore_level_active", "1 for the level that signs now; 0 for all: no level can.", "level")
UNSIGNED = _counter("hsmcore_requests_unsigned_total", "Requests that ended without a signature on any level.")
HEDGES = _counter("hsmcore_hedges_total", "Requests that a second member was asked for.")

UP = _gauge("hsmcore_member_up", "1 while requests may go to the member.", *_MEMBER)
CONDITION = _gauge("hsmcore_member_condition", "1 for the condition that the member is in.", *_MEMBER, "condition")
BREAKER = _gauge("hsmcore_breaker_state", "0: closed, 1: half-open, 2: open; by kind of failure.", *_MEMBER, "kind")
SIGNATURES = _counter("hsmcore_signatures_total", "Good signatures.", *_MEMBER)
FAILURES = _counter("hsmcore_signature_failures_total", "Requests that failed at the member.", *_MEMBER, "error_class")
DROPPED = _counter(
    "hsmcore_requests_dropped_total",
    "Requests that were not begun: their deadline had passed, no caller waited any more, or too many waited already.",
    *_MEMBER,
    "reason",
)
WRONG = _counter("hsmcore_wrong_signatures_total", "Signatures that did not verify.", *_MEMBER)
QUEUE = _histogram("hsmcore_queue_seconds", "From a request's submission to its beginning.", *_MEMBER)
HSM = _histogram("hsmcore_hsm_seconds", "From a request's beginning to its end, without verification.", *_MEMBER)
VERIFY = _histogram("hsmcore_verify_seconds", "Verification of a signature in software.", *_MEMBER)
IN_FLIGHT = _gauge("hsmcore_requests_in_flight", "Requests submitted and not answered.", *_MEMBER)
QUEUED = _gauge("hsmcore_requests_queued", "Requests submitted and not begun.", *_MEMBER)
WAITING = _gauge("hsmcore_requests_waiting", "Requests that wait for room in the queue.", *_MEMBER)
QUEUE_OLDEST = _gauge("hsmcore_queue_oldest_seconds", "Age of the oldest request not begun.", *_MEMBER)
CALL_OLDEST = _gauge("hsmcore_call_oldest_seconds", "Age of the oldest call inside the HSM.", *_MEMBER)
SESSIONS = _gauge("hsmcore_sessions", "Workers, each with a session of its own.", *_MEMBER)
BUSY = _gauge("hsmcore_sessions_busy", "Workers that are inside the HSM.", *_MEMBER)
QUARANTINED = _gauge("hsmcore_sessions_quarantined", "Workers whose call hangs.", *_MEMBER)
RECOVERIES = _counter("hsmcore_recoveries_total", "Attempts to repair a failure, by rung.", *_MEMBER, "rung")
REFUSED = _gauge("hsmcore_login_refused", "1 while the token's refusal of the login keeps it out.", *_MEMBER)
RESTARTS = _counter("hsmcore_host_restarts_total", "Restarts of the host process.", *_MEMBER)
CACHE_HITS = _counter("hsmcore_cache_hits_total", "Requests that the cache answered.", *_MEMBER)
CACHE_MISSES = _counter("hsmcore_cache_misses_total", "Requests that it did not.", *_MEMBER)
CACHE_JOINED = _counter("hsmcore_cache_joined_total", "Requests that joined one in flight.", *_MEMBER)
CACHE_EVICTIONS = _counter("hsmcore_cache_evictions_total", "Signatures evicted from the cache.", *_MEMBER)
CACHE_ENTRIES = _gauge("hsmcore_cache_entries", "Signatures in the cache.", *_MEMBER)
CACHE_BYTES = _gauge("hsmcore_cache_bytes", "Memory of the cache.", *_MEMBER)
KMS_REQUESTS = _counter(
    "hsmcore_kms_requests_total",
    "Requests sent to AWS KMS: ok, throttled, refused (credentials, clock), failed, lost (connection), cancelled.",
    *_MEMBER,
    "operation",
    "outcome",
)
CLUSTER_OK = _gauge("hsmcore_cloudhsm_cluster_ok", "1 while AWS knows no problem of the cluster.", "member")
CLUSTER_CHECKED = _gauge("hsmcore_cloudhsm_checked_timestamp_seconds", "When AWS last answered, Unix time.", "member")
CLUSTER_HSMS = _gauge("hsmcore_cloudhsm_hsms", "HSMs of the cluster.", "member", "zone", "state")

EMERGENCY_LEFT = _gauge("hsmcore_emergency_signatures_left", "What is left of the emergency budget.")
EMERGENCY_LIMIT = _gauge("hsmcore_emergency_signatures_limit", "The whole emergency budget.")
EMERGENCY_EXPIRES = _gauge(
    "hsmcore_emergency_expires_timestamp_seconds", "When the emergency key's time is over, Unix time."
)
EMERGENCY_ALLOWED = _gauge("hsmcore_emergency_permitted", "1 while the emergency level may be entered.")

KEY_CREATED = _gauge("hsmcore_key_created_timestamp_seconds", "When the current key was made, Unix time.")
ROTATION_DUE = _gauge("hsmcore_rotation_due_timestamp_seconds", "When it is to be replaced, Unix time.")
ROTATION_RUNNING = _gauge("hsmcore_rotation_in_progress", "1 while a rotation is under way.")
ROTATION_FAILURES = _gauge("hsmcore_rotation_failures", "Rotations that failed since the last good one.")
BACKUP = _gauge("hsmcore_backup_timestamp_seconds", "When the current key was last backed up, Unix time; 0: never.")
DRILL = _gauge(
    "hsmcore_restore_drill_timestamp_seconds",
    "When a backup of the current key was last restored and signed, Unix time; 0: never.",
)

STORE_NOT_GENUINE = _gauge(
    "hsmcore_store_not_genuine", "1 while rows of the state store are not those that hsmcore wrote.", "scope"
)

STATE_BACKUP = _gauge(
    "hsmcore_state_backup_timestamp_seconds", "When the state store was last backed up, Unix time; 0: never."
)
STATE_BACKUP_DUE = _gauge("hsmcore_state_backup_due_timestamp_seconds", "When its next backup is due, Unix time.")
STATE_DRILL = _gauge(
    "hsmcore_state_drill_timestamp_seconds",
    "When this process last restored such a backup into a temporary place, Unix time; 0: never.",
)
STATE_BACKUP_FAILING = _gauge(
    "hsmcore_state_backup_failing", "1 while the last backup of the state store, or its drill, has failed."
)

POLICY_REFUSED = _counter(
    "hsmcore_policy_refused_total",
    "Requests that the policy refused, by kind of payload; limit: by a caller's limits; state: by the store.",
    "kind",
)
DOUBLE_SIGN = _counter(
    "hsmcore_double_sign_refused_total", "Requests for a position that was bound to another payload."
)
POSITIONS_BOUND = _counter("hsmcore_positions_bound_total", "Positions that were bound to a payload.")

BATCHES = _counter(
    "hsmcore_batch_closed_total", "Batches that were closed: full, at their age, or at the end.", "reason"
)
BATCH_FAILURES = _counter("hsmcore_batch_failures_total", "Batches whose root was not signed.")
BATCH_MESSAGES = _counter("hsmcore_batch_messages_total", "Messages in batches whose root was signed.")
BATCH_WAITING = _gauge("hsmcore_batch_messages_waiting", "Messages of batches that are open, or not answered yet.")
BATCH_SECONDS = _histogram(
    "hsmcore_batch_seconds", "From the first message of a batch until its root was signed; of good ones."
)

FLEET_STATE = _gauge("hsmcore_fleet_state", "1 for the state that this host has in its fleet.", "fleet", "state")
FLEET_UNORDERED = _gauge(
    "hsmcore_fleet_unordered", "1 for how payloads without a position are handed out.", "fleet", "mode"
)
FLEET_EPOCH = _gauge("hsmcore_fleet_epoch", "Number of the fleet's last claim, as far as is known.", "fleet")
FLEET_LEASE = _gauge("hsmcore_fleet_lease_seconds", "What is left of this host's lease.", "fleet")
FLEET_INCIDENT = _gauge(
    "hsmcore_fleet_incident", "Number of the loss that not every host has answered yet; 0: none.", "fleet"
)
FLEET_FAILED = _counter("hsmcore_fleet_renewals_failed_total", "Renewals of the lease that failed.", "fleet")
FLEET_CLAIMS = _counter("hsmcore_fleet_claims_total", "Epochs that this host claimed.", "fleet")
FLEET_CERTIFICATE = _gauge(
    "hsmcore_fleet_certificate_expiry_timestamp_seconds",
    "When a certificate of the way to the fleet's database ends; certificate: host:port, or client.",
    "fleet",
    "certificate",
)

GATEWAY_REQUESTS = _counter(
    "hsmcore_gateway_requests_total",
    "Answered requests to sign, verify or manage, a batch as one; outcome: OK, INTERNAL or an error's status.",
    "client",
    "outcome",
)
GATEWAY_OPEN = _gauge("hsmcore_gateway_requests_open", "Messages of requests that are not answered.", "client")
GATEWAY_WAITING = _gauge("hsmcore_gateway_requests_waiting", "Requests that wait for a turn or for room.", "client")
GATEWAY_REPEATED = _counter("hsmcore_gateway_requests_repeated_total", "Requests that were sent again.")
GATEWAY_CONNECTIONS = _gauge("hsmcore_gateway_connections", "Connections of hsmcore-wire/1.", "client")
GATEWAY_REMEMBERED = _gauge("hsmcore_gateway_answers_remembered", "Answers that may be asked for again.", "client")
GATEWAY_TOKEN = _gauge(
    "hsmcore_gateway_token_expiry_timestamp_seconds", "When the last token of a client expires, if it does.", "client"
)
GATEWAY_REFUSED = _counter(
    "hsmcore_gateway_refused_total",
    "Connections and requests of strangers; what broke the protocol, said nothing, or asked for what is not listed.",
)
GATEWAY_RECEIVED = _counter("hsmcore_gateway_received_bytes_total", "Bytes that connections of hsmcore-wire/1 sent.")
GATEWAY_SENT = _counter("hsmcore_gateway_sent_bytes_total", "Bytes that were sent on connections of hsmcore-wire/1.")
GATEWAY_RESTARTS = _counter(
    "hsmcore_gateway_front_restarts_total",
    "Processes for TLS and HTTP that ended by themselves, and were started again.",
)

AUDIT_RECORDS = _counter("hsmcore_audit_records_total", "Records in the audit log.")
AUDIT_LAG = _gauge("hsmcore_audit_lag_records", "Records that are not kept yet.")
AUDIT_LAG_SECONDS = _gauge("hsmcore_audit_lag_seconds", "Age of the oldest record that is not in the file.")
AUDIT_PENDING = _gauge("hsmcore_audit_pending_bytes", "Records that wait for the disk.")
AUDIT_COMMIT = _histogram("hsmcore_audit_commit_seconds", "From the oldest record of a group until the group is kept.")
AUDIT_FAILING = _gauge("hsmcore_audit_failing", "1 while the audit log cannot be written.")
AUDIT_UNSEALED = _gauge("hsmcore_audit_unsealed_records", "Records that no checkpoint covers yet.")
AUDIT_OVERDUE = _gauge(
    "hsmcore_audit_checkpoint_overdue_seconds", "For how long a checkpoint of the audit log has been due."
)
SHIPPING_LAG = _gauge(
    "hsmcore_audit_shipping_lag_records", "Records that are not at the destination yet.", "destination"
)
SHIPPING_FAILING = _gauge("hsmcore_audit_shipping_failing", "1 while nothing can be shipped there.", "destination")
WITNESSED = _gauge("hsmcore_audit_cosigned_records", "Records that a witness has cosigned.", "witness")
WITNESS_FAILING = _gauge("hsmcore_audit_witness_failing", "1 while a witness gives no cosignature.", "witness")
QUORUM_TIME = _gauge(
    "hsmcore_audit_quorum_timestamp_seconds", "When a quorum of the witnesses had cosigned last. 0: never yet."
)
PUBLISHED = _gauge("hsmcore_public_log_published_positions", "Positions that a public log hands out.", "domain")
PUBLISH_WAITING = _gauge(
    "hsmcore_public_log_waiting_positions", "Positions that are bound, or passed, and not published yet.", "domain"
)
PUBLISH_WITNESS_FAILING = _gauge(
    "hsmcore_public_log_witness_failing", "1 while a witness does not cosign a public log.", "domain", "witness"
)
PUBLISH_QUORUM_TIME = _gauge(
    "hsmcore_public_log_quorum_timestamp_seconds",
    "When a quorum of the witnesses had cosigned a public log last, on the host that asks them. 0: never yet.",
    "domain",
)
DISK_FREE = _gauge("hsmcore_disk_free_bytes", "Room for hsmcore on the file system of what is stored.", "use")
DISK_SIZE = _gauge("hsmcore_disk_size_bytes", "Size of that file system.", "use")

METRICS: Final[tuple[Metric, ...]] = tuple(value for value in globals().values() if isinstance(value, Metric))
