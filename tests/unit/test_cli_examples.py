"""The commands that help texts and hints print: each is one that the program takes, with all that it requires."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
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


EXAMPLES, HINTS = sorted(set(examples())), sorted(set(hints()))


def test_there_are_some():
    assert len(EXAMPLES) > 60
    assert len(HINTS) > 15


def complete(line: str) -> None:
    """Raise unless a command line is one that the program takes. Files need not be there."""
    try:
        parsed(first_command(line)[1:])
    except Exception as error:
        if "does not exist" not in str(error) and not (type(error).__name__ == "Exit" and "--help" in line):
            raise


@pytest.mark.parametrize("line", EXAMPLES)
def test_an_example_of_a_help_text_has_all_that_its_command_requires(line):
    complete(line)


@pytest.mark.parametrize("line", HINTS)
def test_a_hint_is_a_command_with_all_that_it_requires_or_the_name_of_one(line):
    words = first_command(line)[1:]
    command = application("")
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert command is not application(""), "there is no such command"
    if words:
        complete(line)


def test_what_a_restore_says_comes_next_is_complete():
    complete(_NEXT_STEP)
    with pytest.raises(Exception, match=r"(?i)reason"):
        complete("hsmcore state reconcile")
