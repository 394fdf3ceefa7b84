"""CloudWatch Logs, with boto3 (extra hsmcore[aws]). An event's message is the record's line, byte for byte, so a copy
can be verified like the log.

Limits of PutLogEvents (its API reference): 1,048,576 bytes and 10,000 events a batch, where an event counts 26 bytes
more than its message; events in order of time, within 24 hours. Events older than 14 days or than the group's
retention, or more than two hours in the future, are rejected, and the answer names them. A line (65,535 bytes) is
shorter than the longest event.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import orjson

from hsmcore.audit.shipping.destination import Destination, ShippingError
from hsmcore.base.extras import install
from hsmcore.config.failover import CloudWatchLogs

MAX_BATCH_BYTES: Final = 1_048_576
MAX_BATCH_EVENTS: Final = 10_000
EVENT_OVERHEAD: Final = 26
MAX_SPAN_MS: Final = 24 * 3_600_000 - 1
_SMALL_STEP_MS: Final = 1000
_CONNECT_SECONDS: Final = 3
_READ_SECONDS: Final = 10
_TIME: Final = re.compile(rb'\{"seq":[0-9]+,"time_ns":([0-9]{1,19}),')

_HINTS: Final = {
    "AccessDeniedException": "the credentials lack a permission: logs:PutLogEvents, and logs:CreateLogGroup and "
    "logs:CreateLogStream unless both exist",
    "UnrecognizedClientException": "the credentials are not valid",
    "InvalidSignatureException": "the credentials are not valid, or the clock is wrong",
    "ExpiredTokenException": "the credentials have expired",
    "ThrottlingException": "AWS asks for fewer requests",
    "ServiceUnavailableException": "the service is not available",
    "ResourceNotFoundException": "the log group or stream does not exist",
}


class CloudWatch(Destination):
    """One log stream."""

    kind = "cloudWatchLogs"
    batch_bytes, batch_records = MAX_BATCH_BYTES, MAX_BATCH_EVENTS

    def __init__(self, settings: CloudWatchLogs) -> None:
        self._settings = settings
        place = settings.endpoint_url or settings.region or "default"
        self.identity = f"{place} {settings.log_group} {settings.log_stream}"
        self._client: Any = None
        self._body = b""

    def send(self, lines: Sequence[bytes]) -> int:
        """Put as many events as one request may have. Return their number. Raises ShippingError."""
        events = batch(lines)
        answer = self._put(events)
        refused = _refused(answer, len(events))
        if refused:
            # CloudWatch takes them under the present time; the record holds its own.
            now = time.time_ns() // 1_000_000
            again = [{"timestamp": now, "message": events[place]["message"]} for place in refused]
            if _refused(self._put(again), len(again)):
                raise ShippingError("CloudWatch Logs refuses events of the present time: is the clock right?")
        return len(events)

    def close(self) -> None:
        """Close the connections. `send` opens them again."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _put(self, events: list[dict[str, Any]]) -> dict[str, Any]:
        try:
            return self._requested(events)
        except ImportError:
            raise ShippingError(f"boto3 is not installed: {install('aws')}") from None

    def _requested(self, events: list[dict[str, Any]]) -> dict[str, Any]:
        from botocore.exceptions import ClientError

        place = {"logGroupName": self._settings.log_group, "logStreamName": self._settings.log_stream}
        try:
            client = self._connected()
            try:
                self._body = orjson.dumps({**place, "logEvents": events})
                answer: dict[str, Any] = client.put_log_events(**place, logEvents=[])
            except client.exceptions.ResourceNotFoundException:
                self._make_place(client)
                answer = client.put_log_events(**place, logEvents=[])
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", "unknown"))
            raise ShippingError(f"{_HINTS.get(code, 'AWS refuses')} ({code})") from None
        except ImportError:
            raise
        except Exception as error:  # noqa: BLE001  # botocore also raises RuntimeError and ValueError; texts may hold tokens
            raise ShippingError(f"CloudWatch Logs cannot be reached ({type(error).__name__})") from None
        return answer

    def _make_place(self, client: Any) -> None:
        group, stream = self._settings.log_group, self._settings.log_stream
        gone, exists = client.exceptions.ResourceNotFoundException, client.exceptions.ResourceAlreadyExistsException
        with suppress(exists):
            try:
                client.create_log_stream(logGroupName=group, logStreamName=stream)
            except gone:
                with suppress(exists):  # another process created it first
                    client.create_log_group(logGroupName=group)
                client.create_log_stream(logGroupName=group, logStreamName=stream)

    def _connected(self) -> Any:
        if self._client is None:
            import boto3
            from botocore.config import Config

            limits = Config(
                connect_timeout=_CONNECT_SECONDS,
                read_timeout=_READ_SECONDS,
                retries={"total_max_attempts": 1},  # the shipper retries
                max_pool_connections=1,
                parameter_validation=False,
            )
            # A separate session, because boto3's default session is not thread-safe.
            self._client = boto3.session.Session().client(
                "logs",
                region_name=self._settings.region,
                endpoint_url=self._settings.endpoint_url,
                config=limits,
            )
            self._client.meta.events.register("before-call.cloudwatch-logs.PutLogEvents", self._put_body)
        return self._client

    def _put_body(self, params: dict[str, Any], **_more: object) -> None:
        # The SDK's own serialization takes twice as long while a loop signs.
        params["body"] = self._body


def batch(lines: Sequence[bytes]) -> list[dict[str, Any]]:
    """Return the events of the first lines, as many as one request may have; at least one."""
    events: list[dict[str, Any]] = []
    size, first, last = 0, 0, 0
    for line in lines:
        found = _TIME.match(line)
        moment = int(found[1]) // 1_000_000 if found is not None else last
        size += len(line) + EVENT_OVERHEAD
        if not events:
            first = last = moment
        elif (
            size > MAX_BATCH_BYTES
            or len(events) == MAX_BATCH_EVENTS
            or moment - first > MAX_SPAN_MS
            or moment < last - _SMALL_STEP_MS
        ):
            break
        last = max(last, moment)
        events.append({"timestamp": last, "message": line.decode("utf-8", "replace")})
    return events


def _refused(answer: dict[str, Any], count: int) -> list[int]:
    """Return the indices of rejected events."""
    info = answer.get("rejectedLogEventsInfo") or {}
    # The documentation disagrees on whether these ends are inclusive; a duplicate event is better than a lost one.
    old = max(info.get("tooOldLogEventEndIndex", -1), info.get("expiredLogEventEndIndex", -1)) + 1
    new = info.get("tooNewLogEventStartIndex", count)
    return [place for place in range(count) if place < old or place >= new]
