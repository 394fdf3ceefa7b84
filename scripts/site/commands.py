"""The reference of the command line, from its help texts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import typer

from hsmcore.cli.app import build

_BENCH: Final = ("demo", "bench", "load", "tune")
_INTRODUCTION: Final = """\
# Command reference

What `hsmcore COMMAND --help` says, for all commands. Exit codes: 0 done, 1 failed, 2 wrong usage or configuration. With
`--json` a command prints its result, and an error, as one line of JSON.
"""


def page() -> str:
    """Return the page."""
    app: Any = typer.main.get_command(build(bench=""))
    for name in _BENCH:
        whole: Any = typer.main.get_command(build(bench=name))
        app.commands[name] = whole.commands[name]
    root = app.context_class(app, info_name="hsmcore")
    sections = [section for name in sorted(app.commands) for section in _sections(app.commands[name], name, root, 2)]
    return "\n".join([_INTRODUCTION, *sections])


def _sections(command: Any, name: str, parent: Any, level: int) -> Iterator[str]:
    """Yield the section of a command, then those of its commands."""
    context = command.context_class(command, info_name=name, parent=parent)
    usage = " ".join(command.get_usage(context).removeprefix("Usage: ").split())
    lines = [f"{'#' * level} {context.command_path}", "", *_help(command.help or command.short_help or "")]
    lines += ["```text", usage, "```", ""]
    records = [found for found in (parameter.get_help_record(context) for parameter in command.params) if found]
    records = [record for record in records if "--help" not in record[0]]
    if records:
        lines += ["| option | meaning |", "|---|---|"]
        lines += [f"| `{_cell(option)}` | {_text(_cell(said))} |" for option, said in records]
    yield "\n".join([*lines, ""])
    inner = getattr(command, "commands", {})
    for each in inner:
        yield from _sections(inner[each], each, context, min(level + 1, 4))


def _help(text: str) -> Iterator[str]:
    """Yield the lines of a help text: paragraphs, and indented lines as code."""
    for paragraph in re.split(r"\n\s*\n", text.replace("\b", "").strip("\n")):
        if paragraph.startswith("  "):
            yield "```text"
            yield from (line.removeprefix("  ") for line in paragraph.splitlines())
            yield "```"
        else:
            yield _text(" ".join(paragraph.split()))
        yield ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _text(text: str) -> str:
    """Return prose with what Markdown would take for marks escaped, outside of backticks."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*_<\[])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)
