"""Polling AWS for a cluster's health, off the event loop. Signing neither waits for it nor depends on it."""

from __future__ import annotations

import asyncio
import importlib.util
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final

from hsmcore.base.extras import install
from hsmcore.base.log import get_logger
from hsmcore.base.scope import Scope
from hsmcore.providers.cloudhsm.health import ClusterHealth, Expected, describe_cluster

CONNECT_SECONDS: Final = 5
READ_SECONDS: Final = 5
ATTEMPTS: Final = 2
BACKOFF_MAX_SECONDS: Final = 900.0
_DAY_SECONDS: Final = 86_400.0
_NO_CREDENTIALS: Final = ("NoCredentialsError", "PartialCredentialsError", "NoRegionError")

ClientFactory = Callable[[str | None], Any]


def make_client(region: str | None) -> Any:
    """Return boto3's client for cloudhsmv2, from the AWS SDK's own configuration. Raises the errors of botocore."""
    import boto3
    from botocore.config import Config

    limits = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
    )
    return boto3.session.Session().client("cloudhsmv2", region_name=region, config=limits)


class HealthPoller:
    """Keeps `health` up to date. Belongs to the event loop that starts it.

    After each failure the pause doubles, up to BACKOFF_MAX_SECONDS. Without boto3, credentials or region the poller
    reports that once and ends. `changed` is called in the loop with each health that differs in more than its time.
    """

    def __init__(
        self,
        expected: Expected,
        seconds: float,
        *,
        member: str,
        changed: Callable[[ClusterHealth], None] | None = None,
        client: ClientFactory | None = None,
    ) -> None:
        self.health = ClusterHealth(cluster_id=expected.cluster_id, region=expected.region, error="not asked yet")
        self._expected, self._seconds = expected, seconds
        self._member = member
        self._changed = changed
        self._factory = client
        self._client: Any = None
        self._scope = Scope()
        self._failures = 0
        self._thread: ThreadPoolExecutor | None = None

    def start(self) -> None:
        """Start, with the first request immediately."""
        if not self._scope.is_open:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"hsmcore-health-{self._member}")
            failed = f"the health of the cluster of {self._member} is not known"
            self._scope.every(self._seconds, self._poll, failed)

    async def stop(self) -> None:
        """Stop polling. Does not wait for a request under way: its thread ends with it, within half a minute."""
        thread, self._thread = self._thread, None
        await self._scope.close()
        if thread is not None:
            thread.submit(self._close)
            thread.shutdown(wait=False)

    def ask(self) -> ClusterHealth:
        """Ask once and wait for the answer. For a program without an event loop."""
        try:
            self.health, _ = self._ask()
        finally:
            self._close()
        return self.health

    async def _poll(self) -> float:
        health, useless = await asyncio.get_running_loop().run_in_executor(self._thread, self._ask)
        self._take(health)
        if useless:
            return _DAY_SECONDS
        self._failures = self._failures + 1 if health.error is not None else 0
        pause: float = min(max(self._seconds, BACKOFF_MAX_SECONDS), self._seconds * 2 ** min(self._failures, 20))
        return pause * random.uniform(0.9, 1.1)  # noqa: S311  # so that many processes do not ask at once

    def _ask(self) -> tuple[ClusterHealth, bool]:
        """Return the health, and whether another request would be useless. Blocks."""
        if self._factory is None and importlib.util.find_spec("boto3") is None:
            return replace(self.health, error=f"boto3 is not installed: {install('aws')}"), True
        try:
            if self._client is None:
                self._client = (self._factory or make_client)(self._expected.region)
            return describe_cluster(self._client, self._expected), False
        except Exception as error:  # noqa: BLE001  # whatever it is, signing goes on and the next question may succeed
            kind = type(error).__name__
            code = getattr(error, "response", {}).get("Error", {}).get("Code")
            return replace(self.health, error=f"AWS was not asked: {code or kind}"), kind in _NO_CREDENTIALS

    def _take(self, health: ClusterHealth) -> None:
        before, self.health = self.health, health
        if replace(before, checked_at=None) == replace(health, checked_at=None):
            return
        log = get_logger()
        shown = {"member": self._member, "state": health.state, "active": health.active}
        if health.error is not None:
            log.info("cluster health unknown", error=health.error, **shown)
        elif health.problems:
            log.warning("cluster needs attention", problems=list(health.problems), **shown)
        else:
            log.info("cluster healthy", **shown)
        if self._changed is not None:
            self._changed(health)

    def _close(self) -> None:
        client, self._client = self._client, None
        if client is not None and hasattr(client, "close"):
            client.close()
