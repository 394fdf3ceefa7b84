"""Alert rules for Prometheus and a dashboard for Grafana, as files; `hsmcore metrics` prints them."""

from __future__ import annotations

from importlib.resources import files


def alert_rules() -> str:
    """alerts.yml."""
    return files("hsmcore.metrics").joinpath("alerts.yml").read_text()


def dashboard() -> str:
    """dashboard.json."""
    return files("hsmcore.metrics").joinpath("dashboard.json").read_text()
