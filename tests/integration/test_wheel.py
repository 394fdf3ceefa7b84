"""The wheel, where there is no compiler and no libsodium: it installs, signs, and plays the demonstration."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from scripts.platforms import PLATFORMS, needs, reasons
from scripts.wheels import AUDITWHEEL, OLDEST
from tests.support.empty_root import EmptyRoot, why_impossible

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """The wheels of what is built here."""
    output, folder = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("build")
    # As `make sbom wheel` does.
    subprocess.run([sys.executable, "scripts/sbom.py", str(output / "hsmcore.cdx.json")], cwd=ROOT, check=True)
    line = [sys.executable, "scripts/wheels.py", "--here", "--output", str(output), "--folder", str(folder)]
    said = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False)
    assert said.returncode == 0, said.stderr
    return sorted(output.glob("*.whl"))


@pytest.fixture
def installed(wheels, tmp_path):
    """A function that runs hsmcore in an empty root that the wheels are installed in."""
    reason = why_impossible()
    if reason:
        pytest.skip(f"mount namespaces are impossible here: {reason}")
    # What hsmcore depends on is seen as it is installed here, behind the wheels.
    packages = Path(sysconfig.get_path("purelib"))
    root = EmptyRoot(tmp_path / "root", seen=[packages])
    certificates = Path("/etc/ssl/certs/ca-certificates.crt")  # Debian's pip reads them as it starts
    if certificates.exists():
        root.add(certificates, certificates)
    for wheel in wheels:
        root.add(wheel, Path("/opt") / wheel.name)
    assert not [name for name in root.files() if name.startswith(("libsodium", "libjansson", "gcc", "cc", "ld.", "sh"))]
    environment = {"HOME": "/tmp", "PATH": "/opt/site/bin", "PYTHONPATH": f"/opt/site:{packages}"}

    def run(*arguments, timeout=600):
        said = root.run(arguments, environment, timeout)
        assert said.returncode == 0, said.stdout + said.stderr
        return said.stdout

    root.add(ROOT / "requirements" / "run.txt", Path("/opt/run.txt"))
    # Debian's own Python wants to be told that the root is not its system.
    install = [str(root.python), "-m", "pip", "-q", "install", "--no-index", "--break-system-packages"]
    run(*install, "--require-hashes", "-r", "/opt/run.txt")  # it is there, so pip asks for nothing
    names = [f"/opt/{wheel.name}" for wheel in wheels]
    run(*install, "--no-deps", "--target", "/opt/site", *names)
    run.root, run.python = root, str(root.python)
    return run


@pytest.mark.deep  # builds that run at once delete each other's files
def test_the_wheel_has_what_it_needs(wheels):
    library, _bench, _client = wheels
    assert f"{OLDEST}_" in library.name  # auditwheel refuses a binary that needs a newer C library
    with zipfile.ZipFile(library) as archive:
        names = archive.namelist()
        modes = {info.filename: info.external_attr >> 16 & 0o777 for info in archive.infolist()}
        tag = library.name.split("-")[2]
        [packages] = [archive.read(name) for name in names if name.endswith(".dist-info/sboms/hsmcore.cdx.json")]
        bills = [json.loads(archive.read(name)) for name in names if "/sboms/auditwheel" in name]
    grafted = {name.rpartition("/")[2].partition("-")[0] for name in names if name.startswith("hsmcore.libs/")}
    assert grafted == {"libsodium"}, "OpenSSL is the system's, and jansson its chaos module's"
    assert [name for name in names if name.startswith("hsmcore/_native.")]
    assert tag == f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert modes["hsmcore/_bin/hsmcore-host"] == 0o755
    assert modes["hsmcore/__init__.py"] == 0o644
    [bill] = bills
    listed = {component["name"] for component in bill["components"]}
    assert packages == (library.parent / "hsmcore.cdx.json").read_bytes()
    assert "libsodium23" in listed or not Path("/etc/debian_version").exists()


@pytest.mark.deep  # builds that run at once delete each other's files
def test_the_wheel_fits_the_platforms_of_cloudhsms_client_that_have_openssl_3(wheels):
    library, _bench, _client = wheels
    needed = needs(library)
    assert set(needed) >= {"libc.so.6", "libcrypto.so.3"}
    assert {each.name: not reasons(each, needed) for each in PLATFORMS} == {each.name: each.fits for each in PLATFORMS}
    assert sum(each.fits for each in PLATFORMS) == 6


def test_a_wheel_that_needs_more_than_a_platform_has_does_not_fit_it():
    amazon = next(each for each in PLATFORMS if each.name == "Amazon Linux 2023")
    assert reasons(amazon, {"libc.so.6": {(2, 17), (2, 34)}, "libcrypto.so.3": {(3, 0, 0)}}) == []
    assert reasons(amazon, {"libc.so.6": {(2, 9), (2, 36)}}) == ["libc.so.6 is 2.34, 2.36 is needed"]
    assert reasons(amazon, {"libcrypto.so.3": {(3, 2, 0)}}) == ["libcrypto.so.3 is 3.0.8, 3.2.0 is needed"]
    assert reasons(amazon, {"libjansson.so.4": set()}) == ["libjansson.so.4 is not there"]


def test_auditwheel_takes_the_tag_of_the_machine_that_a_wheel_is_crossed_for():
    line = [sys.executable, "-c", AUDITWHEEL, "aarch64", "repair", "--help"]
    said = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert f"{OLDEST}_aarch64" in said.stdout, said.stderr


@pytest.mark.slow("a wheel is built, and the demonstration played")
@pytest.mark.timeout(1800)
def test_the_wheel_signs_and_plays_the_demo_in_an_empty_root(installed):
    hsmcore = "/opt/site/bin/hsmcore"
    installed(installed.python, hsmcore, "init", "--state", "/tmp/state")
    config = installed.root.path / "tmp/state/config.json"
    loaded = json.loads(config.read_text())
    loaded["sequencer"]["keyManager"]["config"]["isolation"] = "process"  # hsmcore-host, which finds its own libraries
    config.write_text(json.dumps(loaded))
    signed = json.loads(installed(hsmcore, "sign", "--text", "state root", "--json", "--state", "/tmp/state"))
    assert len(bytes.fromhex(signed["signature"])) == 64
    acts = ["--no-failover", "--no-rotation"]
    played = json.loads(installed(hsmcore, "demo", "--transactions", "200", "--json", "--state", "/tmp/demo", *acts))
    assert played["ok"]
    where = installed(installed.python, "-c", "import hsmcore; print(hsmcore.__file__)")
    assert where.startswith("/opt/site/hsmcore/")


@pytest.mark.deep
@pytest.mark.slow("the whole demonstration")
def test_the_whole_demo_in_an_empty_root(installed):
    assert json.loads(installed("/opt/site/bin/hsmcore", "demo", "--transactions", "2000", "--json"))["ok"]


@pytest.mark.deep
@pytest.mark.slow("two builds of everything")
@pytest.mark.timeout(1800)
def test_the_last_commit_built_twice_gives_the_same_bytes():
    interpreter = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    line = [sys.executable, "scripts/reproduce.py", "--python", str(interpreter)]
    said = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=1700, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    assert said.stdout.startswith("identical: ")
