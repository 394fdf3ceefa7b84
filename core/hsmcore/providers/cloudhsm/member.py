"""An AWS CloudHSM cluster: a PKCS#11 member that also checks the client configuration and polls cluster health."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final

from hsmcore.base.keyring import KeyVersion
from hsmcore.errors import ConfigurationError, KeyNotFound
from hsmcore.members.base import MemberSpec
from hsmcore.members.pkcs11 import Pkcs11Member
from hsmcore.providers.cloudhsm import ClusterHealth, HealthPoller, check_client
from hsmcore.providers.cloudhsm.health import Expected
from hsmcore.providers.cloudhsm.settings import AwsCloudHsmSettings

# Seconds before each further search for a key: a new key may not have reached the HSM that is asked.
_SYNC_PAUSES: Final = (0.1, 0.3, 0.9)
_SHARE_HINT: Final = (
    "A key belongs to the crypto user that made it. Share it with the one that signs: cloudhsm-cli key share "
    "--filter attr.id=0x… --username SIGNER --role crypto-user."
)


class CloudHsmMember(Pkcs11Member):
    """One cluster. `cluster_health` is AWS's last answer; None: AWS is not asked."""

    def __init__(self, spec: MemberSpec[AwsCloudHsmSettings]) -> None:
        super().__init__(spec)
        self._cluster = spec.settings
        self._poller: HealthPoller | None = None

    @property
    def cluster_health(self) -> ClusterHealth | None:
        """The last known health, for health checks and metrics. Makes no call."""
        return None if self._poller is None else self._poller.health

    async def start(self) -> KeyVersion:
        """As Pkcs11Member.start. Raises ConfigurationError if the library is configured for another cluster."""
        faults = await self.run(lambda: check_client(self._cluster))
        if faults:
            raise ConfigurationError.of(faults)
        settings = self._cluster
        if settings.cluster_id and (settings.slot_id, settings.token_label, settings.token_serial) == (None,) * 3:
            self._slot_id = (await self.control.find_token()).slot_id
        key = await super().start()
        if settings.cluster_health_interval_ms and (settings.cluster_id or settings.cluster_endpoint):
            expected = replace(Expected.of(settings), algorithm=key.algorithm)
            self._poller = HealthPoller(expected, settings.cluster_health_interval_ms / 1e3, member=self.name)
            self._poller.start()
        return key

    async def load_key(self, key_id: bytes) -> KeyVersion:
        """As Pkcs11Member.load_key, with retries while the cluster synchronizes a new key."""
        for pause in _SYNC_PAUSES:
            try:
                return await super().load_key(key_id)
            except KeyNotFound:
                await asyncio.sleep(pause)
        try:
            return await super().load_key(key_id)
        except KeyNotFound as error:
            if self._cluster.admin_credentials is not None:
                error.hint = _SHARE_HINT
            raise

    async def stop(self) -> None:
        if self._poller is not None:
            await self._poller.stop()
        await super().stop()
