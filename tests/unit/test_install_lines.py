"""Nothing has pip ask an index for hsmcore: the name there is not ours, and whoever takes it is installed by root."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib

import pytest
from tests.support.paths import ROOT

from hsmcore import solana
from hsmcore.base.extras import install
from hsmcore.cli.app import _EXTRAS
from hsmcore.config.registry import descriptor_of

# A requirement by its bare name. `hsmcore @ file:…`, `.[extra]` and a wheel's path are none.
BARE = re.compile(r"""pip install\b[^\n`]*?[\s'"]hsmcore(-bench|-client)?(\[[^\]]*\])?(?![\w./\[-])(?! @ file:)""")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def texts():
    """Each file that git knows, apart from the changelog, tests and what is no text."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.split("\0"):
        if not name or name.startswith("tests/") or name in ("CHANGELOG.md", "core/hsmcore/base/extras.py"):
            continue
        try:
            yield name, (ROOT / name).read_text()
        except (UnicodeDecodeError, OSError):
            continue


def test_a_name_whose_package_is_missing_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "solders", None)
    monkeypatch.setitem(sys.modules, "solders.pubkey", None)
    for module in ("address", "keychain", "off_chain", "transactions"):
        monkeypatch.delitem(sys.modules, f"hsmcore.solana.{module}", raising=False)
    monkeypatch.delitem(vars(solana), "HsmcoreSigner", raising=False)
    with pytest.raises(ModuleNotFoundError) as caught:
        solana.HsmcoreSigner  # noqa: B018  # it is loaded when it is used
    assert install("solana") in str(caught.value)


def test_the_pattern_finds_what_asks_an_index():
    for bare in (
        "pip install hsmcore",
        "pip install hsmcore-client",
        "pip install 'hsmcore[serve]'",
        "pip install --find-links dist 'hsmcore==1'",
    ):
        assert BARE.search(bare), bare
    for good in (
        'pip install "hsmcore[serve] @ file:///a/hsmcore-1.whl"',
        "pip install ./hsmcore-1.whl",
        "pip install .",
    ):
        assert not BARE.search(good), good


def test_no_line_asks_an_index_for_hsmcore():
    assert {name: found[0] for name, text in texts() if (found := BARE.search(text))} == {}


def test_no_extra_asks_an_index_for_hsmcore():
    """All but the extra that names the others, which pip takes from the same file."""
    others = {extra: listed for extra, listed in EXTRAS.items() if extra != "all"}
    assert not [each for listed in (PROJECT["dependencies"], *others.values()) for each in listed if "hsmcore" in each]
    [every] = EXTRAS["all"]
    assert set(re.fullmatch(r"hsmcore\[(.+)\]", every)[1].split(",")) == {*others}


@pytest.mark.parametrize("name", ["packaging/oci/Containerfile", "docs/DEPLOY.md"])
def test_a_signer_gets_from_an_index_what_has_a_known_hash_and_no_more(name):
    lines = (ROOT / name).read_text().replace("\\\n", "").splitlines()
    found = [each for line in lines for each in re.findall(r"bin/pip (?:install|download) [^&]+", line)]
    assert any("requirements/run.txt" in each or "/path/to/run.txt" in each for each in found)
    assert not [each for each in found if "--require-hashes" not in each and "--no-index" not in each]


def test_the_wheels_of_the_documents_are_of_this_version():
    found = {(name, v) for name, text in texts() if name.endswith(".md")
             for v in re.findall(r"hsmcore(?:_bench|_client)?-(\d+\.\d+\.\d+)-", text)}  # fmt: skip
    assert {"README.md", "docs/DEPLOY.md", "docs/RELEASING.md"} <= {name for name, _ in found}
    assert {version for _, version in found} == {PROJECT["version"]}


def test_a_hint_names_the_packages_themselves():
    for extra in {*EXTRAS} - {"all"}:
        program, verb, *packages = shlex.split(install(extra))
        assert (program, verb) == ("pip", "install")
        names = [re.match(r"[\w-]+", each)[0] for each in packages]
        assert names == [re.match(r"[\w-]+", each)[0] for each in EXTRAS[extra]]
    for extra in _EXTRAS.values():
        assert "hsmcore[" not in install(extra)
        assert install(extra).startswith("pip install ")
    assert descriptor_of("aws-kms").extra in EXTRAS
