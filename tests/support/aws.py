"""AWS on this machine: moto's server, which the AWS SDK is led to by its own variables. No test reaches AWS."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

REGION = "us-east-1"
OFFLINE = {
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_DEFAULT_REGION": REGION,
}
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing-secret-key"}
UNSET = ("AWS_PROFILE", "AWS_REGION", "AWS_SESSION_TOKEN", *CREDENTIALS)


@contextmanager
def moto_server() -> Iterator[str]:
    """The address of a server on the loopback interface."""
    from moto.server import ThreadedMotoServer  # here: collecting tests need not import it

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()
