"""The command line on a real SoftHSM token: what it prints, what it leaves behind, how it ends."""

from __future__ import annotations

import gc
import io
import json
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.support import zygote
from tests.support.terminal import OWN_PROCESS

from hsmcore import _native
from hsmcore.cli.app import run
from hsmcore.cli.encoding import decode_signature
from hsmcore.cli.settings import load_config, token_settings
from hsmcore.config import load
from hsmcore.config.root import default_state
from hsmcore.errors import ModuleMissing, PinIncorrect, SystemFailure
from hsmcore.members.control import TokenAccess, TokenSelector
from hsmcore.members.control.admin import TokenAdmin
from hsmcore.members.control.curves import ORDERS
from hsmcore.members.control.keys import Destroy
from hsmcore.members.control.provision import TokenRequest, provision
from hsmcore.members.control.softhsm import SOFTHSM_PATHS, StateFolder, find_softhsm

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not any(map(os.path.exists, SOFTHSM_PATHS)), reason="SoftHSM is not installed"),
]


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """A state folder that `init` made; the tests share it and clean up after themselves."""
    state = tmp_path_factory.mktemp("cli") / "state"
    made = zygote.run(zygote.CLI, "init", "--state", state, "--json")
    assert (made.returncode, made.stderr) == (0, b"")
    return state, json.loads(made.stdout)


@pytest.fixture
def cli(state, monkeypatch, capfdbinary):
    """Run a command in this process: exit code, standard output, standard error."""
    monkeypatch.setenv("SOFTHSM2_CONF", "/nowhere")  # restored afterwards; the command finds its own
    monkeypatch.delenv("HSMCORE_CONFIG", raising=False)
    before = _native.leaks()

    def command(*arguments: str, stdin: bytes | None = None, at: Path | None = state[0]) -> tuple[int, bytes, bytes]:
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = run([*arguments, *(["--state", str(at)] if at else [])])
        sys.stdout.flush()
        sys.stderr.flush()
        return code, *capfdbinary.readouterr()

    yield command
    gc.collect()  # an error's traceback may be all that still holds a key manager
    assert _native.leaks() == before
    structlog.reset_defaults()
    logging.getLogger("hsmcore").handlers.clear()


# ---- init ----


def test_init_makes_a_private_folder(state):
    folder, made = state
    assert made["created"] is True
    assert made["algorithm"] == "ed25519"
    assert len(bytes.fromhex(made["publicKey"])) == 32
    for path in (folder, *folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "softhsm2.conf", "tokens", "pin", "so-pin", "state-secret", ".lock")
    }
    pins = {(folder / name).read_text() for name in ("pin", "so-pin", "state-secret")}
    assert len(pins) == 3
    assert all(len(pin) >= 32 and pin not in json.dumps(made) for pin in pins)
    assert all(pin not in (folder / "config.json").read_text() for pin in pins)


def test_init_again_changes_nothing(state, cli):
    folder = state[0]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    code, out, err = cli("init", "--json")
    assert (code, json.loads(out)["created"], err) == (0, False, b"")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_a_state_folder_may_be_copied_and_moved(tmp_path, cli):
    place, other = tmp_path / "place", tmp_path / "other"
    StateFolder(place).create()
    assert str(tmp_path) not in (place / "config.json").read_text()

    def key(at):
        assert load(at / "config.json").state_secret.resolve()
        code, out, _ = cli("sign", "--text", "hello", "--json", at=at)
        return code, code or json.loads(out)["publicKey"]

    first = key(place)
    shutil.copytree(place, other)
    shutil.rmtree(other / "tokens")
    shutil.move(place, tmp_path / "moved")
    assert key(tmp_path / "moved") == first
    shutil.copytree(tmp_path / "moved" / "tokens", other / "tokens")
    shutil.rmtree(tmp_path / "moved")
    assert key(other) == first
    assert stat.S_IMODE((other / "softhsm2.conf").stat().st_mode) == 0o600


