"""Metrics of real key managers: what is scraped, from where, and that it is what happened."""

from __future__ import annotations

import asyncio
import threading

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from tests.integration.test_cluster_health import described, hsm
from tests.support.chaos import Chaos, wrap
from tests.support.cloudhsm import Cluster
from tests.support.kms import config as kms_config
from tests.support.levels import SAME, Site
from tests.support.managers import becomes, counters, opened, until
from tests.support.scrapes import Scrape

import hsmcore
from hsmcore.metrics import collector, render
from hsmcore.providers.cloudhsm import poller as polling

pytestmark = pytest.mark.integration


async def scraped(manager):
    """As a server does it: in another thread."""
    return Scrape((await asyncio.to_thread(render, manager))[0])


async def test_what_is_scraped_is_what_happened(world):
    async with opened(world.config(maxCacheSize=10, settings={"verifySignatures": "always"})) as manager:
        for number in range(20):
            await manager.sign(b"%d" % number)
        await manager.sign(b"19")
        scrape = await scraped(manager)
        key, stats = manager.public_key.hex(), counters(manager)
    assert scrape("hsmcore_signatures_total", level="primary") == 20
    assert scrape("hsmcore_cache_hits_total") == 1
    assert scrape("hsmcore_cache_misses_total") == 20
    assert scrape("hsmcore_cache_entries") == 10
    assert scrape("hsmcore_cache_evictions_total") == 10
    for split in ("queue", "hsm", "verify"):
        assert scrape(f"hsmcore_{split}_seconds_count") == 20
        assert scrape(f"hsmcore_{split}_seconds_bucket", le="+Inf") == 20
        assert 0 < scrape(f"hsmcore_{split}_seconds_sum") < 20
    octaves = [0] * 44
    for upper, count in stats["hsm_ns"]:
        octaves[upper.bit_length()] += count
    assert stats["hsm_octaves"] == octaves
    assert sum(octaves) == 20
    assert scrape("hsmcore_key_info", public_key=key, algorithm="ed25519") == 1
    assert scrape("hsmcore_sessions") == 2
    assert scrape("hsmcore_member_up") == scrape("hsmcore_key_manager_open") == 1
    assert scrape("hsmcore_member_condition", condition="ready") == 1
    assert sum(scrape.all("hsmcore_member_condition")) == 1
    assert sum(scrape.all("hsmcore_signature_failures_total")) == 0
    assert scrape("hsmcore_build_info", version=hsmcore.__version__) == 1


@pytest.mark.chaos
async def test_failures_are_counted_by_class_and_recoveries_by_rung(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(settings={"verifySignatures": "always"})) as manager:
        chaos.fault("C_Sign", "return", ckr="CKR_ARGUMENTS_BAD")
        with pytest.raises(hsmcore.HsmError):
            await manager.sign(b"refused")
        chaos.fault("C_Sign", "kill-session")
        await manager.sign(b"on another session")
        chaos.fault("C_Sign", "wrong-signature")
        await manager.sign(b"at the second attempt")
        scrape = await scraped(manager)
    assert scrape("hsmcore_signature_failures_total", error_class="REQUEST_FATAL") == 1
    assert sum(scrape.all("hsmcore_signature_failures_total")) == 1
    assert scrape("hsmcore_recoveries_total", rung="REOPEN") >= 1
    assert scrape("hsmcore_wrong_signatures_total") == 1
    assert scrape("hsmcore_signatures_total") == 2
    assert scrape("hsmcore_verify_seconds_count") == 3


