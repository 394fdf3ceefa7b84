"""The code blocks of the documents that users read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from tests.support.paths import ROOT

_FENCE: Final = re.compile(r"^( *)(`{3,})(\w*)[^\n]*\n(.*?)^\1\2`*$", re.DOTALL | re.MULTILINE)
SHELLS: Final = ("console", "sh", "bash")
_COMMANDS: Final = re.compile(r"^(\w+=\S+ )*(hsmcore|make|python|node|examples/\S+) ", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A code block. `number` counts those of its language in its document, from 1."""

    document: str
    language: str
    number: int
    line: int
    text: str

    @property
    def name(self) -> str:
        """What a test calls it."""
        return f"{self.document}:{self.language}-{self.number}"

    @property
    def commands(self) -> str:
        """The commands of a block for a shell, without what they print."""
        if self.language != "console":
            return self.text
        said: list[str] = []
        for line in self.text.splitlines():
            going_on = bool(said) and said[-1].endswith("\\")
            if line.startswith(("$ ", "# ")) or going_on:  # the prompts of a user, and of root
                said.append(line if going_on else line[2:])
        return "\n".join([*said, ""])


def documents() -> list[str]:
    """The documents, by their paths."""
    found = [
        "README.md",
        "CONTRIBUTING.md",
        "examples/README.md",
        "clients/python/README.md",
        "clients/rust/README.md",
        "clients/typescript/README.md",
    ]
    return found + sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))


def blocks(*languages: str) -> list[Block]:
    """The blocks of these languages, or all. Those without a language that hold commands are "bash", others "text"."""
    found = []
    for document in documents():
        text = (ROOT / document).read_text()
        counts: dict[str, int] = {}
        for fence in _FENCE.finditer(text):
            body = re.sub(rf"^{fence[1]}", "", fence[4], flags=re.MULTILINE)
            language = fence[3] or ("bash" if _COMMANDS.search(body) else "text")
            number = counts[language] = counts.get(language, 0) + 1
            line = text.count("\n", 0, fence.start()) + 1
            found.append(Block(document, language, number, line, body))
    return [block for block in found if not languages or block.language in languages]


def block(document: str, language: str, number: int = 1) -> str:
    """The text of one block."""
    [found] = [one for one in blocks(language) if (one.document, one.number) == (document, number)]
    return found.text
