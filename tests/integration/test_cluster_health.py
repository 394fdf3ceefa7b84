"""What AWS says of a CloudHSM cluster, with botocore's Stubber in place of AWS, and the polling of it."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import boto3
import botocore.exceptions
import pytest
from botocore.stub import Stubber
from tests.support.cloudhsm import ADDRESSES, CLUSTERS, Cluster
from tests.support.loops import one_loop
from tests.support.managers import opened, until

from hsmcore.cli.app import run as run_cli
from hsmcore.providers.cloudhsm import HealthPoller, describe_cluster
from hsmcore.providers.cloudhsm import poller as polling
from hsmcore.providers.cloudhsm.health import Expected

REGION = "us-east-1"


def hsm(number, state="ACTIVE", zone=None):
    zones = ("us-east-1a", "us-east-1b")
    return {
        "HsmId": f"hsm-{number}",
        "ClusterId": CLUSTERS[0],
        "EniIp": f"10.0.{number}.10",
        "AvailabilityZone": zone or zones[(number - 1) % 2],
        "State": state,
    }


def described(*hsms, state="ACTIVE", mode="NON_FIPS", cluster=CLUSTERS[0]):
    return {"ClusterId": cluster, "State": state, "Mode": mode, "HsmType": "hsm2m.medium", "Hsms": list(hsms)}


@pytest.fixture
def aws(monkeypatch):
    """boto3's client with answers of ours, one for each call; no network."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    client = boto3.session.Session().client("cloudhsmv2", region_name=REGION)
    with Stubber(client) as stub:
        yield client, stub
    client.close()


def answer(stub: Stubber, *clusters: Any, token: str | None = None, **request: Any) -> None:
    response = {"Clusters": list(clusters)} | ({"NextToken": token} if token else {})
    stub.add_response("describe_clusters", response, request or None)


BY_ID = {"Filters": {"clusterIds": [CLUSTERS[0]]}}
EXPECTED = Expected(CLUSTERS[0], None, "ed25519", REGION)


def test_a_healthy_cluster(aws):
    client, stub = aws
    answer(stub, described(hsm(1), hsm(2), hsm(3)), **BY_ID)
    health = describe_cluster(client, EXPECTED)
    assert health.ok
    assert (health.active, health.state, health.mode) == (3, "ACTIVE", "NON_FIPS")
    assert health.zones == {"us-east-1a": {"ACTIVE": 2}, "us-east-1b": {"ACTIVE": 1}}
    shown = json.loads(json.dumps(health.to_json()))
    assert shown["hsms"][0] == {"hsmId": "hsm-1", "zone": "us-east-1a", "state": "ACTIVE", "address": "10.0.1.10"}


@pytest.mark.parametrize(
    ("cluster", "expected", "problem"),
    [
        (described(hsm(1)), EXPECTED, "only one HSM is active"),
        (described(), EXPECTED, "no HSM is active"),
        (described(hsm(1), hsm(3)), EXPECTED, "one availability zone"),
        (described(hsm(1), hsm(2), hsm(3, "DEGRADED")), EXPECTED, "HSM hsm-3 in us-east-1a is DEGRADED"),
        (described(hsm(1), hsm(2), state="UPDATE_IN_PROGRESS"), EXPECTED, "the cluster is UPDATE_IN_PROGRESS"),
        (described(hsm(1), hsm(2), mode="FIPS"), EXPECTED, "does not sign Ed25519"),
        (described(hsm(1), hsm(2)), Expected(CLUSTERS[0], "10.9.9.9"), "clusterEndpoint 10.9.9.9 is no HSM"),
    ],
)
def test_cluster_problems_are_listed(aws, cluster, expected, problem):
    client, stub = aws
    answer(stub, cluster, **BY_ID)
    health = describe_cluster(client, expected)
    assert not health.ok
    assert any(problem in line for line in health.problems)


def test_a_cluster_is_found_by_an_hsms_address_on_a_later_page(aws):
    client, stub = aws
    answer(stub, described(hsm(5), cluster=CLUSTERS[1]), token="more")
    answer(stub, described(hsm(1), hsm(2)), NextToken="more")
    health = describe_cluster(client, Expected(None, "10.0.2.10"))
    assert (health.cluster_id, health.ok) == (CLUSTERS[0], True)


def test_an_unknown_cluster_is_a_problem(aws):
    client, stub = aws
    answer(stub, **BY_ID)
    health = describe_cluster(client, EXPECTED)
    assert not health.ok
    assert "AWS knows no" in health.problems[0]


# ---- polling ----


async def test_it_is_asked_again_and_survives_refusals(aws):
    client, stub = aws
    answer(stub, described(hsm(1), hsm(2)), **BY_ID)
    stub.add_client_error("describe_clusters", "AccessDeniedException")
    stub.add_client_error("describe_clusters", "ThrottlingException")
    answer(stub, described(hsm(1), hsm(2, "DEGRADED")), **BY_ID)
    seen = []
    threads = set()

    def factory(region):
        threads.add(threading.current_thread())
        assert region == REGION
        return client

    poller = HealthPoller(EXPECTED, 0.01, member="m", changed=seen.append, client=factory)
    poller.start()
    await until(lambda: len(seen) >= 4)
    await poller.stop()
    assert [health.error for health in seen[:4]] == [
        None,
        "AWS was not asked: AccessDeniedException",
        "AWS was not asked: ThrottlingException",
        None,
    ]
    # What was known stays known while nothing newer is.
    assert [health.active for health in seen[:4]] == [2, 2, 2, 1]
    assert [health.ok for health in seen[:4]] == [True, False, False, False]
    assert threads.isdisjoint({threading.main_thread()})


