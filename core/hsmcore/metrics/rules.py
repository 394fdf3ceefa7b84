"""The alert rules for Prometheus and the dashboard for Grafana; `hsmcore metrics` prints them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, metadata
from importlib.resources import files
from pathlib import Path
from typing import Final

PAGE: Final = "docs/operations/runbooks.md"
"""The page of the runbooks in the repository, as alerts.yml names it."""
_LABEL: Final = "Runbooks"


def alert_rules(runbooks: str | None = None) -> str:
    """Return alerts.yml. `runbooks`: the address of the page with the runbooks, which each alert then leads to."""
    text = files("hsmcore.metrics").joinpath("alerts.yml").read_text()
    return text if runbooks is None else text.replace(f"runbook_url: {PAGE}", f"runbook_url: {runbooks}")


def runbooks_address() -> str | None:
    """Return the address of the runbooks: the package's "Runbooks" in [project.urls], else the file of this checkout;
    None: neither is there."""
    try:
        listed = metadata("hsmcore").get_all("Project-URL") or ()
    except PackageNotFoundError:
        listed = ()
    for one in listed:
        label, _, address = str(one).partition(", ")
        if label == _LABEL:
            return address
    page = Path(__file__).parents[3] / PAGE
    return page.as_uri() if page.is_file() else None


def dashboard() -> str:
    """Return dashboard.json."""
    return files("hsmcore.metrics").joinpath("dashboard.json").read_text()
