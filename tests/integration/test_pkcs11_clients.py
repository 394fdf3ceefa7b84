"""libhsmcore_pkcs11.so under other people's PKCS #11 clients, unchanged, through a real gateway on SoftHSM."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.support.loops import one_loop
from tests.support.managers import until
from tests.support.paths import CHAOS
from tests.support.pkcs11_module import MODULE, Site, served, tool

pytestmark = pytest.mark.integration
MESSAGE = b"what other people's programs sign"
PROVIDER = next((str(found) for found in Path("/usr/lib").glob("*/ossl-modules/pkcs11.so")), "")


def needed(*programs: str, modules: tuple[str, ...] = (), files: tuple[str, ...] = ()) -> None:
    """Skip without a program, a package of Python, or a file."""
    missing = [name for name in programs if shutil.which(name) is None]
    missing += [name for name in modules if find_spec(name) is None]
    if missing or "" in files:
        pytest.skip(f"not installed: {missing or 'pkcs11-provider'}")


async def pkcs11_tool(site: Site, folder: Path) -> None:
    """OpenSC's: signs with each mechanism, OpenSSL verifies; and verifies by itself."""
    given = folder / "given"
    given.write_bytes(MESSAGE)
    digest = folder / "digest"
    await tool(site, "openssl", "dgst", "-sha256", "-binary", "-out", str(digest), str(given))
    for slot, mechanism, source in (
        ("ed25519", "EDDSA", given),
        ("p256", "ECDSA-SHA256", given),
        ("p256", "ECDSA", digest),
    ):
        made = folder / f"{slot}.{mechanism}"
        chosen = ["pkcs11-tool", "--module", MODULE, "--token-label", slot, "-m", mechanism, "-i", str(source)]
        form = [] if slot == "ed25519" else ["--signature-format", "openssl"]
        await tool(site, *chosen, "--sign", *form, "-o", str(made))
        assert "Signature is valid" in await tool(site, *chosen, "--verify", *form, "--signature-file", str(made))
        pem = site.pem(slot, folder)
        how = ["-rawin"] if slot == "ed25519" else []
        target = given if slot == "ed25519" else digest
        await tool(
            site,
            "openssl",
            "pkeyutl",
            "-verify",
            "-pubin",
            "-inkey",
            pem,
            *how,
            "-in",
            str(target),
            "-sigfile",
            str(made),
        )
    listed = await tool(site, "pkcs11-tool", "--module", MODULE, "--token-label", "ed25519", "--list-objects")
    assert listed.count("Key Object") == 2
    random = folder / "random"
    await tool(site, "pkcs11-tool", "--module", MODULE, "--generate-random", "32", "-o", str(random))
    assert len(random.read_bytes()) == 32


async def python_pkcs11(site: Site, _folder: Path) -> None:
    """The package python-pkcs11."""
    script = """
import sys, hashlib, pkcs11
from pkcs11 import KeyType, Mechanism, ObjectClass
library = pkcs11.lib(sys.argv[1])
with library.get_token(token_label="ed25519").open() as session:
    private = session.get_key(object_class=ObjectClass.PRIVATE_KEY, label="ed25519")
    public = session.get_key(object_class=ObjectClass.PUBLIC_KEY, label="ed25519")
    made = private.sign(b"one", mechanism=Mechanism.EDDSA)
    assert public.verify(b"one", made, mechanism=Mechanism.EDDSA)
    assert not public.verify(b"two", made, mechanism=Mechanism.EDDSA)
    assert len(session.generate_random(256)) == 32
with library.get_token(token_label="p256").open(user_pin="any") as session:
    private = session.get_key(object_class=ObjectClass.PRIVATE_KEY, key_type=KeyType.EC)
    digest = hashlib.sha256(b"one").digest()
    made = private.sign(digest, mechanism=Mechanism.ECDSA)
    public = session.get_key(object_class=ObjectClass.PUBLIC_KEY, id=private.id)
    assert public.verify(digest, made, mechanism=Mechanism.ECDSA)
    assert public.verify(b"one", made, mechanism=Mechanism.ECDSA_SHA256)
"""
    await tool(site, sys.executable, "-c", script, MODULE)


async def pykcs11(site: Site, _folder: Path) -> None:
    """The package PyKCS11."""
    script = """
import sys, PyKCS11
from PyKCS11.LowLevel import *
library = PyKCS11.PyKCS11Lib()
library.load(sys.argv[1])
slots = {library.getTokenInfo(slot).label.strip(): slot for slot in library.getSlotList(tokenPresent=True)}
session = library.openSession(slots["ed25519"], CKF_SERIAL_SESSION | CKF_RW_SESSION)
session.login("1234")
[private] = session.findObjects([(CKA_CLASS, CKO_PRIVATE_KEY)])
[public] = session.findObjects([(CKA_CLASS, CKO_PUBLIC_KEY)])
made = bytes(session.sign(private, b"one", PyKCS11.Mechanism(CKM_EDDSA)))
assert session.verify(public, b"one", made, PyKCS11.Mechanism(CKM_EDDSA))
assert session.getAttributeValue(private, [CKA_SENSITIVE, CKA_EXTRACTABLE]) == [True, False]
session.logout()
session.closeSession()
"""
    await tool(site, sys.executable, "-c", script, MODULE)


