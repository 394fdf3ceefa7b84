"""Configurations: a document of any form is loaded, or refused with its faults; no fault shows a secret."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path

from tests.fuzz.engine import main

from hsmcore.config.loading import load_each
from hsmcore.errors import ConfigurationError

SECRET = "zqSECRETzq"
_FOLDER = tempfile.TemporaryDirectory(prefix="hsmcore-fuzz-")
_FILE = Path(_FOLDER.name) / "config.json"


def seeds() -> list[bytes]:
    """A document with a part of each sort."""
    pin = {"file": "/run/secrets/pin"}
    softhsm = {"type": "softhsm", "config": {"tokenLabel": "t", "keyLabel": "k", "pin": pin}}
    levels = {"enabled": True, "secondary": [softhsm], "emergencyModeEnabled": False}
    listed = {"a": softhsm, "b": {**softhsm, "policy": {"kinds": ["block"], "domain": "d"}}}
    gateway = {"listen": ["unix:/run/s.sock"], "clients": {"c": {"uid": [1], "keys": ["default"]}}}
    found = [
        {
            "keyManager": {**softhsm, "auditLogFile": "a-{pid}.log", "audit": {"durability": "fsync"}},
            "gateway": gateway,
        },
        {"sequencer": {"keyManager": {**softhsm, "failover": levels, "keyRotation": {"enabled": True}}}},
        {"sequencer": {"keyManagers": listed, "stateSecret": SECRET}},
        {"keyManager": {"type": "pkcs11", "config": {"uri": "pkcs11:token=t;object=k?pin-value=" + SECRET}}},
        {"keyManager": {"type": "aws-kms", "config": {"region": "eu-west-1", "keyId": "alias/k"}}},
    ]
    return [json.dumps(document).encode() for document in found]


def one(data: bytes) -> str:
    """Load a document, from bytes as a file has them."""
    logger = logging.getLogger("hsmcore")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    _FILE.write_bytes(data)
    try:
        for config in load_each(_FILE).values():
            repr(config), config.sha256(), config.placeholders, config.key_manager.state_path
            assert SECRET not in json.dumps(config.redacted())
    except ConfigurationError as error:
        said = f"{error}{error.hint}"
        assert SECRET not in said, said
        return ",".join(sorted({fault.problem[:24] for fault in error.faults}))
    finally:
        logger.setLevel(level)  # tests that look at the log may run after this in the same process
    return "loaded"


if __name__ == "__main__":
    main(seeds, one)
