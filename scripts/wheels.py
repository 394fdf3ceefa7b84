#!/usr/bin/env python3
"""Build the wheels and the source distributions, the same bytes from the same commit: dist/.

    scripts/wheels.py [--output dist] [--python python3.13 ...] [--folder build/wheels] [--commit HEAD]
    scripts/wheels.py --here --output FOLDER      # to try: with this environment's tools, from what is built here
    scripts/wheels.py --client                    # as before, of clients/python alone
    scripts/wheels.py --aarch64 build/pythons/3.13-arm64 --python python3.13   # for AArch64, on another machine

Needs a C compiler and what scripts/setup installs; of Python, the standard library. The tools that build are those of
requirements/build.txt, by their hashes. Each wheel carries the shared libraries that it needs (auditwheel), and a bill
of materials for them. What decides the bytes: the files, the time of the commit (SOURCE_DATE_EPOCH, which the
environment may set), the interpreter, the compiler and the libraries of this machine, and the bill of materials of the
Python packages, which `make sbom` writes into the output folder (or HSMCORE_BILL names).
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from gzip import GzipFile
from pathlib import Path
from time import gmtime

ROOT = Path(__file__).resolve().parents[1]
MINORS = range(11, 15)
PURE = ("bench", "clients/python")
"""Folders of distributions in Python alone."""
SYSROOT = ROOT / "build" / "aarch64" / "sysroot"
AARCH64_LIBRARIES = SYSROOT / "usr" / "lib" / "aarch64-linux-gnu"
CROSS_COMPILER = "aarch64-linux-gnu-gcc"
OLDEST = "manylinux_2_34"
"""The C library of Amazon Linux 2023 and RHEL 9, the oldest that CloudHSM's client supports with OpenSSL 3."""
OF_THE_SYSTEM = ("libcrypto.so.3", "libjansson.so.4")
"""Not in the wheel. OpenSSL comes from the system with its security updates, and validated where the system's is;
jansson only the chaos module needs."""
AUDITWHEEL = (
    "import platform, sys; machine = sys.argv.pop(1); platform.machine = lambda: machine; "
    "from auditwheel.main import main; sys.exit(main())"
)
"""auditwheel for the machine that the first argument names: by itself it takes only the tags of this one."""
PROBE = """
import json, os, sys, sysconfig, venv
include = os.path.join(sysconfig.get_path("include"), "Python.h")
print(json.dumps([os.path.exists(include), sys.version]))
"""


def main() -> int:
    """Build what the command line asks for."""
    parser = argparse.ArgumentParser(description="Build the wheels and the source distributions.")
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "wheels", help="for what is made on the way")
    parser.add_argument("--python", nargs="+", help="interpreters; otherwise those of CPython 3.11 to 3.14 found here")
    parser.add_argument("--commit", help="build that one, not the files as they are")
    parser.add_argument("--no-sources", action="store_true", help="no source distributions")
    parser.add_argument(
        "--aarch64", type=Path, help="that CPython, as scripts/python unpacks it, of --python's version"
    )
    parser.add_argument("--here", action="store_true", help="with this interpreter and its tools, as built in place")
    parser.add_argument("--client", action="store_true", help="of clients/python alone, with this interpreter's tools")
    options = parser.parse_args()
    output, folder = options.output.resolve(), options.folder.resolve()
    os.environ.setdefault("SOURCE_DATE_EPOCH", git("log", "-1", "--format=%ct", options.commit or "HEAD").strip())
    output.mkdir(parents=True, exist_ok=True)
    bill = Path(os.environ.setdefault("HSMCORE_BILL", str(output / "hsmcore.cdx.json")))
    if options.client:
        finish([build(Path(sys.executable), ROOT / PURE[1], folder / "raw", "bdist_wheel")], output)
        return 0
    if not bill.is_file():
        print(f"wheels: there is no {bill}, so the wheels have no bill of Python packages: make sbom", file=sys.stderr)
    if options.here:
        for stale in (*ROOT.glob("build/lib*"), *ROOT.glob("bench/build/lib*")):
            shutil.rmtree(stale)  # of a module that is gone
        python = Path(sys.executable)
        raw, *pure = (build(python, ROOT / place, folder / "raw", "bdist_wheel") for place in (".", *PURE))
        finish([repaired(python, raw, folder / "repaired"), *pure], output)
        return 0
    interpreters = [probe(name) for name in options.python] if options.python else found_interpreters()
    source = folder / "source"
    lay_source(source, options.commit)
    builder = environment(interpreters[0], folder)
    if not options.no_sources:
        finish(source_distributions(builder, source, folder / "raw"), output)
    finish([build(builder, source / place, folder / "raw", "bdist_wheel") for place in PURE], output)
    for interpreter in interpreters:
        more = crossed(options.aarch64.resolve(), folder) if options.aarch64 else headers_of(interpreter)
        raw = build(environment(interpreter, folder), source, folder / "raw", "bdist_wheel", more)
        finish([repaired(builder, raw, folder / "repaired", crossing=options.aarch64 is not None)], output)
    record(interpreters, output, options.commit, CROSS_COMPILER if options.aarch64 else os.environ.get("CC", "cc"))
    return 0


