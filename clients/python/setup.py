"""Build hsmcore-client: those of hsmcore's own files that a gateway's client needs, as the package hsmcore_client.

Which they are follows from their imports, so no list of them and no copy is kept. In the copies that are packed, import
statements name hsmcore_client instead of hsmcore, and hsmcore_client._pure instead of the native core.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CORE = ROOT / "core" / "hsmcore"
OWN, NATIVE, PURE = "hsmcore_client", "hsmcore._native", "hsmcore_client._pure"


def imported(tree: ast.AST, *, types: bool) -> Iterator[str]:
    """What statements import, also in functions: modules and names, which may be modules. `types`: for types, too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imported(node, types=types)


def modules() -> set[Path]:
    """Below core/hsmcore: the modules that the files of hsmcore_client import, what those import, and the packages
    around them; without hsmcore itself, whose place hsmcore_client takes."""
    found: set[Path] = set()
    left = [name for own in (HERE / OWN).glob("*.py") for name in imported(ast.parse(own.read_text()), types=True)]
    while left:
        top, *parts = left.pop().split(".")
        for count in range(1, len(parts) + 1 if top == "hsmcore" else 0):
            place = CORE.joinpath(*parts[:count])
            for path in (place.with_suffix(".py"), place / "__init__.py"):
                if path.is_file() and path.relative_to(CORE) not in found:
                    found.add(path.relative_to(CORE))
                    left += imported(ast.parse(path.read_text()), types=False)
    return found


def renamed(text: str) -> str:
    """The text of a file of hsmcore as one of hsmcore_client, with the same lines."""
    return re.sub(r"^( *(?:from|import) )hsmcore\b", rf"\1{OWN}", text.replace(NATIVE, PURE), flags=re.MULTILINE)


class OfTheLibrary(build_py):
    """Puts the modules into the package."""

    def run(self) -> None:
        super().run()
        built = Path(self.build_lib, OWN)
        for path in built.glob("*.py"):
            path.write_text(renamed(path.read_text()))
        for path in modules():
            (built / path).parent.mkdir(parents=True, exist_ok=True)
            (built / path).write_text(renamed((CORE / path).read_text()))


if __name__ == "__main__":
    # Nothing that is made on the way lies in the tree, where it would get old.
    with TemporaryDirectory() as folder:
        setup(
            version=tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"],
            cmdclass={"build_py": OfTheLibrary},
            options={"build": {"build_base": folder}, "egg_info": {"egg_base": folder}},
        )
