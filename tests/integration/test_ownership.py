"""What root makes beside a service of another user belongs to that user, and nothing else is given away."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.support.as_nobody import USER
from tests.support.audit_logs import write_log
from tests.support.terminal import PROGRAM

from hsmcore.audit.check.verify import verify
from hsmcore.audit.layout import Layout
from hsmcore.audit.query import Query
from hsmcore.base import ownership
from hsmcore.cli.app import build

pytestmark = [
    pytest.mark.integration,
    pytest.mark.usefixtures("terminal"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files for others"),
]
NOBODY = pwd.getpwnam(USER)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder of `nobody`, where that one can get to: pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="hsmcore-nobody-"))
    os.chown(folder, NOBODY.pw_uid, NOBODY.pw_gid)
    yield folder
    shutil.rmtree(folder)


def of_root(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.lstat().st_uid == 0)


def run(*command: object, code: int = 0, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def service(place: Path) -> tuple[Path, Path, str]:
    """The configuration of a service of `nobody`'s with failover and an audit log, another one for root, and the name
    of its member."""
    run(*PROGRAM, "init", "--state", place / "token")
    [path] = (place / "token").glob("*.json")
    found = []
    for name in ("service", "before"):
        document = json.loads(path.read_bytes())
        manager = document.get("sequencer", document)["keyManager"]
        folder = place / name
        folder.mkdir()
        manager |= {"auditLogFile": str(folder / "audit.log"), "stateFile": str(folder / "state.db"), "failover": {}}
        found.append(path.with_name(f"{name}.json"))
        found[-1].write_text(json.dumps(document))
    member = f"softhsm:{manager['config']['tokenLabel']}"
    for path in [place, *place.rglob("*")]:
        os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    return found[0], found[1], member


def start(config: Path, before: Path) -> str:
    conf = str(config.parent / "softhsm2.conf")
    return run(sys.executable, "-m", "tests.support.as_nobody", before, config, SOFTHSM2_CONF=conf)


def test_a_service_starts_and_signs_after_commands_of_root(place):
    config, before, member = service(place)
    folder = place / "service"
    layout = Layout(folder / "audit.log")
    for number in range(2):  # where nothing was made yet, and where the service and a key manager of root's have been
        code = 0 if number else 1  # no command makes the store; both leave a record
        run(*PROGRAM, "failover", "drain", member, "--yes", "--reason", "by root", "--config", config, code=code)
        run(*PROGRAM, "failover", "drain", member, "--undo", "--reason", "by root", "--config", config, code=code)
        waiting = of_root(folder)
        assert len(waiting) == 2
        assert all(name.startswith("audit.log.d/spool/") for name in waiting), waiting
        assert len(start(config, before)) == 128
        assert of_root(folder) == []
        if number == 0:
            run(*PROGRAM, "sign", "--text", "by root", "--config", config)
            assert of_root(folder) == []
    commands = [record for block in Query(layout, None, None, {"operation": "command"}).blocks() for record in block]
    assert [(record["command"], record["user"]) for record in commands] == [("failover drain", "root")] * 4
    assert verify(layout).ok


# Each command, with the arguments of a use beside a service; or why it makes no file there.
USES: dict[str, list[str] | str] = {
    "audit adopt": [],
    "audit checkpoint": [],
    "audit cosign": "needs a witness; cosigned/ is made as shipping/ is",
    "audit device-log": "needs a YubiHSM; devices/ is made as shipping/ is",
    "audit mend": [],
    "audit prove": ["1"],
    "audit query": [],
    "audit ship": [],
    "audit show": [],
    "audit verify": [],
    "batch proof": ["0"],
    "backup list": [],
    "backup recovery-key": "makes the file that --output names",
    "backup restore": ["none"],
    "backup verify": [],
    "bench": "a package of its own, and its files are where its options say",
    "cluster": "needs AWS, and makes no file",
    "demo": "a package of its own, in a folder of its own",
    "config schema": [],
    "doctor": [],
    "emergency disable": ["--reason", "x"],
    "emergency enable": ["--reason", "x"],
    "emergency reset": ["--reason", "x"],
    "emergency status": [],
    "failover drain": ["MEMBER", "--yes", "--reason", "x"],
    "failover force": ["primary", "--reason", "x"],
    "failover history": [],
    "failover readmit": ["MEMBER", "--reason", "x"],
    "failover status": [],
    "fleet claim": [],
    "fleet drain": [],
    "fleet export": [],
    "fleet hold": ["--reason", "x"],
    "fleet import": ["none"],
    "fleet migrate": [],
    "fleet prune": [],
    "fleet reconcile": ["--reason", "x"],
    "fleet release": [],
    "fleet resume": ["--reason", "x"],
    "fleet retire": ["x", "--reason", "x", "--yes"],
    "fleet status": [],
    "gateway": "runs until it is stopped; it opens what `sign` opens",
    "init": "makes a token and a configuration in a folder of its own",
    "keys attest": ["none"],
    "keys deactivate": ["KEY", "--yes"],
    "keys export": "makes the file that --output names",
    "keys generate": ["--label", "spare"],
    "keys import": ["none"],
    "keys list": [],
    "keys replicate": ["--to", "none", "KEY"],
    "keys set": [],
    "load": "a package of its own, and its files are where its options say",
    "metrics": [],
    "notices test": [],
    "policy explain": ["00"],
    "policy floor set": ["block", "1", "--reason", "x"],
    "policy floor show": [],
    "policy rebind": ["--reason", "x"],
    "publish proof": ["block", "1"],
    "publish status": [],
    "publish verify": ["block", "1", "00", "none"],
    "rotate abort": ["--reason", "x"],
    "rotate adopt": ["none"],
    "rotate approve": ["--as", "none"],
    "rotate clock": ["--reason", "x"],
    "rotate history": [],
    "rotate now": ["--reason", "x"],
    "rotate plan": [],
    "rotate status": [],
    "serve": "runs until it is stopped; it opens what `sign` opens",
    "sign": ["--text", "x"],
    "state backup": "makes the file that --to names",
    "state begin": "makes its file in the state folder of the user who runs it, for that user",
    "state export": [],
    "state import": ["none"],
    "state reconcile": ["--reason", "x"],
    "state restore": ["none", "--reason", "x"],
    "state seal": ["--adopt", "00" * 32],
    "state verify": ["none"],
    "tokens": [],
    "tune": ["--most", "1", "--seconds", "0.05", "--write"],
    "verify": ["--text", "x", "--signature", "00" * 64],
    "version": [],
}


def commands_of(group: Any, above: tuple[str, ...] = ()) -> list[str]:
    if not hasattr(group, "commands"):
        return [" ".join(above)]
    return [name for own, one in group.commands.items() for name in commands_of(one, (*above, own))]


def test_every_command_is_tried_as_root_or_makes_no_file():
    assert sorted(commands_of(typer.main.get_command(build(bench="")))) == sorted(USES)


@pytest.mark.slow("each command, as root and as the service")
def test_no_command_of_root_leaves_a_file_that_the_service_cannot_use(place):
    config, before, member = service(place)
    folder = place / "service"
    for path in (config, before):
        document = json.loads(path.read_bytes())
        manager = document.get("sequencer", document)["keyManager"]
        manager["keyRotation"] = {"intervalDays": 30, "overlapDays": 2}
        manager["audit"] = {"syslog": {"address": f"unix://{place}/no-receiver"}}
        path.write_text(json.dumps(document))
    assert len(start(config, before)) == 128
    [key] = json.loads(run(*PROGRAM, "keys", "list", "--config", config, "--json"))
    replaced = {"MEMBER": member, "KEY": key["id"]}
    uses = [
        [*name.split(), *(replaced.get(one, one) for one in arguments)]
        for name, arguments in USES.items()
        if not isinstance(arguments, str)
    ]
    undone = [["failover", "drain", member, "--undo", "--reason", "x"], ["failover", "force", "none"]]
    run(sys.executable, "-c", ALL, config, json.dumps([*uses, *undone]))
    made = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert {"state.db.rotation.lock", "audit.log.d/shipping"} <= made
    assert [name for name in of_root(folder) if not name.startswith("audit.log.d/spool/")] == []
    # The files of SoftHSM's token are SoftHSM's; a device has none.
    for path in (place / "token").rglob("*"):
        os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    assert len(start(config, before)) == 128
    assert of_root(folder) == []


ALL = """
import json, sys
from hsmcore.cli.app import run
for arguments in json.loads(sys.argv[2]):
    try:
        code = run([*arguments, *([] if arguments[0] == "version" else ["--config", sys.argv[1]])])
    except SystemExit as error:
        code = error.code
    print(*arguments, code, flush=True)
