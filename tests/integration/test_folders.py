"""The folders of log and store are this user's alone, whatever the umask is; and what stands in a file's place is
looked at before it is used."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tests.support import zygote
from tests.support.audit_logs import write_log
from tests.support.loops import one_loop
from tests.support.managers import opened
from tests.support.policed import ordered
from tests.support.state_rollbacks import config_of
from tests.support.terminal import OWN_PROCESS

import hsmcore
from hsmcore.audit.check.verify import verify
from hsmcore.audit.layout import Layout
from hsmcore.config import load
from hsmcore.config.secret import Secret
from hsmcore.doctor.doctor import diagnose
from hsmcore.doctor.places import check_places
from hsmcore.errors import AuditUnavailable, ConfigurationError, ModuleInvalid
from hsmcore.members.control.softhsm import StateFolder
from hsmcore.state import Store, StoreError

pytestmark = pytest.mark.integration

LIFE = """
import asyncio, json, os, sys
from tests.support.policed import ordered
import hsmcore

async def main(config):
    for first in (0, 300):
        async with hsmcore.create_key_manager(config) as manager:
            for position in range(first, first + 300):
                await manager.sign(ordered(position))

umask, config = json.loads(sys.argv[1])
os.umask(umask)
asyncio.run(main(config))
"""


@pytest.mark.parametrize(
    "umask", [0o000, 0o777, *(pytest.param(u, marks=pytest.mark.deep) for u in (0o022, 0o002))], ids=oct
)
def test_what_is_made_is_for_this_user_alone(tmp_path, umask):
    place = tmp_path / "new" / "deep"
    config = config_of(place, audit={"rotateBytes": 65536, "checkpointEveryRecords": 300, "durability": "write"})
    done = zygote.run("-c", LIFE, json.dumps([umask, config]), text=True)
    assert done.returncode == 0, done.stderr
    found = [tmp_path / "new", *(tmp_path / "new").rglob("*")]
    assert any("segments" in str(path) and path.suffix == ".zst" for path in found)
    wrong = {
        str(path.relative_to(tmp_path)): oct(stat.S_IMODE(path.stat().st_mode))
        for path in found
        if stat.S_IMODE(path.stat().st_mode) != (0o700 if path.is_dir() else 0o600)
    }
    assert wrong == {}


@one_loop
@pytest.mark.parametrize("mode", [0o777, 0o707, 0o1777, 0o775, 0o2770, 0o755])
async def test_a_folder_that_everyone_may_write_is_refused(tmp_path, caplog, mode):
    """One with the sticky bit, such as /tmp, lets nobody replace files; one of a group may be shared on purpose, as a
    volume of Kubernetes with an fsGroup is."""
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(mode)
    config = config_of(place)
    places = {step.name: (step.outcome, step.hint) for step in check_places(load(config))}
    if mode in (0o777, 0o707):
        with pytest.raises(AuditUnavailable, match=r"everyone may write .*chmod 700"):
            await write_log(place / "audit.log", 1)
        with pytest.raises(StoreError, match=r"everyone may write .*chmod 700"):
            await Store.open(place / "state.db")
        with pytest.raises(hsmcore.HsmError, match="everyone may write"):
            await hsmcore.create_key_manager(config).initialize()
        assert list(place.iterdir()) == []
        assert places["audit-log"][0] == "fail"
        assert "chmod 700" in places["audit-log"][1]
        return
    async with opened(config) as manager:
        await manager.sign(ordered(1))
    assert places["audit-log"][0] == "ok"
    assert ("its group may write" in caplog.text) == (mode in (0o775, 0o2770))


VOLUME = """
import os, subprocess, sys
from pathlib import Path
from hsmcore.base.ownership import exposed

place = Path(sys.argv[1])
place.chmod(0o777)
subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0777", "none", str(place)], check=True)
(place / "below").mkdir()
(place / "below").chmod(0o777)
os.setgid(65534)
os.setuid(65534)
print([bool(exposed(place)), bool(exposed(place / "below"))])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_a_volume_that_a_platform_has_made_for_everyone_is_taken():
    """Its mode cannot be changed by who gets it, and nobody else is in the container."""
    with tempfile.TemporaryDirectory() as place:  # which another user can reach
        command = ["unshare", "--mount", sys.executable, "-c", VOLUME, place]
        done = subprocess.run(command, text=True, capture_output=True, check=False, timeout=60)
    if "unshare failed" in done.stderr or "mount: " in done.stderr:
        pytest.skip("mounting is not permitted here")
    assert done.stdout.splitlines()[-1:] == ["[False, True]"], done.stderr


