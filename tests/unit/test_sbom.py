"""The software bill of materials says what is there."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

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
