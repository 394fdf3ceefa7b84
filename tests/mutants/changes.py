"""Small changes of a source file, the same each time: each is named by its file, function, kind and the text that it
changes, so that a name outlives changes elsewhere in the file."""

from __future__ import annotations

import ast
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tests.proofs.mutants import replaced

_BOUNDS = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">"}
_OPERATORS = {ast.Add: "-", ast.Sub: "+", ast.Mult: "//", ast.FloorDiv: "*"}
_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}
_SIMPLE = ast.Expr | ast.Assign | ast.AugAssign | ast.Delete
_UNSEEN = ("get_logger(", "super().__init__(")
"""Calls that no promise is about, or without which nothing can work."""
_C_FUNCTION = re.compile(r"\w[^;=]*?\b(\w+)\(")
_C_CHANGES = (
    # Without fences: the proofs of memory orders have mutants of their own.
    (
        "drop",
        re.compile(r"^ +((?!atomic_thread_fence)(?:\(void\))?[a-z_][\w.>\[\]-]*(?:\(.*\)| [-+|&]?= .*|\+\+|--));"),
        "",
    ),
    ("negate", re.compile(r"\b(?:if|while) \((.+)\) \{$"), r"!(\1)"),
    ("bound", re.compile(r" ([<>]) "), r"\1="),
    ("bound", re.compile(r"(?<= [<>])(=) "), ""),
    ("operator", re.compile(r" (\+) "), "-"),
    ("operator", re.compile(r" (-) "), "+"),
    ("operator", re.compile(r" (&&) "), "||"),
    ("operator", re.compile(r" (\|\|) "), "&&"),
    ("operator", re.compile(r" (==) "), "!="),
    ("constant", re.compile(r"\b(true)\b"), "false"),
    ("constant", re.compile(r"\b(false)\b"), "true"),
)
"""In C, by the line: a kind, where its group 1 is replaced, and by what."""


@dataclass(frozen=True)
class Mutant:
    """A change of the file `path`, below the root. An edit: where it begins and ends, in bytes, and what it puts
    there."""

    path: str
    function: str
    kind: str
    text: str
    line: int
    edits: tuple[tuple[int, int, str], ...]

    @property
    def name(self) -> str:
        """What lists call it."""
        return f"{self.path.removeprefix('core/hsmcore/')} {self.function} {self.kind}: {self.text}"

    def apply(self, source: bytes) -> bytes:
        """Return the changed file."""
        for start, end, text in sorted(self.edits, reverse=True):
            source = source[:start] + text.encode() + source[end:]
        return source


def mutants_of(path: str, source: bytes) -> list[Mutant]:
    """Return every change of a file. Those of one name have numbers, from the second on."""
    counted: Counter[str] = Counter()
    named = []
    for one in _of_c(path, source.decode()) if path.endswith(".c") else _Walk(path, source).found():
        counted[one.name] += 1
        count = counted[one.name]
        named.append(replace(one, text=f"{one.text} #{count}") if count > 1 else one)
    return named


def sample(mutants: Iterable[Mutant], seed: int) -> list[Mutant]:
    """Return the mutants in an order that depends on nothing but their names."""
    return sorted(mutants, key=lambda one: hashlib.sha256(f"{seed} {one.name}".encode()).digest())


def _of_c(path: str, source: str) -> Iterator[Mutant]:
    function, start, before = "-", 0, ";"
    for number, line in enumerate(source.splitlines(keepends=True), 1):
        code = line.partition("/*")[0].rstrip()
        if found := _C_FUNCTION.match(code):
            function = found[1]
        # A bound of a loop is one that only a sanitizer sees.
        if code.startswith("    ") and not code.lstrip().startswith(("*", "for ")):
            for kind, pattern, new in _C_CHANGES:
                for found in pattern.finditer(code):
                    if kind != "drop" or (before.endswith((";", "{", "}", ":")) and code.count("(") == code.count(")")):
                        at, end = (start + len(code[:place].encode()) for place in found.span(1))
                        yield Mutant(
                            path, function, kind, code.strip(), number, ((at, end, new.replace(r"\1", found[1])),)
                        )
        start += len(line.encode())
        before = code or before


