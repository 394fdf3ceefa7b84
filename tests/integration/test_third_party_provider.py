"""A provider that another distribution adds by its entry point: nothing in hsmcore names it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tests.support.verifiers import is_good

from hsmcore.config.registry import BUILT_IN, GROUP

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]

SETTINGS = """
from typing import Annotated

from hsmcore.config import Pkcs11Settings, ProviderDescriptor, Secret
from hsmcore.config.base import Text


class AcmeSettings(Pkcs11Settings):
    rack: Annotated[str, Text(16)]
    pin: Secret

    @property
    def name_part(self):
        return self.rack

    @property
    def pin_secret(self):
        return self.pin


PROVIDER = ProviderDescriptor(
    "acme",
    AcmeSettings,
    "Install acme-hsm.",
    patience_ms=1234,
    member="acme_hsm.member:AcmeMember",
    surroundings="acme_hsm.member:look_at_rack",
    secret_variables=frozenset({"ACME_TOKEN"}),
)
"""
MEMBER = """
from hsmcore.doctor.report import ok
from hsmcore.members import Pkcs11Member


class AcmeMember(Pkcs11Member):
    pass


def look_at_rack(subject):
    yield ok("rack", f"rack {subject.provider.config.rack} has power")
"""
LAX = """
from pydantic import ConfigDict

from hsmcore.config import ProviderDescriptor, ProviderSettings


class LaxSettings(ProviderSettings):
    model_config = ConfigDict(extra="allow")


PROVIDER = ProviderDescriptor("lax", LaxSettings, "")
"""
LOAD = """
import json, sys
from hsmcore.config import load
from hsmcore.errors import ConfigurationError

said = []
for document in json.load(sys.stdin):
    try:
        manager = load(document).key_manager
        said.append({"name": manager.name, "patience": manager.patience_ms})
    except ConfigurationError as error:
        said.append({fault.path: fault.problem for fault in error.faults})
print(json.dumps(said))
"""
SIGN = """
import asyncio, json, sys
from hsmcore import create_key_manager


async def main(document):
    async with create_key_manager(document) as manager:
        receipt = await manager.sign_with_receipt(b"acme")
        member, variables = type(manager._path.member).__name__, sorted(manager._path.member._hidden_variables)
        print(json.dumps([member, variables, receipt.member, receipt.public_key.hex(), receipt.signature.hex()]))


asyncio.run(main(json.load(sys.stdin)))
"""

REFUSED = """
import asyncio, json, sys
from hsmcore import HsmError, create_key_manager


async def main(document):
    try:
        async with create_key_manager(document):
            pass
    except HsmError as error:
        print(f"{type(error).__name__}: {error}")


