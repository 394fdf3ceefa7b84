"""Fixtures for all tests. Nothing is left behind: every test ends with what the process held when it began."""

from __future__ import annotations

import gc
import inspect
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from hypothesis import HealthCheck, settings
from tests.support import provision
from tests.support.leaks import LASTING, holdings, surplus_since
from tests.support.loops import FACTORIES, LoopRunner, warm_up
from tests.support.paths import ROOT
from tests.support.run_folder import Keeper, run_folder
from tests.support.shim import Shim, compile_shim
from tests.support.size import share
from tests.support.slow import SECONDS, long_first, reasonless, unmarked
from tests.support.softhsm import WORLD_KEYS, Folder, Token, find_module, make_token

if TYPE_CHECKING:
    from tests.support.kms import KmsServer
    from tests.support.postgres import Bouncer, Cluster
    from tests.support.terminal import Terminal

    from hsmcore.config import Fleet

# A shell starts a job in its background with SIGINT ignored, and children inherit that: Ctrl-C is tested here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What collecting makes stays: the collector would only look at more of it each time.
gc.disable()

# Here, and not in a fixture: SOFTHSM2_CONF must be set before anything initializes the module.
_keeper = Keeper() if run_folder() is None else None  # a worker's is its controller's
if _keeper is not None:
    LASTING.append(_keeper)
_folder = Folder()

# Of what lasts longer than a test; each test has its own: `state_home`.
os.environ["XDG_STATE_HOME"] = str(_folder.path / "state-home")
# The AWS SDK looks for credentials at an address outside this machine unless it is told not to.
os.environ["AWS_EC2_METADATA_DISABLED"] = "true"

FAILED = ROOT / "build" / "failed"
_some_failed = pytest.StashKey[bool]()

settings.register_profile(
    "hsmcore",
    max_examples=share(100),
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("hsmcore")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Tests write to the folder of the run."""
    if _keeper is not None and config.option.basetemp is None:
        config.option.basetemp = str(_keeper.folder / "t")


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Import a worker's share of the files first. All workers collect the same files in the same order, and in a tree
    without compiled files each of them would compile every one."""
    worker = getattr(session.config, "workerinput", None)
    if worker is not None:
        named = [Path(argument.partition("::")[0]).resolve() for argument in session.config.args]
        files = [file for path in named for file in ([path] if path.is_file() else sorted(path.rglob("test_*.py")))]
        for file in files[int(worker["workerid"][2:]) :: worker["workercount"]]:
            with suppress(Exception, pytest.skip.Exception):  # collecting says so
                import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))


def pytest_collection_finish() -> None:
    """Let the collector work while tests run."""
    gc.enable()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Note whether a test failed."""
    session.config.stash[_some_failed] = exitstatus == pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure(config: pytest.Config) -> None:
    """Delete the tokens, and what the run has written, but for what failed tests have: that goes to build/failed."""
    _folder.remove()
    if _keeper is not None:
        if config.stash.get(_some_failed, False) and (written := _keeper.folder / "t").is_dir():
            shutil.rmtree(FAILED, ignore_errors=True)
            subprocess.run(["cp", "-a", written, FAILED], check=False)  # sockets, too
        _keeper.close()


# ---- coroutine tests run in an event loop of each kind ---------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: Any, name: str, obj: object) -> None:
    """Give every test that is a coroutine function the `run` fixture, hence both event loops."""
    if isinstance(collector, (pytest.Module, pytest.Class)) and collector.istestfunction(obj, name):
        function = inspect.unwrap(obj)  # type: ignore[arg-type]  # a test function is a callable
        if inspect.iscoroutinefunction(function):
            pytest.mark.usefixtures("run")(obj)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine test."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    pyfuncitem.funcargs["run"](pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture(params=FACTORIES)
def run(request: pytest.FixtureRequest) -> Iterator[LoopRunner]:
    """Call it with a coroutine, as often as needed: all run in one event loop of the kind under test. A call of the
    loop's exception handler or a task that is left fails the test."""
    runner = LoopRunner(request.param)
    yield runner
    assert runner.close() == []


# ---- nothing is left -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def warm() -> None:
    """What the process keeps from its first use on is made before the first picture is taken."""
    warm_up()
    gc.collect()
    gc.freeze()  # what was imported is not looked at again whenever a test is checked for what it left