def test_a_softhsm2_conf_of_somebody_else_stays_as_it_is(tmp_path, cli):
    StateFolder(tmp_path / "place").create()
    conf = tmp_path / "place" / "softhsm2.conf"
    for text in (conf.read_text() + "# mine\n", conf.read_text().replace("/tokens", "/elsewhere")):
        conf.write_text(text)
        shutil.move(tmp_path / "place", tmp_path / "moved")
        assert cli("sign", "--text", "hello", at=tmp_path / "moved")[0] == 1
        shutil.move(tmp_path / "moved", tmp_path / "place")
        assert conf.read_text() == text


def test_init_goes_on_where_it_was_interrupted(tmp_path):
    folder = StateFolder(tmp_path / "state")
    first = folder.create()
    folder.config.unlink()
    assert folder.create() == first
    assert folder.ready


def test_init_twice_at_once_makes_one_key(tmp_path):
    command = [zygote.CLI, "init", "--state", str(tmp_path / "state"), "--json"]
    both = [zygote.Forked(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    answers = [json.loads(child.communicate(timeout=60)[0]) for child in both]
    assert sorted(answer["created"] for answer in answers) == [False, True]


def test_init_beside_a_configuration(tmp_path, cli):
    path = tmp_path / "place" / "sequencer.json"
    code, out, _ = cli("init", "--config", str(path), "--algorithm", "ecdsa-p256", "--sessions", "1", at=None)
    assert code == 0
    assert b"ecdsa-p256" in out
    assert b"address" not in out
    assert json.loads(path.read_text())["sequencer"]["keyManager"]["config"]["sessions"] == 1
    code, out, _ = cli("sign", "--config", str(path), "--text", "hello", at=None)
    assert (code, len(decode_signature(out))) == (0, 64)


@pytest.mark.parametrize("arguments", [["--state", "/proc/here"], ["--module", "/nowhere/libsofthsm2.so"]])
def test_init_that_cannot_work(arguments, cli, tmp_path):
    code, out, err = cli("init", *arguments, "--json", at=None if "--state" in arguments else tmp_path / "state")
    assert (code, out) == (1, b"")
    assert json.loads(err)["error"]["hint"]
    assert not (tmp_path / "state" / "config.json").exists()


# ---- doctor ----


def test_doctor_says_step_by_step_what_it_finds(state, cli):
    code, out, err = cli("doctor")
    assert (code, err) == (0, b"")
    text = out.decode()
    assert "primary: softhsm:sequencer" in text
    assert "✔ signature" in text
    assert text.count(state[1]["address"]) == 2  # at its step, and among the identities
    assert (state[0] / "pin").read_text() not in text


def test_doctor_as_json(state, cli):
    code, out, err = cli("doctor", "--json", "--provider", "primary")
    assert (code, err) == (0, b"")
    report = json.loads(out)
    assert (report["schemaVersion"], report["exitCode"], report["outcome"]) == (1, 0, "ok")
    assert report["providers"][0]["identity"]["publicKey"] == state[1]["publicKey"]
    code, schema, _ = cli("doctor", "--schema")
    assert code == 0
    assert report.keys() == json.loads(schema)["properties"].keys()


def test_doctor_of_a_configuration_that_is_wrong(state, cli, tmp_path):
    config = json.loads((state[0] / "config.json").read_text())
    settings = config["sequencer"]["keyManager"]["config"] | {"pin": {"file": str(state[0] / "pin")}}
    config["sequencer"]["stateSecret"] = {"file": str(state[0] / "state-secret")}
    path = tmp_path / "config.json"
    shutil.copy(state[0] / "softhsm2.conf", tmp_path)
    for change, expected in (
        ({"keyLabel": "another"}, 1),
        ({"pin": {"file": str(tmp_path / "absent")}}, 2),
        ({"keyLabel": "<key-label>"}, 2),
        ({"sessions": 0}, 2),
    ):
        config["sequencer"]["keyManager"]["config"] = settings | change
        path.write_text(json.dumps(config))
        assert cli("doctor", "--config", str(path), at=None)[0] == expected, change
    config["sequencer"]["keyManager"]["config"] = settings | {"pin": (state[0] / "pin").read_text().strip()}
    config["sequencer"]["stateSecret"] = "beside the members, " * 2
    path.write_text(json.dumps(config))
    code, out, err = cli("doctor", "--config", str(path), at=None)
    # A step says it of the PIN, once; the log of what has no step.
    assert (code, out.count(b"in plain text"), err.count(b"in plain text")) == (0, 1, 1)
    assert b"$.sequencer.stateSecret" in err
    code, _, err = cli("doctor", "--provider", "nobody")
    assert code == 2
    assert b'it has "softhsm:sequencer"' in err


def test_the_pin_is_in_no_argument_list_or_environment(tmp_path, monkeypatch):
    seen = []
    start = subprocess.Popen

    def note(arguments, **options):
        seen.append((arguments, dict(options["env"])))
        return start(arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", note)
    folder = StateFolder(tmp_path / "state")
    before = dict(os.environ)
    folder.create()
    assert dict(os.environ) == before
    [(arguments, environment)] = seen
    for name in ("pin", "so-pin"):
        pin = (folder.path / name).read_text()
        assert pin not in repr(arguments) + repr(environment)


def test_a_token_that_has_another_pin_is_left_alone(state):
    folder = StateFolder(state[0])
    request = TokenRequest(
        find_softhsm(), "sequencer", "another", "ed25519", bytearray(b"wrong-pin"), bytearray(b"wrong-so-pin")
    )
    assert "wrong-pin" not in repr(request)
    with pytest.raises(PinIncorrect):
        provision(request, folder.softhsm_conf)


def test_a_child_that_dies_is_reported_with_its_exit_code(state, monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    request = TokenRequest(find_softhsm(), "sequencer", "k", "ed25519", bytearray(b"1234"), bytearray(b"1234"))
    with pytest.raises(SystemFailure, match="exit code"):
        provision(request, StateFolder(state[0]).softhsm_conf)


def test_default_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_state() == tmp_path / "hsmcore"
    monkeypatch.setenv("XDG_STATE_HOME", "")
    assert default_state() == Path.home() / ".local" / "state" / "hsmcore"
    monkeypatch.setattr("hsmcore.members.control.softhsm.SOFTHSM_PATHS", ())
    with pytest.raises(ModuleMissing, match="not installed"):
        find_softhsm()


# ---- sign and verify ----


@pytest.mark.parametrize("form", ["hex", "base64", "base58", "raw"])
def test_sign_and_verify_in_every_form(state, cli, tmp_path, form):
    message = tmp_path / "message"
    message.write_bytes(bytes(range(256)))
    code, out, err = cli("sign", str(message), "--format", form)
    assert (code, err) == (0, b"")
    assert form == "raw" or out.endswith(b"\n")
    signature = decode_signature(out)
    assert _native.verify("ed25519", bytes.fromhex(state[1]["publicKey"]), message.read_bytes(), signature)
    (tmp_path / "signature").write_bytes(out)
    assert cli("verify", str(message), "--signature-file", str(tmp_path / "signature"))[:2] == (0, b"valid\n")
    if form != "raw":
        assert cli("verify", str(message), "--signature", out.decode().strip())[0] == 0


@pytest.mark.parametrize(("algorithm", "curve"), [("ecdsa-p256", ec.SECP256R1()), ("ecdsa-secp256k1", ec.SECP256K1())])
def test_verify_says_that_s_is_not_low(cli, tmp_path, algorithm, curve):
    """As OpenSSL writes it: DER, and every other one with a high s."""
    key = ec.generate_private_key(curve)
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint).hex()
    r, s = decode_dss_signature(key.sign(b"hello", ec.ECDSA(SHA256())))
    low, high = sorted((s, ORDERS[algorithm] - s))
    known = ("--public-key", point, "--algorithm", algorithm)
    for number, text, said in (
        (low, "hello", b"valid"),
        (high, "hello", b"NOT valid: s is not low"),
        (high, "x", b"NOT valid\n"),
    ):
        (tmp_path / "signature").write_bytes(encode_dss_signature(r, number))
        code, out, _ = cli("verify", "--text", text, "--signature-file", str(tmp_path / "signature"), *known)
        assert (code, out.startswith(said)) == (0 if said == b"valid" else 1, True)
    code, out, _ = cli(
        "verify", "--text", "hello", "--signature", encode_dss_signature(r, high).hex(), *known, "--json"
    )
    assert (code, json.loads(out)["valid"], "low" in json.loads(out)["problem"]) == (1, False, True)


def test_a_message_from_everywhere_gives_the_same_signature(cli, tmp_path):
    (tmp_path / "message").write_bytes(b"hello")
    outputs = {
        cli("sign", "--text", "hello")[1],
        cli("sign", "--hex", b"hello".hex())[1],
        cli("sign", stdin=b"hello")[1],
        cli("sign", "-", stdin=b"hello")[1],
        cli("sign", str(tmp_path / "message"))[1],
    }
    assert len(outputs) == 1


def test_sign_as_json_names_the_signer(state, cli):
    code, out, _ = cli("sign", "--text", "hello", "--json")
    receipt = json.loads(out)
    assert code == 0
    assert receipt["keyId"] == state[1]["keyId"]
    assert receipt["publicKey"] == state[1]["publicKey"]
    assert (receipt["level"], receipt["format"], len(receipt["signature"])) == ("primary", "hex", 128)
    assert receipt["latencyNs"] > 0


def test_a_signature_that_is_wrong_is_code_1(state, cli):
    signature = cli("sign", "--text", "hello")[1].decode().strip()
    assert cli("verify", "--text", "hallo", "--signature", signature)[:2] == (1, b"NOT valid\n")
    code, out, _ = cli("verify", "--text", "hallo", "--signature", signature, "--json")
    assert (code, json.loads(out)) == (1, {"valid": False})
    key = ("--public-key", state[1]["publicKey"])
    assert cli("verify", "--text", "hello", "--signature", signature, *key, at=None)[0] == 0
    assert cli("verify", "--text", "hallo", "--signature", signature, *key, at=None)[0] == 1


def test_sign_and_verify_in_a_pipe(state, tmp_path):
    script = (
        "printf hello | $HSMCORE sign > s && printf hello | $HSMCORE verify --signature-file s && $HSMCORE keys | cat"
    )
    program = tmp_path / "hsmcore"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "from hsmcore.cli import main; main()" "$@"\n')
    program.chmod(0o700)
    environment = {**os.environ, "HSMCORE": str(program), "HSMCORE_CONFIG": str(state[0] / "config.json")}
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, env=environment, capture_output=True, check=True)
    lines = done.stdout.decode().splitlines()
    assert lines[0] == "valid"
    assert state[1]["publicKey"] in lines[2]
    assert done.stderr == b""


def test_a_reader_that_has_gone_is_no_traceback(state):
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*OWN_PROCESS, "keys", "--state", state[0]], stdout=writing, stderr=subprocess.PIPE, check=False, timeout=60
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


# ---- keys ----


def test_keys_lists_what_is_there(state, cli):
    code, out, _ = cli("keys")
    assert code == 0
    header, row = out.decode().splitlines()
    assert header.split() == ["ID", "LABEL", "ALGORITHM", "SIGNS", "PUBLIC", "KEY"]
    assert row.split() == [state[1]["keyId"], "sequencer-key", "ed25519", "yes", state[1]["publicKey"]]
    assert [key["address"] for key in json.loads(cli("keys", "list", "--json")[1])] == [state[1]["address"]]


def test_the_lifecycle_of_a_key_by_commands(cli, tmp_path):
    """Generated, exported, deactivated; the backup does not go over a key that is there."""
    code, out, _ = cli("keys", "generate", "--label", "second", "--algorithm", "ecdsa-p256", "--extractable", "--json")
    key = json.loads(out)
    assert (code, key["label"], key["canSign"], key["extractable"]) == (0, "second", True, True)
    assert cli("keys", "generate", "--label", "second")[0] == 1
    backup = tmp_path / "key.backup"
    assert cli("keys", "export", key["id"], "--output", str(backup))[0] == 0
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    assert json.loads(cli("keys", "export", key["id"].upper(), "-o", "-")[1])["id"] == key["id"]
    code, _, err = cli("keys", "import", str(backup))
    assert (code, b"on the token already" in err) == (1, True)
    assert cli("keys", "deactivate", key["id"])[0] == 0
    code, out, _ = cli("keys", "deactivate", key["id"], "--json")
    assert (code, json.loads(out)["enforced"]) == (0, True)
    assert {k["label"]: k["canSign"] for k in json.loads(cli("keys", "--json")[1])} == {
        "second": False,
        "sequencer-key": True,
    }
    _destroy(key["id"])


def test_the_signing_key_is_not_deactivated_by_mistake(state, cli):
    code, out, err = cli("keys", "deactivate", state[1]["keyId"])
    assert (code, out) == (1, b"")
    assert b"the configuration signs with" in err
    assert cli("sign", "--text", "still")[0] == 0


@pytest.mark.parametrize("arguments", [["export", "00ff", "-o", "-"], ["deactivate", "00ff"], ["deactivate", "xy"]])
def test_a_key_that_is_not_there(cli, arguments):
    code, out, err = cli("keys", *arguments, "--json")
    assert (code, out) == (1, b"")
    assert json.loads(err)["error"]["type"] in {"KeyNotFound", "ControlError"}


def test_a_key_that_cannot_be_exported(state, cli):
    code, out, err = cli("keys", "export", state[1]["keyId"], "-o", "-")
    assert (code, out) == (1, b"")
    assert b"not extractable" in err
    assert b"next: " in err


# ---- wrong PINs, signals ----


def test_a_wrong_pin_is_an_error_that_does_not_show_it(state, cli, tmp_path):
    folder, _ = state
    config = json.loads((folder / "config.json").read_text())
    wrong = tmp_path / "pin"
    wrong.write_text("not-the-pin")
    wrong.chmod(0o600)
    config["sequencer"]["keyManager"]["config"]["pin"] = {"file": str(wrong)}
    (folder / "wrong.json").write_text(json.dumps(config))
    for command in (["sign", "--text", "a"], ["keys"]):
        code, out, err = cli(*command, "--config", str(folder / "wrong.json"), "--json", at=None)
        assert (code, out) == (1, b"")
        assert json.loads(err.splitlines()[-1])["error"]["type"] == "PinIncorrect"
        assert b"not-the-pin" not in err
    (folder / "wrong.json").unlink()


def test_an_interrupted_demonstration_ends_at_once(state):
    # A shell that starts these tests in the background makes their children ignore the interrupt.
    minding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    child = subprocess.Popen(
        [*OWN_PROCESS[:-1], minding + OWN_PROCESS[-1], "demo", "--state", state[0], "--transactions", "1000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with child:
        deadline = time.monotonic() + 30
        while b"hsmcore-rawsign" not in _children(child.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        try:
            out, err = child.communicate(timeout=30)
        finally:
            child.kill()
    assert (child.returncode, out) == (130, b"")
    assert err.decode().splitlines()[-1] == "hsmcore: interrupted"
    assert _children(child.pid) == b""


def _children(pid: int) -> bytes:
    """The command lines of a process's children."""
    found = b""
    for path in Path("/proc").glob(f"{pid}/task/*/children"):
        for child in path.read_text().split():
            try:
                found += Path(f"/proc/{child}/cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
    return found


def _destroy(key_id: str) -> None:
    settings = token_settings(load_config(None, Path(os.environ["SOFTHSM2_CONF"]).parent))
    with TokenAdmin(
        TokenAccess(settings.module_path, TokenSelector(label="sequencer")), pin=settings.resolve_pin
    ) as admin:
        Destroy(key_id).run(admin)


def test_a_message_that_is_not_given_is_asked_for(cli):
    code, out, err = cli("sign", stdin=b"")
    assert (code, out) == (1, b"")
    assert b"standard input is empty" in err
    assert b"give --text or --hex" in err