asyncio.run(main(json.load(sys.stdin)))
"""
DOCTOR = "import hsmcore.cli; hsmcore.cli.main()"


class Site:
    """A folder with installed distributions, on the path of a child process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, distribution: str, points: dict[str, str], **files: str) -> None:
        package = self.folder / distribution.replace("-", "_")
        package.mkdir()
        for name, text in files.items():
            (package / f"{name}.py").write_text(text)
        info = self.folder / f"{package.name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        rows = [f"{name} = {value}" for name, value in points.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *rows, ""]))

    def run(self, *arguments: str, given: Any = None, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            input=json.dumps(given),
            env={**os.environ, "PYTHONPATH": str(self.folder)},
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert done.returncode == code, done.stderr + done.stdout
        return done.stdout

    def load(self, *documents: Any) -> list[dict[str, Any]]:
        """Of each document: name and patience of the provider, or the faults by path."""
        found: list[dict[str, Any]] = json.loads(self.run("-c", LOAD, given=documents))
        return found


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    made.install("acme-hsm", {"acme": "acme_hsm:PROVIDER"}, __init__=SETTINGS, member=MEMBER)
    return made


def acme(world: Any, **changes: Any) -> dict[str, Any]:
    return world.config(settings={"rack": "r7", **changes}, type="acme")  # type: ignore[no-any-return]


def test_it_signs(site, world):
    name, hidden, member, public_key, signature = json.loads(site.run("-c", SIGN, given=acme(world)))
    assert (name, hidden, member) == ("AcmeMember", ["ACME_TOKEN"], "acme:r7")
    assert bytes.fromhex(public_key) == world.keys["ed25519"].public_key
    assert is_good("ed25519", bytes.fromhex(public_key), b"acme", bytes.fromhex(signature))


def test_doctor_checks_it(site, world, tmp_path):
    path = tmp_path / "hsm.json"
    path.write_text(json.dumps(acme(world)))
    [report] = json.loads(site.run("-c", DOCTOR, "doctor", "--json", "--config", str(path)))["providers"]
    assert (report["type"], report["name"]) == ("acme", "acme:r7")
    assert report["steps"][0]["name"] == "rack"
    assert "signature" in {step["name"] for step in report["steps"]}
    assert not [step for step in report["steps"] if step["outcome"] == "fail"]


def test_its_settings_are_checked_as_ours(site, world):
    where = "$.sequencer.keyManager"
    right, unknown, wrong, missing, other = site.load(
        acme(world), acme(world, rak="r7"), acme(world, rack=7), acme(world, rack=None), world.config(type="acne")
    )
    assert right == {"name": "acme:r7", "patience": 1234}
    assert unknown == {f"{where}.config.rak": 'unknown key; did you mean "rack"?'}
    assert list(wrong) == [f"{where}.config.rack"]
    assert "the number 7 was given" in wrong[f"{where}.config.rack"]
    assert missing == {f"{where}.config.rack": "is required"}
    assert other[f"{where}.type"].startswith("must be 'softhsm', ")
    assert other[f"{where}.type"].endswith('did you mean "acme"?')


def test_a_second_descriptor_of_a_type_is_refused_and_no_other_type(site, world):
    site.install("emca", {"acme": "emca:PROVIDER", "softhsm": "emca:PROVIDER"}, __init__=SETTINGS)
    kms = {"keyManager": {"type": "aws-kms", "config": {"keyId": "alias/a"}}}
    added, built_in, other = site.load(acme(world), world.config(), kms)
    [(path, problem)] = added.items()
    assert path == "$.sequencer.keyManager.type"
    assert "acme-hsm (acme_hsm:PROVIDER)" in problem
    assert "emca (emca:PROVIDER)" in problem
    [problem] = built_in.values()
    assert "hsmcore (hsmcore.providers.softhsm.settings:PROVIDER)" in problem
    assert "emca (emca:PROVIDER)" in problem
    assert other == {"name": "aws-kms:alias/a", "patience": 2000}


def test_a_descriptor_that_cannot_be_used_is_named_and_breaks_no_other_type(site, world):
    points = {
        "gone": "nowhere:PROVIDER",
        "lax": "broken:PROVIDER",
        "other": "acme_hsm:PROVIDER",
        "odd": "acme_hsm:AcmeSettings",
    }
    site.install("broken", points, __init__=LAX)
    *refused, ours, theirs = site.load(*(world.config(type=name) for name in points), world.config(), acme(world))
    reasons = ("ModuleNotFoundError", "strict and frozen", "no ProviderDescriptor", "no ProviderDescriptor")
    for (name, value), faults, reason in zip(points.items(), refused, reasons, strict=True):
        problem = faults["$.sequencer.keyManager.type"]
        assert problem.startswith(f"the provider '{name}' of broken ({value}) cannot be used: ")
        assert reason in problem
    assert ours["name"].startswith("softhsm:")
    assert theirs["name"] == "acme:r7"


def test_a_missing_package_of_a_provider_is_named_with_its_hint(site, world, tmp_path):
    changed = SETTINGS.replace('"acme"', '"half"').replace("acme_hsm.member", "acme_sdk.member")
    site.install("half", {"half": "half:PROVIDER"}, __init__=changed.replace("surroundings=", "probe="))
    config = world.config(settings={"rack": "r7"}, type="half")
    path = tmp_path / "hsm.json"
    path.write_text(json.dumps(config))
    found = json.loads(site.run("-c", DOCTOR, "doctor", "--json", "--config", str(path), code=1))
    step, *_ = found["providers"][0]["steps"]
    assert (step["outcome"], step["hint"]) == ("fail", "Install acme-hsm.")
    assert "a provider of type half needs the package acme_sdk" in step["found"]
    assert "ModuleMissing: member 'half:r7'" in site.run("-c", REFUSED, given=config)


def test_the_installed_entry_points_are_those_of_the_table():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["entry-points"][GROUP] == BUILT_IN
