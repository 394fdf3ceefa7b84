"""The pages of the documents have short sentences on average, and those that a stranger reads first no long one."""

from __future__ import annotations

import re

import pytest
from tests.support.paths import ROOT

FIRST = (
    "README.md",
    *(
        f"docs/{name}.md"
        for name in ("README", "TUTORIAL", "EMBEDDING", "SOLANA", "DEPLOY", "OPERATIONS", "MONITORING")
    ),
)
PAGES = sorted(
    path.relative_to(ROOT).as_posix() for place in ("*.md", "operations/*.md") for path in (ROOT / "docs").glob(place)
)
LONGEST, MEAN = 25, 15
"""Words of a sentence."""


def sentences(text: str) -> list[str]:
    """The sentences of a document: not its code, tables, headings, nor what a program writes into it."""
    text = re.sub(r"^(`{3,}).*?^\1`*$", "\n", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!-- bench.*?:begin -->.*?<!-- bench.*?:end -->", "\n", text, flags=re.DOTALL)
    text = re.sub(r"^(#|\||!\[).*$", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"\]\([^)\s]*\)", "]", text).replace("*", "").replace("[", "").replace("]", "")
    text = re.sub(r"^ *(?:-|\d+\.|>) ", "\n\n", text, flags=re.MULTILINE)  # each item is a paragraph
    paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text)]
    return [one for paragraph in paragraphs if paragraph for one in re.split(r"(?<=[.!?]) (?=[A-Z`0-9])", paragraph)]


def words(sentence: str) -> int:
    """Words; what stands in backticks is one."""
    return len(re.findall(r"\S*\w\S*", re.sub(r"`[^`]*`", "x", sentence)))


def test_sentences_are_cut_and_counted():
    page = "# A title\n\nOne, [three](x.md). Two `a b` five?\n- six\n- seven eight.\n\n```\nnot\n```\n| nor | this |\n"
    assert [words(one) for one in sentences(page)] == [2, 3, 1, 2]


@pytest.mark.parametrize("name", FIRST)
def test_the_first_pages_have_short_sentences(name):
    said = sentences((ROOT / name).read_text())
    assert len(said) > 20
    assert [one for one in said if words(one) > LONGEST] == []
    assert sum(map(words, said)) / len(said) <= MEAN


def test_all_pages_have_short_ones_on_average():
    said = {name: sentences((ROOT / name).read_text()) for name in PAGES}
    means = {name: round(sum(map(words, found)) / len(found), 2) for name, found in said.items()}
    assert {name: mean for name, mean in means.items() if mean > MEAN} == {}
    assert len(means) > 30
