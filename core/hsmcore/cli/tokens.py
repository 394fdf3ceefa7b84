"""The `tokens` and `cluster` commands: what the module shows, and what AWS says of a CloudHSM cluster."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from hsmcore.cli.output import FAILED, note, print_fields, print_json, print_table
from hsmcore.cli.settings import ConfigOption, JsonOption, StateOption, load_config, token_settings
from hsmcore.errors import ConfigFault, ConfigurationError

if TYPE_CHECKING:
    from hsmcore.members.cloudhsm import ClusterHealth


def tokens(config: ConfigOption = None, state: StateOption = None, as_json: JsonOption = False) -> None:
    """List every token that the module shows, and mark the one that the configuration names. Nobody logs in.

    Exit code 1 if the configuration names none, or more than one.

    Example: hsmcore tokens --config hsm.json
    """
    from hsmcore.control import ControlPlane, TokenSelector

    loaded = load_config(config, state)
    settings = token_settings(loaded)

    async def listed() -> Any:
        plane = ControlPlane.for_settings(
            settings, isolated=settings.isolation == "process", hidden=loaded.secret_variables
        )
        try:
            return await plane.list_tokens()
        finally:
            await plane.close()

    found = asyncio.run(listed())
    selector = TokenSelector.of(settings)
    chosen = selector.choose(found)
    if as_json:
        names = {"slot_id": "slotId", "slot_description": "slotDescription"}
        shown = [{names.get(k, k): v for k, v in asdict(t).items()} | {"matches": t in chosen} for t in found]
        print_json({"tokens": shown, "chosen": chosen[0].slot_id if len(chosen) == 1 else None})
    else:
        print_table(
            ("", "SLOT", "LABEL", "SERIAL", "MODEL", "SLOT DESCRIPTION"),
            [
                ("*" if t in chosen else "", str(t.slot_id), t.label, t.serial, t.model, t.slot_description)
                for t in found
            ],
        )
    if len(chosen) != 1:
        note(f"hsmcore: {len(chosen)} of {len(found)} tokens match {selector}")
        note("  next: Set slotId, tokenSerial or tokenLabel to what is listed.")
        raise typer.Exit(FAILED)


def cluster(config: ConfigOption = None, state: StateOption = None, as_json: JsonOption = False) -> None:
    """Compare the configuration of a CloudHSM cluster with the vendor library's own, and ask AWS for the state of its
    HSMs (DescribeClusters). No HSM is used.

    Exit code 1 if something is wrong, 2 if the library is configured for another cluster.

    Example: hsmcore cluster --config hsm.json --json
    """
    provider = load_config(config, state).key_manager.own
    ask = provider.descriptor.cluster
    if ask is None:
        problem = f"is {provider.type}: a provider of this type has no cluster"
        raise ConfigurationError.of([ConfigFault(f"{provider.where}.type", problem)])
    health: ClusterHealth = provider.resolve(ask)(provider.config)
    shown = health.to_json()
    if as_json:
        print_json(shown)
    else:
        zones = {
            zone: ", ".join(f"{n} {state}" for state, n in states.items()) for zone, states in health.zones.items()
        }
        names = ("clusterId", "region", "state", "mode", "hsmType", "active", "error")
        print_fields({name: shown[name] for name in names} | zones)
        for problem in health.problems:
            note(f"hsmcore: {problem}")
    if not health.ok:
        raise typer.Exit(FAILED)
