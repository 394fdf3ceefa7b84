"""Hold what a wheel needs of a system against what the Linuxes of AWS CloudHSM's client have.

    .venv/bin/python scripts/platforms.py WHEEL...

The wheel's binaries name libraries and versions of their symbols (`.gnu.version_r`). A system whose library is older
has no such version, and its loader refuses the binary. Exit status 1 if a wheel fits a platform that the table does
not expect it for, or misses one that it does.
"""

from __future__ import annotations

import io
import re
import sys
import zipfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

Version = tuple[int, ...]


@dataclass(frozen=True)
class Platform:
    """A Linux as it is first supported: later updates of a library keep what the first one has."""

    name: str
    glibc: Version
    openssl: Version
    fits: bool = True


PLATFORMS = (
    Platform("Amazon Linux 2", (2, 26), (1, 0, 2), fits=False),
    Platform("Amazon Linux 2023", (2, 34), (3, 0, 8)),
    Platform("Red Hat Enterprise Linux 8", (2, 28), (1, 1, 1), fits=False),
    Platform("Red Hat Enterprise Linux 9", (2, 34), (3, 0, 1)),
    Platform("Red Hat Enterprise Linux 10", (2, 39), (3, 2, 2)),
    Platform("Ubuntu 22.04", (2, 35), (3, 0, 2)),
    Platform("Ubuntu 24.04", (2, 39), (3, 0, 13)),
    Platform("Ubuntu 26.04", (2, 43), (3, 5, 0)),
)
"""Which: docs.aws.amazon.com/cloudhsm/latest/userguide/sdk8-linux.html, each for x86-64 and AArch64; as of 2026-12-01.
glibc: docs.aws.amazon.com/linux/al2023/ug/glibc-gcc-and-binutils.html for Amazon's two; the package glibc of each
release of Red Hat's and Ubuntu's (packages.ubuntu.com). OpenSSL: the package openssl of each; Red Hat's first 3.x is
3.0.1, in 9.0 (redhat.com/en/blog/experience-bringing-openssl-30-rhel-and-fedora). Up to 1.1.1 its library is
libcrypto.so.1.*, which no binary here asks for."""
OF_GLIBC = re.compile(r"(lib(c|m|dl|pthread|rt)\.so\.6|ld-linux-(x86-64|aarch64)\.so\.[12])")
OPTIONAL = {"libjansson.so.4": "libhsmcore_chaos.so"}
"""Libraries that only the module of tests needs; nothing that signs loads it."""
Needs = dict[str, set[Version]]


def needs(wheel: Path) -> Needs:
    """By library, the versions that binaries ask for: of those that neither the wheel has nor OPTIONAL."""
    found: Needs = defaultdict(set)
    with zipfile.ZipFile(wheel) as archive:
        carried = {name.rpartition("/")[2] for name in archive.namelist() if "/" in name}
        for name in archive.namelist():
            file = name.rpartition("/")[2]
            try:
                elf = ELFFile(io.BytesIO(archive.read(name)))
            except ELFError:
                continue
            dynamic = elf.get_section_by_name(".dynamic")
            for tag in dynamic.iter_tags("DT_NEEDED") if dynamic else ():
                if tag.needed not in carried and OPTIONAL.get(tag.needed) != file:
                    found[tag.needed] |= set()
            versions = elf.get_section_by_name(".gnu.version_r")
            for library, auxiliaries in versions.iter_versions() if versions else ():
                if library.name in found:
                    found[library.name] |= {version(each.name) for each in auxiliaries}
    return dict(found)


def version(name: str) -> Version:
    """That of a symbol version, as GLIBC_2.34 or OPENSSL_3.0.0. It is an error if it has none: GLIBC_PRIVATE."""
    found = re.fullmatch(r"(?:GLIBC|OPENSSL)_(\d+(?:\.\d+)+)", name)
    if found is None:
        raise SystemExit(f"platforms: {name} is a version of no public symbol")
    return tuple(map(int, found[1].split(".")))


def reasons(platform: Platform, needed: Needs) -> list[str]:
    """Why the wheel does not run there: empty if it does."""
    found = []
    for library, versions in sorted(needed.items()):
        newest = max(versions, default=(0,))
        if OF_GLIBC.fullmatch(library):
            has = platform.glibc
        elif library == "libcrypto.so.3" and platform.openssl >= (3,):
            has = platform.openssl
        else:
            found.append(f"{library} is not there")
            continue
        if newest > has:
            found.append(f"{library} is {dotted(has)}, {dotted(newest)} is needed")
    return found


def dotted(numbers: Version) -> str:
    """A version as people write it."""
    return ".".join(map(str, numbers))


def main() -> int:
    """Check the wheels that the command line names."""
    wrong = 0
    for wheel in map(Path, sys.argv[1:]):
        needed = needs(wheel)
        print(wheel.name)
        for platform in PLATFORMS:
            why = reasons(platform, needed)
            wrong += platform.fits == bool(why)
            print(f"  {platform.name}: {'; '.join(why) or 'fits'}")
    return 1 if wrong or len(sys.argv) < 2 else 0


if __name__ == "__main__":
    sys.exit(main())
