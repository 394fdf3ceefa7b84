"""Rules of the project that a reviewer would otherwise check."""

from __future__ import annotations

import ast
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import hsmcore
from hsmcore.errors import EXCEPTION_OF_STATUS
from hsmcore.members.control.process import python

ROOT = Path(__file__).parents[2]
HEADERS = sorted((ROOT / "native" / "include" / "hsmcore").glob("*.h"))
PXD = ROOT / "bindings" / "hsmcore.pxd"
PRINTING = ("cli",)


def sources(folder: str, *suffixes: str) -> Iterator[Path]:
    for path in sorted((ROOT / folder).rglob("*")):
        if path.suffix in suffixes and path.is_file():
            yield path


def parsed(said: str, *suffixes: str) -> Iterator[tuple[Path, list[ast.AST]]]:
    """The library's Python files in whose text something stands, and all nodes of each. To parse all takes a second."""
    for path in sources("core/hsmcore", ".py", *suffixes):
        if re.search(said, text := path.read_text()):
            yield path, list(ast.walk(ast.parse(text)))


def without_comments(text: str) -> str:
    """C without comments and strings."""
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"', " ", text, flags=re.DOTALL)


def test_python_children_are_started_in_one_way():
    """`members/control/process.py: python`: a child imports nothing from the current folder."""
    starting = [
        path.relative_to(ROOT).as_posix()
        for folder in ("core/hsmcore", "bench/hsmcore_bench")
        for path in sources(folder, ".py")
        if re.search(r"\bsys\.executable\b", path.read_text())
    ]
    assert starting == ["core/hsmcore/members/control/process.py"]


def test_the_library_starts_children_in_one_place():
    """`members/control/process.py: Child`; the host process is started by the native core."""
    ways = re.compile(r"\b(import|from) (subprocess|multiprocessing)\b|\b(create_subprocess_|posix_spawn|spawn[lv])")
    paths = sources("core/hsmcore", ".py")
    starting = [path.relative_to(ROOT).as_posix() for path in paths if ways.search(path.read_text())]
    assert starting == ["core/hsmcore/members/control/process.py"]


def test_python_calls_modules_from_one_place():
    """`members/control/calls.py`; libc is called for locked memory, and by a child that hardens itself."""
    ways = re.compile(r"\b(CDLL|CFUNCTYPE|functions_of)\(")
    paths = sources("core/hsmcore", ".py")
    calling = {path.relative_to(ROOT).as_posix() for path in paths if ways.search(path.read_text())}
    assert calling == {f"core/hsmcore/members/control/{name}.py" for name in ("adopt", "calls", "locked", "started")}


@pytest.mark.parametrize("module", ["hsmcore_bench.suite.child", "hsmcore_bench.demo.fleet_member"])
def test_a_child_runs_no_code_of_the_current_folder(tmp_path, module):
    (tmp_path / "hsmcore_bench").mkdir()
    for name in ("hsmcore_bench/__init__.py", "json.py", "typing.py"):
        (tmp_path / name).write_text("import os, sys\nprint('of the folder')\nos._exit(0)\n")
    done = subprocess.run(python("-m", module, "{}"), cwd=tmp_path, capture_output=True, check=False, timeout=60)
    assert b"of the folder" not in done.stdout


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


def test_the_library_prints_nothing():
    printing = []
    for path, nodes in parsed(r"\bprint\b"):
        if path.relative_to(ROOT / "core" / "hsmcore").parts[0] in PRINTING:
            continue
        printing += [
            f"{path.relative_to(ROOT)}:{node.lineno}"
            for node in nodes
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        ]
    assert printing == []


def test_the_library_does_not_import_the_benchmarks():
    """Lazy and type-only imports counted: their commands are found by entry points."""
    importing = []
    for path, nodes in parsed("hsmcore_bench", ".pyi"):
        for node in nodes:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            importing += [path.relative_to(ROOT) for name in names if name.partition(".")[0] == "hsmcore_bench"]
    assert importing == []


