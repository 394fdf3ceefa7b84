"""Documents point to what exists: links, anchors, paths in backticks, and every name in a reading order."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from hsmcore.config import KeyManagerConfig
from hsmcore.config.registry import descriptor_of, known_types

ROOT = Path(__file__).parents[2]
ROOMS = ("native", "bindings", "core", "bench", "clients", "examples", "tests", "docs", "scripts", "requirements")
BUILT = ("core/hsmcore/_bin",)  # what only a build makes
PATH = re.compile(rf"`((?:{'|'.join(ROOMS)})/[^`\s]*)`")


def files(suffix: str, *rooms: str) -> list[str]:
    """Files below these folders, by their path in the repository; none that a build or a tool made."""
    found = {path.relative_to(ROOT).as_posix() for room in rooms for path in (ROOT / room).rglob(f"*{suffix}")}
    return sorted(name for name in found if not re.search(r"(^|/)(\.|build/|node_modules/)", name))


DOCUMENTS = sorted([path.name for path in ROOT.glob("*.md")] + files(".md", *ROOMS))


def prose(text: str) -> str:
    """A document without its code blocks."""
    return re.sub(r"^(`{3,}).*?^\1`*$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to headings."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", prose(text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = found[slug] = found.get(slug, -1) + 1
        names.add(f"{slug}-{count}" if count else slug)
    return names


def exists(path: str) -> bool:
    """Whether a path of the repository is there: with `*` and `{a,b}` as a shell has them, or as `FILE::test`."""
    path = re.sub(r"(::\w+|:\d+)$", "", path)
    if path.startswith(BUILT):
        return True
    alternatives = re.search(r"\{([^}]*)\}", path)
    if alternatives is not None:
        return all(exists(path.replace(alternatives[0], part.strip(), 1)) for part in alternatives[1].split(","))
    if re.search(r"[<…]|[A-Z]{2,}(?!\w*\.)", Path(path).name):  # a placeholder, as in docs/decisions/NNNN-title.md
        return True
    return any(True for _ in ROOT.glob(path)) if "*" in path else (ROOT / path).exists()


def test_there_are_documents():
    for name in ("README.md", "CONTRIBUTING.md", "docs/ARCHITECTURE.md", "docs/operations/runbooks.md"):
        assert name in DOCUMENTS


def leads_somewhere(document: Path, target: str) -> bool:
    """Whether a link is to another site, or to a file of the repository and an anchor that it has."""
    if re.match(r"[a-z]+:", target):
        return True
    path, _, anchor = unquote(target).partition("#")
    found = document if not path else (document.parent / path).resolve()
    inside = found.exists() and found.is_relative_to(ROOT)
    return inside and (not anchor or found.suffix != ".md" or anchor in anchors(found.read_text()))


def test_every_link_leads_somewhere():
    links = [
        (name, target)
        for name in DOCUMENTS
        if not name.startswith("scripts/site/")  # the site's own
        for target in re.findall(r"\]\(([^)\s]+)\)", prose((ROOT / name).read_text()))
    ]
    assert [link for link in links if not leads_somewhere(ROOT / link[0], link[1])] == []


def test_no_page_of_the_site_leads_to_the_readme():
    """The site's front page stands in its place."""
    pages = [name for name in DOCUMENTS if name.startswith("docs/")]
    assert [name for name in pages if re.search(r"\]\((\.\./)+README\.md", (ROOT / name).read_text())] == []


def test_every_page_that_code_names_exists():
    """Pages in messages, help texts, comments, alerts."""
    named = re.compile(r"docs/(?:[A-Z0-9]+|(?:operations|decisions)/[\w-]+)\.md")
    rooms = ("native", "bindings", "core", "bench", "clients", "examples", "tests", "scripts", "packaging")
    kinds = (".py", ".pyi", ".pyx", ".pxi", ".c", ".h", ".def", ".ts", ".mjs", ".sh", ".yml", ".yaml", ".service")
    code = [name for kind in kinds for name in files(kind, *rooms) if name != "tests/unit/test_docs.py"]
    found = [(name, page) for name in code for page in named.findall((ROOT / name).read_text())]
    assert len(found) > 60
    assert [each for each in found if not (ROOT / each[1]).is_file()] == []


def test_every_path_exists():
    found = [(name, path) for name in DOCUMENTS for path in PATH.findall(prose((ROOT / name).read_text()))]
    assert [each for each in found if not exists(each[1])] == []