"""


def test_a_role_s_lock_that_another_user_made_is_an_error_of_ours(place):
    (place / "state.db.rotation.lock").touch(mode=0o600)
    program = (
        "import asyncio, sys\nfrom hsmcore.state import Store, StoreError\nfrom tests.support.as_nobody import *\n"
        "async def main(path):\n"
        "    store = await Store.open(path)\n"
        "    try:\n"
        "        async with store.exclusively('rotation'):\n"
        "            pass\n"
        "    finally:\n"
        "        await store.close()\n"
        "import sqlalchemy.dialects.sqlite\n"
        "asyncio.run(main(sys.argv[1]))\n"
        "become_nobody()\n"
        "try:\n"
        "    asyncio.run(main(sys.argv[2]))\n"
        "except StoreError as error:\n"
        "    print(error)\n"
    )
    before = place.parent / f"{place.name}-before.db"
    try:
        said = run(sys.executable, "-c", program, before, place / "state.db")
    finally:
        for path in place.parent.glob(f"{before.name}*"):
            path.unlink()
    assert "state.db.rotation.lock: Permission denied" in said
    assert "chown" in said


def test_nothing_is_given_away_that_was_not_made_here(place, tmp_path):
    """The folder's owner puts links where root is about to make a file."""
    secret = tmp_path / "secret"
    secret.write_text("root's")
    link, hard, folder = place / "link", place / "hard", place / "folder"
    link.symlink_to(secret)
    os.link(_root_s_own(place), hard)
    folder.symlink_to(tmp_path)
    for path in (link, hard, folder):
        with pytest.raises(FileExistsError):
            ownership.make(path)
        with pytest.raises(FileExistsError):
            ownership.make_empty(path)
    with pytest.raises(OSError, match="symbolic links"):
        ownership.open_or_make(link)
    os.close(ownership.open_or_make(hard))
    ownership.adopt(hard, lambda _file: True)
    with pytest.raises(OSError, match="symbolic links"):
        ownership.adopt(link, lambda _file: True)
    ownership.make_folder(folder)
    os.close(ownership.make(folder / "made"))  # behind a link: the owner of that folder has it
    assert {path.stat().st_uid for path in (secret, hard, tmp_path, tmp_path / "made")} == {0}
    assert secret.read_text() == "root's"
    assert sorted(path.name for path in place.iterdir()) == ["folder", "hard", "link", "root-s"]


def _root_s_own(place: Path) -> Path:
    path = place / "root-s"
    path.write_text('{"seq":1,')
    return path


def test_another_user_gets_an_error_that_names_the_files_and_chown(place):
    asyncio.run(write_log(place / "audit.log", 3))
    os.chown(place / "audit.log.d" / "checkpoint", 0, 0)
    program = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom tests.support.as_nobody import *\n"
        "from tests.support.audit_logs import write_log\n"
        "asyncio.run(write_log(Path(sys.argv[1]), 3))\nbecome_nobody()\n"
        "try:\n    asyncio.run(write_log(Path(sys.argv[2]), 3))\nexcept hsmcore.AuditUnavailable as error:\n"
        "    print(error)\n"
    )
    (place / "before").mkdir()
    said = run(sys.executable, "-c", program, place / "before" / "audit.log", place / "audit.log")
    assert "audit.log.d/checkpoint: Permission denied" in said
    assert "chown" in said
