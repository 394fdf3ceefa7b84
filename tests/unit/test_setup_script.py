"""scripts/setup: what it does around an installation of packages."""

from __future__ import annotations

import re
import subprocess

from tests.support.paths import ROOT

SETUP = (ROOT / "scripts" / "setup").read_text()
FUNCTION = re.search(r"^without_servers\(\) \{$.*?^\}$", SETUP, re.DOTALL | re.MULTILINE)[0]


def without_servers(policy, command):
    shell = f"set -euo pipefail\nroot=()\n{FUNCTION}\nwithout_servers {policy} bash -c '{command}'\necho done"
    return subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60, check=False)


def test_no_server_is_started_while_packages_are_installed(tmp_path):
    policy = tmp_path / "policy-rc.d"
    assert without_servers(policy, f"{policy} postgresql start || echo $?").stdout == "101\ndone\n"
    assert not policy.exists()
    ended = without_servers(policy, "exit 100")
    assert (ended.returncode, ended.stdout) == (100, "")
    assert not policy.exists(), "removed after a failure, too"
    ended = without_servers(policy, "kill -TERM $PPID; sleep 0.2")
    assert ended.returncode != 0
    assert not policy.exists(), "and after a signal"


def test_a_policy_of_the_machine_stays(tmp_path):
    policy = tmp_path / "policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 0\n")
    assert without_servers(policy, f"cat {policy}").stdout == "#!/bin/sh\nexit 0\ndone\n"
    assert policy.exists()


def test_packages_are_installed_so():
    assert re.search(r"without_servers /usr/sbin/policy-rc\.d .*apt.* install ", SETUP)


def wanted(mode):
    """The system packages of a mode, and what is there afterwards."""
    shell = SETUP[: SETUP.index("\nesac\n")] + '\nesac\necho "${packages[@]}"; echo "$extra"; echo "${stamps[@]}"'
    done = subprocess.run(
        ["bash", "-c", shell, "setup", mode], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    packages, extra, stamps = (line.split() for line in done.stdout.splitlines())
    return set(packages), extra[0].split(","), stamps


def test_a_fleet_needs_a_server_and_its_driver_and_no_tools_of_the_tests():
    run, extras, _ = wanted("run")
    fleet, more, stamps = wanted("fleet")
    assert fleet - run == {"postgresql"}
    assert (set(more) - set(extras), stamps) == ({"fleet"}, ["run", "fleet"])
    everything, _, stamps = wanted("test")
    assert fleet < everything
    assert stamps == ["run", "fleet", "test"]
    assert "\nrun-fleet: .venv/.setup-fleet .venv/.built " in (ROOT / "Makefile").read_text()
