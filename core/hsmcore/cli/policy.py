"""`hsmcore policy`: what a message is and whether the key may sign it; the floors of positions."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hsmcore.cli.invocation import Invocation, command
from hsmcore.cli.output import BadUsage, print_fields, table, when
from hsmcore.cli.settings import RequiredReason, load_configs, misconfigured

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from hsmcore.config import Config, Policy
    from hsmcore.state import Store

app = typer.Typer()
floor = typer.Typer(name="floor", help="The positions at and below which nothing is signed.", no_args_is_help=True)
app.add_typer(floor)

_REMEDY = 'Add "policy": {"kinds": ["tx-v0"]} to the configuration; see docs/POLICY.md.'


@command(app, "Say what a message is, and whether it would be signed.")
def explain(
    cli: Invocation,
    message: Annotated[str, typer.Argument(metavar="FILE|HEX", help="The message: a file, or hexadecimal.")],
    kind: Annotated[str | None, "What the caller takes the message for."] = None,
    position: Annotated[int | None, "Where its caller says that it stands in its chain.", {"min": 0}] = None,
    caller: Annotated[str | None, "NAME: Who asks: of policy.callers or gateway.clients."] = None,
    key: Annotated[str | None, "HEX|ADDRESS: The public key that signs (default: the key ring's, if any)."] = None,
) -> None:
    """Say what a message is, whether the configured key would sign it, and why not: for this caller, and by the role of
    the key. Nothing is signed, bound or counted: limits of callers are shown, and sums a minute are not looked at. Ends
    with 1 if it would be refused.

    Examples:

      hsmcore policy explain block.bin --kind block

      hsmcore policy explain ff68736d636f7265… --caller relayer
    """
    from hsmcore.config.root import SINGLE
    from hsmcore.manager.policy.explain import Requester, explained

    config, policy, data = cli.config, _policy(cli.config), _bytes_of(message)
    clients = {} if config.gateway is None else config.gateway.clients
    public_key = _current_key(cli, policy) if key is None else _key_of(key)
    name = config.key_manager.manager or SINGLE
    requester = Requester(caller, clients.get(caller or ""), name, public_key)
    policies = [own.key_manager.policy for own in load_configs(cli.config_path, cli.state, warns=False).values()]
    formats = [form for one in policies if one is not None for form in one.formats]

    def work(store: Store | None) -> Coroutine[Any, Any, dict[str, Any]]:
        return explained(policy, data, kind, position, store, requester, formats)

    found = cli.on_state(work, shows=True) if policy.ordered else asyncio.run(work(None))
    cli.show(found, _print_explained, ok=found["signed"])


def _print_explained(found: dict[str, Any]) -> None:
    shown = {name: value for name, value in found.items() if value is not None}
    if "boundNs" in shown:
        shown["bound at"] = when(shown.pop("boundNs"), "milliseconds")
    print_fields(shown)


@command(floor, "Show the floor and the highest position of each domain.")
def show(cli: Invocation) -> None:
    """Show the floor and the highest position of each domain, and why each floor was set.

    Example: hsmcore policy floor show --json
    """
    from hsmcore.manager.policy.watermark import marks_of

    _policy(cli.config)
    found = [
        {"domain": name, "floor": mark.floor, "highest": mark.high, "reason": mark.reason}
        for name, mark in sorted(cli.on_state(marks_of, shows=True).items())
    ]
    cli.show(found, table("DOMAIN domain, FLOOR floor:position, HIGHEST highest:position, REASON reason"))


@command(floor, "Raise a floor; it never goes down.")
def set(  # noqa: A001  # the command's name
    cli: Invocation,
    kind: Annotated[str, typer.Argument(metavar="KIND", help="An ordered kind of the policy, such as block.")],
    position: Annotated[int, typer.Argument(min=0, max=2**63 - 1, help="The last position that is given up.")],
    reason: RequiredReason,
) -> None:
    """Have nothing signed at or below a position from now on, by no key of the domain, and forget what was bound there.
    A floor never goes down. Running key managers obey it at once.

    Example: hsmcore policy floor set block 1200000 --reason "snapshot of November is final"
    """
    from hsmcore.manager.policy.watermark import Watermark

    policy = _policy(cli.config)
    if kind not in policy.ordered:
        raise BadUsage(
            f"{kind!r} is no ordered kind of the policy; it has {', '.join(sorted(policy.ordered)) or 'none'}"
        )
    domain = policy.chain(kind)
    with cli.recorded("policy floor set", domain=domain, position=position, reason=reason):
        gone = cli.on_state(lambda store: Watermark(store, "").raise_floor(domain, position, reason), absent="made")
    shown = {"domain": domain, "floor": position, "reason": reason, "forgotten": gone}
    cli.show(shown, f"{domain}: nothing is signed at or below {position} any more; {gone} positions are forgotten")


@command(app, "Have a key bind positions in another domain, or by other forms.")
def rebind(
    cli: Invocation,
    reason: RequiredReason,
    keys: Annotated[
        list[str] | None, typer.Argument(metavar="KEY", help="Public keys, as the refused start names them.")
    ] = None,
) -> None:
    """Let keys that have bound positions otherwise bind as the configuration says from now on: in its domain, by its
    ordered kinds and formats. Without KEY, all keys that the state store knows. What they have bound stays bound where
    it was, and means nothing in the new domain: compare with the chain first, and give up what was signed there
    (`policy floor set`). No key manager may run on the store; in a fleet the epoch ends, and is claimed again.

    Example: hsmcore policy rebind 5c0fae23d9bd… --reason "the test chain begins again as my-rollup-2"
    """
    from hsmcore.recovery.key_domains import rebind as rebound
    from hsmcore.recovery.key_domains import wanted_of

    wanted, named = wanted_of(cli.config.key_manager), [_key_of(key) for key in keys or ()]
    with cli.recorded("policy rebind", reason=reason, domain=wanted.domain or None) as entry:
        found = cli.on_state(lambda store: rebound(cli.config, store, named, reason))
        entry |= {"public_key": [*found], "previous": [was and was.domain for was in found.values()]}
    now = wanted._asdict() if wanted.forms else None
    shown = [{"publicKey": key.hex(), "before": was and was._asdict(), "now": now} for key, was in found.items()]
    text = [f"{key.hex()}: was bound to {was or 'nothing'}" for key, was in found.items()]
    to = f"bound to {wanted}" if wanted.forms else "bound to nothing"
    cli.show({"rebound": shown, "reason": reason}, "\n".join([*text, f"{len(found)} keys are {to}"]))


def _policy(config: Config) -> Policy:
    rules = config.key_manager
    if rules.policy is None:
        raise misconfigured(f"{rules.where}.policy", "is missing, so the key signs any bytes", _REMEDY)
    return rules.policy


def _current_key(cli: Invocation, policy: Policy) -> bytes | None:
    """Return the key that signs, where a rule is about it and the key ring says which it is."""
    from hsmcore.cli.keys import ring

    if policy.transactions is None or policy.transactions.role == "any":
        return None
    return next((one.public_key for one in ring(cli) if one.state == "active"), None)


def _key_of(given: str) -> bytes:
    from hsmcore.base.base58 import from_base58

    for decode in (bytes.fromhex, from_base58):
        with suppress(ValueError):
            if len(found := decode(given)) in (32, 65):
                return found
    raise BadUsage(f"{given!r} is no public key: hexadecimal, or an address in base58")


def _bytes_of(given: str) -> bytes:
    try:
        return Path(given).read_bytes()
    except OSError as error:  # a transaction in hexadecimal is longer than a name may be, too
        if re.fullmatch(r"(0x)?([0-9a-fA-F]{2})+", given):
            return bytes.fromhex(given.removeprefix("0x"))
        raise BadUsage(f"{given!r} is neither hexadecimal nor a file that can be read: {error.strerror}") from None
