"""The probe behind `hsmcore doctor`, on real modules: what it finds, what it says, what it leaves alone."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.support.chaos import TPM2, Chaos, destroy_key, wrap
from tests.support.managers import opened
from tests.support.shim import Shim
from tests.support.size import crossed
from tests.support.verifiers import is_good

import hsmcore
from hsmcore.cli.app import run
from hsmcore.config import load, providers
from hsmcore.doctor.doctor import diagnose
from hsmcore.doctor.keychecks import evidence_step
from hsmcore.doctor.places import check_listening, check_places, check_tokens
from hsmcore.doctor.plan import CHECKS
from hsmcore.doctor.report import DoctorReport, ProviderReport, Step, ok
from hsmcore.doctor.subject import Options
from hsmcore.providers.kms.probe import evidence_of
from hsmcore.providers.softhsm import settings as softhsm

pytestmark = pytest.mark.integration

PIN_FINAL_TRY, PIN_LOCKED, PIN_COUNT_LOW = 0x20000, 0x40000, 0x10000
PIN_INCORRECT = 0xA0


def probed(config: dict[str, Any], **options: Any) -> ProviderReport:
    """The report on the first provider of a configuration."""
    return diagnose(load(config), Options(**options)).providers[0]


def step(report: ProviderReport, name: str) -> Step:
    return next(step for step in report.steps if step.name == name)


def failures(report: ProviderReport) -> list[str]:
    return [step.name for step in report.steps if step.outcome == "fail"]


@pytest.fixture
def shared_shim(shim_library: Path, tmp_path: Path) -> Shim:
    """SoftHSM behind a module that counts the calls of all processes."""
    return Shim(shim_library, tmp_path / "shim.so", shared=True)


# ---- what is well ----


def test_a_client_whose_last_token_ends_soon_is_told_of(world):
    def ends(days):
        return (datetime.now(UTC) + timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")

    def told(**client):
        found = world.config()
        found["sequencer"]["gateway"] = {"clients": {"web": {"keys": ["default"], **client}}}
        return [(step.name, step.outcome, step.data["client"]) for step in check_tokens(load(found))]

    soon, late, over = ({"token": str(days) * 20, "expires": ends(days)} for days in (6, 30, -1))
    assert told(tokens=[soon]) == told(tokens=[over]) == [("gateway-token", "warn", "web")]
    assert told(tokens=[soon, late]) == [("gateway-token", "ok", "web")]
    assert told(tokens=[soon], token="t" * 20) == told(uid=[1]) == []


@pytest.mark.parametrize(
    ("isolation", "key"), crossed(["thread", "process"], ["ed25519", "ecdsa-p256", "ecdsa-secp256k1"])
)
def test_a_provider_that_works(world, key, isolation):
    report = probed(world.config(key, settings={"isolation": isolation}))
    assert failures(report) == [], report
    assert not [step for step in report.steps if step.outcome == "skipped"]
    assert ("host" in {step.name for step in report.steps}) == (isolation == "process")
    identity = report.identity
    assert identity is not None
    assert identity.fixed
    assert (identity.algorithm, identity.label, identity.key_id) == (key, world.keys[key].label, world.keys[key].id)
    assert identity.public_key == world.keys[key].public_key.hex()
    assert (identity.address is not None) == (key == "ed25519")
    latency = step(report, "latency").data
    assert 0 < latency["medianMs"] <= latency["maxMs"]
    assert latency["count"] == 20


def test_each_check_of_the_plan_is_reported_in_its_order(world):
    names = [step.name for step in probed(world.config()).steps]
    order = [check.name for check in CHECKS if check.name != "attributes"]
    assert [name for name in dict.fromkeys(names) if name in order] == order


def test_the_report_is_what_its_schema_says_and_holds_no_pin(world):
    import jsonschema

    report = diagnose(load(world.config(settings={"pin": world.pin})))
    text = report.model_dump_json(by_alias=True)
    assert world.pin not in text
    jsonschema.validate(json.loads(text), DoctorReport.model_json_schema(by_alias=True))
    assert DoctorReport.model_validate_json(text) == report
    assert step(report.providers[0], "configuration").outcome == "warn"


def test_a_pinned_key_is_compared(world):
    good, other = world.keys["ed25519"].public_key.hex(), world.keys["second"].public_key.hex()
    assert "as pinned" in step(probed(world.config(settings={"publicKey": good})), "public-key").found
    report = probed(world.config(settings={"publicKey": other}))
    assert failures(report) == ["public-key"]
    assert step(report, "signature").outcome == "skipped"


def test_it_may_run_beside_an_engine_at_work(world, run):
    async def sign_on() -> None:
        async with hsmcore.create_key_manager(world.config()) as manager:
            import asyncio

            probing = asyncio.create_task(asyncio.to_thread(probed, world.config()))
            count = 0
            while not probing.done():
                count += 1
                message = f"meanwhile {count}".encode()
                assert is_good("ed25519", manager.public_key, message, await manager.sign(message))
            assert failures(await probing) == []
            assert count > 10

    run(sign_on())


# ---- what is not ----


@pytest.mark.parametrize(
    ("path", "says"),
    [("/nowhere/module.so", "No such file"), ("/etc/hostname", "no shared library")],
)
def test_a_module_that_is_no_file(world, path, says):
    report = probed(world.config(settings={"modulePath": path}))
    assert failures(report) == ["module-file"]
    assert says in step(report, "module-file").found
    assert step(report, "module-file").hint


def test_a_library_that_is_no_module(world, tmp_path):
    (tmp_path / "empty.c").write_text("int nothing;")
    subprocess.run(["gcc", "-shared", "-o", tmp_path / "empty.so", tmp_path / "empty.c"], check=True)
    report = probed(world.config(settings={"modulePath": str(tmp_path / "empty.so")}))
    assert failures(report) == ["module"]
    assert step(report, "module").data["status"] == "MODULE_INVALID"


def test_a_token_that_is_not_there(world):
    report = probed(world.config(settings={"tokenLabel": world.label[:-1]}))
    assert failures(report) == ["token"]
    assert f'Did you mean tokenLabel "{world.label}"?' in step(report, "token").hint
    assert world.label in [candidate["label"] for candidate in step(report, "token").data["candidates"]]


@pytest.mark.parametrize(
    ("settings", "meant"),
    [
        ({"keyLabel": "ed25519-kye"}, 'Did you mean keyLabel "ed25519-key"?'),
        ({"keyLabel": "ed25519-key", "keyId": "ffff"}, "A key with that label has the id"),
        ({"keyLabel": "twin-key"}, "Add keyId"),
    ],
)
def test_a_key_that_is_not_there_or_is_not_the_only_one(world, settings, meant):
    report = probed(world.config(settings=settings))
    assert failures(report) == ["key"]
    assert meant in step(report, "key").hint
    assert {"label", "id"} == step(report, "key").data["candidates"][0].keys()


@pytest.mark.parametrize(
    ("key", "failed"), [("no-sign", ["usage", "signature"]), ("no-public", ["public-key"]), ("p384", ["key"])]
)
def test_a_key_that_cannot_be_used(world, key, failed):
    report = probed(world.config(key))
    assert failures(report) == failed
    assert all(step(report, name).hint for name in failed)
    assert step(report, "signature").outcome == ("fail" if "signature" in failed else "skipped")


def test_a_key_that_was_imported_has_no_evidence(world):
    assert step(probed(world.config()), "evidence").outcome == "ok"
    for local in (False, None):
        found = evidence_step(local)
        assert (found.outcome, bool(found.hint)) == ("warn", True)
    for origin, outcome in (("AWS_KMS", "ok"), ("EXTERNAL", "warn"), ("EXTERNAL_KEY_STORE", "warn"), ("None", "warn")):
        assert evidence_of(origin).outcome == outcome


def test_a_backup_that_softhsm_cannot_make(world):
    rotation = {"backupEnabled": True, "backupLocation": "s3://somewhere"}
    report = probed(world.config(keyRotation=rotation))
    assert failures(report) == ["backup"]
    assert "cannot wrap ed25519" in step(report, "backup").found
    assert failures(probed(world.config("ecdsa-p256", keyRotation=rotation))) == []


def test_placeholders_and_missing_secrets_are_the_configuration_s_fault(world):
    for settings in ({"keyHandle": "<key-handle>"}, {"pin": {"env": "HSMCORE_NO_SUCH_VARIABLE"}}):
        report = diagnose(load(world.config(settings=settings)))
        assert report.exit_code == 2
        assert failures(report.providers[0]) == ["configuration"]


# ---- logins ----


def test_a_wrong_pin_is_tried_once(world, shared_shim, tmp_path):
    pin = tmp_path / "wrong"
    pin.touch(mode=0o600)
    pin.write_text("not-the-pin")
    shared_shim.fail("C_Login", PIN_INCORRECT)  # so that the shared token counts no wrong attempt
    report = probed(world.config(settings={"modulePath": shared_shim.path, "pin": {"file": str(pin)}}))
    assert failures(report) == ["login"]
    assert step(report, "login").data["ckrName"] == "CKR_PIN_INCORRECT"
    assert shared_shim.calls("C_Login") == 1


@pytest.mark.parametrize(("flags", "failed", "logins"), [(PIN_LOCKED, "token-state", 0), (PIN_FINAL_TRY, "login", 0)])
def test_flags_that_forbid_a_login(world, shared_shim, flags, failed, logins):
    shared_shim.token_flags(flags)
    report = probed(world.config(settings={"modulePath": shared_shim.path}))
    assert failures(report) == [failed]
    assert shared_shim.calls("C_Login") == logins


def test_a_final_try_may_be_forced(world, shared_shim):
    shared_shim.token_flags(PIN_FINAL_TRY | PIN_COUNT_LOW)
    report = probed(world.config(settings={"modulePath": shared_shim.path}), force_login=True)
    assert step(report, "login").outcome == "ok"
    assert shared_shim.calls("C_Login") == 1
    warned = [step.found for step in report.steps if step.name == "token-state"]
    assert warned == ["one more wrong PIN locks the user out", "a wrong PIN was given since the last login"]


def test_sessions_that_run_out(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    chaos.write(faults=[{"function": "C_OpenSession", "nth": 4, "action": "return", "ckr": "CKR_SESSION_COUNT"}])
    report = probed(chaos.config(settings={"sessions": 8}))
    assert failures(report) == ["sessions"]
    assert step(report, "sessions").hint == "Set sessions to 2 or less."
    assert step(report, "signature").outcome == "ok"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"isolation": "process", "sessions": 1}, []),
        ({"isolation": "process"}, []),
        ({"isolation": "process", "sessions": 3}, ["one-session"]),
        ({"isolation": "thread", "sessions": 3}, ["one-session", "concurrent-crash"]),
    ],
    ids=["one", "default", "several", "thread"],
)
def test_known_issues_of_a_module_that_bears_one_session(world, tmp_path, settings, expected):
    chaos = Chaos(tmp_path, wrap(world), library=TPM2)
    config = chaos.config(settings={"quirks": None, "sessions": None, **settings})
    kept = config["sequencer"]["keyManager"]["config"]
    config["sequencer"]["keyManager"]["config"] = {name: value for name, value in kept.items() if value is not None}
    report = probed(config)
    assert failures(report) == []
    assert step(report, "module").data["quirks"] == "tpm2"
    named = [step.data.get("issue") for step in report.steps if step.name == "known-issues"]
    assert named == (expected or [None])
    assert step(report, "sessions").data["opened"] == 2


@pytest.mark.parametrize("key", ["ed25519", "ecdsa-p256", "ecdsa-secp256k1"])
def test_a_leak_of_one_algorithm_concerns_no_key_of_another(world, key):
    report = probed(world.config(key, settings={"isolation": "process"}))
    named = {step.data.get("issue") for step in report.steps if step.name == "known-issues"}
    assert ("signature-leak" in named) == (key == "ed25519")


def test_places_that_cannot_be_written_are_found_before_the_first_record_and_backup(world, tmp_path):
    taken = tmp_path / "file"
    taken.touch()

    def places(log, backups):
        rotation = {"enabled": True, "backupEnabled": True, "backupLocation": str(backups)}
        config = load(world.config("ecdsa-p256", auditLogFile=str(log), keyRotation=rotation))
        return [(step.name, step.outcome) for step in check_places(config)]

    good = [("audit-log", "ok"), ("backup-location", "ok")]
    assert places(tmp_path / "new" / "audit.log", f"file://{tmp_path}/new/backups") == good
    assert places(taken / "audit.log", taken / "backups") == [(name, "fail") for name, _ in good]
    assert places(tmp_path / "audit.log", "s3://bucket/backups") == good[:1]
    assert sorted(tmp_path.iterdir()) == [taken], "doctor makes nothing"
    report = probed(world.config(auditLogFile=str(taken / "audit.log")))
    assert failures(report) == ["audit-log"]
    # Where no permission says that it cannot be done, as for root.
    assert places("/proc/hsmcore/audit.log", tmp_path) == [("audit-log", "fail"), ("backup-location", "ok")]


CLIENTS = {"clients": {"one": {"uid": [0], "keys": ["default"]}}}


async def test_addresses_are_tried_and_those_of_a_running_key_manager_are_in_use(world, tmp_path):
    path = tmp_path / "run" / "sign.sock"

    def listening(port, **more):
        found = world.config(monitoring={"listen": f"127.0.0.1:{port}"}, **more)
        found["sequencer"]["gateway"] = {"listen": [f"unix:{path}"], **CLIENTS}
        return found

    def outcomes(document):
        return [(step.name, step.outcome) for step in check_listening(load(document))]

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        mine = listening(
            taken.getsockname()[1],
            stateFile=str(tmp_path / "state.db"),
            keyRotation={"overlapDays": 2},
        )
        assert outcomes(mine) == [("monitoring-listen", "warn"), ("gateway-listen", "warn")]  # no folder for it yet
        path.parent.mkdir()
        assert outcomes(mine)[1] == ("gateway-listen", "ok")
        with socket.socket(socket.AF_UNIX) as gateway:
            gateway.bind(str(path))
            assert outcomes(mine)[1] == ("gateway-listen", "ok"), "the file of one that was killed"
            gateway.listen()
            assert outcomes(mine)[1] == ("gateway-listen", "warn")
            async with opened(mine):
                running = await asyncio.to_thread(outcomes, mine)
            assert running == [("monitoring-listen", "ok"), ("gateway-listen", "ok")]
        assert list(path.parent.iterdir()) == [path], "doctor leaves nothing, and takes nothing away"
        path.unlink()
        path.mkdir()
        assert outcomes(mine)[1] == ("gateway-listen", "warn")
    assert outcomes(listening(0))[0] == ("monitoring-listen", "ok")
    away = world.config(monitoring={"listen": "unix:/proc/metrics.sock"})
    assert [step.outcome for step in check_listening(load(away))] == ["warn"]


@pytest.mark.parametrize(
    ("wrong", "skips", "counted"),
    [
        ({"modulePath": "/nowhere.so"}, ["– module … backup (13) something before it failed"], 13),
        (
            {"keyLabel": "absent"},
            ["– mechanism … public-key (3) needs key", "– signature needs mechanism, public-key"],
            6,
        ),
    ],
)
def test_what_is_skipped_for_one_reason_is_one_line(world, tmp_path, capsys, wrong, skips, counted):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(world.config(settings=wrong)))
    run(["doctor", "--config", str(config)])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if line.startswith("– ")][: len(skips)] == skips
    assert lines[-1].endswith(f", {counted} skipped")


def test_an_issue_that_is_only_told_has_a_mark_of_its_own(world, tmp_path, capsys):
    config = tmp_path / "hsm.json"
    config.write_text(json.dumps(world.config()))
    run(["doctor", "--config", str(config)])
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if line.split()[1:2] == ["known-issues"]]
    assert told
    assert {line.split()[0] for line in told} == {"i"}
    assert f"{len(told)} known issues" in lines[-1]


# ---- modules that hang or crash ----


@pytest.mark.parametrize(
    ("function", "check"),
    [("C_GetSlotList", "token"), ("C_Login", "login"), ("C_FindObjectsInit", "key"), ("C_Sign", "signature")],
)
def test_a_module_that_hangs_is_not_waited_for(world, tmp_path, function, check):
    chaos = Chaos(tmp_path, wrap(world))
    chaos.write(faults=[{"function": function, "every": 1, "action": "hang", "forever": True}])
    report = probed(chaos.config(), timeout=2.0)
    assert failures(report) == [check]
    assert function in step(report, check).found
    assert step(report, check).hint


@pytest.mark.parametrize(("function", "check"), [("C_OpenSession", "login"), ("C_GetAttributeValue", "key")])
def test_a_module_that_crashes_takes_only_its_own_process_along(world, tmp_path, function, check):
    chaos = Chaos(tmp_path, wrap(world))
    chaos.write(faults=[{"function": function, "nth": 1, "action": "crash"}])
    report = probed(chaos.config())
    assert failures(report) == [check]
    assert f"in {function}: it was ended by SIG" in step(report, check).found


FINE = '{"name": "%s", "outcome": "ok", "found": "all is well"}'


@pytest.mark.parametrize(
    ("answers", "check"),
    [
        (["[]"], "module"),
        (['[{"name": "module", "outcome": "fine"}]'], "module"),
        ([f"[{FINE % 'module'}]", f"[{FINE % 'token'}]"], "token"),
    ],
)
def test_a_child_that_does_not_say_what_it_found_has_found_nothing_good(world, tmp_path, monkeypatch, answers, check):
    python = tmp_path / "python"
    lines = [f"read -r request; echo '{{\"result\": {answer}}}'" for answer in ("null", *answers)]
    python.write_text("\n".join(["#!/bin/sh", "read -r greeting", *lines, "exec sleep 30", ""]))
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    report = probed(world.config())
    assert failures(report) == [check]
    assert "nonsense" in step(report, check).found
    assert step(report, "signature").outcome == "skipped"


LIAR = r"""
#include <dlfcn.h>
#include <string.h>
#include <p11-kit/pkcs11.h>