async def test_missing_credentials_end_the_polling_with_one_error():
    asked = []

    def factory(_region):
        asked.append(1)
        raise botocore.exceptions.NoCredentialsError

    poller = HealthPoller(EXPECTED, 0.001, member="m", client=factory)
    poller.start()
    await until(lambda: poller.health.error is not None and asked)
    await asyncio.sleep(0.05)
    await poller.stop()
    assert len(asked) == 1
    assert poller.health.error == "AWS was not asked: NoCredentialsError"


async def test_stopping_does_not_wait_for_an_answer():
    asked, release = threading.Event(), threading.Event()

    class Slow:
        def describe_clusters(self, **_request):
            asked.set()
            release.wait(30)
            return {"Clusters": []}

    poller = HealthPoller(EXPECTED, 1, member="m", client=lambda _region: Slow())
    poller.start()
    await until(asked.is_set)
    await asyncio.wait_for(poller.stop(), 5)
    assert not release.is_set()
    release.set()


@one_loop
@pytest.mark.integration
async def test_a_member_shows_its_clusters_health_and_signs_whatever_it_is(fresh_token, tmp_path, monkeypatch):
    class Broken:
        def describe_clusters(self, **_request):
            raise RuntimeError("nothing works")

    made = []
    monkeypatch.setattr(polling, "make_client", lambda region: made.append(region) or Broken())
    cluster = Cluster(tmp_path, fresh_token())
    settings = {"isolation": "thread", "clusterHealthIntervalMs": 20, "region": REGION}
    async with opened(cluster.provider(settings=settings)) as manager:
        await until(lambda: manager._path.member.cluster_health.error == "AWS was not asked: RuntimeError")
        assert await manager.sign(b"m")
        assert made
    async with opened(cluster.provider(settings={"isolation": "thread"})) as manager:
        assert manager._path.member.cluster_health is None


# ---- the command line ----


@pytest.mark.integration
def test_the_cluster_command(fresh_token, tmp_path, monkeypatch, capfd):
    cluster = Cluster(tmp_path, fresh_token())
    config = tmp_path / "hsm.json"

    class Answers:
        def describe_clusters(self, **_request):
            return {"Clusters": [described(*hsms)]}

    monkeypatch.setattr(polling, "make_client", lambda _region: Answers())
    config.write_text(json.dumps(cluster.provider(settings={"clusterEndpoint": ADDRESSES[0]})))
    hsms = [hsm(1), hsm(2)]
    assert run_cli(["cluster", "--config", str(config), "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert (shown["ok"], shown["active"]) == (True, 2)
    hsms = [hsm(1), hsm(2, "DEGRADED")]
    assert run_cli(["cluster", "--config", str(config)]) == 1
    out, err = capfd.readouterr()
    assert "us-east-1b" in out
    assert "HSM hsm-2 in us-east-1b is DEGRADED" in err
    config.write_text(json.dumps(cluster.provider(settings={"clusterEndpoint": "10.9.9.9"})))
    assert run_cli(["cluster", "--config", str(config), "--json"]) == 2
    assert json.loads(capfd.readouterr().err.splitlines()[-1])["error"]["faults"][0]["path"].endswith("clusterEndpoint")


@pytest.mark.integration
def test_the_tokens_command_lists_candidates(fresh_token, tmp_path, capfd):
    one, two = fresh_token(), fresh_token()
    cluster = Cluster(tmp_path, one, two)
    config = tmp_path / "hsm.json"
    config.write_text(json.dumps(cluster.provider(settings={"isolation": "process"})))
    assert run_cli(["tokens", "--config", str(config), "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert {(t["slotDescription"], t["matches"]) for t in shown["tokens"]} == {
        (CLUSTERS[0], True),
        (CLUSTERS[1], False),
    }
    assert shown["chosen"] in {t["slotId"] for t in shown["tokens"]}
    config.write_text(json.dumps(cluster.provider(settings={"clusterId": None, "isolation": "process"})))
    assert run_cli(["tokens", "--config", str(config)]) == 1
    out, err = capfd.readouterr()
    assert all(name in out for name in CLUSTERS)
    assert "Set slotId" in err


@pytest.mark.integration
def test_doctor_knows_the_cluster_among_several_and_lists_candidates(fresh_token, tmp_path, capfd):
    cluster = Cluster(tmp_path, fresh_token(), fresh_token())
    config = tmp_path / "hsm.json"
    config.write_text(json.dumps(cluster.provider()))
    run_cli(["doctor", "--config", str(config), "--json"])
    out, err = capfd.readouterr()
    steps = {step["name"]: step for step in json.loads(out)["providers"][0]["steps"]}
    assert steps["token"]["outcome"] == "ok", err
    assert steps["token"]["data"]["slotDescription"] == CLUSTERS[0]
    assert steps["login"]["outcome"] == "ok"
    config.write_text(json.dumps(cluster.provider(settings={"clusterId": None})))
    assert run_cli(["doctor", "--config", str(config), "--json"]) == 1
    steps = {step["name"]: step for step in json.loads(capfd.readouterr().out)["providers"][0]["steps"]}
    assert {token["slotDescription"] for token in steps["token"]["data"]["candidates"]} == set(CLUSTERS)