def test_the_layers_of_the_architecture_are_those_that_are_enforced():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    [layers] = [contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers"]
    section = (ROOT / "docs" / "ARCHITECTURE.md").read_text().partition("\n## Layers\n")[2].partition("\n## ")[0]
    lines = [line.partition(":")[0] for line in re.findall(r"^\d+\. (.+)$", section, re.MULTILINE)]
    assert [re.findall(r"`(\w+)`", line) for line in lines] == [layer.split(" | ") for layer in layers]


def test_the_defaults_of_the_key_manager_are_those_of_the_configuration():
    page = (ROOT / "docs" / "OPERATIONS.md").read_text()
    section = page.partition("\nUnder `keyManager`:\n")[2].partition("\nUnder ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", section, re.MULTILINE)
    assert len(rows) > 5
    known = {field.alias: field.default for field in KeyManagerConfig.model_fields.values()}
    assert [(key, json.loads(default)) for key, default in rows] == [(key, known[key]) for key, _ in rows]


def test_the_list_of_decisions_has_their_titles():
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"^- \[(\d+)\]\((.+)\) (.+)$", (folder / "README.md").read_text(), re.MULTILINE)
    found = [(path.name[:4], path.name, path.read_text().partition("\n")[0]) for path in sorted(folder.glob("0*.md"))]
    assert sorted((number, name, f"# {number}. {title}") for number, name, title in listed) == found
    assert [title for _, _, title in listed if re.match(r"(On which|Which|Why|How|Where|Who)\b[^:]*$", title)] == [], (
        "a title says what was decided"
    )


def read_in_order(text: str) -> list[str]:
    """What the sections called "Reading order" of a document name as files or folders."""
    sections = re.findall(r"^#+ [^\n]*[Rr]eading order[^\n]*\n(.*?)(?=^#|\Z)", text, re.DOTALL | re.MULTILINE)
    return [name for section in sections for name in re.findall(r"`([\w./-]+(?:\.\w+|/))`", section)]


def test_the_reading_orders_of_documents_name_files():
    listed = [(name, path) for name in DOCUMENTS for path in read_in_order(prose((ROOT / name).read_text()))]
    assert [(n, p) for n, p in listed if not (ROOT / p).exists() and not ((ROOT / n).parent / p).exists()] == []
    assert len([path for name, path in listed if name == "docs/ARCHITECTURE.md"]) >= 6


def docstring_orders() -> Iterator[tuple[str, list[str]]]:
    """Each Python file whose docstring has a reading order, and what that lists: after a colon, up to the full stop."""
    for name in files(".py", "core", "bench"):
        source = (ROOT / name).read_text()
        if "Reading order" not in source:
            continue
        text = ast.get_docstring(ast.parse(source)) or ""
        found = re.search(r"Reading order.*?(?=\n\n|\Z)", text, re.DOTALL)
        if found is not None:
            plain = re.sub(r"\([^)]*\)", "", " ".join(found[0].split()))
            lists = re.findall(r": (.+?)(?:\.(?= |$)|$)", plain)
            items = [item for part in lists for item in re.split(r"[,;]|\b(?:and|then|with|or)\b", part)]
            words = [(item.rpartition(":")[2].split() or [""])[0].strip("`") for item in items]
            yield name, [word for word in words if word]


def test_the_reading_orders_of_packages_name_modules():
    orders = dict(docstring_orders())
    assert len(orders) >= 6
    missing = [
        (name, word)
        for name, words in orders.items()
        for folder in [(ROOT / name).parent]
        for word in words
        if not any(path.exists() for path in (*(folder / f"{word}{end}" for end in ("", ".py", ".pyi")), ROOT / word))
    ]
    assert missing == []


def test_each_page_has_its_place_in_one_room():
    page = (ROOT / "docs" / "README.md").read_text()
    rooms, _, _ = page.partition("\n## How to\n")
    assert len(re.findall(r"^## ", rooms, re.MULTILINE)) == 6
    listed = re.findall(r"^\d+\. \[[^\]]+\]\(([A-Z0-9]+\.md)\): ", rooms, re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.name != "README.md")
    assert "](docs/README.md)" in (ROOT / "README.md").read_text()


def test_the_readme_says_how_often_each_provider_verifies():
    text = " ".join((ROOT / "README.md").read_text().split())
    [listed] = re.findall(r'"always"` no wrong one is handed out\. By default it is (.*?)\.', text)
    found = {}
    for often, providers in re.findall(r"`(always|sample|never)`[^,]*? for ((?:`[\w-]+`(?:, | and |$))+)", listed):
        found |= dict.fromkeys(re.findall(r"`([\w-]+)`", providers), often)
    fields = {name: descriptor_of(name).settings.model_fields.get("verify_signatures") for name in known_types()}
    assert found == {name: field.default for name, field in fields.items() if field is not None}


def test_the_readme_is_short_and_its_programs_parse():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    programs = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert programs
    for program in programs:
        ast.parse(program)
