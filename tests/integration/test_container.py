"""The image of packaging/oci: its root file system is made by the script that the Containerfile runs, and `hsmcore
gateway` signs in it as its last lines say: read-only, as another user, without capabilities and without a shell.

The whole Containerfile is built too, where buildah and mmdebstrap are: on a Debian made here, no registry is asked.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import pytest
from nacl.signing import VerifyKey
from tests.support.loops import one_loop
from tests.support.paths import ROOT
from tests.support.wire import read_signed
from tests.support.wire_site import Peer, sign

import hsmcore

pytestmark = pytest.mark.integration
CONTAINERFILE = (ROOT / "packaging" / "oci" / "Containerfile").read_text()
STAGES = re.split(r"^FROM ", CONTAINERFILE, flags=re.MULTILINE)[1:]
EXTRAS = frozenset(re.search(r"^ARG EXTRAS=(.+)$", CONTAINERFILE, re.MULTILINE)[1].split(","))
USER = 65532
PYTHON = os.path.realpath(sys.executable)  # not that of the virtual environment
# Mounts as a runtime makes them, then the program in place of this shell.
_RUN = """
set -e
mount --make-rprivate /
mount --bind "$ROOT" "$ROOT"
mount -t proc proc "$ROOT/proc"
for folder in tmp run/hsmcore var/lib/hsmcore; do
    mount -t tmpfs -o mode=1777 tmpfs "$ROOT/$folder"
done
mount -t tmpfs -o mode=755 tmpfs "$ROOT/dev"
for device in null urandom; do
    touch "$ROOT/dev/$device"
    mount --bind "/dev/$device" "$ROOT/dev/$device"
done
mkdir "$ROOT/dev/shm"
mount -t tmpfs -o mode=1777 tmpfs "$ROOT/dev/shm"
mount --bind "$CONFIG" "$ROOT/etc/hsmcore"
cp -a "$TOKEN" "$ROOT/var/lib/hsmcore/token"
chown -R 65532:65532 "$ROOT/var/lib/hsmcore"
mount -o remount,bind,ro "$ROOT"
exec "$PYTHON" -c "$ENTER" "$@"
"""

# As a runtime begins the program: in its root, with no capability to be had, as its user.
_ENTER = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
os.chroot(os.environ["ROOT"])
os.chdir("/var/lib/hsmcore")
for capability in range(64):
    libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
os.setgroups([])
os.setgid(65532)
os.setuid(65532)
os.execve(sys.argv[1], sys.argv[1:], {"SOFTHSM2_CONF": "/etc/hsmcore/softhsm2.conf"})
"""


def last(instruction):
    """The last one of the image's stage."""
    return re.findall(rf"^{instruction} (.+)$", STAGES[-1], re.MULTILINE)[-1]


def test_the_image_has_nothing_below_it_no_rights_and_no_shell():
    assert STAGES[-1].startswith("scratch\n")
    assert last("USER") == f"{USER}:{USER}"
    assert "\nRUN" not in STAGES[-1]
    assert isinstance(json.loads(last("ENTRYPOINT")), list)  # no form that needs a shell
    assert isinstance(json.loads(last("CMD")), list)
    assert last("STOPSIGNAL") == "SIGTERM"
    copied = re.search(r"scripts/rootfs\.py (\S+) --site (\S+) --sbom (\S+)", STAGES[0])
    assert re.findall(r"^COPY --from=build (.+)$", STAGES[-1], re.MULTILINE) == [f"{copied[1]} /"]


def test_the_image_installs_what_a_development_machine_does():
    """A library that is needed to build and is missing in one of the two."""
    in_image = set(re.search(r"no-install-recommends \\\n(.*?)&&", STAGES[0], re.DOTALL)[1].replace("\\", "").split())
    setup = (ROOT / "scripts" / "setup").read_text()
    assert set(shlex.split(re.search(r"^packages=\((.+)\)$", setup, re.MULTILINE)[1])) - {"softhsm2"} <= in_image


def test_a_builder_is_not_sent_what_git_ignores():
    """Binaries of this machine, above all, and its environment."""

    def names(file):
        lines = (ROOT / file).read_text().splitlines()
        return {line.strip("/").removeprefix("**/") for line in lines if not line.startswith("#")}

    assert names(".gitignore") | {".git"} == names(".dockerignore")  # which docker, podman and buildah all read