@pytest.mark.chaos
async def test_a_hanging_call_shows_its_age(world, tmp_path):
    chaos = Chaos(tmp_path, wrap(world))
    async with opened(chaos.config(settings={"sessions": 1}, requestTimeoutMs=60_000)) as manager:
        chaos.fault("C_Sign", "hang", forever=True)
        tasks = [asyncio.ensure_future(manager.sign(b"%d" % number)) for number in range(5)]

        async def shows() -> bool:
            scrape = await scraped(manager)
            return scrape("hsmcore_queue_oldest_seconds") > 0.05 and scrape("hsmcore_call_oldest_seconds") > 0.05

        await becomes(shows)
        scrape = await scraped(manager)
        assert scrape("hsmcore_requests_queued") == 4
        assert scrape("hsmcore_requests_in_flight") == 5
        assert scrape("hsmcore_sessions_busy") == 1
        chaos.release()
        await asyncio.gather(*tasks)
        scrape = await scraped(manager)
        assert scrape("hsmcore_queue_oldest_seconds") == scrape("hsmcore_call_oldest_seconds") == 0


async def test_before_and_after_it_is_open_there_is_less_and_no_error(world):
    manager = hsmcore.create_key_manager(world.config())
    before = Scrape.of(manager)
    assert before("hsmcore_key_manager_open") == 0
    assert before.all("hsmcore_signatures_total") == []
    async with manager:
        assert Scrape.of(manager)("hsmcore_key_manager_open") == 1
    after = Scrape.of(manager)
    assert after("hsmcore_key_manager_open") == after("hsmcore_member_up") == 0
    assert after.all("hsmcore_signatures_total") == []


async def test_threads_scrape_while_it_opens_signs_and_closes(world, tmp_path):
    """Every counter of every scrape is at least what it was before, and no scrape fails."""
    manager = hsmcore.create_key_manager(world.config(auditLogFile=str(tmp_path / "audit.log")))
    registry = CollectorRegistry()
    registry.register(collector(manager))
    ended, faults, seen = threading.Event(), [], {}

    def scrape(number, how):
        seen[number] = 0.0
        try:
            while not ended.is_set():
                for found in Scrape(how()).all("hsmcore_signatures_total"):
                    assert found >= seen[number]
                    seen[number] = found
        except BaseException as error:  # noqa: BLE001  # it is shown by the test's own thread
            faults.append(error)

    ways = (lambda: render(manager)[0], lambda: generate_latest(registry))
    threads = [threading.Thread(target=scrape, args=way) for way in enumerate(ways)]
    for thread in threads:
        thread.start()
    async with manager:
        await manager.sign_many([b"%d" % number for number in range(300)])
        await until(lambda: bool(faults) or list(seen.values()) == [300, 300])
    ended.set()
    await asyncio.to_thread(lambda: [thread.join() for thread in threads])
    assert faults == []


async def test_the_audit_log_is_measured(world, tmp_path):
    async with opened(world.config(maxCacheSize=0, auditLogFile=str(tmp_path / "audit.log"))) as manager:
        for number in range(10):
            await manager.sign(b"%d" % number)
        scrape = await scraped(manager)
        assert scrape("hsmcore_audit_records_total") >= 10
        assert scrape("hsmcore_audit_lag_records") == scrape("hsmcore_audit_failing") == 0
        assert 10 <= scrape("hsmcore_audit_commit_seconds_count") <= scrape("hsmcore_audit_records_total")
        assert 0 < scrape("hsmcore_audit_commit_seconds_sum") < 60
        await manager.audit.checkpoint()
        assert (await scraped(manager))("hsmcore_audit_unsealed_records") == 0
        assert 0 < scrape("hsmcore_disk_free_bytes", use="audit") <= scrape("hsmcore_disk_size_bytes", use="audit")


