"""The usual places of PKCS#11 modules, for a module that is given by its name alone (module-name of RFC 7512)."""

from __future__ import annotations

import platform
from pathlib import Path

_FOLDERS = (
    "/usr/lib/{triplet}/pkcs11",
    "/usr/lib64/pkcs11",
    "/usr/lib/pkcs11",
    "/usr/lib/softhsm",
    "/usr/lib/{triplet}",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib/pkcs11",
    "/usr/local/lib",
)
_FORMS = ("lib{name}.so", "{name}.so", "{name}")


def debian_triplet() -> str:
    """Return the name of this machine's architecture in Debian's paths."""
    machine = platform.machine()
    return "arm-linux-gnueabihf" if machine.startswith("armv7") else f"{machine}-linux-gnu"


def locate_module(name: str, folder: str | None = None) -> str:
    """Return the path of module `name`: a file of that name, with or without "lib" and ".so", in `folder` or in the
    usual places. If there is none, the first possible path."""
    folders = [folder] if folder is not None else [place.format(triplet=debian_triplet()) for place in _FOLDERS]
    candidates = [Path(place, form.format(name=name)) for place in folders for form in _FORMS]
    return str(next((path for path in candidates if path.is_file()), candidates[0]))
