"""`hsmcore load` on real tokens: what is counted, what is judged, and that nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
from tests.support.size import each
from tests.support.verifiers import is_good

from hsmcore.cli.app import run as command_line
from hsmcore_bench.harness.locate import CHAOS_MODULE, SOFTHSM_MODULE, native
from hsmcore_bench.harness.process import child_environment
from hsmcore_bench.load.mix import Messages, kinds_of, table_of
from hsmcore_bench.load.verify import RECORD, records, verify

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not Path(SOFTHSM_MODULE).exists(), reason="SoftHSM is not installed"),
]
MIX = "transactions=0.8:180-300,blocks=0.05:32,repeats=0.15"
BY_RING = each(2, ["facade", "ring"])
"""In make test, test_every_way_signs_everything_right goes by the ring."""
COMMAND = [sys.executable, "-c", "from hsmcore.cli import main; main()", "load"]


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path_factory):
    """A folder for temporary files that must be empty again afterwards; short, because sockets are made in it."""
    tmp_path_factory.getbasetemp()  # before the folder for temporary files becomes another one
    with tempfile.TemporaryDirectory(prefix="hl-", dir="/tmp") as name:
        monkeypatch.setenv("TMPDIR", name)
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.delenv("HSMCORE_CONFIG", raising=False)
        before = variables()
        yield Path(name)
        assert list(Path(name).iterdir()) == []
        assert variables() == before


def variables():
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


@pytest.fixture
def load(capfd):
    """Run the command in this process: exit code, result, standard error."""

    def run(*arguments: str):
        code = command_line(["load", "--json", *arguments])
        out, err = capfd.readouterr()
        return code, json.loads(out) if out else None, err

    return run


@pytest.mark.parametrize("path", ["facade", "ring", "raw"])
def test_every_way_signs_everything_right(load, tmp_path, path):
    log = tmp_path / "run.hlog"
    extra = ["--cache", "1000", "--processes", "2"] if path != "raw" else []
    code, result, err = load(
        *("--path", path, "--duration", "1s", "--rate", "400", "--mix", MIX, "--verify", "--hdr", str(log)),
        *("--objective", "p99.9 < 60s", "--objective", "rate > 1/s", *extra),
    )
    assert (code, err) == (0, "")
    assert result["ok"] is True
    counts = result["counts"]
    assert counts["planned"] == counts["started"] == counts["signed"] == counts["verified"] == 400
    assert counts["failed"] == counts["lost"] == counts["twice"] == counts["wrong"] == counts["unstarted"] == 0
    if path != "raw":
        assert 20 < counts["cached"] < 70, "0.15 of 400 are repeats"
    for series in ("corrected", "uncorrected", "start"):
        figures = result["latency_ns"][series]
        assert figures["count"] == 400
        assert figures["p50"] <= figures["p99"] <= figures["p99.9"] <= figures["max"]
    assert result["latency_ns"]["corrected"]["p50"] >= result["latency_ns"]["uncorrected"]["p50"]
    assert log.read_text().count("Tag=corrected") >= 1
    assert result["settings"]["mix"][0] == {"name": "transactions", "share": 0.8, "smallest": 180, "largest": 300}
    assert result["environment"]["processors"] >= 1


@pytest.mark.parametrize("path", BY_RING)
def test_a_stall_counts_for_all_requests_planned_during_it(load, path):
    """The only worker hangs for half a second: a closed loop would have one slow request, there are fifty."""
    code, result, err = load(
        *("--path", path, "--noop", "--sessions", "1", "--duration", "2s", "--rate", "100"),
        *("--fault", "1s:C_Sign:hang:500ms", "--timeout", "5s"),
    )
    assert (code, err) == (0, "")
    assert result["faults"]["struck"] == {"hang": 1}
    assert result["faults"]["told"] == [{"at": 1.0, "fault": "1s:C_Sign:hang:500ms", "modules": 1}]
    # 50 of 200 requests were planned while it hung.
    assert result["latency_ns"]["corrected"]["p95"] > 250e6
    assert result["counts"]["lost"] == 0


def test_the_reference_counts_a_stall_from_the_planned_start(load):
    """In plain threads requests wait before they are started: the uncorrected figure leaves nearly all of it out."""
    code, result, err = load(
        *("--path", "raw", "--noop", "--sessions", "1", "--duration", "2s", "--rate", "100"),
        *("--fault", "1s:C_Sign:hang:500ms"),
    )
    assert (code, err) == (0, "")
    latency = result["latency_ns"]
    assert latency["corrected"]["p95"] > 250e6
    assert latency["uncorrected"]["p95"] < latency["corrected"]["p95"]
    assert latency["uncorrected"]["max"] > 450e6


def test_a_request_past_its_deadline_fails_and_is_not_lost(load):
    code, result, _ = load(
        *("--path", "ring", "--noop", "--sessions", "2", "--duration", "1500ms", "--rate", "50"),
        *("--fault", "500ms:C_Sign:hang:2s:x2", "--timeout", "300ms", "--objective", "failed < 90%"),
    )
    assert code == 0
    counts = result["counts"]
    assert counts["planned"] == counts["started"] == 75
    assert 0 < counts["failed"] < 75
    assert counts["signed"] + counts["failed"] == 75
    assert set(result["errors"]) == {"DEADLINE_EXCEEDED"}
    assert counts["lost"] == counts["twice"] == 0


def test_a_wrong_signature_is_found(load):
    """Without verification in the engine it comes through: it is counted here. No other fault strikes meanwhile:
    a recovery makes signatures of its own, and the wrong one could be among them, where nobody gets it."""
    code, result, _ = load(
        *("--duration", "2s", "--rate", "200", "--verify", "--fault", "500ms:C_Sign:wrong-signature")
    )
    assert (code, result["counts"]["wrong"], result["counts"]["lost"]) == (1, 1, 0)
    assert result["faults"]["struck"] == {"wrong-signature": 1}
    assert [v["objective"] for v in result["objectives"] if not v["met"]] == ["wrong = 0"]


def test_faults_are_healed(load):
    arguments = ["--duration", "2s", "--rate", "200", "--verify"]
    code, result, _ = load(*arguments, "--fault", "every 500ms:C_Sign:return:CKR_DEVICE_ERROR")
    assert (code, result["counts"]["wrong"], result["counts"]["failed"], result["counts"]["lost"]) == (0, 0, 0, 0)
    assert result["faults"]["struck"]["return"] >= 2


def test_a_crash_costs_the_host_process_only(load):
    code, result, _ = load(
        *("--duration", "3s", "--rate", "200", "--verify", "--isolation", "process"),
        *("--fault", "1s:C_Sign:crash", "--objective", "failed < 50%"),
    )
    assert (code, result["counts"]["lost"], result["counts"]["wrong"], result["counts"]["twice"]) == (0, 0, 0, 0)
    assert result["counts"]["started"] == 600
    assert result["faults"]["told"][0]["modules"] >= 1


def test_a_share_of_the_capacity_and_a_simulated_device(load, tmp_path):
    """Five of six signatures a second that the device makes at most: half of the capacity, as raw C measures it."""
    code, result, _ = load(
        *("--noop", "--chaos", str(device(tmp_path, 200)), "--rate", "50%", "--duration", "1s", "--shape", "constant"),
        *("--path", "ring", "--sessions", "1"),
    )
    assert code == 0
    assert 20 <= result["settings"]["capacity"] <= 205
    assert result["settings"]["rate"] == pytest.approx(result["settings"]["capacity"] / 2)
    assert result["latency_ns"]["uncorrected"]["p50"] >= 4.9e6


@pytest.mark.parametrize("path", BY_RING)
def test_a_share_of_what_the_path_itself_does(load, tmp_path, path):
    code, result, _ = load(
        *("--noop", "--chaos", str(device(tmp_path, 200)), "--rate", "50%", "--share-of", "path", "--duration", "1s"),
        *("--path", path, "--sessions", "1", "--objective", "failed <= 5%"),
    )
    assert code == 0
    assert 20 <= result["settings"]["capacity"] <= 205
    assert result["settings"]["rate"] == pytest.approx(result["settings"]["capacity"] / 2)
    code, _, err = load("--rate", "50%", "--share-of", "everything")
    assert code == 2
    assert "expected one of raw, path" in json.loads(err)["error"]["message"]


def test_what_is_too_much_is_refused_at_once(load, tmp_path):
    """At four times its rate the device signs what it can, and the other requests are rejected at once."""
    code, result, _ = load(
        *("--noop", "--chaos", str(device(tmp_path, 200)), "--rate", "800", "--duration", "3s", "--sessions", "1"),
        *("--timeout", "250ms", "--objective", "failed < 90%"),
    )
    assert code == 0
    assert result["counts"]["signed"] >= 0.3 * 200 * 3  # more of it on a machine that does nothing else
    # The first queue fills before anything was measured: what comes in a timeout, and half as much again.
    assert result["errors"]["QUEUE_FULL"] > result["errors"].get("DEADLINE_EXCEEDED", 0)
    assert result["counts"]["lost"] == result["counts"]["twice"] == 0


def test_load_and_raw_c_run_interleaved(load):
    code, result, _ = load(
        *("--path", "ring", "--rate", "200", "--duration", "1s", "--beside-raw", "--rounds", "2", "--verify"),
        *("--objective", "ratio p50 < 1000x"),
    )
    assert code == 0
    assert result["counts"]["verified"] == 200
    assert result["reference"]["counts"]["verified"] == 200
    assert all(len(rounds) == 2 and min(rounds) > 0 for rounds in result["reference"]["rounds"].values())
    code, result, err = load("--beside-raw", "--shape", "ramp", "--rate", "10", "--peak", "20", "--duration", "2s")
    assert (code, result) == (2, None)
    assert "for a constant rate" in json.loads(err)["error"]["message"]


def device(folder: Path, rate: float) -> Path:
    """A chaos configuration of a device that makes so many signatures a second."""
    path = folder / "device.json"
    path.write_text(
        json.dumps(
            {"latency": {"C_Sign": {"kind": "constant", "microseconds": 1e6 / rate}}, "capacity": {"servers": 1}}
        )
    )
    return path


def test_more_than_a_device_can_do_ends_all_the_same(load, tmp_path):
    """Ten times its rate: what waits too long fails at its deadline, and the run is over soon."""
    begun = time.monotonic()
    code, result, _ = load(
        *("--noop", "--chaos", str(device(tmp_path, 100)), "--rate", "1000", "--duration", "1s", "--path", "raw"),
        *("--sessions", "1", "--timeout", "1s"),
    )
    assert code == 1
    assert time.monotonic() - begun < 30
    assert result["counts"]["planned"] == 1000
    assert result["counts"]["failed"] > 500
    assert result["counts"]["lost"] == 0


# ---- a configuration -------------------------------------------------------------------------------------------------


def configuration(token, folder: Path, **settings) -> Path:
    document = token.config("ed25519")
    document["sequencer"]["keyManager"]["config"] |= settings
    path = folder / "config.json"
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize("path", BY_RING)
def test_a_configuration_is_loaded_as_it_is(load, world, tmp_path, path):
    code, result, err = load(
        *("--config", str(configuration(world, tmp_path)), "--path", path, "--duration", "500ms", "--rate", "200"),
        "--verify",
    )
    assert (code, err) == (0, "")
    assert result["counts"]["verified"] == 100
    assert result["target"]["keys"][0]["publicKey"] == world.keys["ed25519"].public_key.hex()


@pytest.mark.parametrize("path", ["facade", "ring", "raw"])
def test_a_pin_that_is_refused_is_sent_once(load, world, tmp_path, path):
    log = tmp_path / "chaos.log"
    chaos = tmp_path / "chaos.json"
    seen = {"function": "C_Login", "every": 1, "action": "hang", "milliseconds": 1}
    chaos.write_text(json.dumps({"module": world.module, "log": str(log), "faults": [seen]}))
    pin = tmp_path / "pin"
    pin.touch(mode=0o600)
    pin.write_text("not-the-pin")
    settings = {
        "modulePath": str(native(CHAOS_MODULE)), "moduleArgs": f"config={chaos}", "pin": {"file": str(pin)},
    }  # fmt: skip
    config = configuration(world, tmp_path, **settings)
    code, result, err = load("--config", str(config), "--path", path, "--processes", "3", "--duration", "1s")
    assert (code, result) == (1, None)
    assert "CKR_PIN_INCORRECT" in err or "PIN_INCORRECT" in err
    assert "not-the-pin" not in err
    assert log.read_text().count("C_Login call") == 1


def test_keys_elsewhere_are_loaded_through_the_key_manager_only(load, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"keyManager": {"type": "ephemeral", "config": {"allowEphemeralPrimary": True}}}))
    arguments = ["--config", str(config), "--duration", "1s"]
    code, result, _ = load(*arguments, "--rate", "100", "--verify")
    assert (code, result["counts"]["verified"]) == (0, 100)
    code, result, err = load(*arguments, "--path", "ring")
    assert (code, "use --path facade" in err) == (2, True)
    code, result, err = load(*arguments, "--rate", "50%")
    assert (code, "give requests per second" in err) == (2, True)


def test_faults_need_the_chaos_module(load, world, tmp_path):
    config = configuration(world, tmp_path)
    arguments = ["--config", str(config), "--duration", "1s", "--fault", "200ms:C_Sign:return:CKR_DEVICE_ERROR"]
    code, result, err = load(*arguments)
    assert (code, result) == (2, None)
    assert "faults need the chaos module" in json.loads(err)["error"]["message"]
    code, result, _ = load(*arguments, "--chaos", "none")
    assert (code, result["faults"]["struck"]) == (0, {"return": 1})


def test_faults_go_to_the_chaos_module_of_the_configuration(load, world, tmp_path, place):
    chaos = tmp_path / "chaos.json"
    socket = place / "c-%p.sock"
    chaos.write_text(json.dumps({"module": world.module, "socket": str(socket)}))
    settings = {"modulePath": str(native(CHAOS_MODULE)), "moduleArgs": f"config={chaos}"}
    code, result, _ = load(
        *("--config", str(configuration(world, tmp_path, **settings)), "--duration", "1s"),
        *("--fault", "200ms:C_Sign:return:CKR_DEVICE_ERROR"),
    )
    assert (code, result["faults"]["struck"]) == (0, {"return": 1})


# ---- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--rate=-5"], "--rate '-5'"),
        (["--rate", "0"], "more than zero"),
        (["--shape", "sawtooth"], "expected one of constant, ramp, spike, soak"),
        (["--mix", "transactions"], "expected NAME=SHARE"),
        (["--objective", "p99 < 10"], "needs a unit"),
        (["--objective", "ratio p99 < 2x"], "needs --beside-raw"),
        (["--objective", "speed < 10ms"], "no figure is named 'speed'"),
        (["--fault", "1s:C_Nothing:hang", "--noop", "--path", "ring"], 'unknown function "C_Nothing"'),
        (["--fault", "1s:C_Sign:return:CKR_OOPS", "--noop", "--path", "raw"], 'unknown CKR "CKR_OOPS"'),
        (["--noop", "--verify"], "makes no signatures"),
        (["--noop", "--config", "x.json"], "leave --config out"),
        (["--path", "air"], "expected one of facade, ring, raw"),
        (["--hdr", "/nowhere/x.hlog", "--noop"], "No such file"),
        (["--chaos", "toaster"], "neither a file nor a profile"),
        (["--isolation", "process", "--path", "ring"], "use --path facade"),
        (["--config", "/nowhere.json"], "there is no such file"),
    ],
)
def test_bad_usage(load, arguments, part):
    code, result, err = load(*arguments, "--duration", "1s")
    assert (code, result) == (2, None)
    error = json.loads(err.splitlines()[-1])["error"]
    assert part in error["message"], error
    assert error["hint"]


def test_a_token_that_is_full(load, tmp_path):
    full = tmp_path / "full.json"
    fault = {"function": "C_GenerateKeyPair", "every": 1, "action": "return", "ckr": "CKR_DEVICE_MEMORY"}
    full.write_text(json.dumps({"faults": [fault]}))
    code, result, err = load("--chaos", str(full), "--duration", "1s")
    error = json.loads(err)["error"]
    assert (code, result, error["ckrName"]) == (1, None, "CKR_DEVICE_MEMORY")
    assert "no room for a key" in error["hint"]


def test_a_load_generator_that_dies(load):
    """The module is in the generator's own process here, and crashes."""
    code, result, err = load("--noop", "--path", "ring", "--duration", "2s", "--fault", "200ms:C_Sign:crash")
    assert (code, result) == (1, None)
    assert "a generator ended: exit code -11" in json.loads(err)["error"]["message"]


