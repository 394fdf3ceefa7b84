"""Build the site of the documentation: python scripts/site/build.py build/site

The pages are the documents of this repository, where they stand in it, so that links between them are the same there
and here; and generated ones in reference/: configuration, commands, Python. They are gathered in a folder beside the
site, from which Sphinx makes it. Nothing is loaded from another host, neither by the build nor by a reader.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]
sys.path.insert(0, str(HERE))

import commands  # noqa: E402
import configuration  # noqa: E402
import examples  # noqa: E402
import python  # noqa: E402

BESIDE: Final = (
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "examples/README.md",
    "clients/python/README.md",
    "clients/rust/README.md",
    "clients/typescript/README.md",
)
"""The documents outside docs/ that have a page, apart from those that they link to."""
MERMAID: Final = HERE / "node_modules" / "@mermaid-js" / "tiny" / "dist" / "mermaid.tiny.js"
_LINK: Final = re.compile(r"\]\((?![a-z][a-z0-9+.-]*:)([^)\s#]+)(#[^)\s]*)?\)")
_CHILDREN: Final = {"docs/OPERATIONS.md": "operations/*", "examples/README.md": "*"}
"""Pages below which others stand in the navigation: those of a pattern."""


def main() -> int:
    """Run the command line; return Sphinx's exit code."""
    parser = argparse.ArgumentParser(description="Build the site of the documentation.")
    parser.add_argument("site", type=Path, help="the folder for it")
    parser.add_argument("--jobs", default="auto", help="processes at once (default: one per processor)")
    options = parser.parse_args()
    source = options.site.resolve().with_name(f"{options.site.name}-source")
    gather(source)
    from sphinx.cmd.build import main as sphinx

    static = f"html_static_path={source / '_static'}"
    arguments = ["-q", "-W", "--keep-going", "-b", "html", "-j", options.jobs, "-c", str(HERE), "-D", static]
    return sphinx([*arguments, "-d", str(source / ".doctrees"), str(source), str(options.site)])


def gather(folder: Path) -> None:
    """Write the sources of all pages. Files that are as before keep their time, so that Sphinx leaves their pages."""
    texts = dict(documents())
    for page, pattern in _CHILDREN.items():
        texts[page] += f"\n```{{toctree}}\n:hidden:\n:glob:\n\n{pattern}\n```\n"
    for page, text in texts.items():
        if page.startswith("docs/decisions/0"):  # the page with their list is enough
            texts[page] = f"---\norphan: true\n---\n{text}"
    texts |= examples.pages(ROOT)
    texts["reference/configuration.md"] = configuration.page()
    texts["reference/commands.md"] = commands.page()
    texts |= python.pages()
    texts["index.md"] = front(texts)
    files = {path: text.encode() for path, text in texts.items()}
    for path in linked(texts):
        files.setdefault(path, (ROOT / path).read_bytes())
    files["_static/mermaid.js"] = MERMAID.read_bytes()
    for path in sorted((HERE / "static").iterdir()):
        files[f"_static/{path.name}"] = path.read_bytes()
    for path, data in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.is_file() or place.read_bytes() != data:
            place.write_bytes(data)
    for place in [path for path in folder.rglob("*") if path.is_file() and ".doctrees" not in path.parts]:
        if place.relative_to(folder).as_posix() not in files:
            place.unlink()


def documents() -> Iterator[tuple[str, str]]:
    """Yield the repository's documents that have a page, by their paths."""
    queue = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))] + list(BESIDE)
    seen = {"README.md"}
    while queue:
        path = queue.pop()
        if path in seen:
            continue
        seen.add(path)
        text = (ROOT / path).read_text()
        yield path, text
        queue += [found for found in linked({path: text}) if found.endswith(".md")]


def linked(texts: dict[str, str]) -> set[str]:
    """Return the files of the repository that these documents link to."""
    found = set()
    for path, text in texts.items():
        for target, _ in _LINK.findall(re.sub(r"^(`{3,}).*?^\1`*$", "", text, flags=re.DOTALL | re.MULTILINE)):
            file = os.path.normpath(os.path.join(os.path.dirname(path), target))  # noqa: PTH118, PTH120
            if (ROOT / file).is_file():
                found.add(file)
    return found


def rooms(text: str) -> Iterator[str]:
    """Yield the navigation of each room of docs/README.md: the pages that its list names, in their order."""
    for room in text.split("\n## ")[1:]:
        pages = re.findall(r"^\d+\. \[([^\]]+)\]\((\S+)\.md\)", room, re.MULTILINE)
        lines = [f"{title} <{os.path.normpath(f'docs/{page}')}>" for title, page in pages if "operations/" not in page]
        if lines:
            caption = room.partition("\n")[0]
            yield "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *lines, "```", ""])


def front(texts: dict[str, str]) -> str:
    """Return the front page: its navigation has the rooms, and last the pages that no list names."""
    text = (HERE / "index.md").read_text().replace("ROOMS", "\n".join(rooms(texts["docs/README.md"])))
    children = tuple(f"{Path(page).parent / pattern}".rstrip("*") for page, pattern in _CHILDREN.items())
    listed = set(re.findall(r"^(?:[^\n<]* <)?([\w./-]+)>?$", text, re.MULTILINE))
    pages = [path.removesuffix(".md") for path, said in sorted(texts.items()) if not said.startswith("---\norphan")]
    left = [page for page in pages if page not in listed and not page.startswith((*children, "reference/python/"))]
    return text.replace("REST", "\n".join(left))


if __name__ == "__main__":
    sys.exit(main())
