"""The alert rules for Prometheus and the dashboard for Grafana; `hsmcore metrics` prints them."""

from __future__ import annotations

from importlib.resources import files


def alert_rules() -> str:
    """Return alerts.yml."""
    return files("hsmcore.metrics").joinpath("alerts.yml").read_text()


def dashboard() -> str:
    """Return dashboard.json."""
    return files("hsmcore.metrics").joinpath("dashboard.json").read_text()
