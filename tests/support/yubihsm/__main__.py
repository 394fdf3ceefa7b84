"""Run a simulated YubiHSM 2 until interrupted."""

from __future__ import annotations

import argparse
import json
import signal
import threading

from . import PROFILES, Command, Connector, Device


def main() -> None:
    """Parse, serve, wait."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.yubihsm",
        description="A simulated YubiHSM 2 and its connector on the loopback interface. Protects no key.",
        epilog="example: python -m tests.support.yubihsm --port 12345 --profile yubihsm2 --key 0x0064 --key-label seq",
    )
    parser.add_argument("--port", type=int, default=12345, help="0: any free one (default: 12345)")
    parser.add_argument("--profile", choices=sorted(PROFILES), default="yubihsm2", help="how long commands take")
    parser.add_argument("--latency", type=float, metavar="SECONDS", help="how long an Ed25519 signature takes")
    parser.add_argument("--serial", type=int, default=9_000_001, help="the device's serial number")
    parser.add_argument("--key", type=lambda text: int(text, 0), metavar="ID", help="make an Ed25519 key with this id")
    parser.add_argument("--key-label", default="sequencer-key", help="its label (default: sequencer-key)")
    options = parser.parse_args()
    device = Device(options.serial, PROFILES[options.profile])
    if options.latency is not None:
        device.latency[Command.SIGN_EDDSA] = options.latency
    if options.key is not None:
        device.put_key(options.key, options.key_label)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with Connector(device, options.port) as connector:
        print(json.dumps({"url": connector.url, "authKeyId": 1, "password": "password"}), flush=True)  # noqa: T201
        ended.wait()


if __name__ == "__main__":
    main()
