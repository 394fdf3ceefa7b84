"""The `audit` commands that need a configuration, for destinations or devices."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from hsmcore.cli.audit.verify import TAKES, app, reading
from hsmcore.cli.invocation import Invocation, command
from hsmcore.cli.output import fields, problem, progress_bar
from hsmcore.cli.settings import misconfigured
from hsmcore.errors import AuditUnavailable

if TYPE_CHECKING:
    from hsmcore.audit.layout import Layout
    from hsmcore.config import Config, Provider
    from hsmcore.providers.yubihsm.audit import DeviceReport

_DEVICE: Final = (
    "member, serial number serial, first reading firstReading, new entries newEntries, matched with records matched, "
    "tests of the key keyTests, records that wait waiting"
)


@command(app, "Ship what is left to CloudWatch Logs and syslog.", takes=TAKES)
def ship(cli: Invocation) -> None:
    """Copy to CloudWatch Logs and syslog the records that a key manager left, then end. The log is only read.

    A running key manager ships by itself; beside one, this command refuses. Exit code 1 if a destination did not take
    everything; the output says how many records are left.

    Example: hsmcore audit ship --config hsm.json --json
    """
    from hsmcore.audit.shipping import destinations

    loaded = next(iter(cli.configs.values()))  # several key managers have one log
    layout = log_of(loaded)
    places = destinations(loaded.key_manager)
    if not places:
        problem = "has neither cloudWatchLogs nor audit.syslog: there is nowhere to ship to"
        raise misconfigured(loaded.key_manager.log_where, problem)
    shown = {}
    for place in places:
        with progress_bar(cli.as_json) as progress:
            shown[place.kind] = _shipped(layout, place, progress)
    cli.show(shown, _print_shipped, ok=not any(status["error"] for status in shown.values()))


@command(app, "Have the newest checkpoint cosigned by the witnesses.", takes=TAKES)
def cosign(cli: Invocation) -> None:
    """Ask each witness of audit.witnesses once, and keep its cosignature beside the log, where `audit verify --witness`
    finds it. A running key manager does so by itself.

    Exit code 1 if fewer than audit.quorum have cosigned.

    Example: hsmcore audit cosign --config hsm.json --json
    """
    from hsmcore.audit.check.prove import latest
    from hsmcore.audit.witnesses import Witnesses

    rules = next(iter(cli.configs.values())).key_manager
    if rules.audit is None or not rules.audit.witnesses:
        raise misconfigured(rules.log_where, "has no audit.witnesses: there is nobody to ask")
    layout = log_of(next(iter(cli.configs.values())))
    witnesses = Witnesses(layout, rules.audit, lambda: latest(layout))
    good = reading(witnesses.once)
    shown = {name: status.as_dict() for name, status in witnesses.status.items()}
    cli.show({"witnesses": shown, "quorum": witnesses.quorum}, _print_cosigned, ok=good >= witnesses.quorum)


def _print_cosigned(shown: dict[str, Any]) -> None:
    for name, one in shown["witnesses"].items():
        if one["error"]:
            problem(f"{name}: {one['error']}", "Mend that, then run the command again.")
        else:
            print(f"{name}: has cosigned the first {one['size']} records")


def _print_shipped(shown: dict[str, Any]) -> None:
    for kind, status in shown.items():
        print(f"{kind}: everything up to record {status['sentSeq']} is there")
        if status["error"]:
            what = f"{kind}: {status['lagRecords']} records are left: {status['error']}"
            problem(what, "Mend that, then run the command again; nothing is lost.")


def _shipped(layout: Layout, place: Any, progress: Any) -> dict[str, Any]:
    from hsmcore.audit.shipping.service import ShipNow

    run = ShipNow(layout, place)
    error = reading(lambda: run.run(progress))
    return run.status.as_dict() | {"error": error}


@command(app, "Drain a YubiHSM's own log and compare it with ours.", "device-log", takes=TAKES)
def device_log(cli: Invocation) -> None:
    """Read the log that each YubiHSM of the configuration keeps itself, keep its entries beside the audit log, let the
    device delete them, verify their chain and match each signature with a record.

    Run it often: the device keeps 62 entries, and with force-audit it stops when they are full. A key manager may run
    at the same time. The first reading is trusted. Exit code 1 if something needs an explanation.

    Example: hsmcore audit device-log --config hsm.json --json
    """
    from hsmcore.config.registry import BUILT_IN, descriptor_of

    configs = list(cli.configs.values())
    layout = log_of(configs[0])
    served = [member for each in configs for level, member in each.key_manager.members() if level != "emergency"]
    # A device that several key managers sign with has one log; its entries match the records of all of them.
    members = {member.name: member for member in served if member.descriptor.device_log is not None}
    if not members:
        types = " or ".join(name for name in BUILT_IN if descriptor_of(name).device_log is not None)
        what = f"names no member of type {types}, whose devices keep a log"
        raise misconfigured(configs[0].key_manager.where, what)
    for each in configs:
        each.require_complete()
    reports = [_examined(member, layout) for member in members.values()]
    shown = [report.as_dict() for report in reports]
    cli.show(shown, _print_devices, ok=not any(one["findings"] for one in shown))


def _examined(member: Provider, layout: Layout) -> DeviceReport:
    examine = member.resolve(member.descriptor.device_log or "")
    report: DeviceReport = reading(lambda: asyncio.run(examine(member, layout)))
    return report


def _print_devices(shown: list[dict[str, Any]]) -> None:
    for device in shown:
        fields(_DEVICE)(device)
        for name, number in device["commands"].items():
            print(f"{number:>6}  {name}")
        for finding in device["findings"]:
            print(f"{finding['kind'].upper()}  {finding['detail']}")
        count = len(device["findings"])
        print(f"FAILED: {count} finding(s)" if count else "OK: nothing to explain")


def log_of(config: Config) -> Layout:
    """Return the audit log of a configuration. Raises ConfigurationError if it has none, AuditUnavailable if the log
    does not exist."""
    from hsmcore.audit.layout import Layout

    if config.key_manager.audit_log_file is None:
        raise misconfigured(f"{config.key_manager.log_where}.auditLogFile", "is required")
    layout = Layout(config.key_manager.audit_log_file)
    if not layout.folder.is_dir():
        raise AuditUnavailable(f"audit log {layout.log}: nothing was recorded yet")
    return layout