def fifo(log: Path) -> None:
    os.mkfifo(log)


def link(log: Path) -> None:
    (log.parent / "elsewhere").write_bytes(b"")
    log.symlink_to(log.parent / "elsewhere")


def dangling(log: Path) -> None:
    log.symlink_to(log.parent / "nowhere")


def second_name(log: Path) -> None:
    (log.parent / "elsewhere").write_bytes(b"something else\n")
    log.hardlink_to(log.parent / "elsewhere")


def folder(log: Path) -> None:
    log.mkdir()


@one_loop
@pytest.mark.parametrize("put", [fifo, link, dangling, second_name, folder])
async def test_what_is_no_file_of_one_name_is_not_taken_for_the_log(tmp_path, put):
    log = tmp_path / "audit.log"
    put(log)
    async with asyncio.timeout(30):
        with pytest.raises(AuditUnavailable, match="Move it away") as caught:
            await write_log(log, 1)
    assert "descriptors" not in str(caught.value)
    if put in (link, second_name):
        assert (tmp_path / "elsewhere").read_bytes() in (b"", b"something else\n")
    assert not (tmp_path / "nowhere").exists()
    assert not Layout(log).lost.exists()
    if put is fifo:
        with pytest.raises(OSError, match="Illegal seek"):
            verify(Layout(log))


@pytest.mark.parametrize(
    ("mode", "refused", "warned"),
    [(0o666, True, False), (0o602, True, False), (0o660, False, True), (0o644, False, False), (0o400, False, False)],
)
def test_a_configuration_that_others_may_write_is_refused(tmp_path, caplog, mode, refused, warned):
    """It names the module that is loaded. A link's own mode says nothing, as in a volume of Kubernetes."""
    (tmp_path / "..data").mkdir()
    path, real = tmp_path / "hsm.json", tmp_path / "..data" / "hsm.json"
    real.write_text(json.dumps(config_of(tmp_path)))
    real.chmod(mode)
    path.symlink_to("..data/hsm.json")
    if refused:
        with pytest.raises(ConfigurationError, match=f"everyone may write .*{mode:04o}.*chmod go-w"):
            load(path)
    else:
        load(path)
    assert ("others may write what is loaded or obeyed" in caplog.text) == warned