def finish(made: Sequence[Path], output: Path) -> None:
    """Write the files in their final form, and their digests to standard output."""
    for path in made:
        target = output / path.name
        (normal_tar if path.name.endswith(".tar.gz") else normal_zip)(path, target)
        print(f"{hashlib.sha256(target.read_bytes()).hexdigest()}  {target.name}", flush=True)


def record(interpreters: Sequence[Path], output: Path, commit: str | None, compiler: str) -> None:
    """Write down with what the wheels were built, beside the commit: who builds them again needs the same."""
    versions = [[str(each), "-c", PROBE] for each in interpreters]
    said = [subprocess.run(line, check=True, capture_output=True, text=True).stdout for line in versions]
    about = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout
    # None: of files that no commit has.
    commit = None if git("status", "--porcelain") else git("rev-parse", "HEAD").strip()
    built = {
        "commit": commit,
        "interpreters": [json.loads(each)[1] for each in said],
        "compiler": about.splitlines()[0],
    }
    (output / "hsmcore.build.json").write_text(json.dumps(built, indent=2) + "\n")


def git(*arguments: str) -> str:
    """What git says about this checkout."""
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def epoch() -> int:
    """The time that every file in an archive has."""
    return int(os.environ["SOURCE_DATE_EPOCH"])


def probe(name: str) -> Path:
    """The interpreter of that name. It is an error if it cannot build."""
    path = shutil.which(name)
    said = subprocess.run([path, "-c", PROBE], capture_output=True, text=True, check=False) if path else None
    if path is None or said is None or said.returncode:
        raise SystemExit(f"wheels: {name} cannot be run, or has no module venv")
    if not json.loads(said.stdout)[0]:
        raise SystemExit(f"wheels: {name} has no C headers: install its -dev package")
    return Path(path)


def found_interpreters() -> list[Path]:
    """CPython 3.11 to 3.14: from build/pythons, where scripts/python unpacks them, pyenv's folder, and PATH."""
    found = []
    for minor in MINORS:
        name = f"python3.{minor}"
        places = [
            ROOT / "build" / "pythons" / f"3.{minor}" / "usr" / "bin" / name,
            *sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/{name}")),
            *(Path(each) / name for each in os.get_exec_path()),
        ]
        for place in places:
            try:
                found.append(probe(str(place)))
                break
            except SystemExit:
                continue
        else:
            print(f"wheels: no {name} here, so no wheel for it", file=sys.stderr)
    if not found:
        raise SystemExit("wheels: no interpreter can build here: install python3-dev and python3-venv")
    return found


def lay_source(target: Path, commit: str | None) -> None:
    """Lay out the files that git knows in an empty folder: whatever else lies in the checkout plays no part."""
    shutil.rmtree(target, ignore_errors=True)
    if commit is not None:
        target.mkdir(parents=True)
        packed = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(target, filter="data")
        return
    for name in git("ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def environment(interpreter: Path, folder: Path) -> Path:
    """An environment of that interpreter with the tools of requirements/build.txt. Returns its python."""
    pins = ROOT / "requirements" / "build.txt"
    wanted = f"{interpreter}\n{interpreter.resolve()}\n{pins.read_text()}"
    place = folder / f"environment-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    python, stamp = place / "bin" / "python", place / "ready"
    if not stamp.is_file():
        shutil.rmtree(place, ignore_errors=True)
        run([str(interpreter), "-m", "venv", str(place)])
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "-q", "install", "--require-hashes"]
        run([*pip, "--only-binary", ":all:", "-r", str(pins)])
        stamp.touch()
    return python


def headers_of(interpreter: Path) -> dict[str, str]:
    """What the compiler must know to find the headers of an interpreter that scripts/python has unpacked."""
    include = interpreter.resolve().parents[1] / "include"
    unpacked = include != Path("/usr/include") and any(include.glob("*-linux-gnu/python3.*"))
    return {"C_INCLUDE_PATH": str(include)} if unpacked else {}


def crossed(target: Path, folder: Path) -> dict[str, str]:
    """What makes a build one for AArch64: another compiler, another sysconfig, the libraries of scripts/sysroot."""
    [data] = target.glob("usr/lib/python3.*/_sysconfigdata__linux_aarch64-linux-gnu.py")
    place = folder / "sysconfig"
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(data, place)
    return {
        "_PYTHON_HOST_PLATFORM": "linux-aarch64",
        "_PYTHON_SYSCONFIGDATA_NAME": data.stem,
        "PYTHONPATH": str(place),
        "CC": CROSS_COMPILER,
        "C_INCLUDE_PATH": str(target / "usr" / "include"),
        "CMAKE_ARGS": f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'scripts' / 'aarch64.cmake'}",
        "LDFLAGS": f"-Wl,-s -L{AARCH64_LIBRARIES} -Wl,-rpath-link,{AARCH64_LIBRARIES}",
    }