@pytest.mark.parametrize(
    ("part", "others"),
    [
        ("harness", "suite|load|demo|tune"),
        ("suite", "load|demo|tune"),
        ("load", "suite|demo|tune"),
        ("demo", "suite|load|tune"),
        ("tune", "load|demo"),  # pictures and event loop are the suite's
    ],
)
def test_parts_of_the_benchmarks_share_only_the_harness(part, others):
    for path in sources(f"bench/hsmcore_bench/{part}", ".py"):
        assert not re.search(rf"\bhsmcore_bench\.({others})\b", path.read_text()), path


def test_the_core_knows_nothing_of_python():
    for path in sources("native/src", ".c", ".h"):
        assert not re.search(r"#include\s*[<\"]Python\.h", path.read_text()), path


def native_sources() -> dict[Path, str]:
    return {
        path.relative_to(ROOT): path.read_text()
        for folder in ("native", "bench/native")
        for path in sources(folder, ".c", ".h", ".def")
    }


def includes(path: Path, text: str, known: Iterable[Path]) -> set[Path]:
    """The project's own files that a native file includes."""
    found = set()
    for quoted, angled in re.findall(r'^#include (?:"(.+)"|<(hsmcore/.+)>)', text, re.MULTILINE):
        places = [path.parent / quoted, Path("native/src") / quoted] if quoted else [Path("native/include") / angled]
        [place, *_] = [place for place in (Path(os.path.normpath(place)) for place in places) if place in known]
        found.add(place)
    return found


