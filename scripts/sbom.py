"""Write the software bill of materials (CycloneDX 1.6, JSON): what hsmcore consists of and needs when it runs.

Python packages as they are installed here, with those of the extras that are used in production, and the native
libraries that the extension and the tools are linked with, with the Debian packages that they come from.

    .venv/bin/python scripts/sbom.py dist/hsmcore.cdx.json

The same components give the same bytes, if SOURCE_DATE_EPOCH is set: the serial number comes from the components.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = "hsmcore"
NOT_PRODUCTION = {"all", "docs", "test"}
PACKAGE = Path(str(find_spec(PROJECT).origin)).parent


def main() -> int:
    """Write the file that the command line names, checked against CycloneDX's own schema."""
    parser = argparse.ArgumentParser(description="Write the software bill of materials.")
    parser.add_argument("output", type=Path)
    parser.add_argument("--extras", help="those that are installed here, with commas (default: all of production)")
    asked = parser.parse_args()
    output = asked.output
    chosen = None if asked.extras is None else {extra for extra in asked.extras.split(",") if extra}
    text = JsonV1Dot6(bill(chosen)).output_as_string(indent=2)
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if problem is not None:
        print(f"sbom: not valid CycloneDX: {problem}", file=sys.stderr)
        return 1
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text + "\n")
    return 0


def bill(chosen: set[str] | None = None) -> Bom:
    """The bill of what is installed here, with these extras. None: with all of production."""
    found = Bom()
    root = python_component(PROJECT, ComponentType.LIBRARY)
    found.metadata.component = root
    components = {PROJECT: root}
    extras = (
        set(metadata.metadata(PROJECT).get_all("Provides-Extra") or ()) - NOT_PRODUCTION if chosen is None else chosen
    )
    for name in dict.fromkeys(reachable(PROJECT, frozenset(extras))):
        components.setdefault(name, python_component(name, ComponentType.LIBRARY))
    for name, component in components.items():
        found.components.add(component) if name != PROJECT else None
        wanted = required(name, frozenset(extras) if name == PROJECT else frozenset())
        found.register_dependency(component, [components[each] for each, _ in wanted if each in components])
    natives = [native_component(path) for path in sorted(linked())]
    for component in natives:
        found.components.add(component)
    found.register_dependency(root, natives)
    names = sorted(f"{each.bom_ref.value} {each.version}" for each in (root, *found.components))
    found.serial_number = uuid5(NAMESPACE_URL, "\n".join(names))
    if "SOURCE_DATE_EPOCH" in os.environ:
        found.metadata.timestamp = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC)
    return found


def required(name: str, extras: frozenset[str]) -> list[tuple[str, frozenset[str]]]:
    """What a package requires here, with the extras of each that it asks for."""
    environments = [{"extra": extra} for extra in ("", *extras)]
    found = []
    for line in metadata.requires(name) or ():
        requirement = Requirement(line)
        if requirement.marker is None or any(requirement.marker.evaluate(each) for each in environments):
            found.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return [(each, wanted) for each, wanted in found if each != PROJECT]


def reachable(name: str, extras: frozenset[str], seen: set[tuple[str, frozenset[str]]] | None = None) -> Iterator[str]:
    """Every package that is needed, directly or not. One that is not installed is an error: the bill would lie."""
    seen = seen if seen is not None else set()
    if (name, extras) in seen:
        return
    seen.add((name, extras))
    yield name
    for each, wanted in required(name, extras):
        yield from reachable(each, wanted, seen)


def python_component(name: str, kind: ComponentType) -> Component:
    """One installed package."""
    about = metadata.metadata(name)
    version = about["Version"]
    return Component(
        name=name,
        version=version,
        type=kind,
        bom_ref=f"pypi:{name}",
        purl=PackageURL("pypi", None, canonicalize_name(name), version),
        licenses=licenses(about),
        description=about.get("Summary"),
    )


def licenses(about: metadata.PackageMetadata) -> list:
    """As the package states it: the SPDX expression, else the classifier's words."""
    factory = LicenseFactory()
    expression = about.get("License-Expression")
    if expression:
        return [factory.make_from_string(expression)]
    words = [line.rpartition(" :: ")[2] for line in about.get_all("Classifier") or () if line.startswith("License ::")]
    return [factory.make_with_name(words[0])] if words else []


def linked() -> set[Path]:
    """The shared libraries that the extension and the tools load."""
    files = [*PACKAGE.glob("_native.*.so"), *(path for path in (PACKAGE / "_bin").glob("*") if path.is_file())]
    if not files:
        raise SystemExit("sbom: the extension is not built; run `make build` first")
    found: set[Path] = set()
    for file in files:
        said = subprocess.run(["ldd", str(file)], capture_output=True, text=True, check=False).stdout
        found |= {Path(path).resolve() for path in re.findall(r"(/\S+) \(0x", said)}
    return {path for path in found if PACKAGE not in path.parents}


def native_component(path: Path) -> Component:
    """One shared library, and where it comes from."""
    package, version = owner(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Component(
        name=path.name,
        version=version or None,
        type=ComponentType.LIBRARY,
        bom_ref=f"native:{path.name}",
        purl=PackageURL("deb", "debian", package, version) if package else None,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
        properties=[Property(name="hsmcore:linked", value="dynamically")],
    )


def owner(path: Path) -> tuple[str, str]:
    """The Debian package of a file, and its version; empty where dpkg does not know."""
    # Its database has the paths from before /usr was merged, too.
    for candidate in (str(path), str(path).removeprefix("/usr")):
        try:
            said = subprocess.run(["dpkg-query", "-S", candidate], capture_output=True, text=True, check=False).stdout
        except FileNotFoundError:
            break
        if said:
            package = said.partition(":")[0]
            line = ["dpkg-query", "-W", "-f", "${Version}", package]
            return package, subprocess.run(line, capture_output=True, text=True, check=False).stdout
    return "", ""


if __name__ == "__main__":
    sys.exit(main())