OWNERS = """
import json, os, subprocess, sys
from pathlib import Path
from hsmcore.base.ownership import foreign

def looked(user):
    if not os.fork():
        os.setgroups([])
        os.setgid(user or 0)
        os.setuid(user or 0)
        found = bool(foreign(path)), bool(foreign(path, root_takes_all=True))
        print(json.dumps([user, path.parent.name, *found]), flush=True)
        os._exit(0)
    os.wait()

place = Path(sys.argv[1])
place.chmod(0o755)
(place / "volume").mkdir()
(place / "folder").mkdir()
subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0755", "none", str(place / "volume")], check=True)
for path in (place / "folder" / "file", place / "volume" / "file"):
    path.touch(0o644)
    os.chown(path, 4711, 4711)
subprocess.run(["mount", "-o", "remount,ro", str(place / "volume")], check=True)
for path in (place / "folder" / "file", place / "volume" / "file"):
    for user in (0, 4711, 4712):
        looked(user)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_another_user_is_obeyed_from_a_read_only_volume_only():
    """A developer's file in a container, which nobody writes there. Root's commands obey the configuration of a
    service's user; what it names to be loaded must be root's own."""
    with tempfile.TemporaryDirectory() as place:  # which another user can reach
        command = ["unshare", "--mount", sys.executable, "-c", OWNERS, place]
        done = subprocess.run(command, text=True, capture_output=True, check=False, timeout=60)
    if "unshare failed" in done.stderr or "mount: " in done.stderr:
        pytest.skip("mounting is not permitted here")
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert found == [
        [0, "folder", True, False],
        [4711, "folder", False, False],
        [4712, "folder", True, True],
        *([user, "volume", False, False] for user in (0, 4711, 4712)),
    ], done.stderr


@one_loop
@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_a_module_that_others_may_write_is_not_loaded(world, tmp_path, isolation, monkeypatch):
    """Nor is a PIN read for it; nor does a host process that has died begin again with it."""
    path = tmp_path / "module.so"
    shutil.copy(world.module, path)
    (tmp_path / "link.so").symlink_to(path)
    config = world.config(settings={"modulePath": str(tmp_path / "link.so"), "isolation": isolation})
    path.chmod(0o755)
    manager = hsmcore.create_key_manager(config)
    async with manager:
        await manager.sign(b"message")
        path.chmod(0o757)
        if isolation == "process":
            with pytest.raises(ModuleInvalid, match="everyone may write"):
                manager._path.member.restart_host()
        with pytest.raises(ModuleInvalid, match="everyone may write"):
            await manager._path.member.control.list_tokens()
    resolved = []
    monkeypatch.setattr(Secret, "resolve", resolved.append)
    with pytest.raises(ModuleInvalid, match=r"everyone may write .*0757.*chmod go-w"):
        await hsmcore.create_key_manager(config).initialize()
    assert resolved == []
    monkeypatch.undo()
    [step] = [step for step in diagnose(load(config)).providers[0].steps if step.name == "module-file"]
    assert (step.outcome, "everyone may write" in step.found) == ("fail", True)


def test_init_takes_nothing_that_another_user_has_put_there(tmp_path):
    """Its PIN would be that user's, or its token lie where that one wants it."""

    def refused(place, says):
        with pytest.raises(hsmcore.HsmError, match=says):
            StateFolder(place).create()
        assert not (place / "so-pin").exists()

    for name in ("pin", "softhsm2.conf", "config.json", "tokens"):
        place = tmp_path / f"with {name}"
        place.mkdir(0o700)
        (place / name).symlink_to("/etc/hostname")
        refused(place, "is a link")
        (place / name).unlink()
        (place / name).touch(0o666)
        (place / name).chmod(0o666)
        refused(place, "everyone may write")
        if os.geteuid() == 0:
            (place / name).chmod(0o600)
            os.chown(place / name, 4711, 4711)
            refused(place, "user 4711 may write")
            os.chown(place / name, 0, 0)
            os.chown(place, 4711, 4711)
            refused(place, "user 4711 may write")
    place = tmp_path / "everyone's"
    place.mkdir()
    place.chmod(0o777)
    refused(place, "everyone may write")
    (tmp_path / "link").symlink_to(tmp_path / "with pin")
    refused(tmp_path / "link", "is a link")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gets into the folder that is made with this umask")
def test_what_init_makes_can_be_used_whatever_the_umask_is(tmp_path):
    made = [*OWN_PROCESS, "init", "--state", tmp_path / "state"]
    subprocess.run(made, check=True, capture_output=True, timeout=100, umask=0o777)
    found = {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in (tmp_path / "state").iterdir()}
    assert set(found.values()) == {"0o600", "0o700"}, found


def test_a_pin_of_ones_own_may_end_with_a_newline(tmp_path):
    """As `echo 123456 > pin` makes it."""
    place = tmp_path / "place"
    place.mkdir(0o700)
    (place / "pin").touch(0o600)
    (place / "pin").write_text("123456\n")
    assert StateFolder(place).create() is not None
    signs = zygote.run(zygote.CLI, "sign", "--text", "message", "--config", place / "config.json")
    assert signs.returncode == 0, signs.stderr
    (tmp_path / "other").mkdir(0o700)
    (tmp_path / "other" / "pin").write_text("123456\n")
    (tmp_path / "other" / "pin").chmod(0o644)
    with pytest.raises(hsmcore.HsmError, match="open to everyone"):
        StateFolder(tmp_path / "other").create()


def test_a_child_that_cannot_be_started_is_no_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.executable", str(tmp_path / "no-python"))
    with pytest.raises(hsmcore.HsmError, match=r"child cannot be started: No such file.*no-python"):
        StateFolder(tmp_path / "state").create()
