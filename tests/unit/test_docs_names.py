"""Each code name that these documents put into backticks exists: a class, a member of one, a function, a module, a
setting, a file. tests/unit/test_docs.py checks whole paths, test_doc_blocks.py commands."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from typing import Any

from tests.support.paths import ROOT

from hsmcore.config.schema import document_schema

DOCUMENTS = ["CONTRIBUTING.md", "docs/ARCHITECTURE.md"]
DOCUMENTS += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs" / "decisions").glob("*.md"))
CODE = ("core", "bench", "bindings", "native", "clients/python")
FILE = re.compile(r"[\w./-]+(?:\.(?:py|pyi|pyx|pxi|c|h|def|toml)|/)")
NAME = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*)(?:\([^()]*\))?(?:=\w+)?")
FOREIGN = {
    *("TaskGroup", "None", "PyList_GET_ITEM", "PyBytes_AS_STRING", "asyncio.timeout"),  # Python
    *("date", "flock", "jq", "mknod", "openssl", "HTTPS_PROXY", "CLOCK_BOOTTIME"),  # the system
    *("data_version", "user_version", "synchronous", "pg_advisory_lock", "synchronous_standby_names"),  # the databases
    *("digest32", "retryAfterMs", "libhsmcore_chaos.so"),  # a proof's JSON, the client in TypeScript, what is built
}
"""Names that Python, Cython, C and the configuration do not define here."""


def members(body: list[ast.stmt]) -> Iterator[str]:
    """What the body of a class or module has: functions, arguments, variables, attributes, imports, words as values."""
    for statement in body:
        inside = isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(statement):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield node.name
            elif isinstance(node, ast.arg):
                yield node.arg
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                yield node.attr
            elif isinstance(node, ast.alias):
                yield node.asname or node.name
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and not inside:
                yield node.id


def properties(schema: Any) -> Iterator[str]:
    """The settings of a configuration."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
    for inner in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from properties(inner)


@cache
def paths() -> set[str]:
    """Files and folders of the code; folders with a slash at the end."""
    found = (path for room in CODE for path in (ROOT / room).rglob("*") if "build" not in path.parts)
    return {f"{path.relative_to(ROOT).as_posix()}{'/' * path.is_dir()}" for path in found}


@cache
def code() -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """By class or module: what it defines, and its bases. "": names of no class."""
    defined, bases = defaultdict(set), defaultdict(set)
    defined[""] = set(properties(document_schema())) | FOREIGN
    for path in map(ROOT.joinpath, paths()):
        if path.suffix in (".py", ".pyi"):
            module = ast.parse(path.read_text())
            name = path.parent.name if path.stem == "__init__" else path.stem
            defined[name] |= set(members(module.body))
            defined[""] |= {name, *path.relative_to(ROOT).parts}
            for node in ast.walk(module):
                if isinstance(node, ast.ClassDef):
                    defined[node.name] |= set(members(node.body))
                    bases[node.name] |= {x.id for base in node.bases for x in ast.walk(base) if isinstance(x, ast.Name)}
        elif path.suffix in (".pyx", ".pxi"):
            for name, body in re.findall(
                r"^(?:cdef )?class (\w+)(.*?)(?=^\S|\Z)", path.read_text(), re.MULTILINE | re.DOTALL
            ):
                defined[name] |= set(re.findall(r"^ +c?p?def [^(\n]*?(\w+)\(", body, re.MULTILINE))
        elif path.suffix in (".c", ".h"):
            defined[""] |= set(re.findall(r"\w*[A-Z_]\w*", path.read_text()))
    return defined, bases


def has(owner: str, name: str) -> bool:
    """Whether a class or one of its bases, or a module, defines a name."""
    defined, bases = code()
    return name in defined.get(owner, ()) or any(has(base, name) for base in bases[owner] - {owner})


def exists(said: str) -> bool:
    """Whether what stands in backticks is there, if it is the name of a file, or of something in the code."""
    if FILE.fullmatch(said):
        there = (ROOT / said, ROOT / "tests" / said)
        return any(path.exists() for path in there) or any(
            said == name or name.endswith(f"/{said}") for name in paths()
        )
    found = NAME.fullmatch(said)
    if found is None or found[1] in FOREIGN:
        return True
    defined, _ = code()
    first, *rest = found[1].split(".")
    if not rest:
        return first in defined or any(first in names for names in defined.values())
    settings = set(found[1].split(".")) <= defined[""]
    return settings or all(has(owner, name) for owner, name in zip([first, *rest], rest, strict=False))


def test_every_code_name_exists():
    for good in ("KeyManager.sign(message)", "Engine._drain", "MemberDown.member", "manager/path.py"):
        assert exists(good)
    for bad in ("WaitQueue", "KeyManager.sing", "HsmError.attempt", "manager/paths.py", "wal/"):
        assert not exists(bad)
    block = re.compile(r"^(`{3,}).*?^\1`*$", re.DOTALL | re.MULTILINE)
    texts = {name: block.sub("", (ROOT / name).read_text()) for name in DOCUMENTS}
    found = [(name, said) for name, text in texts.items() for said in re.findall(r"`([^`\s]+)`", text)]
    assert [each for each in found if not exists(each[1])] == []
