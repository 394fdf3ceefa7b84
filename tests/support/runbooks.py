"""Runbooks as programs: the commands in docs/operations/runbooks.md, run as they stand."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

from tests.support.terminal import Terminal

ROOT = Path(__file__).resolve().parents[2]
RUNBOOKS = ROOT / "docs" / "operations" / "runbooks.md"


def anchors(text: str) -> list[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def section(title: str) -> str:
    """The text under a heading of the runbooks."""
    _, _, rest = RUNBOOKS.read_text().partition(f"\n## {title}\n")
    assert rest, f"there is no runbook {title!r}"
    return rest.partition("\n## ")[0]


def blocks(title: str) -> list[list[str]]:
    """The commands of a runbook, block by block."""
    found = re.findall(r"^```console\n(.*?)^```", section(title), re.DOTALL | re.MULTILINE)
    return [[line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")] for block in found]


class Operator:
    """An operator at a terminal, with a configuration and variables."""

    def __init__(self, terminal: Terminal, config: Path, **variables: str) -> None:
        self._environment = {
            **os.environ,
            "PATH": f"{terminal.folder}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "core"),  # for the children of commands
            "HSMCORE_CONFIG": str(config),
            "INCIDENT": "incident 42",
            **variables,
        }
        self.said: dict[str, str] = {}

    async def run(self, commands: list[str]) -> None:
        """One after the other; each must succeed."""
        for command in commands:
            child = await asyncio.create_subprocess_exec(
                "bash", "-euo", "pipefail", "-c", command,
                env=self._environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            out, _ = await child.communicate()
            self.said[command] = out.decode()
            assert child.returncode == 0, f"$ {command}\n{out.decode()}"

    def set(self, **variables: str) -> None:
        """Set variables for the commands that follow."""
        self._environment.update(variables)
