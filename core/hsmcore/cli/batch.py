"""`hsmcore batch`: proofs of batched messages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hsmcore.cli.files import deliver
from hsmcore.cli.invocation import Invocation, command
from hsmcore.cli.signing import from_hex

app = typer.Typer()


@app.callback()
def _group() -> None:
    """A group, though of one command."""


@command(app, "Make the proof of a batched message again.")
def proof(
    cli: Invocation,
    index: Annotated[int, typer.Argument(metavar="INDEX", min=0, help="The message's number in the domain.")],
    output: Annotated[Path | None, "-o PATH: Write the proof to a file instead."] = None,
    public_key: Annotated[str | None, "HEX: The key that signed the batch: no token is needed."] = None,
) -> None:
    """Make the proof of a batched message again, byte for byte as its caller had it, from what batching.keepLeaves
    keeps. A batch counts if a key of the key ring has signed it, or that of --public-key.

    Examples:

      hsmcore batch proof 81923 --output message.tlog-proof

      hsmcore batch proof 81923 --public-key 3b6a… --json
    """
    from hsmcore.manager.batched import kept_proof
    from hsmcore.tlog.proof import parts_of

    if public_key is None:
        made = cli.on_manager(lambda manager: manager.batched_proof(index))
    else:
        made = kept_proof(cli.config.key_manager, index, {from_hex(public_key, "--public-key")})
    parts = parts_of(made)
    assert parts is not None  # noqa: S101  # for the type checker
    shown = {"domain": parts.domain, "epoch": parts.epoch, "index": index, "kind": parts.kind, "proof": made.decode()}
    deliver(cli, made, output, shown, f"the proof of number {index} of {parts.domain}")
