"""How the command line starts and ends: what it imports, and what it makes of the streams and files it is given."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer

import hsmcore
from hsmcore.cli import app
from hsmcore.cli.app import build, run
from hsmcore.cli.invocation import Invocation, command
from hsmcore.cli.output import fail, fields, print_fields, table

MAIN = "from hsmcore.cli import main; main()"
LOADED = """
import sys
from hsmcore.cli.app import run
code = run(sys.argv[1:])
print(code, *sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)
"""
SLOW = {"boto3", "hsmcore_bench", "nacl", "pkcs11", "rich", "sqlalchemy", "structlog", "uvloop"}


def loaded(*arguments: str) -> set[str]:
    ran = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments], capture_output=True, text=True, check=True, timeout=60
    )
    code, *names = ran.stderr.splitlines()[-1].split()
    assert code == "0"
    return set(names)


def test_the_library_imports_what_is_used_and_no_more():
    program = "import sys, hsmcore; print(*(name for name in sys.modules if name.startswith('hsmcore.')))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.split() == []


@pytest.mark.parametrize(
    ("child", "other"),
    [
        ("members.control", "asyncio logging.handlers pydantic hsmcore.config"),
        ("doctor", "hsmcore.config hsmcore.manager"),
        ("serve", "pkcs11 pydantic hsmcore.config hsmcore.members.base"),
    ],
)
def test_a_child_imports_what_its_work_needs(child, other):
    program = f"import sys, hsmcore.{child}.child; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert set(other.split()) & set(ran.stdout.split()) == set()


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["keys", "list", "--help"]], ids=" ".join)
def test_what_only_prints_a_text_imports_nothing_slow(arguments):
    names = loaded(*arguments)
    assert names & SLOW == set()
    assert names.isdisjoint({"asyncio", "pydantic"}) or arguments not in (["--version"], ["--help"])


def test_to_sign_imports_no_logging_that_shows_nothing(tmp_path):
    made = subprocess.run([sys.executable, "-c", MAIN, "init", "--state", tmp_path / "s"], check=True, timeout=60)
    assert made.returncode == 0
    names = loaded("sign", "--text", "a", "--state", str(tmp_path / "s"))
    assert names & {"structlog", "rich", "hsmcore_bench", "boto3"} == set()


INTERRUPTED = """
import sys
class Interrupts:
    def find_spec(self, name, *_):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupts())
