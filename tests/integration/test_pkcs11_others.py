"""libhsmcore_pkcs11.so under programs that are not on every machine, or take their time."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from tests.support.loops import one_loop
from tests.support.paths import ROOT
from tests.support.pkcs11_module import MODULE, served, tool

pytestmark = [pytest.mark.integration, pytest.mark.deep, pytest.mark.timeout(300)]
SUPPORT = Path(__file__).parents[1] / "support"
CHECK = ROOT / ".venv" / "pkcs11-check" / "bin" / "pkcs11-check"
OUTSIDE = json.loads((SUPPORT / "pkcs11_check.json").read_text())
"""What pkcs11-check finds wanting, by reason: that lies outside of what the module is for."""


@one_loop
async def test_pkcs11_check_finds_nothing_but_what_is_not_supported(world, tmp_path):
    if not CHECK.exists():
        pytest.skip("no pkcs11-check: scripts/setup deep installs it where Python is 3.12 or newer")
    command = [str(CHECK), "test", "-m", MODULE, "--slot", "1", "--isolation", "none", "--skip-slow"]
    chosen = [part for category in ("interface", "slot", "sign", "mechanism") for part in ("-c", category)]
    environment = {"P11TEST_PIN": "any", "PYTEST_ADDOPTS": "-W ignore::pytest.PytestAssertRewriteWarning"}
    async with served(world, tmp_path, ("ed25519", "p256")) as site:
        shown = await tool(site, *command, *chosen, status=1, **environment)
    assert int(re.search(r"(\d+) passed", shown)[1]) > 50
    failed = re.findall(r"^FAILED \S*/(test_\S+)", shown, re.MULTILINE)
    assert sorted(failed) == sorted(test for tests in OUTSIDE.values() for test in tests)


@one_loop
async def test_java_opens_a_token_by_its_slot(world, tmp_path):
    if shutil.which("java") is None or shutil.which("javac") is None:
        pytest.skip("no java, or no javac: install a JDK")
    async with served(world, tmp_path, ("ed25519", "p256")) as site:
        shown = await tool(site, "java", str(SUPPORT / "SunPkcs11.java"), MODULE, "1")
    # It lists a private key by the certificate beside it, and there is none.
    assert shown.splitlines() == ["ECDSA: true", "entries: []"]
