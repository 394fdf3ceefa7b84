"""packaging/compose: what it names is there and fits, and it is as confined as docs/DEPLOY.md says."""

from __future__ import annotations

import re

import pytest
import yaml
from tests.support.paths import ROOT

from hsmcore.config.loading import load_each

FOLDER = ROOT / "packaging" / "compose"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if service["image"] == "hsmcore"]
GATEWAY = load_each(FOLDER / "gateway.json")["default"]


def mounts(service):
    """What lies where in a service: source by target, and the options."""
    for line in SERVICES[service]["volumes"]:
        source, target, *options = line.split(":")
        yield source, target, options


@pytest.mark.parametrize("name", SERVICES)
def test_each_container_is_as_confined_as_the_guide_says(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["user"].split(":")[0]) > 0
    assert not service.keys() & {"privileged", "cap_add", "devices", "pid", "ipc", "env_file"}
    for port in service.get("ports", ()):
        assert port.startswith("127.0.0.1:")


def test_that_is_how_the_guide_runs_the_image():
    [user] = {SERVICES[name]["user"] for name in OURS}
    guide = (ROOT / "docs" / "DEPLOY.md").read_text()
    assert f"--read-only --cap-drop all --security-opt no-new-privileges --user {user} " in guide


@pytest.mark.parametrize("name", SERVICES)
def test_each_file_that_is_mounted_is_there_and_read_only(name):
    for source, _target, options in mounts(name):
        if source.startswith("."):
            assert (FOLDER / source).resolve().exists(), source
            assert options == ["ro"]
        else:
            assert source in COMPOSE["volumes"]


def test_images_are_of_a_version_or_made_here():
    assert OURS == ["token", "gateway", "client"]
    for name, service in SERVICES.items():
        if name in OURS:
            assert service["pull_policy"] == "never"  # the name is not ours in any registry
        else:
            assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), name


def test_the_gateway_finds_its_token_and_lets_the_client_in():
    rules, gateway = GATEWAY.key_manager, GATEWAY.gateway
    where = {target: source for source, target, _ in mounts("gateway")}
    assert where["/etc/hsmcore/gateway.json"] == "./gateway.json"  # which the image's CMD names
    state = SERVICES["token"]["command"][-1]
    assert rules.config.pin.redacted()["file"] == f"{state}/pin"
    assert where[state] == {target: source for source, target, _ in mounts("token")}[state]
    [address] = gateway.addresses
    client = {target: source for source, target, _ in mounts("client")}
    assert not client.keys() & {state}
    folder = address.address.path.rpartition("/")[0]
    assert client[folder] == where[folder]
    assert f'"unix:{address.address.path}"' in (FOLDER / "client.py").read_text()
    uid = int(SERVICES["client"]["user"].split(":")[0])
    assert [uid] == [each for one in gateway.clients.values() for each in one.uid]


def test_prometheus_and_grafana_reach_what_their_files_name():
    rules = GATEWAY.key_manager
    for name in ("prometheus", "grafana"):
        assert SERVICES[name]["network_mode"] == "service:gateway"
        assert SERVICES[name]["depends_on"] == ["gateway"]  # podman-compose does not see it in the line above
    prometheus = yaml.safe_load((ROOT / "packaging" / "prometheus" / "prometheus.yml").read_text())
    [target] = prometheus["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target == f"{rules.monitoring.address.host}:{rules.monitoring.address.port}"
    mounted = {target for _, target, _ in mounts("prometheus")}
    assert {f"/etc/prometheus/{file}" for file in prometheus["rule_files"]} <= mounted
    provisioning = ROOT / "packaging" / "grafana" / "provisioning"
    [provider] = yaml.safe_load((provisioning / "dashboards" / "hsmcore.yml").read_text())["providers"]
    assert f"{provider['options']['path']}/hsmcore.json" in {target for _, target, _ in mounts("grafana")}
