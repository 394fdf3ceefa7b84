"""The commands that help texts and hints print: each is one that the program takes, with all that it requires."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.support.commands import BENCH, application
from tests.support.paths import ROOT
from tests.unit.test_doc_blocks import first_command, parsed

from hsmcore.cli.state import _NEXT as _NEXT_STEP

CORE = ROOT / "core" / "hsmcore"


def helps(command: Any) -> Iterator[str]:
    """The help texts of a command and of those below it."""
    yield command.help or ""
    for one in getattr(command, "commands", {}).values():
        yield from helps(one)


def examples() -> Iterator[str]:
    for bench in ("", *BENCH):
        for text in helps(application(bench)):
            _, _, shown = re.sub(r"\\\n\s*", " ", text).partition("Example")
            for line in re.sub(r"^s?:", "", shown).splitlines():
                if re.match(r"\s*(\w+=\S+ )*hsmcore ", line):
                    yield line.strip()


def hints() -> Iterator[str]:
    """Commands in backticks in what the program says, docstrings apart."""
    for path in sorted(CORE.rglob("*.py")):
        text = path.read_text()
        if "`hsmcore" not in text:
            continue
        tree = ast.parse(text)
        documentation = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
                yield from re.findall(r"`(hsmcore [a-z-]+[^`]*)`", node.value)


def complete(line: str) -> None:
    """Raise unless a command line is one that the program takes. Files need not be there."""
    try:
        parsed(first_command(line)[1:])
    except Exception as error:
        if "does not exist" not in str(error) and not (type(error).__name__ == "Exit" and "--help" in line):
            raise


def complete_or_a_name(line: str) -> None:
    """Raise unless a line is a command with all that it requires, or the name of one."""
    words = first_command(line)[1:]
    command = application("")
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert command is not application(""), "there is no such command"
    if words:
        complete(line)


def faults(lines: list[str], check: Callable[[str], None]) -> list[str]:
    """What is wrong with some lines. No parameters of a test: each worker of a run would look for them."""
    found = []
    for line in lines:
        try:
            check(line)
        except Exception as error:  # noqa: BLE001  # a parser's, of whatever kind
            found.append(f"{line}: {error!r}")
    return found


def test_an_example_of_a_help_text_has_all_that_its_command_requires():
    lines = sorted(set(examples()))
    assert len(lines) > 60
    assert faults(lines, complete) == []


def test_a_hint_is_a_command_with_all_that_it_requires_or_the_name_of_one():
    lines = sorted(set(hints()))
    assert len(lines) > 15
    assert faults(lines, complete_or_a_name) == []


def test_what_a_restore_says_comes_next_is_complete():
    complete(_NEXT_STEP)
    with pytest.raises(Exception, match=r"(?i)reason"):
        complete("hsmcore state reconcile")