def eventually(holds, seconds: float) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def begun(log: Path) -> bool:
    """Whether a second of a run has passed."""
    return log.exists() and "Tag=" in log.read_text()


@pytest.mark.parametrize(
    ("path", "number"), [("facade", signal.SIGINT), pytest.param("ring", signal.SIGTERM, marks=pytest.mark.deep)]
)
def test_an_interruption_ends_it_in_good_order_and_nothing_secret_was_shown(place, tmp_path, path, number):
    """What was started is answered; the PIN was in no argument, no environment and no output."""
    log = tmp_path / "run.hlog"
    command = [*COMMAND, "--duration", "60s", "--rate", "50", "--json", "--path", path, "--hdr", str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=child_environment({}), text=True) as process:
        eventually(lambda: begun(log), 60)
        [pin] = [found.read_text() for found in place.rglob("pin")]
        [generator] = children_of(process.pid)
        shown = [Path(f"/proc/{p}/{name}") for p in (process.pid, generator) for name in ("cmdline", "environ")]
        texts = [found.read_bytes().decode(errors="replace") for found in shown]
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
    result = json.loads(out)
    assert (process.returncode, result["interrupted"], result["ok"]) == (130, True, False)
    assert result["counts"]["lost"] == 0
    assert result["counts"]["planned"] == 3000
    assert result["counts"]["unstarted"] > 0
    assert not Path(f"/proc/{generator}").exists()
    assert len(pin) == 16
    assert all(pin not in text for text in (*texts, out))


