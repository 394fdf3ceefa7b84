"""Rules of the project that a reviewer would otherwise have to remember."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import hsmcore
from hsmcore.errors import EXCEPTION_OF_STATUS

ROOT = Path(__file__).parents[2]
HEADERS = sorted((ROOT / "native" / "include" / "hsmcore").glob("*.h"))
PXD = ROOT / "bindings" / "hsmcore.pxd"
MOST_LINES = 450
# The binding's classes are extension types, which cannot be spread over files.
MORE_LINES = {"bindings/requests.pxi": 700}
PRINTING = ("cli",)


def sources(folder: str, *suffixes: str) -> Iterator[Path]:
    for path in sorted((ROOT / folder).rglob("*")):
        if path.suffix in suffixes and path.is_file():
            yield path


def without_comments(text: str) -> str:
    """C without comments and strings."""
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', " ", text, flags=re.DOTALL)


@pytest.mark.parametrize("call", ["C_SignInit", "C_Sign", "C_SignUpdate", "C_SignFinal", "C_SignMessage"])
def test_signatures_are_made_in_one_place(call):
    calling = {
        path.relative_to(ROOT).as_posix()
        for path in (*sources("native/src", ".c", ".h"), *sources("bindings", ".pyx", ".pxd"))
        if re.search(rf"\b{call}\s*\(", without_comments(path.read_text()))
    }
    assert calling <= {"native/src/sign.c"}
    assert calling or call not in ("C_SignInit", "C_Sign")


def declared_functions(text: str) -> set[str]:
    return set(re.findall(r"\b(hsm_\w+)\s*\((?!\*)", text))


def test_the_binding_declares_only_what_the_headers_declare():
    headers = declared_functions(without_comments("".join(path.read_text() for path in HEADERS)))
    declared = declared_functions(re.sub(r"#[^\n]*", "", PXD.read_text()))
    assert declared <= headers, declared - headers
    assert len(declared) > 30


def test_the_binding_declares_the_fields_of_each_structure_in_their_order():
    header = without_comments("".join(path.read_text() for path in HEADERS))
    pxd = PXD.read_text()
    for name, body in re.findall(r"typedef struct (hsm_\w+) \{(.*?)\} \1;", header, re.DOTALL):
        found = re.search(rf"ctypedef struct {name}:\n((?:        .*\n)+)", pxd)
        if found is None or found[1].strip() == "pass":
            continue
        in_header = re.findall(r"\b(\w+)(?:\[\w+\])?;", body)
        in_pxd = re.findall(r"(\w+)(?:\[\w+\])?$", found[1], re.MULTILINE)
        assert in_pxd == in_header, name


def test_every_array_in_the_binding_has_the_length_of_the_header():
    header = without_comments("".join(path.read_text() for path in HEADERS))
    numbers = dict(re.findall(r"#define (HSM_\w+) (\d+)", header))
    wanted = {
        (kind, field, numbers.get(length, length))
        for kind, field, length in re.findall(r"(\w+) (\w+)\[(\w+)\];", header)
    }
    for kind, field, length in re.findall(r"^ {8}(\w+) (\w+)\[(\d+)\]$", PXD.read_text(), re.MULTILINE):
        assert (kind, field, length) in wanted, f"{kind} {field}[{length}]"


def test_every_status_has_an_exception():
    names = re.findall(r"^HSM_STATUS\((\w+),", (HEADERS[0].parent / "status.def").read_text(), re.MULTILINE)
    assert set(names) == EXCEPTION_OF_STATUS.keys()


def test_no_file_outgrows_its_reader():
    long = {}
    for path in (
        *sources("native/src", ".c", ".h"),
        *sources("bindings", ".pyx", ".pxd", ".pxi"),
        *sources("core", ".py"),
        *sources("bench", ".py"),
    ):
        name = path.relative_to(ROOT).as_posix()
        lines = len(path.read_text().splitlines())
        if lines > MORE_LINES.get(name, MOST_LINES):
            long[name] = lines
    assert long == {}


def test_the_library_prints_nothing():
    printing = []
    for path in sources("core/hsmcore", ".py"):
        if path.relative_to(ROOT / "core" / "hsmcore").parts[0] in PRINTING:
            continue
        printing += [
            f"{path.relative_to(ROOT)}:{node.lineno}"
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        ]
    assert printing == []


def test_the_library_does_not_import_the_benchmarks():
    """Lazy and type-only imports counted: their commands are found by entry points."""
    importing = []
    for path in sources("core/hsmcore", ".py", ".pyi"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            importing += [path.relative_to(ROOT) for name in names if name.partition(".")[0] == "hsmcore_bench"]
    assert importing == []


@pytest.mark.parametrize(
    ("part", "others"), [("harness", "suite|load|demo"), ("load", "suite|demo"), ("demo", "suite|load")]
)
def test_parts_of_the_benchmarks_share_only_the_harness(part, others):
    for path in sources(f"bench/hsmcore_bench/{part}", ".py"):
        assert not re.search(rf"\bhsmcore_bench\.({others})\b", path.read_text()), path


def test_the_two_packages_name_each_other_by_the_version_they_have():
    library, bench = (
        tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"] for folder in (".", "bench")
    )
    assert bench["dependencies"][0] == f"hsmcore=={library['version']}"
    assert library["optional-dependencies"]["bench"] == [f"hsmcore-bench[full]=={bench['version']}"]


def test_the_core_knows_nothing_of_python():
    for path in sources("native/src", ".c", ".h"):
        assert not re.search(r"#include\s*[<\"]Python\.h", path.read_text()), path


def test_memory_is_counted():
    """Everything the core allocates goes through base.c, so that leaks() sees it."""
    for path in sources("native/src", ".c", ".h"):
        if path.name != "base.c":
            code = without_comments(path.read_text())
            calls = set(re.findall(r"(?<![\w>.])(malloc|calloc|realloc|strdup|strndup)\s*\(", code))
            assert not calls, f"{path.relative_to(ROOT)}: {calls}"


def test_no_module_hides_what_the_package_offers():
    """Importing `hsmcore.x` makes x the module, whatever it was before."""
    modules = {found.name for found in pkgutil.iter_modules(hsmcore.__path__)}
    assert {name for name in modules & set(hsmcore.__all__) if not inspect.ismodule(getattr(hsmcore, name))} == set()