def installed(folder):
    """What `pip install --target` of the extras would give, from what is installed here."""
    from scripts import sbom  # reads all schemas of CycloneDX

    for name in dict.fromkeys(sbom.reachable("hsmcore", EXTRAS)):
        for file in metadata.files(name) or ():
            if ".." not in file.parts and "__pycache__" not in file.parts:
                target = folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file.locate(), target)
    shutil.rmtree(folder / "hsmcore", ignore_errors=True)
    shutil.copytree(Path(hsmcore.__file__).parent, folder / "hsmcore", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


# The authorities of a network that ends TLS itself.
_OWN = 'mkdir -p "$1/usr/local/share" && cp -r /usr/local/share/ca-certificates "$1/usr/local/share"'


@contextmanager
def built(folder):
    """The root file system of the image that the Containerfile describes. Debian's mirror and PyPI are asked."""
    if missing := [name for name in ("buildah", "mmdebstrap") if shutil.which(name) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")

    def buildah(*words):
        command = ["buildah", "--root", str(folder / "storage"), "--runroot", str(folder / "run"), *map(str, words)]
        return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()

    debian = ["mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", f"--customize-hook={_OWN}", "trixie"]
    subprocess.run([*debian, str(folder / "base.tar")], check=True)
    # buildah raises them, unless it is told: that needs a right which root may lack.
    limits = [
        f"--ulimit={name}={':'.join(map(str, resource.getrlimit(which)))}"
        for name, which in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC))
    ]
    try:
        base = buildah("from", "scratch")
        buildah("add", base, folder / "base.tar", "/")
        buildah("commit", base, "base")
        how = ["--isolation=chroot", *limits, "--build-arg=BASE=localhost/base"]
        buildah("build", *how, "--file=packaging/oci/Containerfile", "--tag=made", ".")
        yield Path(buildah("mount", buildah("from", "made")))
    finally:
        buildah("rm", "--all")
        buildah("rmi", "--all", "--force")


@pytest.fixture(params=["by the script", "by buildah"])
def image(request, tmp_path, world):
    """The image's root file system."""
    if request.param == "by buildah":
        with built(tmp_path) as root:
            yield root
        return
    root, bill, site = tmp_path / "root", tmp_path / "bill.json", tmp_path / "site"
    written = [sys.executable, str(ROOT / "scripts" / "sbom.py"), str(bill), "--extras", ",".join(EXTRAS)]
    subprocess.run(written, check=True, cwd=ROOT)
    command = [PYTHON, str(ROOT / "scripts" / "rootfs.py"), str(root), "--site", str(installed(site))]
    subprocess.run([*command, "--sbom", str(bill), "--module", world.module], check=True)
    yield root


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a namespace")
def test_the_first_process_of_a_container_has_its_module_in_another(world, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(world.config(settings={"isolation": "process"})))
    program = "import sys; from hsmcore.cli.app import run; sys.exit(run(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "sign", "--text", "m", "--config", str(tmp_path / "config.json")]
    alone = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    done = subprocess.run([*alone, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def first_child(pid):
    """Its process id, and what the kernel says about it."""
    inside = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    return inside, Path(f"/proc/{inside}/status").read_text()


@pytest.mark.deep
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
@pytest.mark.timeout(1800)
@one_loop
async def test_the_gateway_signs_in_the_image(image, world, tmp_path):
    names = {path.name for path in image.rglob("*") if path.is_file() and os.access(path, os.X_OK)}
    assert not names & {"sh", "bash", "dash", "busybox", "apt", "dpkg", "pip", "gcc", "ldconfig"}
    assert json.loads((image / "usr/share/sbom/hsmcore.cdx.json").read_text())["bomFormat"] == "CycloneDX"
    folder = tmp_path / "config"
    folder.mkdir()
    settings = {"isolation": "process", "pin": {"file": "/etc/hsmcore/pin"}}
    config = world.config(maxCacheSize=0, auditLogFile="/var/lib/hsmcore/audit.log", settings=settings)["sequencer"]
    config["gateway"] = {
        "listen": ["unix:/run/hsmcore/sign.sock"],
        "clients": {"me": {"uid": [0], "keys": ["default"]}},
    }
    (folder / "gateway.json").write_text(json.dumps(config))
    (folder / "softhsm2.conf").write_text("directories.tokendir = /var/lib/hsmcore\n")
    (folder / "pin").write_text(world.pin)
    (folder / "pin").chmod(0o400)
    os.chown(folder / "pin", USER, USER)
    program = [*json.loads(last("ENTRYPOINT")), *json.loads(last("CMD"))]
    paths = {
        "ROOT": str(image),
        "CONFIG": str(folder),
        "TOKEN": str(world.folder),
        "ENTER": _ENTER,
        "PYTHON": PYTHON,
    }
    child = await asyncio.create_subprocess_exec(
        "unshare", "--mount", "--pid", "--fork", "--kill-child", "--ipc", "sh", "-c", _RUN, "sh", *program,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={"PATH": os.environ["PATH"], **paths},
    )  # fmt: skip
    try:
        line = await child.stdout.readline()
        assert line == b"unix:/run/hsmcore/sign.sock\n", await child.stderr.read()
        inside, status = first_child(child.pid)
        assert re.search(rf"^Uid:\s+{USER}\s+{USER}\s+{USER}\s+{USER}$", status, re.MULTILINE)
        assert re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE)
        path = f"/proc/{inside}/root"
        assert os.statvfs(f"{path}/usr").f_flag & os.ST_RDONLY
        peer = Peer(*await asyncio.open_unix_connection(f"{path}/run/hsmcore/sign.sock"))
        welcome = await peer.hello()
        found = read_signed((await peer.ask(sign(1, b"m"))).body)
        VerifyKey(welcome.keys[0].public_key).verify(b"m", found.signature)
        await peer.close()
        os.kill(inside, 15)
        said = await child.stderr.read()
        assert await child.wait() == 0, said
        assert said == b""
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