"""


def test_an_interruption_while_it_starts_is_no_traceback():
    ran = subprocess.run(
        [sys.executable, "-c", INTERRUPTED + MAIN, "doctor"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (ran.returncode, ran.stderr) == (130, "hsmcore: interrupted\n")


def test_the_list_of_commands_is_what_the_commands_say():
    """Only the command that runs is imported, so the list has its own words for the others."""
    known, full = (typer.main.get_command(one) for one in (build(only=""), build()))
    assert list(known.commands) == list(full.commands)
    for name, one in full.commands.items():
        assert known.commands[name].get_short_help_str(200) == one.get_short_help_str(200), name


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version_is_an_option_too(option, capsys):
    assert run([option]) == 0
    assert capsys.readouterr().out == f"hsmcore {hsmcore.__version__}\n"


@pytest.mark.parametrize(
    ("words", "found"), [("hsmcore rot", "rotate"), ("hsmcore sign --for", "--format"), ("hsmcore keys li", "list")]
)
def test_a_shell_completes_commands_and_options(words, found, monkeypatch, capsys):
    monkeypatch.setenv("_HSMCORE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
    with pytest.raises(SystemExit):
        run([])
    assert found in capsys.readouterr().out.split()


# ---- standard output and error ----


def started(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", MAIN, *arguments], env=os.environ | environment, capture_output=True, check=False,
        timeout=60,
    )  # fmt: skip


def test_an_encoding_that_lacks_characters_gets_others(tmp_path):
    state = ["--state", str(tmp_path / "s")]
    assert started(["init", *state]).returncode == 0
    ran = started(["doctor", *state], PYTHONIOENCODING="ascii")
    assert ran.returncode == 0
    assert b"Traceback" not in ran.stderr
    assert b"\n  + token " in ran.stdout


@pytest.mark.parametrize(
    ("streams", "code", "said"),
    [
        (">/dev/full", 1, "hsmcore: No space left on device\n  next: Make room where the output or the files go.\n"),
        pytest.param(">/dev/full 2>/dev/full", 1, "", marks=pytest.mark.deep),
        pytest.param(">&-", 0, "", marks=pytest.mark.deep),
        (">&- 2>&-", 0, ""),
        ("| true", 1, ""),
    ],
)
def test_output_that_cannot_be_written_ends_without_a_traceback(streams, code, said):
    shell = f'set -o pipefail; "$0" -c "$1" metrics {streams}'
    ran = subprocess.run(
        ["bash", "-c", shell, sys.executable, MAIN], capture_output=True, text=True, check=False, timeout=60
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (code, "", said)


# ---- files and folders ----


def failed(capsys) -> tuple[str, str]:
    output = capsys.readouterr()
    assert output.out == ""
    what, next_step = output.err.splitlines()
    return what, next_step


def test_a_folder_is_not_a_missing_file(tmp_path, capsys):
    assert run(["doctor", "--config", str(tmp_path)]) == 2
    what, next_step = failed(capsys)
    assert what == f"hsmcore: configuration {tmp_path}: $: is a folder"
    assert next_step.endswith(f"--state {tmp_path}")


@pytest.mark.parametrize("command", [["sign", "--text", "a"], ["doctor"], ["keys"], ["serve"], ["audit", "verify"]])
def test_a_configuration_of_another_user_is_an_error_of_two_lines(command, tmp_path, monkeypatch, capsys):
    """As root makes it with `init`, and another user names it. Tests run as root, who may read everything."""
    path = tmp_path / "config.json"
    opened = Path.open

    def refused(self, *arguments, **options):
        if self == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refused)
    assert run([*command, "--config", str(path)]) == 2
    what, next_step = failed(capsys)
    assert what == f"hsmcore: configuration {path}: $: cannot be read: Permission denied"
    assert "as the user that owns the file" in next_step


@pytest.mark.parametrize("as_json", [False, True])
def test_whatever_the_system_refuses_is_an_error_of_two_lines(as_json, monkeypatch, capsys):
    def fail(**_):
        raise PermissionError(errno.EACCES, "Permission denied", "/srv/state.db")

    monkeypatch.setattr(app, "build", fail)
    assert run(["sign", *(["--json"] if as_json else [])]) == 1
    if as_json:
        error = json.loads(capsys.readouterr().err)["error"]
        assert (error["type"], error["message"]) == ("SystemFailure", "/srv/state.db: Permission denied")
    else:
        what, next_step = failed(capsys)
        assert what == "hsmcore: /srv/state.db: Permission denied"
        assert next_step.startswith("  next: Run the command as the user")


# ---- questions at a terminal ----


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("answer", "yes", "as_json", "goes_on"),
    [("y\n", False, False, True), ("n\n", False, False, False), ("", True, False, True), ("", False, True, True)],
)
def test_a_terminal_is_asked_before_what_cannot_be_undone(answer, yes, as_json, goes_on, monkeypatch):
    asked = Terminal()
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys, "stderr", asked)
    cli = Invocation(None, None, None, as_json)
    if goes_on:
        cli.confirm("it is the last one", "Drain it?", yes=yes)
    else:
        with pytest.raises(typer.Exit) as caught:
            cli.confirm("it is the last one", "Drain it?", yes=yes)
        assert caught.value.exit_code == 1
    assert ("Drain it?" in asked.getvalue()) == (answer != "")
    assert ("it is the last one" in asked.getvalue()) == (not as_json)


def test_no_terminal_is_not_asked(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    Invocation(None, None, None, as_json=False).confirm("", "Rotate?", yes=False)
    assert capsys.readouterr().err == ""


def test_a_time_is_printed_as_a_time_and_a_duration_as_it_is(capsys):
    print_fields({"begunNs": 1795623049125447750, "latencyNs": 2_000_000, "waitsUntilNs": None})
    assert capsys.readouterr().out.splitlines() == [
        "begun         2026-11-25T16:10:49+00:00",
        "latencyNs     2000000",
        "waitsUntilNs  -",
    ]


def test_values_are_words_and_no_forms_of_python(capsys):
    print_fields(
        {"says": {"CKA_LOCAL": True, "serial": "5d11"}, "steps": ["pin", "drill"], "certificates": [], "why": ""}
    )
    assert capsys.readouterr().out.splitlines() == [
        "says          CKA_LOCAL yes, serial 5d11",
        "steps         pin, drill",
        "certificates  -",
        "why           -",
    ]


# ---- views of a document, and options as text ----

RECORD = {"name": "a\n", "madeNs": 1795623049125447750, "floor": -1, "key": {"id": "5d"}, "seen": 1.6, "ok": False}


def test_a_table_is_columns_of_records(capsys):
    columns = "NAME name, MADE madeNs, FLOOR floor:position, KEY ID key.id, SEEN seen:ago, ok, WHY key.why:good"
    table(columns, "rows")({"rows": [RECORD, {}]})
    assert [re.split(r" {2,}", line) for line in capsys.readouterr().out.splitlines()] == [
        ["NAME", "MADE", "FLOOR", "KEY ID", "SEEN", "ok", "WHY"],
        ["a\\n", "2026-11-25T16:10:49+00:00", "-", "5d", "2 s ago", "no", "good"],
        ["-", "-", "-", "-", "-", "-", "good"],
    ]


def test_fields_are_some_values_of_a_document(capsys):
    fields("key key.id, last made madeNs, time madeNs:ms, held by holder:none")(RECORD)
    assert capsys.readouterr().out.splitlines() == [
        "key        5d",
        "last made  2026-11-25T16:10:49+00:00",
        "time       2026-11-25T16:10:49.125+00:00",
        "held by    none",
    ]


@pytest.mark.parametrize(("as_json", "printed"), [(True, '{"a":1}\n'), (False, "text\n")])
def test_a_result_that_is_no_good_is_printed_and_ends_with_1(as_json, printed, capsys):
    cli = Invocation(None, None, None, as_json)
    cli.show({"a": 1}, "text")
    with pytest.raises(typer.Exit) as caught:
        cli.show({"a": 1}, "text", ok=False)
    assert (caught.value.exit_code, capsys.readouterr().out) == (1, printed * 2)


def test_problems_are_printed_and_end_with_1(capsys):
    fail([])
    with pytest.raises(typer.Exit) as caught:
        fail(["one", "two"], "Mend it.")
    assert caught.value.exit_code == 1
    assert capsys.readouterr().err == "hsmcore: one\n  next: Mend it.\nhsmcore: two\n  next: Mend it.\n"


def test_an_option_is_its_names_metavar_and_help_as_text():
    app = typer.Typer()

    @command(app, "Try.", takes="as_json")
    def run(
        cli: Invocation,
        to_file: Annotated[Path, "-o PATH: Where: default none."],
        most: Annotated[int, "At most.", {"min": 1}] = 3,
        source: Annotated[str, "--from A|B=C: Whence."] = "",
        wait: Annotated[bool, "--wait/--no-wait: Wait."] = True,
    ) -> None:
        pass

    built = typer.main.get_command(app)
    found = {one.name: one for one in built.params}
    shown = {name: (one.opts, one.secondary_opts, one.metavar, one.help) for name, one in found.items()}
    assert shown["to_file"] == (["--to-file", "-o"], [], "PATH", "Where: default none.")
    assert shown["most"] == (["--most"], [], None, "At most.")
    assert shown["source"] == (["--from"], [], "A|B=C", "Whence.")
    assert shown["wait"] == (["--wait"], ["--no-wait"], None, "Wait.")
    assert found["to_file"].required
    assert "as_json" in found
    assert "config" not in found
    with pytest.raises(typer.BadParameter, match="greater than or equal to 1"):
        built(["--to-file", "a", "--most", "0"], standalone_mode=False)


def test_no_help_of_an_option_begins_with_its_declaration():
    def below(one):
        yield one
        for inner in getattr(one, "commands", {}).values():
            yield from below(inner)

    helps = [parameter.help or "" for one in below(typer.main.get_command(build())) for parameter in one.params]
    assert len(helps) > 200
    assert [text for text in helps if re.match(r"-|[A-Z|=\[\]]+: ", text)] == []
