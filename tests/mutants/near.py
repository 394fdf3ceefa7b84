"""Which tests are near a file: those that must see a change of it. Fast ones first, as the first failure ends a run."""

from __future__ import annotations

from typing import Final

_STORE: Final = "tests/unit/test_state_store.py"
_BUDGET: Final = tuple(
    f"{_STORE}::test_{name}"
    for name in (
        "a_clock_keeps_its_mark_once_an_hour_and_none_that_goes_on_from_another_s_time",
        "a_clock_that_is_a_day_ahead_for_a_moment_uses_up_no_budget",
        "a_budget_is_kept_whatever_happens",
        "limits_may_become_stricter_at_once_and_laxer_after_a_reset",
        "a_status_begins_nothing_and_says_what_is_left",
        "what_the_store_has_forgotten_is_counted_again",
        "the_last_two_blocks_are_reserved_by_the_unit_and_a_close_gives_the_rest_back",
        "units_are_counted_by_the_time_that_the_store_knows",
        "a_reset_elsewhere_takes_what_was_reserved",
        "the_latest_time_that_a_process_has_told_counts_in_every_one",
        "several_users_of_one_store_never_spend_more_than_there_is",
    )
)
_FAILOVER: Final = (
    "tests/unit/test_failover_sharing.py",
    "tests/integration/test_key_binding.py",
    "tests/integration/test_failover.py",
    "tests/integration/test_failover_suspicion.py",
    "tests/integration/test_emergency_budget.py::test_a_unit_comes_back_only_if_nothing_was_signed_for_it",
)
_ROTATION: Final = ("tests/unit/test_rotation_machine.py", "tests/integration/test_rotation.py")
_TRUST: Final = "tests/unit/test_audit_trust.py"
_AUDIT: Final = (_TRUST, "tests/unit/test_audit_tampering.py", "tests/integration/test_audit_log.py")
_WRITING: Final = (
    "tests/unit/test_kept_leaves.py",
    "tests/unit/test_audit_merkle.py",
    *_AUDIT[1:],
    "tests/integration/test_audit_crashes.py",
)
_RETENTION: Final = "tests/integration/test_audit_retention.py"
_CONTROL: Final = ("tests/integration/test_control_forms.py", "tests/integration/test_control_plane.py")
_STEPS: Final = (
    "tests/unit/test_rotation_steps.py",
    "tests/chaos/test_rotation_model.py",
    "tests/integration/test_rotation.py",
)
_PUT_BACK: Final = (
    "what_was_signed_on_both_sides_of_a_rollback_is_signed_by_neither",
    "what_lies_further_back_than_is_read_is_given_up",
)
_RECOVERY: Final = (
    "tests/integration/test_state_forged.py",
    "tests/integration/test_state_recovery.py",
    "tests/integration/test_clocks_that_are_wrong.py",
)
_POLICY: Final = ("status", "unit/test_payload.py", "unit/test_transaction_rules.py")
"""With one of C, as that has the library built."""
_LADDER: Final = ("ladder", "recover", "workers", "seams")