# ---- the judge itself ------------------------------------------------------------------------------------------------


def test_the_verifier_counts_what_is_wrong_twice_or_missing(world, tmp_path):
    """It must find exactly the answers that were changed."""
    from nacl.signing import SigningKey

    key = SigningKey(bytes(range(32)))
    public = bytes(key.verify_key)
    kinds = kinds_of(MIX)
    messages = Messages(table_of(kinds, 7), 300, 7)
    rows = {number: bytearray(key.sign(messages.message(number)).signature) for number in range(1500)}
    assert is_good("ed25519", public, messages.message(0), bytes(rows[0]))
    rows[10][0] ^= 1
    rows[11], rows[12] = rows[12], rows[11]
    del rows[1400]
    answers = [(number, 0, bytes(signature)) for number, signature in rows.items()]
    answers += [(20, 0, bytes(rows[20])), (21, 0, bytes(rows[21])), (1600, 1, b"")]
    spool = tmp_path / "spool"
    spool.write_bytes(b"".join(RECORD.pack(number, status, 0, signature) for number, status, signature in answers))
    heard = Counter()
    verdict = verify(
        spool, messages, [("ed25519", bytes(32)[:31] + b"\x01"), ("ed25519", public)], lambda n: heard.update(n=n)
    )
    assert records(spool) == heard["n"] == 1502
    assert (verdict.kept, verdict.wrong, verdict.twice, verdict.verified) == (1500, 3, 2, 1498)


def test_the_help_has_examples_that_are_understood(load):
    help_text = subprocess.run(
        [*COMMAND, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**child_environment({}), "COLUMNS": "200"},
    ).stdout
    examples = re.findall(r"hsmcore load (--.*)", help_text)
    assert len(examples) >= 5
    for example in examples:  # the last thing that is looked at before anything is made
        code, _, err = load(*shlex.split(example), "--timeout", "0s")
        assert (code, "--timeout '0s': must be more than zero" in err) == (2, True), (example, err)


def test_a_terminal_shows_rate_and_percentiles_while_it_runs():
    ours, theirs = os.openpty()
    command = [*COMMAND, "--noop", "--path", "ring", "--duration", "2500ms", "--rate", "100"]
    environment = {**child_environment({}), "TERM": "xterm", "COLUMNS": "160"}
    shown = b""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment) as process:
        os.close(theirs)
        with contextlib.suppress(OSError):  # what a terminal's end looks like
            while piece := os.read(ours, 4096):
                shown += piece
    os.close(ours)
    assert process.returncode == 0
    assert re.search(rb"signing.*\d+/s  p50 \d+\.\d+ ms  p99 \d+\.\d+ ms  p99\.9 \d+\.\d+ ms", shown), shown