def test_native_files_include_each_other_in_one_direction():
    files = native_sources()
    graph = {path: includes(path, text, files) for path, text in files.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError
    upward = {path: found for path, found in graph.items() if path.parts[0] == "native"}
    assert not [path for path, found in upward.items() if any(other.parts[0] == "bench" for other in found)]


NATIVE_NAME = r"\b(?:hsm|chaos|load|noop)_\w+"
NATIVE_DEFINITION = re.compile(
    rf"^(?!static\b|extern\b|typedef\b)\w[\w *]*?({NATIVE_NAME})(?:\([^;{{]*\)\s*\{{|(?:\[\w*\])*\s*[;=])", re.MULTILINE
)
INLINE_FUNCTION = re.compile(r"^static inline.*?^\}", re.MULTILINE | re.DOTALL)


def native_units() -> tuple[dict[Path, str], dict[str, Path]]:
    """Native files without comments, and the unit (path without suffix) that defines each name which others may use."""
    code = {path: without_comments(text) for path, text in native_sources().items()}
    definitions = (
        (path, name) for path in code if path.suffix == ".c" for name in NATIVE_DEFINITION.findall(code[path])
    )
    defined = {name: path.with_suffix("") for path, name in definitions}
    assert len(defined) > 300
    return code, defined


def test_native_files_use_each_other_in_one_direction():
    """No circle by who uses whose functions and variables; a header's inline functions belong to the .c file beside it.
    Names that macros put together (chaos_C_*) are not seen."""
    code, defined = native_units()
    graph: dict[Path, set[Path]] = {}
    for path, text in code.items():
        used = text if path.suffix == ".c" else "".join(INLINE_FUNCTION.findall(text))
        unit = path.with_suffix("")
        named = {defined[name] for name in re.findall(NATIVE_NAME, used) if name in defined}
        graph.setdefault(unit, set()).update(named - {unit})
    TopologicalSorter(graph).prepare()  # raises CycleError


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


def imports_of(path: Path, modules: set[str]) -> set[str]:
    """The modules of this tree that a file imports, in functions and for types too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {
                full if (full := f"{node.module}.{alias.name}") in modules else node.module for alias in node.names
            }
    return found & modules


def test_no_two_python_files_import_each_other():
    files = {}
    for root in ("core", "bench"):
        for path in sources(f"{root}/hsmcore" if root == "core" else f"{root}/hsmcore_bench", ".py"):
            name = ".".join(path.relative_to(ROOT / root).with_suffix("").parts).removesuffix(".__init__")
            files[name] = path
    graph = {name: imports_of(path, set(files)) - {name} for name, path in files.items()}
    assert len(graph) > 300
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_the_layers_hold():
    """The contracts of import-linter in pyproject.toml; `make check` shows what breaks them."""
    linter = Path(sys.executable).with_name("lint-imports")
    found = subprocess.run([linter, "--no-cache", "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
    assert "4 kept, 0 broken" in found.stdout


# Files that may start tasks themselves: one request's tasks, one step's, and a server's. Services have a Scope.
# The list only gets shorter.
TASKS_OF_THEIR_OWN = {
    "base/scope.py",
    "base/waiting.py",
    "cli/gateway.py",
    "failover/batch.py",
    "failover/resumed.py",
    "failover/service.py",
    "gateway/jobs.py",
    "gateway/vault/face.py",
    "manager/key_managers.py",
    "manager/lifecycle.py",
    "members/offload/runners.py",
    "members/pkcs11.py",
    "serve/app.py",
    "state/backup.py",
}


def test_a_service_leaves_its_tasks_to_its_scope():
    """`base/scope.py: Scope` starts them, and ends them when the service is closed."""
    starting = set()
    for path, nodes in parsed("create_task|ensure_future|TaskGroup"):
        names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        if names & {"create_task", "ensure_future", "TaskGroup"}:
            starting.add(path.relative_to(ROOT / "core" / "hsmcore").as_posix())
    assert starting == TASKS_OF_THEIR_OWN


# Files that may read the wall clock, and why. What is due, and what cannot be undone, goes by base/steady.py. The list
# only gets shorter.
READ_THE_WALL_CLOCK = {
    "given to a steady clock": {"base/steady.py", "manager/rotation/service.py", "manager/rotation/store.py"},
    "a date that is shown or recorded": {
        "base/listening/http.py",
        "cli/failover.py",
        "cli/rotate.py",
        "doctor/fleet_store.py",
        "failover/budget.py",
        "failover/health.py",
        "failover/history.py",
        "failover/service.py",
        "gateway/vault/face.py",
        "manager/batching.py",
        "manager/describe.py",
        "members/control/refused.py",
        "providers/cloudhsm/health.py",
        "providers/yubihsm/audit.py",
        "recovery/interchange.py",
        "recovery/marks.py",
        "serve/ledger.py",
        "serve/monitor.py",
        "serve/watch.py",
        "serve/witness.py",
        "state/approvals.py",
        "state/backup.py",
        "state/backups.py",
        "state/database.py",
        "state/key_sets.py",
        "state/keys.py",
        "state/postgres/certificate.py",
        "state/register.py",
    },
    "a name, or a number, that is to be new": {
        "audit/check/adopt.py",
        "audit/spool.py",
        "cli/failover.py",
        "serve/actions.py",
        "state/seal.py",
    },
    "a word of another party's clock": {
        "audit/shipping/cloudwatch.py",
        "doctor/fleet_store.py",
        "state/postgres/certificate.py",
        "providers/kms/client.py",
        "providers/yubihsm/attest.py",
        "tlog/key_set.py",
    },
    "the day on which what a client shows ends": {
        "doctor/places.py",
        "gateway/front/core.py",
        "gateway/front/pumps.py",
        "gateway/vault/asker.py",
    },
    "which records are read": {"cli/audit/records.py"},
    "tells that it is ahead": {"audit/retention.py"},
    "due or stale, and a date that lies far ahead counts as none": {
        "manager/notices.py",
        "recovery/state_backup.py",
        "state/desired.py",
        "state/outbox.py",
    },
}


def test_nothing_is_due_by_the_wall_clock():
    reading = {
        path.relative_to(ROOT / "core" / "hsmcore").as_posix()
        for path, nodes in parsed(r"time\s*\.\s*(time|now)")
        for node in nodes
        if isinstance(node, ast.Attribute) and node.attr in ("time", "time_ns", "now")
        if ast.unparse(node) in ("time.time", "time.time_ns", "datetime.now")
    }
    assert reading == set().union(*READ_THE_WALL_CLOCK.values())


def test_every_number_of_examples_is_for_make_check_deep_to_raise():
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"\bmax_examples=(?!share\()", line)
    ]
    assert found == []
