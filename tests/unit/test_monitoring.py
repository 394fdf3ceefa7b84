"""Alert rules, dashboard, runbooks and the table of metrics: each speaks of what is there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.promtool import ALERTS, check, firing, needs_promtool, run
from tests.support.runbooks import RUNBOOKS, anchors

from hsmcore.metrics import catalog
from hsmcore.metrics.catalog import METRICS, Metric
from hsmcore.metrics.rules import alert_rules, dashboard

ROOT = Path(__file__).parents[2]
DOC = ROOT / "docs" / "MONITORING.md"
RULES: list[dict[str, Any]] = yaml.safe_load(alert_rules())["groups"][0]["rules"]
NAMES = {metric.name for metric in METRICS} | {
    f"{metric.name}_{part}" for metric in METRICS if metric.kind == "histogram" for part in ("bucket", "sum", "count")
}


def expressions(panel: Any) -> Iterator[str]:
    """Every expression anywhere in the dashboard."""
    if isinstance(panel, dict):
        if isinstance(panel.get("expr"), str):
            yield panel["expr"]
        panel = list(panel.values())
    if isinstance(panel, list):
        for item in panel:
            yield from expressions(item)


def used(expression: str) -> set[str]:
    return set(re.findall(r"\bhsmcore_\w+", expression))


@needs_promtool
def test_promtool_takes_the_rules():
    done = run("check", "rules", str(ALERTS))
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_parses_every_expression_of_the_dashboard(tmp_path):
    found = [
        expression.replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$member", ".*")
        for expression in expressions(json.loads(dashboard()))
    ]
    assert len(found) > 40
    rules = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(found)]
    path = tmp_path / "panels.json"
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    done = run("check", "rules", str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "$" not in "".join(found)


def test_rules_and_dashboard_name_only_metrics_that_there_are():
    for rule in RULES:
        assert used(rule["expr"]) <= NAMES, rule["alert"]
    for expression in expressions(json.loads(dashboard())):
        assert used(expression) <= NAMES, expression


def test_labels_in_rules_are_labels_of_the_metric():
    labels = {metric.name: {*metric.labels, "le"} for metric in METRICS}
    for text in (alert_rules(), *expressions(json.loads(dashboard()))):
        for name, selector in re.findall(r"(hsmcore_\w+)\{([^}]*)\}", text):
            base = re.sub(r"_(bucket|sum|count)$", "", name) if name not in labels else name
            assert set(re.findall(r"(\w+)(?:=~|!=|=)", selector)) <= labels[base] | {"instance", "job"}, name


def test_every_alert_leads_to_a_runbook_and_every_runbook_names_its_alerts():
    text = RUNBOOKS.read_text()
    known = anchors(text)
    assert len(known) == len(set(known))
    for rule in RULES:
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert ROOT / page == RUNBOOKS
        assert anchor in known, rule["alert"]
        _, _, rest = text.partition(
            f"\n## {next(t for t in re.findall('^## (.+)$', text, re.MULTILINE) if anchors('# ' + t) == [anchor])}\n"
        )
        assert rule["alert"] in rest.partition("\n## ")[0], rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(re.findall(r"\bHsmcore\w+", text)) == {rule["alert"] for rule in RULES}


def test_the_table_of_metrics_is_the_catalogue():
    rows = re.findall(r"^\| `(hsmcore_\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", DOC.read_text(), re.MULTILINE)
    assert [(name, kind, re.findall(r"`(\w+)`", labels), text) for name, kind, labels, text in rows] == [
        (metric.name, metric.kind, list(metric.labels), metric.help) for metric in METRICS
    ]


def test_every_metric_of_the_catalogue_is_written():
    """Some code reads its value: a row alone would be a metric that no scrape has."""
    sources = [path.read_text() for path in (ROOT / "core" / "hsmcore").rglob("*.py")]
    written = {name for text in sources for name in re.findall(r"\bnames\.([A-Z_]+)\b", text)}
    assert {name for name, value in vars(catalog).items() if isinstance(value, Metric)} - written == set()


def test_the_alerts_page_lists_every_alert():
    rows = re.findall(r"^\| (Hsmcore\w+) \| (\w+) \|", DOC.read_text(), re.MULTILINE)
    assert rows == [(rule["alert"], rule["labels"]["severity"]) for rule in RULES]


# ---- rules that no runbook's play reaches: on series that are made up ------------------------------------------------


def series(name: str, values: str, **labels: str) -> dict[str, str]:
    pairs = {"instance": "a", "job": "hsmcore", **labels}
    return {"series": f"{name}{{{','.join(f'{k}={json.dumps(v)}' for k, v in pairs.items())}}}", "values": values}


HEALTHY = [
    series("hsmcore_key_manager_open", "1x200"),
    series("hsmcore_level_active", "1x200", level="primary"),
]


@needs_promtool
@pytest.mark.parametrize(
    ("alert", "given", "until_seconds"),
    [
        ("HsmcoreNotRunning", [series("hsmcore_key_manager_open", "1x3 0x190")], 30),
        (
            "HsmcoreOutage",
            [series("hsmcore_key_manager_open", "1x200"), series("hsmcore_level_active", "1x3 0x190", level="primary")],
            30,
        ),
        ("HsmcoreRequestsUnsigned", [*HEALTHY, series("hsmcore_requests_unsigned_total", "0x3 1x190")], 45),
        (
            "HsmcoreCallsHang",
            [*HEALTHY, series("hsmcore_call_oldest_seconds", "0x9 11+15x190", member="m", level="primary")],
            150,
        ),
        ("HsmcoreAuditSlow", [*HEALTHY, series("hsmcore_audit_lag_seconds", "0x9 6x190")], 150),
        (
            "HsmcoreAuditNotSealed",
            [*HEALTHY, series("hsmcore_audit_checkpoint_overdue_seconds", "0x3 0+15x190")],
            165,
        ),
        (
            "HsmcoreAuditNotShipped",
            [*HEALTHY, series("hsmcore_audit_shipping_failing", "0x3 1x190", destination="syslog")],
            900,
        ),
        ("HsmcoreAuditNotWitnessed", [*HEALTHY, series("hsmcore_audit_quorum_timestamp_seconds", "-3540x190")], 975),
        (
            "HsmcorePublicLogNotWitnessed",
            [*HEALTHY, series("hsmcore_public_log_quorum_timestamp_seconds", "-3540x190", domain="d/block")],
            975,
        ),
        (
            "HsmcorePublicLogStands",  # it went on for a while, with one that waits at each look
            [
                *HEALTHY,
                series("hsmcore_public_log_waiting_positions", "1x190", domain="d/block"),
                series("hsmcore_public_log_published_positions", "0+1x80 80x110", domain="d/block"),
            ],
            2085,
        ),
        ("HsmcoreStateNotBackedUp", [*HEALTHY, series("hsmcore_state_backup_failing", "0x3 1x190")], 45),
        (
            "HsmcoreStateNotBackedUp",  # nothing has failed
            [
                *HEALTHY,
                series("hsmcore_state_backup_failing", "0x190"),
                series("hsmcore_state_backup_due_timestamp_seconds", "-2500x190"),
            ],
            1115,
        ),
        ("HsmcoreRotationOverdue", [*HEALTHY, series("hsmcore_rotation_due_timestamp_seconds", "-20000x190")], 1590),
        (
            "HsmcoreKeyNotBackedUp",
            [
                *HEALTHY,
                series("hsmcore_backup_timestamp_seconds", "0x190"),
                series("hsmcore_key_created_timestamp_seconds", "-85000x190"),
            ],
            1390,
        ),
        (
            "HsmcoreOtherKey",
            [*HEALTHY, series("hsmcore_breaker_state", "0x3 2x190", member="m", level="primary", kind="key")],
            45,
        ),
        (
            "HsmcoreFleetCertificateEnds",
            [
                *HEALTHY,
                series(
                    "hsmcore_fleet_certificate_expiry_timestamp_seconds",
                    "1209700x190",
                    fleet="f",
                    certificate="db:5432",
                ),
            ],
            105,
        ),
        (
            "HsmcoreGatewayTokenEnds",
            [*HEALTHY, series("hsmcore_gateway_token_expiry_timestamp_seconds", "604900x190", client="web")],
            105,
        ),
        ("HsmcoreClusterDegraded", [*HEALTHY, series("hsmcore_cloudhsm_cluster_ok", "1x3 0x190", member="m")], 600),
        (
            "HsmcoreDiskFilling",
            [
                *HEALTHY,
                series("hsmcore_disk_free_bytes", "4000-10x190", use="audit"),
                series("hsmcore_disk_size_bytes", "10000x190", use="audit"),
            ],
            2100,
        ),
        (
            "HsmcoreDiskFilling",
            [
                *HEALTHY,
                series("hsmcore_disk_free_bytes", "4000x3 900x190", use="state"),
                series("hsmcore_disk_size_bytes", "10000x190", use="state"),
            ],
            345,
        ),
        (
            "HsmcoreSlow",
            [
                *HEALTHY,
                series("hsmcore_hsm_seconds_bucket", "0+0x190", member="m", level="primary", le="1.073741823"),
                series("hsmcore_hsm_seconds_bucket", "0+10x190", member="m", level="primary", le="2.147483647"),
                series("hsmcore_hsm_seconds_bucket", "0+10x190", member="m", level="primary", le="+Inf"),
            ],
            600,
        ),
    ],
)
def test_an_alert_fires_when_it_should_and_not_before(tmp_path, alert, given, until_seconds):
    later = (until_seconds // 15 + 8) * 15
    wanted = [(later, firing(alert), 1.0), (later, firing(), 1.0)]
    if until_seconds:
        wanted.append((until_seconds // 15 * 15 - 15, firing(), None))
    check(tmp_path, given, wanted)


def of_two(name: str, one: str, two: str, **labels: str) -> list[dict[str, str]]:
    """A metric of two key managers of one process."""
    return [series(name, f"{values}x200", manager=manager, **labels) for manager, values in (("a", one), ("b", two))]


@needs_promtool
@pytest.mark.parametrize(
    ("given", "fires"),
    [
        (of_two("hsmcore_fleet_state", "1", "0", fleet="f", state="holder"), {"HsmcoreFleetNoHolder": 1.0}),
        (
            [
                *of_two("hsmcore_fleet_state", "1", "0", fleet="f", state="doubtful"),
                *of_two("hsmcore_fleet_state", "0", "1", fleet="f", state="holder"),
                *of_two("hsmcore_fleet_incident", "0", "7", fleet="f"),
            ],
            {"HsmcoreFleetDoubtful": 1.0, "HsmcoreFleetBehind": 1.0},
        ),
        (of_two("hsmcore_fleet_incident", "1", "2", fleet="f"), {"HsmcoreFleetBehind": 2.0}),
        (of_two("hsmcore_level_active", "0", "1", level="primary"), {}),
        (
            [
                *of_two("hsmcore_member_up", "1", "0", member="m", level="primary"),
                *of_two("hsmcore_member_condition", "1", "0", member="m", level="primary", condition="drained"),
            ],
            {"HsmcoreMemberDown": 1.0},
        ),
    ],
    ids=["no-holder", "doubtful", "behind", "closed", "drained"],
)
def test_key_managers_of_one_process_are_judged_each_for_itself(tmp_path, given, fires):
    """The first one is closed where its level is what is looked at."""
    first = "0" if given[0]["series"].startswith("hsmcore_level_active") else "1"
    wanted = [(1200, firing(alert), count) for alert, count in fires.items()]
    given = [*of_two("hsmcore_key_manager_open", first, "1"), *given]
    check(tmp_path, given, [*wanted, (1200, firing(), sum(fires.values()) or None)])
