"""The HTML report: whole, alone, and safe with whatever a module calls itself."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hsmcore_bench.harness import svg
from hsmcore_bench.suite.html import page
from hsmcore_bench.suite.results import KEPT, newest

ROOT = Path(__file__).parents[2]
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Reader(HTMLParser):
    """Checks that every element is closed, and keeps what was opened."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.stack == []
    return reader


@pytest.fixture(scope="module")
def result():
    return newest(ROOT / KEPT)[1]


def test_every_scenario_has_its_part_and_its_picture(result):
    text = page(result)
    reader = read(text)
    ids = {attributes.get("id") for _, attributes in reader.tags}
    assert {f"s-{scenario.name}" for scenario in result.scenarios} <= ids
    links = {attributes["href"] for tag, attributes in reader.tags if tag == "a"}
    assert links <= {f"#{name}" for name in ids}
    for part in text.split("<h2 ")[1:]:
        name = re.match(r'id="s-([^"]+)"', part)
        assert name is None or "<svg" in part, name
    for summary in result.summaries:
        title = next(c.title for c in result.contenders if c.name == summary.contender)
        assert any(title in said for said in reader.text)


def test_it_stands_alone(result):
    text = page(result)
    reader = read(text)
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "img", "iframe", "object", "embed"}
    assert not re.search(r"url\(|@import|https?://", text)
    assert not [name for _, attributes in reader.tags for name in attributes if name.startswith("on")]
    assert "@media screen and (prefers-color-scheme: dark)" in text  # not on paper
    assert "@media print" in text


def test_nothing_that_a_module_says_becomes_markup(result):
    hostile = '<script>alert("x")</script>&'
    result.environment["module"] = hostile
    result.failed["<b>"] = hostile
    reader = read(page(result))
    assert "script" not in {tag for tag, _ in reader.tags}
    assert any(hostile in text for text in reader.text)


def test_numbers_of_any_size_stay_inside_the_picture():
    rows = [svg.Bar("a", v, v / 2, v * 2, "t", "ours") for v in (1e-9, 1.0, 1e12)]
    for logarithmic in (False, True):
        text = svg.bars(rows, logarithmic=logarithmic).figure("c")
        places = [float(x) for x in re.findall(r'(?:cx|x)="([\d.-]+)"', text)]
        assert all(0 <= place <= svg.WIDTH for place in places)
    flat = svg.lines({"s": [(1.0, 0.0), (2.0, 0.0)]}, "x", "y", svg.plain).figure("c")
    assert "nan" not in flat


def test_ticks_are_few_and_round():
    for most in (1.0, 3.7, 18_000.0, 0.0042, 9.99e6):
        ticks = svg._Scale([most], 0, 100, False).ticks()
        assert 4 <= len(ticks) <= 11
        assert ticks[-1] >= most
