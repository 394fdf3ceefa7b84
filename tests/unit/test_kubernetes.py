"""packaging/kubernetes: manifests of the API's form that fit each other, and a configuration that loads."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.paths import ROOT

from hsmcore.config.loading import load_each

FOLDER = ROOT / "packaging" / "kubernetes"
VERSIONS = ("1.32", "1.34")
MANIFESTS: dict[str, dict[str, Any]] = {
    path.name: yaml.safe_load(path.read_text()) for path in sorted(FOLDER.glob("*.yaml"))
}
KUSTOMIZATION = MANIFESTS.pop("kustomization.yaml")
SET = MANIFESTS["statefulset.yaml"]
POD = SET["spec"]["template"]["spec"]
[CONTAINER] = POD["containers"]
READABLE_BY_OTHERS = 0o077


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_has_the_form_of_the_api(name, version):
    import kubernetes_validate  # here: it takes more than a second, and each worker of a run collects this file

    kubernetes_validate.validate(MANIFESTS[name], version, strict=True)


def test_a_wrong_manifest_has_not():
    import kubernetes_validate

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**SET, "spec": {**SET["spec"], "replica": 2}}, VERSIONS[0], strict=True)


def test_kustomize_takes_all_of_them_into_one_namespace():
    assert sorted(KUSTOMIZATION["resources"]) == sorted(MANIFESTS)
    assert {one["metadata"].get("namespace", "hsmcore") for one in MANIFESTS.values()} == {KUSTOMIZATION["namespace"]}
    [image] = KUSTOMIZATION["images"]
    assert CONTAINER["image"] == f"{image['name']}:{image['newTag']}"


def test_the_configuration_loads_and_fits_its_pod():
    text = MANIFESTS["configmap.yaml"]["data"]["gateway.json"]
    config = load_each(yaml.safe_load(text))["default"]
    rules, gateway = config.key_manager, config.gateway
    assert gateway is not None
    assert rules.fleet is not None
    assert rules.monitoring is not None
    assert config.placeholders == ()
    assert rules.fleet.unordered == "strict"
    assert SET["spec"]["replicas"] > 1
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert ports == {"sign": gateway.addresses[0].address.port, "console": rules.monitoring.address.port}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert (
            CONTAINER[probe]["httpGet"]["scheme"] == "HTTPS"
        )  # monitoring.tls, which no address beyond loopback lacks
        assert CONTAINER[probe]["httpGet"]["port"] in ports
    assert POD["terminationGracePeriodSeconds"] * 1000 > gateway.drain_ms
    mounted = tuple(mount["mountPath"] for mount in CONTAINER["volumeMounts"])
    files = [rules.audit_log_file, gateway.tls.certificate_file, gateway.tls.key_file, gateway.tls.client_ca_file]
    files += [secret.redacted()["file"] for secret in (rules.config.password, rules.fleet.store.url)]
    files += [rules.monitoring.viewer_token.redacted()["file"], CONTAINER["args"][-1]]
    assert [file for file in files if not file.startswith(mounted)] == []


def test_each_secret_is_made_by_a_command_with_every_file_of_the_configuration():
    said = (ROOT / "docs" / "DEPLOY.md").read_text()
    places = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    gateway = MANIFESTS["configmap.yaml"]["data"]["gateway.json"]
    for volume in POD["volumes"]:
        if "secret" in volume:
            used = set(re.findall(rf'"{places[volume["name"]]}/([^"]+)"', gateway))
            secret = f"{volume['secret']['secretName']} -n {KUSTOMIZATION['namespace']}"
            [arguments] = re.findall(rf"kubectl create secret generic {secret} (.+)", said)
            assert set(re.findall(r"--from-file=(\S+)", arguments)) == used


def test_the_image_has_the_module_of_the_configuration_and_what_that_opens():
    module = load_each(yaml.safe_load(MANIFESTS["configmap.yaml"]["data"]["gateway.json"]))["default"]
    path = Path(module.key_manager.config.module_path)
    recipe = (ROOT / "packaging" / "oci" / "Containerfile").read_text().replace("\\\n", "")
    files = re.search(r'^ARG MODULE_FILES="(.+)"$', recipe, re.MULTILINE)[1].split()
    opened = set(re.findall(rb"libyubihsm_\w+\.so\.\d+", (path.parents[1] / "libyubihsm.so.2").read_bytes()))
    assert opened
    for needed in (path, *(path.parents[1] / name.decode() for name in opened)):
        assert [pattern for pattern in files if fnmatch(str(needed), pattern)], needed


def test_ports_and_labels_are_those_of_the_pods():
    labels = SET["spec"]["template"]["metadata"]["labels"]
    service, policy = MANIFESTS["service.yaml"]["spec"], MANIFESTS["network.yaml"]["spec"]
    assert SET["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["selector"].items() <= labels.items()
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert MANIFESTS["disruption.yaml"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert SET["spec"]["serviceName"] == MANIFESTS["service.yaml"]["metadata"]["name"]
    names = {port["name"] for port in CONTAINER["ports"]}
    assert {port["targetPort"] for port in service["ports"]} == names
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == names


def test_the_pod_has_no_rights_and_its_secrets_no_other_readers():
    own = CONTAINER["securityContext"]
    assert own["readOnlyRootFilesystem"] is True
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["automountServiceAccountToken"] is False
    secrets = [volume["secret"] for volume in POD["volumes"] if "secret" in volume]
    assert len(secrets) == 2
    assert [one for one in secrets if one["defaultMode"] & READABLE_BY_OTHERS] == []
