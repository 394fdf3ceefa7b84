"""The `tokens` and `cluster` commands: the tokens of a PKCS#11 module; AWS' view of a CloudHSM cluster."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from hsmcore.cli.invocation import Invocation
from hsmcore.cli.output import FAILED, problem
from hsmcore.cli.settings import token_settings
from hsmcore.errors import ConfigFault, ConfigurationError

if TYPE_CHECKING:
    from hsmcore.providers.cloudhsm import ClusterHealth


def tokens(cli: Invocation) -> None:
    """List every token that the module shows, and mark the one that the configuration names, without a login.

    Exit code 1 if the configuration names none, or more than one.

    Example: hsmcore tokens --config hsm.json
    """
    from hsmcore.members.control import ControlPlane, TokenSelector

    config = cli.config
    settings = token_settings(config)

    async def listed() -> Any:
        isolated = settings.isolation == "process"
        plane = ControlPlane.for_settings(settings, isolated=isolated, hidden=config.secret_variables)
        try:  # not `async with`, which opens the one token that the configuration names
            return await plane.list_tokens()
        finally:
            await plane.close()

    found = asyncio.run(listed())
    selector = TokenSelector.of(settings)
    chosen = selector.choose(found)
    names = {"slot_id": "slotId", "slot_description": "slotDescription"}
    shown = [{names.get(k, k): v for k, v in asdict(t).items()} | {"matches": t in chosen} for t in found]
    cli.show_table(
        {"tokens": shown, "chosen": chosen[0].slot_id if len(chosen) == 1 else None},
        ("", "SLOT", "LABEL", "SERIAL", "MODEL", "SLOT DESCRIPTION"),
        [("*" if t in chosen else "", str(t.slot_id), t.label, t.serial, t.model, t.slot_description) for t in found],
    )
    if len(chosen) != 1:
        what = f"{len(chosen)} of {len(found)} tokens match {selector}"
        problem(what, "Set slotId, tokenSerial or tokenLabel to what is listed.")
        raise typer.Exit(FAILED)


def cluster(cli: Invocation) -> None:
    """Compare the configuration of a CloudHSM cluster with the vendor library's own, and ask AWS for the state of its
    HSMs (DescribeClusters). No HSM is used.

    Exit code 1 if something is wrong, 2 if the library is configured for another cluster.

    Example: hsmcore cluster --config hsm.json --json
    """
    provider = cli.config.key_manager.own
    ask = provider.descriptor.cluster
    if ask is None:
        what = f"is {provider.type}: a provider of this type has no cluster"
        raise ConfigurationError.of([ConfigFault(f"{provider.where}.type", what)])
    health: ClusterHealth = provider.resolve(ask)(provider.config)
    shown = health.to_json()
    if not cli.as_json:
        names = ("clusterId", "region", "state", "mode", "hsmType", "active", "error")
        zones = {zone: [f"{n} {state}" for state, n in states.items()] for zone, states in health.zones.items()}
        shown = {name: shown[name] for name in names} | zones
    cli.show(shown)
    for fault in () if cli.as_json else health.problems:
        problem(fault)
    if not health.ok:
        raise typer.Exit(FAILED)
