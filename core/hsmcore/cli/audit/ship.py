"""The `audit` commands that need a configuration, for destinations or devices."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import typer

from hsmcore.cli.audit import shared as support
from hsmcore.cli.output import FAILED, note, print_fields, print_json
from hsmcore.cli.settings import ConfigOption, JsonOption, StateOption, load_configs
from hsmcore.errors import AuditUnavailable, ConfigFault, ConfigurationError

if TYPE_CHECKING:
    from hsmcore.audit.layout import Layout
    from hsmcore.config import Config, Provider
    from hsmcore.providers.yubihsm.audit import DeviceReport


def add_to(app: typer.Typer) -> None:
    """Add these commands to the `audit` commands."""
    app.command(short_help="Ship what is left to CloudWatch Logs and syslog.")(ship)
    app.command("device-log", short_help="Drain a YubiHSM's own log and compare it with ours.")(device_log)


def ship(config: ConfigOption = None, state: StateOption = None, as_json: JsonOption = False) -> None:
    """Copy to CloudWatch Logs and syslog the records that a key manager left, then end. The log is only read.

    A running key manager ships by itself; beside one, this command refuses. Exit code 1 if a destination did not take
    everything; the output says how many records are left.

    Example: hsmcore audit ship --config hsm.json --json
    """
    from hsmcore.audit.shipping import destinations

    loaded = next(iter(load_configs(config, state).values()))  # several key managers have one log
    layout = log_of(loaded)
    places = destinations(loaded.key_manager)
    if not places:
        where = loaded.key_manager.log_where
        raise ConfigurationError.of(
            [ConfigFault(where, "has neither cloudWatchLogs nor audit.syslog: there is nowhere to ship to")]
        )
    shown = {}
    for place in places:
        with support.progress_bar(as_json) as progress:
            shown[place.kind] = _shipped(layout, place, progress)
    if as_json:
        print_json(shown)
    else:
        for kind, status in shown.items():
            print(f"{kind}: everything up to record {status['sentSeq']} is there")
            if status["error"]:
                note(f"hsmcore: {kind}: {status['lagRecords']} records are left: {status['error']}")
                note("  next: Mend that, then run the command again; nothing is lost.")
    if any(status["error"] for status in shown.values()):
        raise typer.Exit(FAILED)


def _shipped(layout: Layout, place: Any, progress: Any) -> dict[str, Any]:
    from hsmcore.audit.shipping.service import ShipNow

    run = ShipNow(layout, place)
    error = support.reading(lambda: run.run(progress))
    return run.status.as_dict() | {"error": error}


def device_log(config: ConfigOption = None, state: StateOption = None, as_json: JsonOption = False) -> None:
    """Read the log that each YubiHSM of the configuration keeps itself, keep its entries beside the audit log, let the
    device delete them, verify their chain and match each signature with a record.

    Run it often: the device keeps 62 entries, and with force-audit it stops when they are full. A key manager may run
    at the same time. The first reading is trusted. Exit code 1 if something needs an explanation.

    Example: hsmcore audit device-log --config hsm.json --json
    """
    from hsmcore.config.registry import BUILT_IN, descriptor_of

    configs = list(load_configs(config, state).values())
    layout = log_of(configs[0])
    served = [member for each in configs for level, member in each.key_manager.members() if level != "emergency"]
    # A device that several key managers sign with has one log; its entries match the records of all of them.
    members = {member.name: member for member in served if member.descriptor.device_log is not None}
    if not members:
        types = " or ".join(name for name in BUILT_IN if descriptor_of(name).device_log is not None)
        fault = ConfigFault(configs[0].key_manager.where, f"names no member of type {types}, whose devices keep a log")
        raise ConfigurationError.of([fault])
    for each in configs:
        each.require_complete()
    reports = [_examined(member, layout) for member in members.values()]
    if as_json:
        print_json([report.as_dict() for report in reports])
    else:
        for report in reports:
            _print_report(report)
    if any(report.findings for report in reports):
        raise typer.Exit(FAILED)


def _examined(member: Provider, layout: Layout) -> DeviceReport:
    examine = member.resolve(member.descriptor.device_log or "")
    report: DeviceReport = support.reading(lambda: asyncio.run(examine(member, layout)))
    return report


def _print_report(report: DeviceReport) -> None:
    print_fields(
        {
            "member": report.member,
            "serial number": report.serial,
            "first reading": report.first_reading,
            "new entries": report.new_entries,
            "matched with records": report.matched,
            "tests of the key": report.key_tests,
            "records that wait": report.waiting,
        }
    )
    for name, count in sorted(report.commands.items()):
        print(f"{count:>6}  {name}")
    for finding in report.findings:
        print(f"{finding.kind.upper()}  {finding.detail}")
    print("OK: nothing to explain" if not report.findings else f"FAILED: {len(report.findings)} finding(s)")


def log_of(config: Config) -> Layout:
    """Return the audit log of a configuration. Raises ConfigurationError if it has none, AuditUnavailable if the log
    does not exist."""
    from hsmcore.audit.layout import Layout

    if config.key_manager.audit_log_file is None:
        raise ConfigurationError.of([ConfigFault(f"{config.key_manager.log_where}.auditLogFile", "is required")])
    layout = Layout(config.key_manager.audit_log_file)
    if not layout.folder.is_dir():
        raise AuditUnavailable(f"audit log {layout.log}: nothing was recorded yet")
    return layout
