"""The `metrics` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from hsmcore.cli.invocation import Invocation
from hsmcore.cli.output import BadUsage, table
from hsmcore.errors import HsmError

_MOST_BYTES = 64 << 20
_SECONDS = 10.0


def metrics(
    cli: Invocation,
    scrape: Annotated[str | None, "URL: Fetch the metrics of a running process once."] = None,
    token_file: Annotated[Path | None, "PATH: A file with the bearer token for --scrape."] = None,
    rules: Annotated[bool, "Print the alert rules for Prometheus (YAML)."] = False,
    runbooks: Annotated[
        str | None, "URL: The page that the alerts of --rules lead to (default: that of the package, if it has one)."
    ] = None,
    dashboard: Annotated[bool, "Print the dashboard for Grafana (JSON)."] = False,
) -> None:
    """List the metrics that a key manager has; print alert rules or dashboard; or scrape a running process.

    Examples:

      hsmcore metrics

      hsmcore metrics --rules > /etc/prometheus/hsmcore.yml

      hsmcore metrics --rules --runbooks https://wiki.example.com/hsmcore/runbooks > hsmcore.yml

      hsmcore metrics --dashboard > dashboard.json

      hsmcore metrics --scrape http://127.0.0.1:9464/metrics --json
    """
    if sum((scrape is not None, rules, dashboard)) > 1:
        raise BadUsage("give one of --scrape, --rules and --dashboard")
    if token_file is not None and scrape is None:
        raise BadUsage("--token-file belongs to --scrape")
    if runbooks is not None and (not rules or not _is_address(runbooks)):
        raise BadUsage("--runbooks wants an http:// or https:// URL, and belongs to --rules")
    if scrape is not None:
        text = _fetch(scrape, token_file)
        cli.show(_samples(text) if cli.as_json else None, lambda _: print(text, end=""))
    elif rules or dashboard:
        _print_file(runbooks, dashboard=dashboard, as_json=cli.as_json)
    else:
        from hsmcore.metrics.catalog import METRICS

        shown = [{"name": m.name, "type": m.kind, "labels": list(m.labels), "help": m.help} for m in METRICS]
        cli.show(shown, table("METRIC name, TYPE type, LABELS labels, MEANING help"))


def _is_address(url: str) -> bool:
    return url.startswith(("http://", "https://")) and url.isprintable() and not set(" \"'#{}") & set(url)


def _print_file(runbooks: str | None, *, dashboard: bool, as_json: bool) -> None:
    from hsmcore.metrics import rules

    if as_json and not dashboard:
        raise BadUsage("the rules are YAML; --json cannot print them")
    if dashboard:
        print(rules.dashboard(), end="")
        return
    address = runbooks or rules.runbooks_address()
    if address is None:  # neither the package's page nor a checkout is known: the links would be no addresses
        raise BadUsage("the alerts lead to runbooks, whose page is not known here: name it with --runbooks URL")
    print(rules.alert_rules(address), end="")


def _samples(text: str) -> list[dict[str, Any]]:
    from prometheus_client.parser import text_string_to_metric_families

    try:
        return [
            {"name": sample.name, "labels": sample.labels, "value": sample.value}
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]
    except (ValueError, KeyError, IndexError):
        raise HsmError("what was fetched are no metrics", hint="Name the path too, such as /metrics.") from None


def _fetch(url: str, token_file: Path | None) -> str:
    import urllib.error
    import urllib.request

    if not url.startswith(("http://", "https://")):
        raise BadUsage("--scrape wants an http:// or https:// URL, such as http://127.0.0.1:9464/metrics")
    try:
        request = urllib.request.Request(url, headers={"accept": "text/plain"})  # noqa: S310  # looked at above
        if token_file is not None:
            request.add_unredirected_header("authorization", f"Bearer {token_file.read_text().strip()}")
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:  # noqa: S310
            body: bytes = answer.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # URLError is an OSError
        if getattr(error, "code", None) in (401, 403):
            given = "another token in --token-file" if token_file is not None else "--token-file"
            hint = f"Give {given}: a file with monitoring.viewerToken or monitoring.operatorToken."
            raise HsmError(f"{url}: the server wants a token that it knows", hint=hint) from None
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
        raise HsmError(f"{url}: {reason}", hint="Is a process running there that shows its metrics?") from None
    if len(body) > _MOST_BYTES:
        raise HsmError(f"{url}: more than {_MOST_BYTES >> 20} MiB")
    return body.decode("utf-8", "replace")
