"""How close signing with KMS comes to what the service allows: `python bench/kms.py [--latency 0.02] [--json]`.

A KMS on the loopback, in a process of its own, answers after a fixed time; with 64 in flight no more than 64 / latency
signatures a second are possible. Three contenders take turns: the wire alone (requests signed beforehand, answers only
counted), hsmcore, and boto3 in a pool of 64 threads. Processor time is this process's, for each signature.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import orjson
import uvloop

import hsmcore
from hsmcore.providers.kms.sigv4 import AwsCredentials, Signer

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tests.support.kms import ACCESS_KEY, REGION, SECRET_KEY  # noqa: E402  # found only now

IN_FLIGHT = 64
MESSAGES = [n.to_bytes(8) + bytes(192) for n in range(4096)]


@dataclass
class Service:
    """Where the KMS is, and the key in it."""

    port: int
    key: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class Answers(asyncio.Protocol):
    """Sends the same request whenever an answer has come, as long as there are some to send."""

    def __init__(self, request: bytes, left: list[int], done: asyncio.Event) -> None:
        self._request, self._left, self._done = request, left, done

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        transport.write(self._request)  # type: ignore[attr-defined]  # of a stream

    def data_received(self, data: bytes) -> None:
        assert data.startswith(b"HTTP/1.1 200"), data
        self._left[0] -= 1
        if self._left[0] <= 0:
            self._done.set()
        else:
            self._transport.write(self._request)  # type: ignore[attr-defined]


class Clock:
    """Started once everything is open, so that only signing is measured."""

    def start(self) -> None:
        self._processor, self._begun = time.process_time(), time.perf_counter()

    def read(self, count: int) -> tuple[float, float]:
        """Signatures a second, and microseconds of processor time for each."""
        passed = time.perf_counter() - self._begun
        return count / passed, (time.process_time() - self._processor) / count * 1e6


async def wire(service: Service, count: int) -> tuple[float, float]:
    loop = asyncio.get_running_loop()
    signer, done, left = Signer(REGION, "kms", f"127.0.0.1:{service.port}"), asyncio.Event(), [count]
    requests, clock = [], Clock()
    for message in MESSAGES[:IN_FLIGHT]:
        body = orjson.dumps(
            {
                "KeyId": service.key,
                "Message": base64.b64encode(message).decode(),
                "MessageType": "RAW",
                "SigningAlgorithm": "ED25519_SHA_512",
            }
        )
        requests.append(signer.head(AwsCredentials(ACCESS_KEY, SECRET_KEY, None), "TrentService.Sign", body) + body)
    clock.start()
    transports = [
        (await loop.create_connection(lambda r=request: Answers(r, left, done), "127.0.0.1", service.port))[0]
        for request in requests
    ]
    await done.wait()
    result = clock.read(count)
    for transport in transports:
        transport.abort()
    return result


async def ours(service: Service, count: int) -> tuple[float, float]:
    settings = {"keyId": service.key, "region": REGION, "endpointUrl": service.url, "concurrency": IN_FLIGHT}
    async with hsmcore.create_key_manager(
        {"keyManager": {"type": "aws-kms", "config": settings, "maxCacheSize": 0}}
    ) as manager:
        numbers, clock = iter(range(count)), Clock()

        async def caller() -> None:
            for number in numbers:
                await manager.sign(MESSAGES[number % len(MESSAGES)])

        clock.start()
        await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
        return clock.read(count)


def with_boto3(service: Service, count: int) -> tuple[float, float]:
    import boto3
    from botocore.config import Config

    options = Config(max_pool_connections=IN_FLIGHT, retries={"total_max_attempts": 1})
    client = boto3.session.Session().client("kms", region_name=REGION, endpoint_url=service.url, config=options)
    clock = Clock()
    fixed = {"KeyId": service.key, "MessageType": "RAW", "SigningAlgorithm": "ED25519_SHA_512"}
    clock.start()
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        for _ in pool.map(lambda n: client.sign(Message=MESSAGES[n % len(MESSAGES)], **fixed), range(count)):
            pass
    result = clock.read(count)
    client.close()
    return result


CONTENDERS: dict[str, Callable[[Service, int], tuple[float, float]]] = {
    "wire": lambda service, count: uvloop.run(wire(service, count)),
    "hsmcore": lambda service, count: uvloop.run(ours(service, count)),
    "boto3": with_boto3,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.02, help="seconds that the KMS takes (default 0.02)")
    parser.add_argument("--count", type=int, default=3000, help="signatures in a round (default 3000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, of which the median counts (default 5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    chosen = parser.parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    command = [sys.executable, "-m", "tests.support.kms", str(chosen.latency)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        port, key, _ = process.stdout.readline().split()
        service = Service(int(port), key)
        seen: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTENDERS}
        for _ in range(chosen.rounds):
            for name, work in CONTENDERS.items():
                seen[name].append(work(service, chosen.count))
        process.stdin.close()
    ceiling = IN_FLIGHT / chosen.latency
    rows = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in seen.items()}
    if chosen.json:
        print(json.dumps({"ceiling": ceiling, "load": os.getloadavg()[0], **rows}))
        return
    print(f"ceiling {ceiling:.0f}/s, load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    for name, (rate, cost) in rows.items():
        print(f"{name:8} {rate:6.0f}/s  {rate / ceiling:.2f} of the ceiling  {cost:5.0f} µs of processor time")


if __name__ == "__main__":
    main()
