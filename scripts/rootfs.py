"""Put together a root file system that has hsmcore and what it runs with, and nothing else: no shell, no package
manager, no tool. packaging/oci/Containerfile makes an image of it.

    python3 scripts/rootfs.py ROOT --site SITE --sbom BILL [--module /usr/lib/softhsm/libsofthsm2.so …]

SITE is where pip has installed hsmcore (`pip install --target`). The interpreter is the one that runs this, without
its tests and tools; shared libraries are those that ldd names for each program and library. Linux with glibc.
"""

from __future__ import annotations

import argparse
import compileall
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Final

UID: Final = 65532
"""User and group of the process."""
_NOT_NEEDED: Final = frozenset(
    {"test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "pydoc_data"}
    | {"site-packages", "dist-packages", "config-*"}
)
"""Of the standard library."""
_MERGED: Final = ("bin", "sbin", "lib", "lib64")
_NEVER_CHECKED: Final = PycInvalidationMode.UNCHECKED_HASH
"""Nothing changes in an image, and its files have no times."""
_CERTIFICATES: Final = Path("/etc/ssl/certs/ca-certificates.crt")
_SHELLS: Final = ("sh", "bash", "dash", "busybox")


def build(root: Path, packages: Path, modules: Iterable[Path], bill: Path) -> None:
    """Fill an empty folder."""
    for name in _MERGED:
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(f"usr/{name}")
    python = Path(sys.executable).resolve()
    if sys.prefix != sys.base_prefix:
        raise SystemExit("rootfs: run it with the interpreter itself, not with that of a virtual environment")
    library = Path(sysconfig.get_path("stdlib"))
    place = _inside(root, Path(site.getsitepackages()[0]))
    _copy_tree(library, _inside(root, library), _NOT_NEEDED)
    _copy_tree(packages, place)
    _copy(python, root)
    for module in modules:
        _copy(module, root)
    programs = [python, *modules, *_elf(_inside(root, library)), *_elf(packages)]
    for needed in sorted(_libraries(programs, (root, packages))):
        _copy(needed, root)
    for folder in (place, _inside(root, library)):
        compileall.compile_dir(str(folder), quiet=2, stripdir=str(root), invalidation_mode=_NEVER_CHECKED)
    program = root / "usr" / "bin" / "hsmcore"
    program.write_text(f"#!{python} -I\nimport sys\n\nfrom hsmcore.cli import main\n\nsys.exit(main())\n")
    program.chmod(0o755)
    _settings(root)
    (root / "usr" / "share" / "sbom").mkdir(parents=True)
    shutil.copy(bill, root / "usr" / "share" / "sbom" / "hsmcore.cdx.json")
    subprocess.run(["ldconfig", "-r", str(root)], check=True, env={"PATH": "/usr/sbin:/sbin"})
    if found := [name for name in _SHELLS for folder in _MERGED[:2] if (root / "usr" / folder / name).exists()]:
        raise SystemExit(f"rootfs: {', '.join(found)} got in")


def _settings(root: Path) -> None:
    etc = root / "etc"
    (etc / "ssl" / "certs").mkdir(parents=True, exist_ok=True)
    (etc / "hsmcore").mkdir()
    (etc / "passwd").write_text(f"hsmcore:x:{UID}:{UID}::/var/lib/hsmcore:/nonexistent\n")
    (etc / "group").write_text(f"hsmcore:x:{UID}:\n")
    (etc / "nsswitch.conf").write_text("hosts: files dns\n")
    if _CERTIFICATES.exists():
        shutil.copy(_CERTIFICATES, etc / "ssl" / "certs")
    for name, mode in (
        ("tmp", 0o1777),
        ("proc", 0o555),
        ("dev", 0o755),
        ("run/hsmcore", 0o750),
        ("var/lib/hsmcore", 0o700),
    ):
        folder = root / name
        folder.mkdir(parents=True)
        folder.chmod(mode)
        if "hsmcore" in name and os.geteuid() == 0:
            os.chown(folder, UID, UID)


def _inside(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def _copy_tree(source: Path, target: Path, without: Iterable[str] = ()) -> None:
    shutil.copytree(
        source, target, ignore=shutil.ignore_patterns("__pycache__", *without), symlinks=True, dirs_exist_ok=True
    )


def _copy(path: Path, root: Path) -> None:
    """Copy a file, and the links that lead to it."""
    real = path.resolve()
    for one in {real, path}:
        # The folder is taken as it really is: /lib is a link to usr/lib in both places.
        target = _inside(root, one.parent.resolve() / one.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if one.is_symlink():
            target.unlink(missing_ok=True)
            target.symlink_to(os.path.relpath(real, one.parent.resolve()))
        elif not target.exists():
            shutil.copy2(one, target)


def _elf(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield path


def _libraries(programs: Iterable[Path], there: Iterable[Path]) -> set[Path]:
    """What the dynamic linker loads for them from outside of the folders that are there already."""
    said = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=False).stdout
    if missing := re.findall(r"^\s*(\S+) => not found", said, re.MULTILINE):
        raise SystemExit(f"rootfs: not installed here: {', '.join(sorted(set(missing)))}")
    found = {Path(name) for name in re.findall(r"(?:=> |^\s+)(/\S+) \(0x", said, re.MULTILINE)}
    return {path for path in found if not any(path.is_relative_to(folder) for folder in there)}


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description="Put together a root file system with hsmcore and nothing else.")
    parser.add_argument("root", type=Path, help="a folder that is not there yet")
    parser.add_argument("--site", type=Path, required=True, help="the folder that pip has installed into")
    parser.add_argument("--module", type=Path, action="append", default=[], help="a PKCS#11 module to put in as well")
    parser.add_argument("--sbom", type=Path, required=True, help="the bill of materials: scripts/sbom.py writes it")
    asked = parser.parse_args()
    asked.root.mkdir()
    build(asked.root.resolve(), asked.site.resolve(), asked.module, asked.sbom)


if __name__ == "__main__":
    main()
