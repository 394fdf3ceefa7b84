"""The benchmark on a real token, with slices too short to mean anything: what takes part, what is left behind."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import structlog

from hsmcore.cli import app as cli
from hsmcore_bench.harness.locate import BIN_DIR_ENV, CHAOS_MODULE, RAW_SIGN, SOFTHSM_MODULE, native
from hsmcore_bench.harness.process import child_environment
from hsmcore_bench.suite import runner
from hsmcore_bench.suite.failover import CASES
from hsmcore_bench.suite.html import page
from hsmcore_bench.suite.model import HsmToken, Options
from hsmcore_bench.suite.results import read_json
from hsmcore_bench.suite.runner import Progress, run

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not Path(SOFTHSM_MODULE).exists(), reason="SoftHSM is not installed"),
]


@pytest.fixture(autouse=True)
def temporary_directory(tmp_path, monkeypatch):
    """A place for temporary files that must be empty again afterwards."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield place
    assert list(place.iterdir()) == []


@pytest.fixture(autouse=True)
def short_warm_up(monkeypatch):
    """What is measured here is held against nothing."""
    monkeypatch.setattr(runner, "WARM_UP_SECONDS", 0.02)


def test_raw_and_peers_sign_the_same_messages_interleaved():
    before = dict(os.environ)
    steps: list[Progress] = []
    result = run(Options(patience=0, rounds=2, seconds=0.05, only="raw-1,pkcs11"), steps.append)
    assert result.failed == {}
    assert {c.name for c in result.contenders} - set(result.skipped) == {
        summary.contender for summary in result.summaries
    }
    assert {"raw", "raw-1", "pkcs11-shared", "pkcs11-threads", "pkcs11-executor"} <= {
        s.contender for s in result.samples
    }
    assert all(len(found) == len(result.summaries) for found in result.by_round().values())
    assert all(sample.signatures > 0 and sample.seconds >= 0.05 for sample in result.samples)
    assert all(sample.latency_ns is not None and sample.cpu_seconds > 0 for sample in result.samples)
    executor = next(summary for summary in result.summaries if summary.contender == "pkcs11-executor")
    assert executor.ratio is not None
    assert executor.lag_p99_ns is None, "watching the loop costs what is measured here; sign-64-lag does it"
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert steps[-1].done == steps[-1].total
    assert dict(os.environ) == before, "the PIN and SOFTHSM2_CONF are for children only"


def test_raw_signs_with_ecdsa():
    result = run(Options(patience=0, rounds=1, seconds=0.02, only="raw-p256,raw-secp256k1"))
    assert (result.failed, [s.contender for s in result.samples]) == ({}, ["raw-p256", "raw-secp256k1"])
    assert "SoftHSM" in result.environment["module"]


def test_ours_takes_part():
    only = "raw-1,hand-over,sign-1,sign-64,sign-64-lag,audit-1,flush"
    result = run(Options(patience=0, rounds=1, seconds=0.03, only=only))
    assert result.failed == {}
    found = {sample.contender: sample for sample in result.samples}
    assert {"sign-1", "sign-64", "flush", "hand-over", "audit-1-none", "audit-1-fsync"} <= found.keys()
    parts = found["sign-1"].parts_ns
    assert parts.keys() == {"loop", "ring", "hsm", "wake"}
    assert min(parts.values()) >= 0
    assert parts["hsm"] > 0
    verdicts = {verdict.name: verdict for verdict in result.targets}
    assert verdicts["sign-64-rate"].value is not None
    assert verdicts["loop-lag"].value is not None


