"""libhsmcore_pkcs11.so: other people's PKCS #11 clients, unchanged, sign through a real gateway on SoftHSM."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.support.gateways import GatewayProcess
from tests.support.loops import one_loop
from tests.support.pkcs11_module import MODULE, served, tool

pytestmark = pytest.mark.integration


@one_loop
async def test_pkcs11_tool_and_openssl(world, tmp_path):
    async with served(world, tmp_path) as site:
        shown = await tool(site, "pkcs11-tool", "--module", MODULE, "--list-objects", "--token-label", "ed25519")
        print(shown)
        shown = await tool(site, "pkcs11-tool", "--module", MODULE, "-L")
        print(shown)
        shown = await tool(site, "pkcs11-tool", "--module", MODULE, "-M", "--token-label", "p256")
        print(shown)
        (tmp_path / "m").write_bytes(b"message")
        shown = await tool(site, "pkcs11-tool", "--module", MODULE, "--token-label", "ed25519", "--sign", "-m", "EDDSA", "-i", str(tmp_path / "m"), "-o", str(tmp_path / "s"))
        print(shown, (tmp_path / "s").read_bytes().hex())
        assert 0
