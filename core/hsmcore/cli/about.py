"""The `version` command, and `hsmcore config`: what is installed, and what a configuration file may contain."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path

import typer

from hsmcore.base.version import __version__
from hsmcore.cli.invocation import Invocation, command

app = typer.Typer()


@app.callback()
def _group() -> None:
    """Keep the name of the only command."""


def version(cli: Invocation) -> None:
    """Print the versions of hsmcore and of its main dependencies, and the folder of its native tools.

    Example: hsmcore version --json
    """
    versions = {"hsmcore": __version__, "python": platform.python_version()}
    for package in ("python-pkcs11", "uvloop", "solders"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    versions["tools"] = str(Path(__file__).resolve().parents[1] / "_bin")
    cli.show(versions, "\n  ".join(f"{name} {value}" for name, value in versions.items()))


@command(app, "Print the JSON Schema of a configuration file.", takes="as_json")
def schema(cli: Invocation) -> None:
    """Print the JSON Schema (draft 2020-12) of a configuration file, with a description of each key.

    An editor that reads it completes keys and marks faults: name its place as "$schema" in the file, beside
    "sequencer". It knows the form of each key; what several keys mean together is checked when the file is loaded,
    and by `hsmcore doctor`. With --json it stands on one line.

    Examples:

      hsmcore config schema > hsmcore.schema.json
    """
    from hsmcore.config.schema import document_schema

    cli.show(document_schema(), json.dumps(document_schema(), indent=2, ensure_ascii=False))
