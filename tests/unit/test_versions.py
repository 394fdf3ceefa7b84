"""One version: pyproject.toml has it, and all else agrees."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def project(folder):
    return tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]


def test_the_benchmarks_have_the_version_of_the_library():
    version = project(".")["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert project(".")["optional-dependencies"]["bench"] == [f"hsmcore-bench[full]=={version}"]
    assert project("bench")["version"] == version
    assert f"hsmcore=={version}" in project("bench")["dependencies"]


def test_kubernetes_runs_this_version():
    kustomization = (ROOT / "packaging" / "kubernetes" / "kustomization.yaml").read_text()
    assert re.findall(r'^ *newTag: "(.+)"$', kustomization, re.MULTILINE) == [project(".")["version"]]


def test_the_changelog_has_the_version():
    headings = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert project(".")["version"] in headings
    assert headings[0] == "Unreleased"


def test_what_builds_wheels_is_what_develops():
    """setuptools and Cython of requirements/build.txt are those that the tests run with, and each line has hashes."""
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "requirements" / "build.txt").read_text(), re.MULTILINE))
    used = (ROOT / "requirements" / "dev.txt").read_text().lower()
    for name, version in pins.items():
        assert f"\n{name.lower()}=={version}\n" in used, name
    requirements = re.split(r"\n(?=\S)", (ROOT / "requirements" / "build.txt").read_text().partition("\nauditwheel")[2])
    assert all("--hash=sha256:" in each for each in requirements)
    source = (ROOT / "requirements" / "build.in").read_text()
    assert {name.lower() for name in re.findall(r"^([\w-]+)==", source, re.MULTILINE)} == {
        name.lower() for name in pins
    }
