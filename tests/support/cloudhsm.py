"""AWS CloudHSM as far as it can be had without AWS: SoftHSM tokens behind the fault-injecting module, which imitates
the vendor's (docs/CHAOS.md), a client configuration file, and key manager configurations for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.chaos import CHAOS, Chaos, Wrapped
from tests.support.softhsm import Token

SIGNER, SIGNER_PASSWORD = "signer", "Signer-Passw0rd-7q"
ADMIN, ADMIN_PASSWORD = "keeper", "Keeper-Passw0rd-9z"
REJECTED = "CKR_FUNCTION_REJECTED"
DENIED = dict.fromkeys(("C_GenerateKeyPair", "C_GenerateKey", "C_DestroyObject", "C_WrapKey", "C_UnwrapKey"), REJECTED)
CLUSTERS = ("cluster-aaaabbbbccc", "cluster-ddddeeeefff")
ADDRESSES = ("10.0.1.10", "10.0.2.10")


class Cluster(Chaos):
    """Tokens as the clusters of one vendor library. The first of `tokens` is the one that is used; all are `hsm1` to a
    client. `fields` go into the module's configuration."""

    def __init__(self, folder: Path, *tokens: Token, module: Path = CHAOS, **fields: Any) -> None:
        self.token = tokens[0]
        slots = [
            {
                "token": token.label,
                "label": "hsm1",
                "serial": f"{index + 1:016d}",
                "manufacturer": "Marvell Semiconductors, Inc.",
                "model": "LS2",
                "description": cluster,
            }
            for index, (token, cluster) in enumerate(zip(tokens, CLUSTERS, strict=False))
        ]
        users = [
            {"pin": f"{SIGNER}:{SIGNER_PASSWORD}", "tokenPin": self.token.pin, "denied": DENIED},
            {"pin": f"{ADMIN}:{ADMIN_PASSWORD}", "tokenPin": self.token.pin},
        ]
        super().__init__(
            folder,
            Wrapped(self.token.module, {}),
            module=module,
            **{"profile": "cloudhsm", "slots": slots, "users": users, "socket": str(folder / "chaos-%p.sock")} | fields,
        )
        self.client = folder / "cloudhsm-pkcs11.cfg"
        self.write_client()

    def write_client(self, *, servers: tuple[str, ...] = ADDRESSES, **cluster: Any) -> None:
        """What configure-pkcs11 writes."""
        entry = {"hsm_ca_file": "/opt/cloudhsm/etc/customerCA.crt", **cluster}
        entry["servers"] = [{"hostname": host, "port": 2223, "enable": True} for host in servers]
        logging = {"log_type": "file", "log_file": "/opt/cloudhsm/run/cloudhsm-pkcs11.log", "log_level": "info"}
        document = {"clusters": [{"type": "hsm1", "cluster": entry}], "logging": logging}
        self.client.write_text(json.dumps(document))

    def provider(
        self,
        key: str | None = "ed25519",
        *,
        admin: bool = True,
        settings: Mapping[str, Any] | None = None,
        **rules: Any,
    ) -> dict[str, Any]:
        """A configuration with the aws-cloudhsm provider."""
        config: dict[str, Any] = {
            "modulePath": self.module,
            "moduleArgs": self.args,
            "clientConfig": str(self.client),
            "clusterId": CLUSTERS[0],
            "username": SIGNER,
            "password": SIGNER_PASSWORD,
            "sessions": 2,
            "clusterHealthIntervalMs": 0,
        }
        if key is not None:
            config["keyLabel"] = self.token.keys[key].label
        if admin:
            config["adminCredentials"] = {"username": ADMIN, "password": ADMIN_PASSWORD}
        config |= settings or {}
        config = {name: value for name, value in config.items() if value is not None}
        return {"sequencer": {"keyManager": {"type": "aws-cloudhsm", "config": config, "maxCacheSize": 0, **rules}}}

    def refusals(self) -> list[str]:
        """What the module refused, by the log."""
        return [line.split(" ", 2)[2] for line in self.log.read_text().splitlines() if "refused" in line]
