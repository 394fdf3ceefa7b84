"""The `version` command."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

from hsmcore.base.version import __version__
from hsmcore.cli.output import print_json
from hsmcore.cli.settings import JsonOption


def version(as_json: JsonOption = False) -> None:
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
    if as_json:
        print_json(versions)
    else:
        print("hsmcore", versions.pop("hsmcore"))
        for name, value in versions.items():
            print(f"  {name} {value}")
