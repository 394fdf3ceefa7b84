"""One version: pyproject.toml has it, and all else agrees."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def project(folder):
    return tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]


def test_the_benchmarks_have_the_version_of_the_library():
    version = project(".")["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert project("bench")["version"] == version
    assert f"hsmcore=={version}" in project("bench")["dependencies"]


def test_kubernetes_runs_this_version():
    kustomization = (ROOT / "packaging" / "kubernetes" / "kustomization.yaml").read_text()
    assert re.findall(r'^ *newTag: "(.+)"$', kustomization, re.MULTILINE) == [project(".")["version"]]


def test_the_changelog_has_the_version():
    headings = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert project(".")["version"] in headings
    assert headings[0] == "Unreleased"


PIN = re.compile(r"([\w.-]+)==(\S+)(?: ; (.+?))? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\\n|\n?\Z))+)")


def pinned(name):
    """The requirements of a file of hashes: name, version, marker, hashes. None for one that lacks any of them."""
    text = re.sub(r"\A(?:#.*\n)+", "", (ROOT / "requirements" / name).read_text())
    return [PIN.fullmatch(each) for each in re.split(r"\n(?=\S)", text)]


def used(requirements):
    """Names and versions of those that this system needs."""
    return {each[1]: each[2] for each in requirements if each[3] is None or Marker(each[3]).evaluate()}


@pytest.mark.parametrize("name", ["build", "bill", "run"])
def test_what_is_installed_by_hash_is_what_the_tests_run_with(name):
    requirements = pinned(f"{name}.txt")
    assert None not in requirements
    lines = (ROOT / "requirements" / "dev.txt").read_text().splitlines()
    tested = {canonicalize_name(each): version for each, _, version in (line.partition("==") for line in lines)}
    pins = used(requirements)
    assert pins == {each: tested.get(each) for each in pins}


def test_a_signer_runs_with_what_hsmcore_and_its_extras_require():
    from scripts.sbom import NOT_PRODUCTION, reachable  # reads all schemas of CycloneDX

    extras = project(".")["optional-dependencies"].keys() - NOT_PRODUCTION
    needed = {canonicalize_name(each) for each in reachable("hsmcore", frozenset(extras))} - {"hsmcore"}
    assert used(pinned("run.txt")).keys() == needed
    made = re.match(r"(?:#.*\n)+", (ROOT / "requirements" / "run.txt").read_text())[0]
    assert set(re.findall(r"--extra (\S+)", made)) == extras


def test_the_licences_that_are_not_permissive_are_named():
    """Of what a signer runs with, where its package says which."""
    from importlib.metadata import PackageNotFoundError, metadata

    found = set()
    for name in used(pinned("run.txt")):
        try:
            said = metadata(name)
        except PackageNotFoundError:
            continue
        licence = " ".join([said.get("License-Expression") or "", *(said.get_all("Classifier") or [])])
        if re.search(r"\bL?GPL|MPL|Affero", licence):
            found.add(name)
    assert {"orjson"} <= found
    page = (ROOT / "docs" / "RELEASING.md").read_text()
    [line] = re.findall(r"The licences of all dependencies are permissive.*?unchanged", page, re.DOTALL)
    assert [name for name in found if name.partition("-")[0] not in line] == []