_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Note whether the test itself failed."""
    if call.when == "call" and call.excinfo is not None:
        item.stash[_failed] = True
    return (yield)


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest, warm: None) -> Iterator[None]:
    """Fail a test that leaves native resources, threads, descriptors or child processes."""
    # What lasts longer than the test is made before the first picture.
    asked = {*request.fixturenames, *_behind_place(request)}
    for name in ("softhsm", "world", "shim_library", "postgres", "pooler", "chromium"):
        if name in asked:
            request.getfixturevalue(name)
    before = holdings()
    yield
    structlog.reset_defaults()  # a command line that ran in this process has set it up for a stream of its own
    if not request.node.stash.get(_failed, False):  # a failed test's frames are kept, and all that they hold
        assert surplus_since(before) == []


# ---- state stores ----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def state_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's state folder: what one test promises with a key binds no other test."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-home"))
    return tmp_path / "state-home" / "hsmcore"


def _behind_place(request: pytest.FixtureRequest) -> list[str]:
    """The fixtures that the `place` of a test has."""
    callspec = getattr(request.node, "callspec", None)
    return {"postgres": ["postgres"], "pooled": ["pooler"]}.get(callspec.params.get("place"), []) if callspec else []


@pytest.fixture(scope="session")
def terminal() -> Iterator[Terminal]:
    """What runs the commands of tests.support.terminal.PROGRAM."""
    from tests.support.terminal import SHARED, Terminal

    SHARED.mkdir(mode=0o700)
    try:
        with Terminal(SHARED) as running:
            yield running
    finally:
        shutil.rmtree(SHARED)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """A PostgreSQL that all tests share: each one makes a database in it."""
    from tests.support.postgres import cluster

    with cluster() as made:
        LASTING.append(made)
        yield made
        LASTING.remove(made)


@pytest.fixture(scope="session")
def pooler(postgres: Cluster) -> Iterator[Bouncer]:
    """A PgBouncer in transaction mode in front of it."""
    made = postgres.bouncer()
    LASTING.append(made)
    yield made
    LASTING.remove(made)


_BOTH_LOOPS = ("test_sign.py", "test_lifecycle.py", "test_cache.py", "test_gateway.py", "test_closing.py")
"""Tests of what an event loop has most part in."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Through the pooler, `make test` runs the tests of the store itself; what lies on it is for `make check-deep`. So
    is the second event loop of a test with devices, faults or a server, but for _BOTH_LOOPS. Long tests come first."""
    names = {item.nodeid for item in items}
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is None:
            continue
        if callspec.params.get("place") == "pooled" and "test_state_store" not in item.nodeid:
            item.add_marker(pytest.mark.deep)
        second = callspec.params.get("run") == "asyncio" and item.nodeid.replace("asyncio", "uvloop") in names
        served = item.path.parent.name != "unit" or callspec.params.get("place") == "postgres"
        if second and served and item.path.name not in _BOTH_LOOPS:
            item.add_marker(pytest.mark.deep)
    long_first(items)
    if found := reasonless(items):
        raise pytest.UsageError(f"slow gives no reason: {found[0]}")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Name the long tests that do not say that they are."""
    stats = terminalreporter.stats
    if lines := unmarked(report for kind in ("passed", "failed") for report in stats.get(kind, ())):
        terminalreporter.section(f"over {SECONDS:.0f} s without the marker slow")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(params=["file", "postgres", "pooled"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | Fleet:
    """Where a new state store may be: a file, or the database of a fleet, also through a pooler."""
    if request.param == "file":
        return tmp_path / "state.db"
    from tests.support.postgres import fleet

    database = request.getfixturevalue("postgres").database
    return fleet(database() if request.param == "postgres" else request.getfixturevalue("pooler").url_of(database()))


# ---- tokens ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def softhsm() -> Iterator[Path]:
    """SoftHSM's module, and the server that makes tokens and keys of it."""
    module = find_module()
    if module is None:
        pytest.skip("SoftHSM is not installed")
    making = provision.server()
    LASTING.append(making)
    yield module
    LASTING.remove(making)
    provision.server.cache_clear()
    making.close()


@pytest.fixture(scope="session")
def world(softhsm: Path) -> Token:
    """The token that all tests share: its keys are WORLD_KEYS. Tests may add keys to it but change none."""
    return make_token(_folder, softhsm, WORLD_KEYS, label="hsmcore-world")


@pytest.fixture
def fresh_token(softhsm: Path) -> Iterator[Callable[..., Token]]:
    """Makes tokens for one test alone, with the keys it asks for (as in WORLD_KEYS; default: one Ed25519 key)."""
    made: list[Token] = []

    def make(*keys: dict[str, Any]) -> Token:
        made.append(make_token(_folder, softhsm, keys or ({"name": "ed25519", "kind": "ed25519"},)))
        return made[-1]

    yield make
    for token in made:
        token.remove()


@pytest.fixture
def kms(monkeypatch: pytest.MonkeyPatch) -> Iterator[KmsServer]:
    """A KMS of the test's own, and credentials for it in the environment."""
    from tests.support.kms import KmsServer, set_credentials

    set_credentials(monkeypatch)
    with KmsServer() as server:
        yield server


@pytest.fixture(scope="session")
def shim_library(softhsm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """shim.c around SoftHSM, compiled."""
    return compile_shim(softhsm, tmp_path_factory.mktemp("shim"))


@pytest.fixture
def shim(shim_library: Path, tmp_path: Path) -> Iterator[Shim]:
    """SoftHSM behind a module that counts, fails or holds calls: give `shim.path` as modulePath."""
    shim = Shim(shim_library, tmp_path / "shim.so")
    yield shim
    shim.release()