@pytest.mark.slow("a gateway, devices, and a key manager that is idle")
def test_counts_are_taken():
    only = "idle-watched,gateway-1,device-5ms-ours-1,verify-one,policy-flush,open-80-5ms-raw"
    result = run(Options(patience=0, rounds=1, seconds=0.05, only=only))
    assert (result.failed, result.skipped) == ({}, {})
    found = {sample.contender: sample for sample in result.samples}
    assert found.keys() == {*only.split(","), "device-5ms-raw-1"}
    assert (found["idle-watched"].signatures, found["idle-watched"].cpu_seconds > 0) == (0, True)
    assert found["gateway-1"].switches > 0
    assert found["gateway-1"].calls > found["gateway-1"].signatures > 0
    assert found["device-5ms-ours-1"].switches > 0
    assert found["device-5ms-ours-1"].lag_ns is None, "to watch the loop would be most of what is measured"
    assert min(found["verify-one"].signatures, found["policy-flush"].signatures) > 0
    raw = found["open-80-5ms-raw"]
    assert raw.signatures == pytest.approx(0.8 * 12_800 * 0.05 * 8, rel=0.1), "as many as were due, however slow"
    assert raw.latency_ns.p50 > 4e6


@pytest.mark.deep
@pytest.mark.slow("thousands of objects on a token")
def test_the_rest_of_ours_takes_part():
    only = "sign-p256,sign-secp256k1,audit-fsync,batch-4,open-960,open-80-token"
    result = run(Options(patience=0, rounds=1, seconds=0.03, only=only))
    assert result.failed == {}
    found = {sample.contender for sample in result.samples}
    assert {"sign-p256", "sign-secp256k1", "audit-fsync", "audit-none", "batch-4", "open-960", "open-80-token"} <= found


def test_memory_is_read_twice():
    result = run(Options(patience=0, rounds=1, seconds=0.05, only="memory,noop-256", memory_signatures=5_000))
    assert result.failed == {}
    assert result.memory is not None
    assert result.memory.signatures == (5_000, 10_000)
    assert all(reading > 1 << 20 for reading in result.memory.rss_bytes)


@pytest.mark.deep
def test_resilience_is_measured():
    only = "noop-process-256,device-x2,verify-always,recovery"
    result = run(Options(patience=0, rounds=1, seconds=0.03, only=only, breaks=1, watch_seconds=0.3))
    assert (result.failed, result.skipped) == ({}, {})
    found = {sample.contender: sample for sample in result.samples}
    assert {"noop-process-256", "device-x2-ours", "verify-always"} <= found.keys()
    assert found["device-x2-ours"].ceiling == 3000.0
    assert found["verify-never"].ceiling == 3200.0
    assert found["device-x2-raw"].rate < 3100
    assert found["device-x2-ours"].rate is not None
    assert {b.case for b in result.recovery} == {"host", "sessions", "sessions-5ms", "rotation"}
    assert all((b.failed, b.wrong) == (0, 0) and b.rate_before > 0 for b in result.recovery)
    assert all(0 < b.again_seconds <= 0.3 for b in result.recovery)


@pytest.mark.deep
@pytest.mark.slow("members that fail and come back")
def test_failover_is_measured():
    result = run(
        Options(
            patience=0, rounds=1, seconds=0.03, only="failover-primary,failover-members-2", breaks=1, switch_seconds=0.3
        )
    )
    assert (result.failed, result.skipped) == ({}, {})
    found = {sample.contender: sample for sample in result.samples}
    assert (found["failover-members-1"].ceiling, found["failover-members-2"].ceiling) == (3200.0, 6400.0)
    assert {switch.case for switch in result.switches} == {case.name for case in CASES}
    for switch in result.switches:
        assert (switch.failed, switch.lost, switch.wrong, switch.twice) == (0, 0, 0, 0)
        assert switch.asked > 500
        assert (switch.pause_seconds is None) == (switch.case == "flapping")
        assert switch.moves >= 1


@pytest.mark.parametrize("only", ["stack-256", pytest.param("stack-64,stack-noop-256", marks=pytest.mark.deep)])
def test_the_whole_stack_signs(only):
    result = run(Options(patience=0, rounds=1, seconds=0.03, only=only))
    assert (result.failed, result.skipped) == ({}, {})
    found = {sample.contender: sample for sample in result.samples}
    assert all(found[name].signatures > 0 for name in only.split(","))
    if only == "stack-256":
        assert found["stack-256"].ceiling == found["stack-256-raw"].ceiling == 25_600.0


