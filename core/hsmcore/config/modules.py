"""Where PKCS#11 modules are, for who names one by its name alone (module-name of RFC 7512)."""

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
    """The name of this machine's kind in Debian's paths."""
    machine = platform.machine()
    return "arm-linux-gnueabihf" if machine.startswith("armv7") else f"{machine}-linux-gnu"


def locate_module(name: str, folder: str | None = None) -> str:
    """The path of module `name`: the file of that name, with or without "lib" and ".so", in `folder` or in the usual
    places. Where there is none, the path at which it would be first."""
    folders = [folder] if folder is not None else [place.format(triplet=debian_triplet()) for place in _FOLDERS]
    candidates = [Path(place, form.format(name=name)) for place in folders for form in _FORMS]
    return str(next((path for path in candidates if path.is_file()), candidates[0]))