NEAR: Final[dict[str, tuple[str, ...]]] = {
    f"core/hsmcore/{path}": tests
    for path, tests in {
        **{f"audit/{name}.py": _WRITING for name in ("leaves", "recover", "sealer", "segment")},
        "audit/check/adopt.py": ("tests/integration/test_audit_adopted.py",),
        "audit/check/findings.py": (*_AUDIT, "tests/integration/test_audit_changed.py"),
        "audit/check/prove.py": (_TRUST,),
        "audit/check/trust.py": (
            *_AUDIT,
            "tests/integration/test_audit_witness.py",
            f"{_RETENTION}::test_a_checkpoint_that_a_crash_cut_off_is_told_and_no_finding",
            f"{_RETENTION}::test_checkpoints_that_do_not_grow_are_a_finding",
        ),
        "audit/check/verify.py": (
            _TRUST,
            _RETENTION,
            *_AUDIT[1:],
            "tests/integration/test_audit_adopted.py::test_an_adopted_log_is_a_finding_until_an_auditor_expects_it",
        ),
        "base/steady.py": ("tests/unit/test_steady.py",),
        "base/digests.py": ("tests/unit/test_gateway_clients.py", "tests/unit/test_secrets.py"),
        "config/secret.py": ("tests/unit/test_gateway_clients.py", "tests/unit/test_secrets.py"),
        "failover/bindings.py": ("tests/integration/test_key_binding_restarts.py",),
        "failover/breaker.py": (
            "tests/unit/test_failover_breaker.py",
            "tests/unit/test_failover_levels.py",
            "tests/unit/test_failover_policy.py",
        ),
        "failover/budget.py": _BUDGET,
        "failover/levels.py": (
            "tests/unit/test_failover_levels.py",
            "tests/unit/test_failover_policy.py",
            "tests/unit/test_failover_sharing.py",
        ),
        "failover/policy.py": ("tests/unit/test_failover_policy.py", "tests/unit/test_failover_levels.py"),
        "failover/router.py": _FAILOVER,
        "fleet/machine.py": ("tests/unit/test_fleet_machine.py",),
        "fleet/rows.py": ("tests/unit/test_fleet_machine.py", "tests/integration/test_fleet.py"),
        "gateway/client/outbox.py": ("tests/unit/test_gateway_outbox.py", "tests/integration/test_gateway_client.py"),
        "gateway/clients.py": ("tests/unit/test_gateway_clients.py", "tests/unit/test_gateway_sharing.py"),
        "gateway/replay.py": ("tests/unit/test_gateway_memory.py",),
        "gateway/tls.py": ("tests/unit/test_gateway_tls.py", "tests/unit/test_gateway_clients.py"),
        "manager/policy/callers.py": ("tests/unit/test_policy_guard.py", "tests/unit/test_gateway_clients.py"),
        "manager/policy/explain.py": ("tests/integration/test_policy_explain.py",),
        "manager/policy/guard.py": ("tests/unit/test_policy_guard.py", "tests/integration/test_policy.py"),
        "manager/policy/watermark.py": ("tests/unit/test_watermark.py", "tests/integration/test_policy.py"),
        "manager/rotation/approvals.py": ("tests/unit/test_rotation_approvals.py",),
        "manager/rotation/machine.py": _ROTATION,
        "manager/rotation/schedule.py": ("tests/unit/test_rotation_schedule.py",),
        **{f"manager/rotation/steps/{name}.py": _STEPS for name in ("generate", "pin", "switch", "telling")},
        "manager/rotation/steps/backups.py": (
            _STEPS[0],
            "tests/integration/test_rotation_backup.py",
        ),
        "manager/rotation/steps/consent.py": (*_STEPS, "tests/integration/test_rotation_forged.py"),
        "manager/rotation/steps/destruction.py": (*_STEPS, "tests/integration/test_rotation_members.py"),
        "manager/rotation/steps/handover.py": (
            _STEPS[0],
            "tests/integration/test_handover_settled.py",
        ),
        "manager/rotation/steps/replicate.py": (*_STEPS, "tests/integration/test_rotation_members.py"),
        "manager/rotation/store.py": (*_STEPS, "tests/integration/test_rotation_forged.py"),
        **{f"members/control/{name}.py": _CONTROL for name in ("admin", "backup", "calls", "keys", "plane")},
        "members/control/locked.py": ("tests/integration/test_ephemeral.py",),
        **{f"recovery/{name}.py": _RECOVERY for name in ("hold", "marks", "reconcile", "restore", "state_backup")},
        "recovery/interchange.py": ("tests/unit/test_fleet_interchange.py", "tests/integration/test_log_rebuild.py"),
        "recovery/key_domains.py": ("tests/integration/test_key_domains.py",),
        "recovery/own_store.py": ("tests/integration/test_state_identity.py",),
        "recovery/witness.py": (
            "tests/integration/test_log_rebuild.py",
            "tests/integration/test_witness_forged.py",
            "tests/integration/test_key_domains.py::test_a_store_that_is_lost_is_rebuilt_with_the_domain",
            *(f"tests/integration/test_state_recovery.py::test_{name}" for name in _PUT_BACK),
        ),
        "state/clock.py": (*_BUDGET, "tests/integration/test_rotation.py"),
        "state/domains.py": ("tests/unit/test_key_domains.py", "tests/integration/test_key_domains.py"),
        "state/positions.py": ("tests/unit/test_watermark.py",),
        "state/seal.py": ("tests/unit/test_state_seal.py",),
        "state/seal_guard.py": ("tests/unit/test_state_seal.py",),
        "state/sealed_rows.py": ("tests/unit/test_state_seal.py",),
    }.items()
} | {
    f"native/src/{source}.c": tuple(f"tests/{test}" if "/" in test else f"tests/native/test_{test}.c" for test in tests)
    for source, tests in {
        "admission": ("requests", "unit/test_admission.py"),
        "area": ("client", "area", "unit/test_model_ring.py"),
        "aside": _LADDER,
        "cache": ("cache", "unit/test_model_cache.py"),
        "client": ("client", "replay", "requests", "area", "fork", "unit/test_model_ring.py"),
        "deadlines": ("requests", "table_memory", "unit/test_deadline_wheel.py"),
        "down": _LADDER,
        "journal": ("journal",),
        "instructions": _POLICY,
        "journal_line": ("journal",),
        "ladder": _LADDER,
        "payload": ("unit/test_ordered_payload.py", *_POLICY),
        "recover": _LADDER,
        "replay": ("replay", "host", "unit/test_model_ring.py"),
        "requests": (
            "requests",
            "table",
            "table_memory",
            "unit/test_model_table.py",
            "unit/test_routes.py",
        ),
        "rules": _POLICY,
        "table": ("table", "requests", "table_memory", "unit/test_model_table.py", "unit/test_routes.py"),
        "transaction": _POLICY,
        "verdicts": ("verdicts",),
        "verify": ("verify", "unit/test_native_tables.py"),
        "worker": ("workers", "engine", "requests", "seams", "area"),
    }.items()
}
