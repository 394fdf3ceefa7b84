"""A real Prometheus loads packaging/prometheus, scrapes a key manager, and takes every rule and every query of the
dashboard. Grafana is not here: its files are only checked for what Grafana requires of them."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml
from tests.support.loops import one_loop
from tests.support.managers import opened
from tests.support.paths import ROOT
from tests.support.promtool import run
from tests.support.web import asked

from hsmcore.cli.app import run as run_command
from hsmcore.metrics.rules import dashboard
from hsmcore.serve import attached

pytestmark = pytest.mark.integration
PACKAGING = ROOT / "packaging"
needs_prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")


@asynccontextmanager
async def prometheus(folder, config):
    """Its address while it runs."""
    place = folder / "prometheus.yml"
    place.write_text(yaml.safe_dump(config))
    command = ["prometheus", f"--config.file={place}", f"--storage.tsdb.path={folder}/data"]
    command += ["--web.listen-address=127.0.0.1:0", "--log.level=info"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # noqa: ASYNC220
    try:
        address, said = "", []
        while not address:
            line = await asyncio.to_thread(child.stderr.readline)
            assert line, "".join(said)
            said.append(line)
            if "Listening on" in line:
                address = "http://" + line.partition("address=")[2].split()[0]
        reading = asyncio.create_task(asyncio.to_thread(child.stderr.read))  # so that it never waits for its reader
        yield address
        child.terminate()
        await reading
        assert child.wait() == 0
    finally:
        child.kill()
        child.wait()
        child.stderr.close()


async def answered(address, path):
    """The data of an answer, as soon as Prometheus gives one."""
    while (reply := await asked(address, path)).status == 503:  # it is starting
        pass
    assert reply.status == 200, reply.body
    return reply.json()["data"]


def expressions(panel):
    if isinstance(panel, dict):
        if isinstance(panel.get("expr"), str):
            yield panel["expr"]
        panel = list(panel.values())
    if isinstance(panel, list):
        for item in panel:
            yield from expressions(item)


@needs_prometheus
@one_loop
async def test_prometheus_loads_it_scrapes_and_takes_every_rule_and_query(world, tmp_path, capsys):
    config = yaml.safe_load((PACKAGING / "prometheus" / "prometheus.yml").read_text())
    assert run_command(["metrics", "--rules", "--runbooks", "https://wiki.example.com/runbooks"]) == 0
    (tmp_path / "hsmcore.yml").write_text(capsys.readouterr().out)
    async with opened(world.config()) as manager, attached(manager, "127.0.0.1:0") as site:
        await manager.sign(b"m")
        here = config["scrape_configs"][0]
        assert here["static_configs"][0]["targets"] == ["127.0.0.1:9464"]  # the default of monitoring.listen
        here["static_configs"][0]["targets"] = [site.address.removeprefix("http://")]
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        del config["alerting"]
        config["scrape_configs"].pop()
        async with prometheus(tmp_path, config) as address:
            found = []
            while not found:
                query = "hsmcore_key_manager_open%20==%201"
                found = (await answered(address, f"/api/v1/query?query={query}"))["result"]
            rules = [{"health": "unknown"}]
            while any(rule["health"] == "unknown" for rule in rules):  # until each was evaluated
                groups = (await answered(address, "/api/v1/rules"))["groups"]
                rules = [rule for group in groups for rule in group["rules"]]
            assert len(rules) > 20
            assert {rule["health"] for rule in rules} == {"ok"}
            for rule in rules:
                assert rule["annotations"]["runbook_url"].startswith("https://wiki.example.com/runbooks#")
            assert [rule["name"] for rule in rules if rule["name"] == "HsmcoreDiskFilling" and rule["alerts"]] == []
            for expression in expressions(json.loads(dashboard())):
                plain = expression.replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$member", ".*")
                await answered(address, f"/api/v1/query?query={quote(plain)}")


@needs_prometheus
def test_the_whole_configuration_is_one_of_prometheus(tmp_path, capsys):
    """With TLS, token and targets from files, which the first test has not."""
    text = (PACKAGING / "prometheus" / "prometheus.yml").read_text()
    (tmp_path / "prometheus.yml").write_text(text.replace("/etc/prometheus", str(tmp_path)))
    assert run_command(["metrics", "--rules"]) == 0
    (tmp_path / "hsmcore.yml").write_text(capsys.readouterr().out)
    (tmp_path / "hsmcore-targets").mkdir()
    (tmp_path / "hsmcore-targets" / "one.yml").write_text("- targets: [sequencer-1.example.com:9464]\n")
    for name in ("hsmcore-ca.pem", "hsmcore-viewer-token"):
        (tmp_path / name).write_text("")
    done = run("check", "config", str(tmp_path / "prometheus.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rules found" in done.stdout


def test_grafana_finds_the_dashboard_and_its_data_source():
    folder = PACKAGING / "grafana" / "provisioning"
    [provider] = yaml.safe_load((folder / "dashboards" / "hsmcore.yml").read_text())["providers"]
    assert provider["type"] == "file"
    assert f"{provider['options']['path']}/hsmcore.json" in (folder / "dashboards" / "hsmcore.yml").read_text()
    [source] = yaml.safe_load((folder / "datasources" / "hsmcore.yml").read_text())["datasources"]
    assert source["access"] == "proxy"
    shown = json.loads(dashboard())
    # A provisioned dashboard may have no __inputs: nobody is there to answer them.
    assert "__inputs" not in shown
    asked_for = [one["query"] for one in shown["templating"]["list"] if one["type"] == "datasource"]
    assert asked_for == [source["type"]]


@pytest.mark.parametrize("address", ["ftp://x/y", "docs/page.md", 'https://x/"y', "https://x/#y", "https://x/ y"])
def test_what_is_no_address_of_a_page_is_refused(address, capsys):
    assert run_command(["metrics", "--rules", "--runbooks", address]) == 2
    assert "--runbooks" in capsys.readouterr().err
    assert run_command(["metrics", "--runbooks", "https://x/y"]) == 2


def test_without_any_page_no_rules_are_printed(monkeypatch, capsys):
    """As from a wheel: no [project.urls], and no checkout around the package."""
    monkeypatch.setattr("hsmcore.metrics.rules.PAGE", "docs/is-not-there.md")
    assert run_command(["metrics", "--rules"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "--runbooks URL" in said.err


def test_by_default_an_alert_leads_to_a_page_that_opens(capsys):
    assert run_command(["metrics", "--rules"]) == 0
    rules = yaml.safe_load(capsys.readouterr().out)["groups"][0]["rules"]
    for rule in rules:
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert anchor
        assert page.startswith("https://") or Path(page.removeprefix("file://")).is_file()