def test_nothing_is_killed_on_a_token_that_was_named(monkeypatch):
    monkeypatch.setenv("HSM_PIN", "0000")
    token = HsmToken(SOFTHSM_MODULE, "someone's", {"ed25519": "key"})
    result = run(Options(patience=0, rounds=1, seconds=0.02, only="recovery", token=token))
    assert result.skipped == {"recovery": "it would kill sessions on the token that was named"}
    assert result.recovery == []


def test_a_wrong_key_fails_only_the_contenders_that_need_it(monkeypatch):
    monkeypatch.setenv("HSM_PIN", "0000")
    token = HsmToken(SOFTHSM_MODULE, "no such token", {"ed25519": "key"})
    result = run(Options(patience=0, rounds=1, seconds=0.02, only="raw,raw-p256", token=token))
    assert result.failed["raw"] == "ended: hsmcore-rawsign: no token with this label"
    assert result.skipped == {"raw-p256": "no ecdsa-p256 key was named"}
    assert result.samples == []


def test_a_missing_library_is_reported_and_the_other_contenders_run(monkeypatch, tmp_path):
    for name in ("PyKCS11", "cryptography"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{name}'\")\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = run(Options(patience=0, rounds=1, seconds=0.02, only="pykcs11,software-sodium,software-openssl"))
    missing = {"pykcs11": "No module named 'PyKCS11'", "software-openssl": "No module named 'cryptography'"}
    assert (result.failed, result.skipped) == ({}, missing)
    assert {sample.contender for sample in result.samples} == {"raw", "software-sodium"}
    assert "No module named &#x27;cryptography&#x27;" in page(result)


def test_what_was_not_built_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setenv(BIN_DIR_ENV, str(tmp_path))
    monkeypatch.setattr("hsmcore_bench.harness.locate.PACKAGE", tmp_path)
    result = run(Options(patience=0, rounds=1, seconds=0.02, only="cache-lookup,hand-over"))
    missing = {"cache-lookup": "hsmcore-cachebench was not built", "hand-over": "hsmcore-handover was not built"}
    assert result.skipped == missing


def bench_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    program = [sys.executable, "-c", "import sys; from hsmcore.cli import main; sys.exit(main())", "bench"]
    return subprocess.run([*program, *map(str, arguments)], capture_output=True, text=True, check=False)


class TestCommand:
    @pytest.fixture
    def invoke(self, capsys):
        def invoke(*arguments):
            code = cli.run(["bench", *map(str, arguments)])
            output = capsys.readouterr()
            return SimpleNamespace(exit_code=code, stdout=output.out, stderr=output.err)

        yield invoke
        structlog.reset_defaults()
        logging.getLogger("hsmcore").handlers.clear()

    def test_writes_its_files_and_json_alone_to_standard_output(self, tmp_path):
        """With a scenario of one's own."""
        own, out = tmp_path / "mine.toml", tmp_path / "out"
        own.write_text(
            'title = "Mine"\nabout = ""\norder = 1\n[[contender]]\nname = "mine-{in_flight}"\n'
            'title = "{in_flight} threads"\nkind = "raw"\nreference = "raw"\nin_flight = [1, 2]\nsessions = [1, 2]\n'
        )
        done = bench_process(
            *("--json", "--quick", "--rounds", 1, "--seconds", 0.03, "--scenario", own, "--only", "mine", "--out", out)
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == (out / "hsmcore-bench.json").read_text()
        result = read_json(out / "hsmcore-bench.json")
        assert {sample.contender for sample in result.samples} == {"raw", "mine-1", "mine-2"}
        assert "| 2 threads |" in (out / "hsmcore-bench.md").read_text()
        assert '<h2 id="s-mine">Mine</h2>' in (out / "hsmcore-bench.html").read_text()
        assert ">raw C loop</text>" in (out / "hsmcore-bench.svg").read_text()

    def test_lists(self, invoke):
        done = invoke("--list")
        assert done.exit_code == 0
        assert {"raw", "sign-64", "pykcs11", "memory", "recovery", "resilience", "audit"} <= {
            line.split()[0] for line in done.stdout.splitlines() if line
        }

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (["--only", "nothing-like-it"], "fits no contender"),
            (["--label", "key"], "--label needs --token"),
            (["--token", "t"], "--token needs --label"),
            (["--token", "t", "--label", "k"], "HSM_PIN"),
            (["--algorithm", "rsa"], "expected one of ed25519"),
            (["--rounds", "0"], "rounds"),
            (["--no-such-option"], "such option"),
            (["--scenario", "none.toml"], "none.toml"),
        ],
    )
    def test_bad_usage(self, invoke, arguments, reason, monkeypatch, tmp_path):
        monkeypatch.delenv("HSM_PIN", raising=False)
        done = invoke(*arguments, "--out", tmp_path / "out")
        assert done.exit_code == 2
        assert reason in " ".join(done.stderr.split())
        assert not (tmp_path / "out").exists()

    def test_a_scenario_with_an_unknown_field_is_bad_usage(self, invoke, tmp_path):
        own = tmp_path / "mine.toml"
        own.write_text(
            'title = "t"\nabout = ""\norder = 1\n[[contender]]\nname = "a"\ntitle = "a"\nkind = "raw"\nx = 1\n'
        )
        done = invoke("--scenario", own, "--only", "mine", "--out", tmp_path / "out")
        assert (done.exit_code, "contender[0] (a).x: no such field" in done.stderr) == (2, True)
        assert not (tmp_path / "out").exists()

    def test_a_full_token_is_an_error_that_says_so(self, invoke, monkeypatch, tmp_path):
        """And leaves nothing behind: see temporary_directory."""
        fault = {"function": "C_GenerateKeyPair", "every": 1, "action": "return", "ckr": "CKR_DEVICE_MEMORY"}
        config = tmp_path / "full.json"
        config.write_text(json.dumps({"module": SOFTHSM_MODULE, "faults": [fault]}))
        monkeypatch.setenv("HSMCORE_CHAOS_CONFIG", str(config))
        monkeypatch.setattr("hsmcore_bench.harness.locate.SOFTHSM_MODULE", str(native(CHAOS_MODULE)))
        done = invoke("--only", "raw", "--out", tmp_path / "out")
        assert done.exit_code == 1
        assert re.search("no token could be made: .*CKR_DEVICE_MEMORY", done.stderr)

    def test_a_missing_module_is_bad_usage(self, invoke, monkeypatch, tmp_path):
        monkeypatch.setenv("HSM_PIN", "0000")
        done = invoke("--token", "t", "--label", "k", "--module", tmp_path / "none.so", "--out", tmp_path / "out")
        assert (done.exit_code, "no such file" in " ".join(done.stderr.split())) == (2, True)

    def test_errors_are_json_when_asked(self, invoke, tmp_path):
        done = invoke("--json", "--only", "nothing-like-it", "--out", tmp_path / "out")
        assert (done.exit_code, done.stdout) == (2, "")
        assert "fits no contender" in json.loads(done.stderr.splitlines()[-1])["error"]["message"]

    def test_no_module_is_an_error_that_says_so(self, invoke, monkeypatch, tmp_path):
        monkeypatch.setattr("hsmcore_bench.harness.locate.SOFTHSM_MODULE", "/nowhere/libsofthsm2.so")
        done = invoke("--only", "raw", "--out", tmp_path / "out")
        assert (done.exit_code, "install softhsm2" in done.stderr) == (1, True)

    def test_a_failure_is_exit_code_1(self, invoke, monkeypatch, tmp_path):
        monkeypatch.setenv("HSM_PIN", "0000")
        done = invoke("--token", "t", "--label", "k", "--only", "raw", "--rounds", 1, "--out", tmp_path / "out")
        assert done.exit_code == 1
        assert "failed raw" in done.stdout


def test_terminating_it_leaves_nothing(temporary_directory):
    script = "import typer; from hsmcore_bench.suite.cli import bench; typer.run(bench)"
    command = [sys.executable, "-c", script, "--only", "raw", "--rounds", "50", "--seconds", "1"]
    process = subprocess.Popen(command, env=child_environment({}), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(temporary_directory.glob("hsmcore-bench-*/tokens/*/*.object")) or RAW_SIGN not in named(process.pid):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM


def named(pid: int) -> set[str]:
    """The programs that the children of a process run."""
    found = set()
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found.add(Path(Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0].decode()).name)
    return found
