"""The command line itself: wrong usage, help, errors in both forms. No token is touched."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import structlog
from tests.support.commands import tree

import hsmcore
from hsmcore.cli import app
from hsmcore.cli.app import run
from hsmcore.errors import HsmError, PinLocked

COMMANDS = ["init", "doctor", "keys", "sign", "verify", "demo", "bench", "tune", "version"]
SIGNATURE = "00" * 64
OF_THE_BENCHMARKS = ["demo", "bench", "load", "tune"]
MAIN = "from hsmcore.cli import main; main()"


@pytest.fixture(autouse=True)
def clean(tmp_path, monkeypatch):
    """No configuration from outside, and logging as it was afterwards."""
    monkeypatch.delenv("HSMCORE_CONFIG", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield
    structlog.reset_defaults()
    logging.getLogger("hsmcore").handlers.clear()


def failure(capsys) -> dict:
    output = capsys.readouterr()
    assert output.out == ""
    return json.loads(output.err.splitlines()[-1])["error"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["frob"], "No such command 'frob'"),
        (["sign", "--bogus"], "No such option: --bogus"),
        (["sign", "--text", "a", "--hex", "00"], "give one message"),
        (["init", "--algorithm", "rsa"], "Invalid value for '--algorithm': 'rsa' is not one of"),
        (["sign", "nowhere"], "nowhere: No such file or directory"),
        (["sign", "--hex", "0"], "--hex takes hexadecimal digits"),
        (["sign", "--text", "a", "--format", "morse"], "morse"),
        (["verify", "--text", "a"], "give --signature, --signature-file or --batched"),
        (["verify", "--text", "a", "--signature", "00"], "not a signature of 64 bytes"),
        (["verify", "--signature-file", "-"], "cannot both come from standard input"),
        (["verify", "--text", "a", "--signature", SIGNATURE, "--public-key", "00"], "not an ed25519 public key"),
        (["init", "--state", "a", "--config", "b/c.json"], "give --state or --config"),
        (["init", "--algorithm", "rsa"], "rsa"),
        (["demo", "--transactions", "0"], "--transactions"),
        (["doctor", "--timeout", "0"], "--timeout"),
        (["tune", "absent.json"], "configuration absent.json: $: there is no such file"),
        (["tune", "a.json", "--state", "b"], "give CONFIG or --state"),
        (["tune", "--most", "0"], "--most"),
        (["doctor", "--config", "absent.json"], "there is no such file"),
        (["keys", "generate"], "--label"),
        (["keys", "frob"], "No such command 'frob'"),
        (["sign", "--text", "a"], "there is no such file"),
        (["sign", "--text", "a", "--config", "absent.json"], "configuration absent.json: $: there is no such file"),
        (["keys", "list", "--state", "absent"], "there is no such file"),
    ],
)
def test_wrong_usage_is_two_lines_and_code_2(arguments, says, capsys):
    assert run(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    what, next_step = output.err.splitlines()
    assert what.startswith("hsmcore: ")
    assert says in what
    assert next_step.startswith("  next: ")


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        (["sign", "--text", "a", "--hex", "00"], "hsmcore sign"),
        (["audit", "verify", "--proof", "a.tlog-proof"], "hsmcore audit verify"),
        (["tune", "a.json", "--state", "b"], "hsmcore tune"),
    ],
)
def test_wrong_usage_leads_to_the_help_of_the_command_itself(arguments, where, tmp_path, capsys):
    (tmp_path / "a.tlog-proof").write_text("c2sp.org/tlog-proof@v1\n")
    assert run(arguments) == 2
    assert capsys.readouterr().err.endswith(f"  next: See `{where} --help`.\n")


GROUPS = [[name] for name, found in app._COMMANDS.items() if found.form == "group" and name != "keys"]  # it lists


@pytest.mark.parametrize("arguments", [*GROUPS, ["policy", "floor"]], ids=" ".join)
def test_a_group_alone_shows_its_commands(arguments, capsys):
    assert run(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"Usage: hsmcore {' '.join(arguments)} [OPTIONS] COMMAND")
    assert "  next: " not in output.err


def test_wrong_usage_as_json(capsys):
    assert run(["sign", "--text", "a", "--format", "raw", "--json"]) == 2
    assert failure(capsys) == {
        "type": "UsageError",
        "message": "--json cannot carry --format raw",
        "hint": "See `hsmcore sign --help`.",
        "retryable": False,
        "exitCode": 2,
    }


def test_a_configuration_that_is_wrong_names_each_fault(tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text('{"keyManager": {"type": "softhsm", "config": {"tokenLabl": "a", "pin": "1234", "keyLabel": "k"}}}')
    assert run(["sign", "--text", "a", "--config", str(path), "--json"]) == 2
    error = failure(capsys)
    assert error["type"] == "ConfigurationError"
    assert error["exitCode"] == 2
    assert [fault["path"] for fault in error["faults"]] == ["$.keyManager.config.tokenLabl"]
    assert "1234" not in json.dumps(error)


SEVERAL = """{"keyManagers": {
  "blocks": {"type": "softhsm", "config": {"tokenLabel": "a", "pin": {"env": "P"}, "keyLabel": "b"}},
  "transactions": {"type": "softhsm", "config": {"tokenLabel": "a", "pin": {"env": "P"}, "keyLabel": "t"}}}}"""


@pytest.mark.parametrize(
    "command",
    [
        ["doctor"], ["keys"], ["keys", "generate", "--label", "a"], ["sign", "--text", "a"], ["serve"],
        ["state", "seal"], ["verify", "--text", "a", "--signature", SIGNATURE], ["rotate", "status"],
        ["failover", "status"], ["tokens"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_command_must_name_one_of_several_key_managers(command, tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(SEVERAL)
    assert run([*command, "--config", str(path), "--json"]) == 2
    error = failure(capsys)
    assert error["message"] == (
        "configuration: $.keyManagers: one of them must be named; there are blocks, transactions."
    )
    assert error["hint"] == "Name it with --key-manager."
    assert run([*command, "--config", str(path), "--json", "--key-manager", "zzz"]) == 2
    assert "there is no 'zzz'; there are blocks, transactions" in failure(capsys)["message"]


def test_a_command_that_takes_one_key_manager_says_so(tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(SEVERAL)
    assert run(["tune", str(path), "--json"]) == 2
    assert failure(capsys)["hint"] == "This command takes a configuration of one keyManager."


def test_keys_of_a_provider_without_a_module_are_not_managed_here(tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text('{"keyManager": {"type": "aws-kms", "config": {"keyId": "alias/sequencer"}}}')
    assert run(["keys", "--config", str(path), "--json"]) == 2
    assert "aws-kms" in failure(capsys)["message"]


def test_the_configuration_may_be_named_by_the_environment(monkeypatch, capsys):
    monkeypatch.setenv("HSMCORE_CONFIG", "from-environment.json")
    assert run(["sign", "--text", "a", "--json"]) == 2
    assert "from-environment.json" in failure(capsys)["message"]


SAME = {"fleet export": "state export", "fleet import": "state import"}
"""One command in two groups: its example is that of the first."""


@pytest.mark.parametrize("words", [" ".join(words) for words, _ in tree()])
def test_every_command_prints_for_programs_and_its_help_says_so_with_an_example(words, capsys):
    assert run([*words.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"Usage: hsmcore {words}")
    assert "--json" in text
    assert f"hsmcore {SAME.get(words, words)}" in text.partition("\n")[2]


def test_the_log_level_comes_from_the_environment(monkeypatch, capsys):
    monkeypatch.setenv("HSMCORE_LOG", "CHATTY")
    assert run(["version"]) == 2
    assert "HSMCORE_LOG: unknown log level 'CHATTY'" in capsys.readouterr().err


def test_no_command_prints_the_list(capsys):
    assert run([]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {command}" in text for command in COMMANDS)


def test_version(capsys):
    assert run(["version", "--json"]) == 0
    assert {"hsmcore", "python", "python-pkcs11"} <= json.loads(capsys.readouterr().out).keys()


def test_an_error_does_not_say_what_to_do_twice(monkeypatch, capsys):
    def fail(**_):
        raise PinLocked(
            "the PIN is locked. Ask the officer.", hint="Ask the officer.", ckr=0xA4, ckr_name="CKR_PIN_LOCKED"
        )

    monkeypatch.setattr(app, "build", fail)
    assert run(["sign"]) == 1
    assert capsys.readouterr().err == "hsmcore: the PIN is locked.\n  next: Ask the officer.\n"
    assert run(["sign", "--json"]) == 1
    error = failure(capsys)
    assert (error["ckr"], error["ckrName"], error["retryable"], error["exitCode"]) == (0xA4, "CKR_PIN_LOCKED", False, 1)


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (ModuleNotFoundError(name="solders.pubkey"), 2, "pip install 'solders"),
        (HsmError("it broke"), 1, "hsmcore: it broke\n  next: See `hsmcore demo --help`."),
    ],
)
def test_exit_codes_of_a_command(raised, code, says, monkeypatch, capsys):
    def fail(**_):
        raise raised

    monkeypatch.setattr(app, "build", fail)
    assert run(["demo"]) == code
    assert says in capsys.readouterr().err


def test_a_bug_is_not_hidden(monkeypatch):
    def fail(**_):
        raise ZeroDivisionError

    monkeypatch.setattr(app, "build", fail)
    with pytest.raises(ZeroDivisionError):
        run(["sign"])


@pytest.fixture
def without_benchmarks(tmp_path):
    """Runs the program where everything is installed that is installed here, but for hsmcore-bench."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "hsmcore").symlink_to(Path(hsmcore.__file__).parent)
    for installed in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for path in Path(installed).iterdir():
            if not path.name.startswith("hsmcore") and path.suffix != ".pth":
                (folder / path.name).symlink_to(path)

    def invoke(*arguments):
        # Without site (-S), no .pth file and no other folder of packages counts.
        return subprocess.run(
            [sys.executable, "-S", "-P", "-c", MAIN, *arguments], env={**os.environ, "PYTHONPATH": str(folder)},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    return invoke


def test_commands_of_a_package_that_is_not_installed_say_what_to_install(without_benchmarks):
    for command in OF_THE_BENCHMARKS:
        for arguments in ([], ["--help"]):
            ran = without_benchmarks(command, *arguments)
            assert (ran.returncode, ran.stdout) == (2, "")
            assert ran.stderr == (
                "hsmcore: hsmcore_bench is not installed\n"
                "  next: Install it with: pip install FILE, where FILE is the wheel or folder of hsmcore-bench\n"
            )
    ran = without_benchmarks("--help")
    assert ran.returncode == 0
    assert all(f"\n  {command} " in ran.stdout for command in OF_THE_BENCHMARKS)


def test_nothing_leads_to_a_command_that_is_not_installed(without_benchmarks, tmp_path):
    told = without_benchmarks("--help").stdout.rpartition("Start with: ")[2]
    told += without_benchmarks("init", "--state", str(tmp_path / "state")).stdout
    assert not any(f"hsmcore {command}" in told for command in OF_THE_BENCHMARKS)
    assert "hsmcore sign --text hello" in told


@pytest.mark.parametrize("arguments", [["version"], ["--help"], ["sign", "--help"]])
def test_other_commands_load_nothing_of_the_benchmarks(arguments):
    loaded = "print(sorted(name for name in sys.modules if name.partition('.')[0] == 'hsmcore_bench'))"
    program = f"import sys; from hsmcore.cli.app import run; run({arguments}); {loaded}"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.splitlines()[-1] == "[]"
