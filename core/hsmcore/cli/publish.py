"""`hsmcore publish`: the public log of positions: proofs from its files, its state, and what a proof shows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hsmcore.cli.files import deliver, read
from hsmcore.cli.invocation import Invocation, command
from hsmcore.cli.output import BadUsage, table
from hsmcore.cli.settings import misconfigured
from hsmcore.cli.signing import from_hex

if TYPE_CHECKING:
    from hsmcore.audit.layout import TreeLayout
    from hsmcore.config.publish import Publish
    from hsmcore.tlog.note import VerifierKey

app = typer.Typer()
KindArgument = Annotated[str, typer.Argument(metavar="KIND", help="A chain that is published, such as block.")]
PositionArgument = Annotated[int, typer.Argument(metavar="POSITION", min=0, max=2**63 - 1, help="In the chain.")]


@command(app, "Show how far each chain is published.")
def status(cli: Invocation) -> None:
    """Show how far each chain is signed and published, from the folder of the logs: of any host that has it.

    Example: hsmcore publish status --json
    """
    from hsmcore.audit import cosigned
    from hsmcore.audit.public import published

    settings, found = _settings(cli), list[dict[str, Any]]()
    for kind, chain in settings.chains.items():
        layout, keys = _layout(settings, kind), _keys(settings)
        newest = published(layout, keys, settings.needed)
        seen = cosigned.newest(cosigned.notes(layout), keys)
        found.append(
            {
                "kind": kind,
                "origin": chain.origin,
                "first": chain.first,
                "published": 0 if newest is None else newest.size,
                "witnesses": {key.name: seen[key].size if key in seen else 0 for key in keys},
            }
        )
    cli.show(found, table("KIND kind, ORIGIN origin, FIRST first, PUBLISHED published"))


@command(app, "Make the proof of what a position is bound to.")
def proof(
    cli: Invocation,
    kind: KindArgument,
    position: PositionArgument,
    output: Annotated[Path | None, "-o PATH: Write the proof to a file instead."] = None,
) -> None:
    """Make the proof (C2SP tlog-proof) of what a position is bound to, from the folder of the logs. No token is needed.

    Example: hsmcore publish proof block 1200 --output block-1200.tlog-proof
    """
    from hsmcore.audit.public import proof_of, published

    settings = _settings(cli)
    layout, index = _layout(settings, kind), position - settings.chains[kind].first
    newest = published(layout, _keys(settings), settings.needed)
    if newest is None or not 0 <= index < newest.size:
        raise BadUsage(f"position {position} is not published: see `hsmcore publish status`")
    made = proof_of(layout, newest, index)
    shown = {"kind": kind, "position": position, "size": newest.size, "proof": made.decode()}
    deliver(cli, made, output, shown, f"the proof of position {position}")


@command(app, "Verify the proof of a position.")
def verify(
    cli: Invocation,
    kind: KindArgument,
    position: PositionArgument,
    digest: Annotated[str, typer.Argument(metavar="DIGEST", help="SHA-256 of the signed payload, in hexadecimal.")],
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The proof.")],
) -> None:
    """Say whether a proof shows that a position is bound to a payload in each history that the configuration's quorum
    of witnesses has seen. Ends with 1 if it does not. Others verify without hsmcore: examples/verify_position.py.

    Example: hsmcore publish verify block 1200 9f86d081… block-1200.tlog-proof
    """
    from hsmcore.audit.check.prove import check_inclusion
    from hsmcore.audit.public import PAYLOAD
    from hsmcore.tlog.proof import MOST_BYTES, ProofError

    settings = _settings(cli)
    _layout(settings, kind)
    keys, entry = _keys(settings), PAYLOAD + from_hex(digest, "DIGEST")
    chain, seen, problem = settings.chains[kind], list[str](), ""
    try:
        found = check_inclusion(read(path, MOST_BYTES + 1), keys, entry)
        seen = sorted({key.name for key in found.keys})
        if (found.checkpoint.origin, found.seq - 1) != (chain.origin, position - chain.first):
            problem = "the proof is of another log, or of another position"
        elif len(seen) < settings.needed:
            problem = f"{len(seen)} of the witnesses have cosigned it, and {settings.needed} must have"
    except ProofError as error:
        problem = str(error)
    shown = {"valid": not problem, "kind": kind, "position": position, "witnesses": seen, "problem": problem or None}
    said = problem and f"NOT valid: {problem}"
    cli.show(shown, said or f"valid: position {position} of {kind}, seen by {', '.join(seen)}", ok=not problem)


def _settings(cli: Invocation) -> Publish:
    rules = cli.config.key_manager
    if rules.publish is None:
        raise misconfigured(f"{rules.where}.publish", "is missing, so nothing is published", "See docs/PUBLIC_LOG.md.")
    return rules.publish


def _keys(settings: Publish) -> list[VerifierKey]:
    from hsmcore.audit.witnesses import key_of

    return [key_of(witness) for witness in settings.witnesses]


def _layout(settings: Publish, kind: str) -> TreeLayout:
    from hsmcore.audit.layout import TreeLayout

    if kind not in settings.chains:
        raise BadUsage(f"{kind!r} is not published; there is {', '.join(settings.chains)}")
    return TreeLayout(Path(settings.folder) / kind)