static CK_FUNCTION_LIST own, *theirs;

static CK_RV get_info(CK_INFO *info) {
    CK_RV rv = theirs->C_GetInfo(info);
    memset(info->libraryDescription, 0x1b, sizeof info->libraryDescription);
    return rv;
}
static CK_RV get_slot_list(CK_BBOOL present, CK_SLOT_ID *slots, CK_ULONG *count) {
    CK_RV rv = theirs->C_GetSlotList(present, slots, count);
    *count = (CK_ULONG)-1;
    return rv;
}
static CK_RV get_token_info(CK_SLOT_ID slot, CK_TOKEN_INFO *info) {
    CK_RV rv = theirs->C_GetTokenInfo(slot, info);
    memset(info->manufacturerID, 0xff, sizeof info->manufacturerID + sizeof info->model);
    return rv;
}
static CK_RV find_objects(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE *found, CK_ULONG room, CK_ULONG *count) {
    CK_RV rv = theirs->C_FindObjects(session, found, room, count);
    *count = *count ? (CK_ULONG)-1 : 0;
    return rv;
}
static CK_RV endless(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE *found, CK_ULONG room, CK_ULONG *count) {
    memset(found, 1, room * sizeof *found);
    *count = room;
    (void)session;
    return CKR_OK;
}
static CK_RV get_attribute(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE key, CK_ATTRIBUTE *asked, CK_ULONG count) {
    CK_RV rv = theirs->C_GetAttributeValue(session, key, asked, count);
    asked->ulValueLen += 1UL << 40;
    return rv;
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST **list) {
    void *library = dlopen(TARGET, RTLD_NOW);
    CK_C_GetFunctionList get = library ? (CK_C_GetFunctionList)dlsym(library, "C_GetFunctionList") : 0;
    if (!get || get(&theirs) != CKR_OK) {
        return CKR_GENERAL_ERROR;
    }
    own = *theirs;
    own.LIE_ABOUT = LIE;
    *list = &own;
    return CKR_OK;
}
"""
LIES = {
    "get_info": "C_GetInfo",
    "get_slot_list": "C_GetSlotList",
    "get_token_info": "C_GetTokenInfo",
    "find_objects": "C_FindObjects",
    "endless": "C_FindObjects",
    "get_attribute": "C_GetAttributeValue",
}


@pytest.mark.parametrize("lie", LIES)
def test_doctor_survives_a_module_that_lies(world, tmp_path, lie):
    source, module = tmp_path / "liar.c", tmp_path / "liar.so"
    source.write_text(LIAR)
    flags = subprocess.run(["pkg-config", "--cflags", "p11-kit-1"], check=True, capture_output=True, text=True)
    names = [f'-DTARGET="{world.module}"', f"-DLIE_ABOUT={LIES[lie]}", f"-DLIE={lie}"]
    command = ["gcc", "-std=gnu11", "-w", "-shared", "-fPIC", *flags.stdout.split(), *names]
    subprocess.run([*command, "-o", module, source], check=True)
    report = probed(world.config(settings={"modulePath": str(module)}), timeout=5.0)
    text = report.model_dump_json()
    assert "\x1b" not in text
    assert "\\u001b" not in text
    assert not [step for step in report.steps if "ended by SIG" in step.found], report
    assert all(step.found.isprintable() for step in report.steps)


def around(subject):
    yield ok("cluster", f"around {subject.level}")


def test_checks_of_a_providers_surroundings_come_first(world, monkeypatch):
    mine = replace(softhsm.PROVIDER, surroundings=f"{__name__}:around")
    monkeypatch.setattr(providers, "descriptor_of", lambda _type: mine)
    report = probed(world.config())
    assert (report.steps[0].name, report.steps[0].found) == ("cluster", "around primary")
    assert failures(report) == []


def test_a_signature_that_is_wrong_is_found_out(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    chaos.write(faults=[{"function": "C_Sign", "every": 1, "action": "wrong-signature"}])
    report = probed(chaos.config())
    assert failures(report) == ["signature"]
    assert step(report, "signature").data["status"] in ("SIGNATURE_INVALID", "KEY_MISMATCH")


# ---- levels and other kinds ----


def test_every_level_is_looked_at(world, fresh_token):
    second = fresh_token()
    config = world.config()
    config["sequencer"]["keyManager"]["failover"] = {
        "secondary": [{"type": "softhsm", "config": second.config()["sequencer"]["keyManager"]["config"]}],
        "emergencyModeEnabled": True,
    }
    report = diagnose(load(config))
    assert report.exit_code == 0
    assert [provider.level for provider in report.providers] == ["primary", "secondary", "emergency"]
    assert [step(provider, "evidence").outcome for provider in report.providers] == ["ok", "ok", "warn"]
    assert [bool(provider.identity and provider.identity.fixed) for provider in report.providers] == [True, True, False]
    assert [type_ for _, type_ in [(level, member.type) for level, member in load(config).key_manager.members()]] == [
        *("softhsm", "softhsm", "ephemeral")
    ]
    destroy_key(second, "ed25519")
    report = diagnose(load(config))
    assert (report.exit_code, failures(report.providers[1])) == (1, ["key"])
    assert "no private key at all" in step(report.providers[1], "key").hint


def test_a_kms_key(monkeypatch):
    pytest.importorskip("moto")
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        _host, port = server.get_host_and_port()
        for name, value in {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": secrets.token_hex(8)}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        client = boto3.client("kms", region_name="eu-central-1")
        made = client.create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")["KeyMetadata"]
        config = {"keyManager": {"type": "aws-kms", "config": {"keyId": made["KeyId"], "region": "eu-central-1"}}}
        report = probed(config)
        assert failures(report) == [], report
        assert step(report, "evidence").outcome == "ok"
        assert report.identity is not None
        assert (report.identity.algorithm, report.identity.key_id) == ("ecdsa-p256", made["Arn"])
        client.disable_key(KeyId=made["KeyId"])
        assert failures(probed(config)) == ["key"]
        config["keyManager"]["config"]["keyId"] = "00000000-0000-0000-0000-000000000000"
        assert "Check keyId" in step(probed(config), "key").hint
        client.close()
    finally:
        server.stop()
    assert failures(probed(config, timeout=1.0)) == ["endpoint"]
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    assert failures(probed(config)) == ["credentials"]
