"""The `tokens` and `cluster` commands: the tokens of a PKCS#11 module; AWS' view of a CloudHSM cluster."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from hsmcore.cli.invocation import Invocation
from hsmcore.cli.output import fail, print_fields, problem, table
from hsmcore.cli.settings import misconfigured, token_settings

if TYPE_CHECKING:
    from hsmcore.providers.cloudhsm import ClusterHealth

_TOKENS: Final = "NAMED matches, SLOT slotId, LABEL label, SERIAL serial, MODEL model, SLOT DESCRIPTION slotDescription"
_SHOWN: Final = ("clusterId", "region", "state", "mode", "hsmType", "active", "error")


def tokens(cli: Invocation) -> None:
    """List every token that the module shows, and mark the one that the configuration names, without a login.

    Exit code 1 if the configuration names none, or more than one.

    Example: hsmcore tokens --config hsm.json
    """
    from hsmcore.members.control import ControlPlane, TokenSelector
    from hsmcore.members.control.nearby import near_tokens

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
    one = chosen[0].slot_id if len(chosen) == 1 else None
    cli.show({"tokens": shown, "chosen": one}, table(_TOKENS, "tokens"))
    if len(chosen) != 1:
        what = f"{len(chosen)} of {len(found)} tokens match {selector}"
        if any(token.label or token.serial for token in found):
            hint = "Set slotId, tokenSerial or tokenLabel to what is listed."
        else:
            hint = near_tokens(selector, [], settings.module_path, settings.initialize_args)
        fail([what], hint)


def cluster(cli: Invocation) -> None:
    """Compare the configuration of a CloudHSM cluster with the vendor library's own, and ask AWS for the state of its
    HSMs (DescribeClusters). No HSM is used.

    Exit code 1 if something is wrong, 2 if the library is configured for another cluster.

    Example: hsmcore cluster --config hsm.json --json
    """
    provider = cli.config.key_manager.own
    ask = provider.descriptor.cluster
    if ask is None:
        raise misconfigured(f"{provider.where}.type", f"is {provider.type}: a provider of this type has no cluster")
    health: ClusterHealth = provider.resolve(ask)(provider.config)
    cli.show(health.to_json(), _print_health, ok=health.ok)


def _print_health(shown: dict[str, Any]) -> None:
    print_fields({name: shown[name] for name in _SHOWN} | shown["zones"])
    for fault in shown["problems"]:
        problem(fault)