@pytest.mark.chaos
async def test_levels_breakers_and_the_emergency_budget(fresh_token, tmp_path):
    site = Site(tmp_path, fresh_token, SAME, SAME)
    emergency = {"emergencyModeEnabled": True, "emergencyModeRestrictions": {"maxTransactions": 40}}
    async with opened(site.config(failover=emergency)) as manager:
        await manager.sign(b"by the first")
        scrape = await scraped(manager)
        assert scrape("hsmcore_level_active", level="primary") == 1
        assert scrape("hsmcore_level_active", level="emergency") == 0
        assert scrape("hsmcore_emergency_signatures_left") == scrape("hsmcore_emergency_signatures_limit") == 40
        assert len(scrape.all("hsmcore_member_up")) == 3
        assert sum(scrape.all("hsmcore_member_up")) == 2  # the emergency key is not made before it is wanted
        site.kill(0)
        await manager.sign(b"by the second")
        scrape = await scraped(manager)
        assert scrape("hsmcore_level_active", level="secondary") == 1
        assert scrape("hsmcore_breaker_state", member=site.name(0), kind="down") > 0
        assert scrape("hsmcore_member_up", member=site.name(0)) == 0
        assert scrape("hsmcore_signatures_total", member=site.name(1)) >= 1
        site.kill(1)
        await manager.sign(b"in the emergency")
        assert (await scraped(manager))("hsmcore_level_active", level="emergency") == 1

        async def counted() -> bool:
            return (await scraped(manager))("hsmcore_emergency_signatures_left") < 40

        await becomes(counted)
        site.revive(0)
        site.revive(1)
        await until(lambda: Scrape.of(manager)("hsmcore_level_active", level="primary") == 1)


async def test_members_that_are_no_token_are_measured_alike(kms, tmp_path):
    """KMS: another engine, in Python, under the same names."""
    key = kms.store.make("ECC_NIST_P256")
    rules = {"maxCacheSize": 0, "auditLogFile": str(tmp_path / "audit.log")}
    async with opened(kms_config(kms, key, {"concurrency": 1, "verifySignatures": "always"}, **rules)) as manager:
        for number in range(5):
            await manager.sign(b"%d" % number)
        kms.faults.latency = 0.5
        tasks = [asyncio.ensure_future(manager.sign(b"slow %d" % number)) for number in range(3)]

        async def shows() -> bool:
            scrape = await scraped(manager)
            return scrape("hsmcore_queue_oldest_seconds") > 0.05 and scrape("hsmcore_call_oldest_seconds") > 0.05

        await becomes(shows)
        kms.faults.latency = 0.0
        await asyncio.gather(*tasks)
        kms.faults.error("DisabledException")
        with pytest.raises(hsmcore.HsmError) as caught:
            await manager.sign(b"refused")
        scrape = await scraped(manager)
    assert scrape("hsmcore_signature_failures_total", error_class=caught.value.error_class) == 1
    assert sum(scrape.all("hsmcore_signature_failures_total")) == 1
    assert scrape("hsmcore_signatures_total") == scrape("hsmcore_verify_seconds_count") == 8
    assert scrape("hsmcore_hsm_seconds_count") == 9
    assert scrape("hsmcore_hsm_seconds_sum") > 0.4
    assert scrape("hsmcore_queue_seconds_sum") > 0.4
    assert scrape("hsmcore_queue_oldest_seconds") == 0


async def test_the_state_of_a_cluster_is_measured(fresh_token, tmp_path, monkeypatch):
    class Answers:
        def describe_clusters(self, **_request):
            return {"Clusters": [described(hsm(1), hsm(2, "DEGRADED"), hsm(3))]}

    monkeypatch.setattr(polling, "make_client", lambda _region: Answers())
    cluster = Cluster(tmp_path, fresh_token())
    given = cluster.provider(settings={"isolation": "thread", "clusterHealthIntervalMs": 60_000, "region": "us-east-1"})
    async with opened(given) as manager:
        await until(lambda: bool(Scrape.of(manager).all("hsmcore_cloudhsm_hsms")))
        scrape = Scrape.of(manager)
    assert scrape("hsmcore_cloudhsm_cluster_ok") == 0
    assert scrape("hsmcore_cloudhsm_hsms", zone="us-east-1a", state="ACTIVE") == 2
    assert scrape("hsmcore_cloudhsm_hsms", zone="us-east-1b", state="DEGRADED") == 1
    assert scrape("hsmcore_cloudhsm_checked_timestamp_seconds") > 1e9