async def openssl(site: Site, folder: Path) -> None:
    """OpenSSL's programs, with pkcs11-provider."""
    config = folder / "openssl.cnf"
    config.write_text(f"""openssl_conf = all
[all]
providers = providers
[providers]
default = one
pkcs11 = two
[one]
activate = 1
[two]
module = {PROVIDER}
pkcs11-module-path = {MODULE}
activate = 1
""")
    given, environment = folder / "openssl.given", {"OPENSSL_CONF": str(config)}
    given.write_bytes(MESSAGE)
    for slot, how in (("ed25519", ["-rawin"]), ("p256", ["-rawin", "-digest", "sha256"])):
        made = str(folder / f"openssl.{slot}")
        key = f"pkcs11:token={slot};type=private"
        await tool(
            site, "openssl", "pkeyutl", "-sign", "-inkey", key, *how, "-in", str(given), "-out", made, **environment
        )
        pem = site.pem(slot, folder)
        await tool(
            site, "openssl", "pkeyutl", "-verify", "-pubin", "-inkey", pem, *how, "-in", str(given), "-sigfile", made
        )


async def ssh(site: Site, folder: Path) -> None:
    """OpenSSH's: lists the key (of this release, P-256 only), signs with it by way of an agent, and verifies."""
    listed = await tool(site, "ssh-keygen", "-D", MODULE)
    key = next(line for line in listed.splitlines() if line.startswith("ecdsa-sha2-nistp256"))
    public = folder / "id.pub"
    public.write_text(key + "\n")
    (folder / "ask").write_text("#!/bin/sh\n")
    (folder / "ask").chmod(0o700)
    (folder / "signers").write_text(f"me {key}\n")
    socket = str(folder / "agent")
    agent = await asyncio.create_subprocess_exec(
        "ssh-agent", "-D", "-P", MODULE, "-a", socket, env=site.environment, stdout=asyncio.subprocess.DEVNULL
    )
    try:
        await until(Path(socket).exists)
        asks = {"SSH_AUTH_SOCK": socket, "SSH_ASKPASS": str(folder / "ask"), "SSH_ASKPASS_REQUIRE": "force"}
        await tool(site, "ssh-add", "-s", MODULE, **asks)
        assert key.split()[1] in await tool(site, "ssh-add", "-L", **asks)
        made = folder / "ssh.given.sig"
        (folder / "ssh.given").write_bytes(MESSAGE)
        await tool(site, "ssh-keygen", "-Y", "sign", "-n", "file", "-f", str(public), str(folder / "ssh.given"), **asks)
        verify = ["-Y", "verify", "-n", "file", "-I", "me", "-f", str(folder / "signers"), "-s", str(made)]
        assert "Good" in await tool(site, "ssh-keygen", *verify, given=MESSAGE)
    finally:
        agent.terminate()
        await agent.wait()


async def p11_kit(site: Site, _folder: Path) -> None:
    """p11-kit's own program, which loads the module as its proxy does, finds the tokens that the gateway printed."""
    for uri, slot in zip(site.gateway.tokens, ("ed25519", "p256"), strict=True):
        listed = await tool(site, "p11-kit", "list-tokens", f"--provider={MODULE}", uri)
        assert listed.count("token:") == 1
        assert f"pkcs11:model=gateway;manufacturer=hsmcore;serial={slot};token={slot}" in listed


async def raw_loop(site: Site, _folder: Path) -> None:
    """The suite's loop in plain C, eight threads."""
    program = str(Path(MODULE).with_name("hsmcore-rawsign"))
    asked = ["--module", MODULE, "--token", "ed25519", "--label", "ed25519", "--threads", "8", "--pin-env", "PIN"]
    shown = await tool(site, program, *asked, given=b"run 0.2\nquit\n", PIN="none")
    assert json.loads(shown.splitlines()[1])["signatures"] > 0


async def chaos(site: Site, folder: Path) -> None:
    """The module that breaks others finds the calls of this one."""
    faults = [{"function": "C_SignInit", "nth": 1, "action": "return", "ckr": "CKR_DEVICE_ERROR"}]
    file = folder / "chaos.json"
    file.write_text(json.dumps({"module": MODULE, "faults": faults}))
    asked = ["--module", str(CHAOS), "--token-label", "ed25519", "--sign", "-m", "EDDSA", "-i", str(file)]
    refused = await tool(site, "pkcs11-tool", *asked, status=1, HSMCORE_CHAOS_CONFIG=str(file))
    assert "CKR_DEVICE_ERROR" in refused
    file.write_text(json.dumps({"module": MODULE}))
    await tool(site, "pkcs11-tool", *asked, "-o", str(folder / "made"), HSMCORE_CHAOS_CONFIG=str(file))
    assert len((folder / "made").read_bytes()) == 64


@one_loop
async def test_other_peoples_clients_find_keys_and_sign(world, tmp_path):
    needed("pkcs11-tool", "openssl", "ssh-agent", "p11-kit", modules=("pkcs11", "PyKCS11"), files=(PROVIDER,))
    # Beside a secp256k1 key, the agent of OpenSSH 10.0 ends.
    async with served(world, tmp_path, ("ed25519", "p256")) as site:
        for client in (pkcs11_tool, python_pkcs11, pykcs11, openssl, ssh, p11_kit, raw_loop, chaos):
            folder = tmp_path / client.__name__
            folder.mkdir()
            await client(site, folder)