class _Walk:
    def __init__(self, path: str, source: bytes) -> None:
        self._path, self._source = path, source
        self._starts = [0]
        for line in source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))

    def found(self) -> Iterator[Mutant]:
        yield from self._body(ast.parse(self._source).body, "")

    def _span(self, node: ast.AST) -> tuple[int, int]:
        assert isinstance(node, ast.expr | ast.stmt)
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return (
            self._starts[node.lineno - 1] + node.col_offset,
            self._starts[node.end_lineno - 1] + node.end_col_offset,
        )

    def _text(self, node: ast.AST) -> str:
        start, end = self._span(node)
        return self._source[start:end].decode()

    def _made(self, function: str, kind: str, node: ast.AST, *edits: tuple[ast.AST, str]) -> Mutant:
        assert isinstance(node, ast.expr | ast.stmt)
        changes = tuple((*self._span(at), text) for at, text in edits)
        text = " ".join(self._text(node).split())
        return Mutant(self._path, function or "-", kind, text, node.lineno, changes)

    def _body(self, body: list[ast.stmt], function: str) -> Iterator[Mutant]:
        for place, node in enumerate(body):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = f"{function}.{node.name}".lstrip(".")
                if node.name != "__repr__":
                    yield from self._defaults(node, inner)
                    yield from self._body(node.body, inner)
                continue
            if isinstance(node, ast.Import | ast.ImportFrom) or _is_for_types(node):
                continue
            yield from self._statement(node, function)
            after = body[place + 1] if place + 1 < len(body) else None
            if function and after is not None and _calls(node) and _calls(after):
                yield self._made(function, "swap", node, (node, self._text(after)), (after, self._text(node)))
            for part in ast.iter_child_nodes(node):
                if isinstance(part, ast.excepthandler | ast.match_case):
                    yield from self._body(part.body, function)
            for inside in ("body", "orelse", "finalbody"):
                yield from self._body(getattr(node, inside, []), function)

    def _defaults(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, function: str) -> Iterator[Mutant]:
        if not isinstance(node, ast.ClassDef):
            for default in (*node.args.defaults, *filter(None, node.args.kw_defaults)):
                yield from self._expression(default, function)

    def _statement(self, node: ast.stmt, function: str) -> Iterator[Mutant]:
        if _is_text(node) or isinstance(node, ast.Raise | ast.Assert):
            if isinstance(node, ast.Raise):
                yield self._made(function, "drop", node, (node, "pass"))
            return
        if isinstance(node, ast.Expr | ast.AugAssign | ast.Delete) or (
            isinstance(node, ast.Assign) and function and isinstance(node.targets[0], ast.Attribute | ast.Subscript)
        ):
            text = self._text(node)
            value = getattr(node, "value", None)
            first = function.endswith(".__init__") and isinstance(value, ast.Constant)  # only says that there is one
            if not first and not isinstance(value, ast.Yield | ast.YieldFrom) and not text.startswith(_UNSEEN):
                yield self._made(function, "drop", node, (node, "pass"))
        if isinstance(node, ast.If | ast.While):
            yield self._made(function, "negate", node.test, (node.test, f"not ({self._text(node.test)})"))
        for field, value in ast.iter_fields(node):
            if field not in ("body", "orelse", "finalbody", "handlers", "cases", "annotation"):
                for part in value if isinstance(value, list) else [value]:
                    if isinstance(part, ast.withitem):
                        yield from self._expression(part.context_expr, function)
                    elif isinstance(part, ast.expr):
                        yield from self._expression(part, function)

    def _expression(self, node: ast.expr, function: str) -> Iterator[Mutant]:
        if self._text(node).startswith(_UNSEEN) or isinstance(node, ast.JoinedStr):
            return
        yield from self._sides(node, function)
        yield from self._members(node, function)
        for part in ast.iter_child_nodes(node):
            if isinstance(part, ast.comprehension):
                for test in part.ifs:
                    yield self._made(function, "negate", test, (test, f"(not ({self._text(test)}))"))
                    yield from self._expression(test, function)
                yield from self._expression(part.iter, function)
            elif isinstance(part, ast.keyword):
                yield from self._expression(part.value, function)
            elif isinstance(part, ast.expr):
                yield from self._expression(part, function)

    def _sides(self, node: ast.expr, function: str) -> Iterator[Mutant]:
        match node:
            case ast.Compare(ops=[operator]) if type(operator) in _BOUNDS:
                left, right = self._text(node.left), self._text(node.comparators[0])
                yield self._made(function, "bound", node, (node, f"{left} {_BOUNDS[type(operator)]} {right}"))
            case ast.BinOp(op=operator) if type(operator) in _OPERATORS and not _is_string(node):
                left, right = self._text(node.left), self._text(node.right)
                yield self._made(function, "operator", node, (node, f"({left} {_OPERATORS[type(operator)]} {right})"))
            case ast.Call(func=ast.Name(id=called) as name) if called in _NAMES:
                yield self._made(function, "operator", node, (name, _NAMES[called]))
            case ast.IfExp(test=test):
                yield self._made(function, "negate", test, (test, f"(not ({self._text(test)}))"))

    def _members(self, node: ast.expr, function: str) -> Iterator[Mutant]:
        match node:
            case ast.BoolOp(values=values):
                word = " and " if isinstance(node.op, ast.And) else " or "
                for value in values:
                    others = word.join(f"({self._text(one)})" for one in values if one is not value)
                    text = f"{' '.join(self._text(value).split())} of {' '.join(self._text(node).split())}"
                    edit = (*self._span(node), f"({others})")
                    yield Mutant(self._path, function or "-", "without", text, node.lineno, (edit,))
            case ast.Set(elts=[_, _, *_] as elements):
                for one in elements:
                    rest = ", ".join(self._text(other) for other in elements if other is not one)
                    yield self._made(function, "element", one, (node, f"{{{rest}}}"))
            case ast.Constant(value=bool(value)):
                yield self._made(function, "constant", node, (node, str(not value)))
            case ast.Constant(value=int(value)):
                yield self._made(function, "constant", node, (node, str(value + 1)))


def _calls(node: ast.stmt) -> bool:
    """Whether it is a simple statement with a call: of others, the order is seen by nothing."""
    return isinstance(node, _SIMPLE) and any(isinstance(part, ast.Call) for part in ast.walk(node))


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_string(node: ast.BinOp) -> bool:
    return any(isinstance(side, ast.Constant) and isinstance(side.value, str) for side in (node.left, node.right))


def _is_for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def of_files(root: Path, paths: Iterable[str]) -> list[Mutant]:
    """Return every change of these files."""
    return [one for path in paths for one in mutants_of(path, (root / path).read_bytes())]


def by_hand(root: Path, name: str, path: str, old: str, new: str) -> Mutant:
    """Return a change that is given as a text of the file, which must be there once."""
    source = (root / path).read_text()
    replaced(source, [(old, new)], path)
    before = source[: source.index(old)]
    start = len(before.encode())
    return Mutant(path, "-", "hand", name, before.count("\n") + 1, ((start, start + len(old.encode()), new),))
