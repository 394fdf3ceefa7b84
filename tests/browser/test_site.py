"""The site of the documentation: built without network, whole, and usable by everybody."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import pytest
from tests.support.paths import ROOT
from tests.unit.test_public_names import NAMES

from hsmcore.config.schema import document_schema

pytestmark = [pytest.mark.browser, pytest.mark.deep, pytest.mark.timeout(1200)]
PAGES = ("index.html", "docs/FAILOVER.html", "reference/configuration.html", "reference/python/hsmcore.html")
SERIOUS = ("critical", "serious")


class Page(HTMLParser):
    """What a page refers to, and what can be referred to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attributes if value}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.add(values["href"])
        elif tag == "link" and values.get("rel") != "canonical":
            self.loads.add(values["href"])
        elif "src" in values:
            self.loads.add(values["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built as `make docs` does: a warning of Sphinx is an error. HSMCORE_SITE names one that is built."""
    if "HSMCORE_SITE" in os.environ:
        return Path(os.environ["HSMCORE_SITE"]).resolve()
    if not (ROOT / "scripts" / "site" / "node_modules").is_dir():
        pytest.skip("the packages of scripts/site are not installed: scripts/setup test")
    folder = tmp_path_factory.mktemp("docs") / "site"
    build = [sys.executable, ROOT / "scripts" / "site" / "build.py", folder]
    ended = subprocess.run(build, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """Every page, parsed."""
    return {path: Page(path.read_text()) for path in site.rglob("*.html")}


def test_every_link_leads_somewhere(site, pages):
    broken = []
    for path, page in pages.items():
        for link in page.links | page.loads:
            parts = urlsplit(link)
            if parts.scheme or link.startswith("//"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            whole = target.is_file() and target.is_relative_to(site.resolve())
            known = target not in pages or not parts.fragment or unquote(parts.fragment) in pages[target].ids
            if not whole or not known:
                broken.append((path.name, link))
    assert broken == []
    assert len(pages) > 90


def test_nothing_is_loaded_from_another_host(site, pages):
    assert [load for page in pages.values() for load in page.loads if urlsplit(load).scheme not in ("", "data")] == []
    styles = "".join(path.read_text() for path in (site / "_static").rglob("*.css"))
    assert re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^)\s]*", styles) == []


def test_every_public_name_has_an_entry(site, pages):
    missing = []
    for module, names in NAMES.items():
        ids = pages[site / "reference" / "python" / f"{module}.html"].ids
        missing += [f"{module}.{name}" for name in names.split() if f"{module}.{name}" not in ids]
    # The errors stand once, in the page of `hsmcore`.
    whole = pages[site / "reference" / "python" / "hsmcore.html"].ids
    assert [name for name in missing if name.replace("hsmcore.errors.", "hsmcore.") not in whole] == []


def test_every_key_and_every_command_is_in_the_reference(site):
    page = (site / "reference" / "configuration.html").read_text()
    for part in document_schema()["$defs"].values():
        for key in part.get("properties", {}):
            assert f'<span class="pre">{key}</span>' in page
    commands = (site / "reference" / "commands.html").read_text()
    for command in ("init", "sign", "audit verify", "config schema", "load", "bench compare", "fleet status"):
        assert f"<h2>hsmcore {command}<" in commands or f"<h3>hsmcore {command}<" in commands


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(site, page, scheme):
    from axe_playwright_python.base import AXE_FILE_PATH

    made = page(color_scheme=scheme)
    asked: list[str] = []
    made.on("request", lambda request: asked.append(request.url))
    for name in PAGES:
        made.goto((site / name).as_uri())
        if "mermaid" in (site / name).read_text():
            made.wait_for_selector("pre.mermaid[data-processed] svg")
        made.evaluate(AXE_FILE_PATH.read_text())
        found = made.evaluate("axe.run(document, {resultTypes: ['violations'], preload: false})")["violations"]
        assert [(name, v["id"], v["nodes"][0]["html"][:200]) for v in found if v["impact"] in SERIOUS] == []
    assert all(url.startswith(("file:", "data:")) for url in asked)


def test_the_search_finds_a_key_and_a_phone_shows_it_whole(site, page):
    made = page(viewport={"width": 390, "height": 844})
    made.goto((site / "search.html").as_uri() + "?q=hedging")
    made.wait_for_selector("#search-results a[href*='FAILOVER']")
    for name in PAGES:
        made.goto((site / name).as_uri())
        assert made.evaluate("document.documentElement.scrollWidth") <= 390, name


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("HSM asyncio", "docs/EMBEDDING"),
        ("YubiHSM Ed25519", "docs/operations/yubihsm"),
        ("double signing", "docs/POLICY"),
    ],
)
def test_the_search_finds_what_strangers_ask_for(site, page, asked, found):
    """Among the first eight results."""
    made = page()
    made.goto((site / "search.html").as_uri() + f"?q={quote(asked)}")
    made.wait_for_selector("#search-results.search-results-done, #search-results .search-summary:not(:empty)")
    made.wait_for_selector(f"#search-results li:nth-child(-n+8) a[href*='{found}']")