def build(python: Path, source: Path, output: Path, kind: str, more: Mapping[str, str] | None = None) -> Path:
    """Run the build back end, without isolation: `kind` is sdist or bdist_wheel. Returns what it made.

    `more` comes into the environment of the build.
    """
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    hook = {"sdist": "build_sdist", "bdist_wheel": "build_wheel"}[kind]
    code = f"from setuptools import build_meta; import sys; build_meta.{hook}(sys.argv[1])"
    settings = {"LC_ALL": "C.UTF-8", "CMAKE_GENERATOR": "Ninja"}
    if source not in (ROOT, ROOT / "bench"):
        settings |= {"CFLAGS": f"-ffile-prefix-map={source}=. -g0", "LDFLAGS": "-Wl,-s"}
    run([str(python), "-c", code, str(output)], cwd=source, env={**os.environ, **settings, **(more or {})})
    [made] = output.iterdir()
    return Path(shutil.move(made, output.parent / made.name))


def source_distributions(python: Path, source: Path, output: Path) -> list[Path]:
    """Those of the library and of its benchmarks."""
    return [build(python, folder, output, "sdist") for folder in (source, source / "bench")]


def repaired(python: Path, wheel: Path, output: Path, *, crossing: bool = False) -> Path:
    """The wheel with the shared libraries that it needs in it, tagged with the oldest C library that it runs on. It is
    an error if a binary needs a newer one than OLDEST."""
    shutil.rmtree(output, ignore_errors=True)
    tools = python.parent
    env = {**os.environ, "PATH": f"{tools}:{os.environ.get('PATH', '/usr/bin:/bin')}"}
    if crossing:
        # auditwheel asks dpkg which packages the libraries are from; that of this system does not know these.
        env |= {"LD_LIBRARY_PATH": str(AARCH64_LIBRARIES), "DPKG_ADMINDIR": str(SYSROOT / "dpkg")}
    machine = "aarch64" if crossing else platform.machine()
    excluded = [f"--exclude={name}" for name in OF_THE_SYSTEM]
    line = [str(python), "-c", AUDITWHEEL, machine, "repair", "--plat", f"{OLDEST}_{machine}", *excluded]
    run([*line, "-w", str(output), str(wheel)], env=env)
    [made] = output.iterdir()
    check_bill(made)
    return made


def check_bill(wheel: Path) -> None:
    """It is an error if a wheel carries libraries and no bill of materials names their packages."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    carried = [name for name in names if re.match(r"[^/]+\.libs/", name)]
    if carried and not any("/sboms/auditwheel" in name for name in names):
        raise SystemExit(f"wheels: {wheel.name} has no bill for {', '.join(carried)}: no package manager knows them")


def run(line: Sequence[str], cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    """Run a command; show the end of what it said only if it fails."""
    said = subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if said.returncode:
        print(*(said.stdout + said.stderr).splitlines()[-40:], sep="\n", file=sys.stderr)
        raise SystemExit(f"wheels: {Path(line[0]).name} {' '.join(line[1:4])}: exit status {said.returncode}")


def normal_zip(path: Path, target: Path) -> None:
    """Write a wheel again: names in order, one time, plain modes, and a RECORD in the same order."""
    with zipfile.ZipFile(path) as archive:
        files = {info.filename: (archive.read(info), mode_of(info.external_attr >> 16)) for info in archive.infolist()}
    files = {name: each for name, each in files.items() if not name.endswith("/")}
    [record] = [name for name in files if re.fullmatch(r"[^/]+\.dist-info/RECORD", name)]
    files[record] = (record_of(files, record), 0o644)
    # The folder with the metadata comes last, as the format recommends.
    names = sorted(files, key=lambda name: (".dist-info/" in name, name))
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in names:
            content, mode = files[name]
            info = zipfile.ZipInfo(name, gmtime(epoch())[:6])
            info.external_attr = (0o100000 | mode) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3
            archive.writestr(info, content)


def record_of(files: dict[str, tuple[bytes, int]], record: str) -> bytes:
    """The table of a wheel's files with their digests."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    for name in sorted(files.keys() - {record}):
        content = files[name][0]
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.writerow([name, f"sha256={digest}", len(content)])
    lines.writerow([record, "", ""])
    return text.getvalue().encode()


def mode_of(mode: int) -> int:
    """What remains of a file's mode: whether it can be run."""
    return 0o755 if mode & 0o100 else 0o644


def normal_tar(path: Path, target: Path) -> None:
    """Write a source distribution again: names in order, one time, no owner."""
    with tarfile.open(path) as archive:
        members = [(each, archive.extractfile(each)) for each in archive.getmembers() if each.isfile()]
        files = {each.name: (content.read(), mode_of(each.mode)) for each, content in members if content}
    with (
        target.open("wb") as raw,
        GzipFile("", "wb", 9, raw, mtime=epoch()) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name in sorted(files):
            content, mode = files[name]
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(content), mode, epoch()
            archive.addfile(info, io.BytesIO(content))


if __name__ == "__main__":
    sys.exit(main())
