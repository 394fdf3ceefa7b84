"""Vault's face in docs/GATEWAY.md as a program: configuration, commands and Python, against `hsmcore gateway`."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from nacl.signing import VerifyKey
from solders.pubkey import Pubkey
from solders.signature import Signature
from tests.support.authority import Authority
from tests.support.loops import one_loop

pytestmark = pytest.mark.integration
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "GATEWAY.md").read_text().partition("\n## Vault's face\n")[2]
TOKEN = "0123456789abcdef" * 4


def block(language):
    """The section's one code block of a language."""
    [found] = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return found


async def done(*command, **environment):
    """What a command prints; it must succeed."""
    child = await asyncio.create_subprocess_exec(
        *command, stdout=-1, stderr=-1, env={**os.environ, "RELAYER_TOKEN": TOKEN, **environment}
    )
    out, errors = await child.communicate()
    assert child.returncode == 0, (out + errors).decode()
    return out.decode()


@asynccontextmanager
async def gateway(config):
    """`hsmcore gateway`: its address."""
    child = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("hsmcore"), "gateway", "--json", "--config", config,
        stdout=-1, env={**os.environ, "RELAYER_TOKEN": TOKEN},
    )  # fmt: skip
    try:
        assert child.stdout is not None
        [address] = json.loads(await child.stdout.readline())["addresses"]
        yield address.replace("https:", "https://")
    finally:
        child.send_signal(signal.SIGTERM)
        await child.communicate()
    assert child.returncode == 0


@one_loop
async def test_the_page_does_what_it_says(fresh_token, tmp_path):
    token, authority = fresh_token({"name": "sequencer", "kind": "ed25519"}), Authority(tmp_path)
    issued = authority.issue("gateway", ips=["127.0.0.1"])
    document = json.loads(block("json"))
    manager, served = document["keyManager"], document["gateway"]
    manager["config"] |= {"modulePath": token.module, "tokenLabel": token.label, "pin": {"file": str(token.pin_file)}}
    manager["stateFile"] = str(tmp_path / "state.db")
    served["listen"] = [served["listen"][0].replace("8200", "0")]
    served["tls"] = dict(zip(served["tls"], (issued.certificate, issued.key, authority.file), strict=True))
    (tmp_path / "gateway.json").write_text(json.dumps(document))
    public_key = token.keys["sequencer"].public_key
    async with gateway(tmp_path / "gateway.json") as address:
        where = {"VAULT_ADDR": address, "CA_FILE": authority.file, "PUBLIC_KEY": str(Pubkey.from_bytes(public_key))}
        said = await done("bash", "-euo", "pipefail", "-c", block("sh"), **where)
        keys, verified, batch = (json.loads(one + "}") for one in said.split("\n}\n")[:3])
        assert keys["1"]["name"] == "ed25519"
        assert verified == {"valid": True}
        assert [one["reference"] for one in batch["batch_results"]] == ["first", ""]
        assert batch["batch_results"][1]["error"] == "missing input"
        printed = await done(sys.executable, "-c", block("python"), **where)
        VerifyKey(public_key).verify(b"a message", bytes(Signature.from_string(printed.strip())))
