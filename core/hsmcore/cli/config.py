"""`hsmcore config`: what a configuration file may contain."""

from __future__ import annotations

import json

import typer

from hsmcore.cli.output import print_json
from hsmcore.cli.settings import JsonOption

app = typer.Typer(name="config", help="Show what a configuration file may contain.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep the name of the only command."""


@app.command(short_help="Print the JSON Schema of a configuration file.")
def schema(as_json: JsonOption = False) -> None:
    """Print the JSON Schema (draft 2020-12) of a configuration file, with a description of each key.

    An editor that reads it completes keys and marks faults: name its place as "$schema" in the file, beside
    "sequencer". It knows the form of each key; what several keys mean together is checked when the file is loaded,
    and by `hsmcore doctor`. With --json it stands on one line.

    Examples:

      hsmcore config schema > hsmcore.schema.json
    """
    from hsmcore.config.schema import document_schema

    if as_json:
        print_json(document_schema())
    else:
        print(json.dumps(document_schema(), indent=2, ensure_ascii=False))
