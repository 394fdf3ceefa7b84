"""The software bill of materials says what is there."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from scripts.wheels import check_bill

ROOT = Path(__file__).parents[2]


def test_the_bill_is_valid_and_has_what_is_used_and_no_more(tmp_path):
    output = tmp_path / "bill.json"
    line = [sys.executable, str(ROOT / "scripts" / "sbom.py")]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    for path in (output, tmp_path / "again.json"):
        # The program checks it against CycloneDX's schema.
        subprocess.run([*line, str(path)], check=True, timeout=60, env=environment)
    assert output.read_bytes() == (tmp_path / "again.json").read_bytes()
    bill = json.loads(output.read_text())
    assert bill["metadata"]["component"]["name"] == "hsmcore"
    components = {component["name"]: component for component in bill["components"]}
    for name in ("orjson", "pydantic", "sqlalchemy", "boto3", "python-pkcs11"):
        assert components[name]["version"] == importlib.metadata.version(name)
    natives = [name for name in components if name.startswith(("libcrypto", "libsodium", "libc."))]
    assert len(natives) == 3
    assert all(len(components[name]["hashes"][0]["content"]) == 64 for name in natives)
    assert components.keys().isdisjoint({"pytest", "hypothesis", "ruff", "playwright", "sphinx"})
    depends = {each["ref"]: each.get("dependsOn", []) for each in bill["dependencies"]}
    assert "pypi:orjson" in depends["pypi:hsmcore"]
    assert "pypi:botocore" in depends["pypi:boto3"]


def test_a_wheel_that_carries_a_library_without_a_bill_is_refused(tmp_path):
    wheel = tmp_path / "hsmcore-1-cp313-cp313-manylinux_2_34_aarch64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("hsmcore.libs/libsodium-1.so.23", b"")
    with pytest.raises(SystemExit, match=r"no bill for hsmcore\.libs/libsodium"):
        check_bill(wheel)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("hsmcore-1.dist-info/sboms/auditwheel.cdx.json", b"{}")
    check_bill(wheel)
