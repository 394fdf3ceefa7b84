"""A key in AWS KMS as a member."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, TypeVar

from hsmcore.base.keyring import KeyVersion
from hsmcore.base.log import get_logger
from hsmcore.base.scope import Scope
from hsmcore.errors import AlgorithmUnsupported, HsmError, KeyMismatch, KeyNotFound, NotInitialized
from hsmcore.members.base import VERIFY_EVERY, MemberSpec, NonExportable
from hsmcore.members.offload.engine import OffloadEngine
from hsmcore.providers.kms.aws import AwsSession, Surroundings, require_installed
from hsmcore.providers.kms.client import LOST, KmsClient, connect
from hsmcore.providers.kms.control import KmsControl
from hsmcore.providers.kms.forms import MAX_RAW_MESSAGE
from hsmcore.providers.kms.keys import KmsKey, KmsKeys
from hsmcore.providers.kms.settings import AwsKmsSettings, name_of
from hsmcore.providers.kms.sigv4 import AwsCredentials

if TYPE_CHECKING:
    from hsmcore.audit import AuditLog

T = TypeVar("T")

STOP_SECONDS: Final = 5.0
PROBE_FIRST: Final = 0.1
PROBE_MOST: Final = 5.0
RENEW_SECONDS: Final = 30.0
"""Interval of renewals of temporary credentials; the SDK renews them 15 minutes before they expire."""


class KmsMember:
    """Signs with keys in AWS KMS. Belongs to the event loop that starts it.

    Requests run on the loop, without threads. The AWS SDK runs in a thread, at the start and to renew credentials.
    """

    token = NonExportable(
        "KMS gives no copy of key {} away",
        "no key of KMS can be put back from a backup",
        "KMS keeps its keys; for a second region use a multi-Region key.",
    )

    def __init__(self, spec: MemberSpec[AwsKmsSettings]) -> None:
        self.name = spec.provider.name
        self.level = spec.level
        self._spec, self._settings = spec, spec.settings
        self._session = AwsSession(spec.settings, self.name)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"hsmcore-{self.name}")
        self._client: KmsClient | None = None
        self._keys: KmsKeys | None = None
        self._engine: OffloadEngine | None = None
        self._control: KmsControl | None = None
        self._scope = Scope()
        self._probing = False
        self._stale = asyncio.Event()  # the credentials were refused
        self.renewed: Callable[[], None] = lambda: None
        """Called when the SDK has given other credentials."""
        self.gives_way: Callable[[HsmError], bool] = lambda _error: False
        """Asked whether another member takes what AWS KMS throttles, or refuses by its credentials."""
        self.signs: Callable[[], None] = lambda: None
        """Called with the first signature after that."""

    @property
    def engine(self) -> OffloadEngine:
        return _made(self._engine)

    def record_in(self, audit: AuditLog) -> None:
        self.engine.record(audit, self.level)

    @property
    def requests(self) -> dict[tuple[str, str], int]:
        """Requests that were sent to KMS, by operation and outcome. Any thread."""
        return {} if self._client is None else self._client.requests.copy()

    @property
    def control(self) -> KmsControl:
        return _made(self._control)

    def require_ready(self) -> None:
        """Raise ModuleMissing, with the installation hint, if packages of the extra are missing."""
        require_installed(self.name, self._spec.provider.install_hint)

    async def start(self) -> KeyVersion:
        """Find credentials, find and prove the key. After a failure or a cancellation, call `stop`. Raises HsmError."""
        loop = asyncio.get_running_loop()
        surroundings, credentials = await loop.run_in_executor(self._thread, self._session.open)
        self._assemble(surroundings, credentials)
        key = await self._load(self._settings.key_id, self._settings)
        self.engine.start(loop)
        if self._session.renews:
            failed = f"AWS credentials of {self.name} cannot be renewed"
            self._scope.every(RENEW_SECONDS, self._renew, failed, wake=self._stale, at_once=False)
        get_logger().info(
            "member started",
            member=self.name,
            level=self.level,
            endpoint=surroundings.url,
            region=surroundings.region,
            connections=self._settings.concurrency,
            key=key.id,
            algorithm=key.algorithm,
        )
        return key

    def _assemble(self, surroundings: Surroundings, credentials: AwsCredentials) -> None:
        settings = self._settings
        self._client = connect(settings, surroundings, credentials, self.name)
        self._keys = KmsKeys(self._client, settings.concurrency, self.name)
        self._control = KmsControl(self._keys, self.name)
        self._engine = engine = OffloadEngine.before(
            self._keys,
            queue_size=self._spec.rules.queue_size,
            **self._spec.engine_rules(),
            verify_every=VERIFY_EVERY[settings.verify_signatures],
        )
        self._keys.retired = lambda index: not engine.signs_with(index)
        self._client.lost = self._lost
        self._client.retried = self._retried
        self._client.refused = self._stale.set
        self._client.gives_way = lambda error: self.gives_way(error)  # noqa: PLW0108  # it is set later
        self._client.signs = lambda: self.signs()  # noqa: PLW0108  # as above
        self._client.renews = self._session.renews

    async def load_key(self, key_id: bytes) -> KeyVersion:
        """Find another key of the account by its id. Raises KeyNotFound."""
        name = name_of(key_id)
        if name is None:
            raise KeyNotFound(f"{key_id.hex()} is no id of a KMS key", member=self.name)
        return await self._load(name, None)

    async def _load(self, name: str, pin: AwsKmsSettings | None) -> KeyVersion:
        keys = _made(self._keys)
        key = await keys.find(name)
        if pin is not None:
            self._check_pin(key, pin)
        index = next((index for index, held in keys.by_index.items() if held.arn == key.arn), None)
        if index is None:
            await keys.prove(key)
            most = None if key.form.order else MAX_RAW_MESSAGE
            index = self.engine.add_key(key.form.algorithm, key.public_key, most, "the limit of AWS KMS")
            keys.by_index[index] = key
        elif keys.by_index[index].public_key != key.public_key:
            raise KeyMismatch(f"key {name!r} is another one than before", member=self.name)
        return self.engine.name_key(KeyVersion(key.id, name, key.form.algorithm, key.public_key, index))

    def _check_pin(self, key: KmsKey, pin: AwsKmsSettings) -> None:
        if pin.algorithm is not None and pin.algorithm != key.form.algorithm:
            text = f"key {pin.key_id!r} is of algorithm {key.form.algorithm}, not {pin.algorithm}"
            raise AlgorithmUnsupported(text, member=self.name, hint="Correct algorithm or keyId.")
        if pin.public_key_bytes is not None and pin.public_key_bytes != key.public_key:
            raise KeyMismatch(f"key {pin.key_id!r} is not the one that publicKey names", member=self.name)

    def _retried(self, name: str) -> None:
        self.engine.recoveries["REOPEN" if name == LOST else "RETRY"] += 1

    def _lost(self) -> None:
        """Handle a failed connection: nothing is sent until a probe has reached KMS and found the keys unchanged."""
        if self._engine is None or self._probing or not _made(self._keys).by_index:
            return
        self._probing = True
        get_logger().error("member down: AWS KMS cannot be reached", member=self.name)
        self._engine.lose("TOKEN_LOST")
        self._scope.start(self._probe())

    async def _probe(self) -> None:
        pause = PROBE_FIRST
        while True:
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311  # spreads load, protects nothing
            pause = min(pause * 2, PROBE_MOST)
            try:
                await _made(self._keys).prove_again()
            except KeyMismatch as error:
                get_logger().error("member down for good: not the key that it was", member=self.name, error=str(error))
                self.engine.lose(error.status)
                return
            except HsmError as error:
                self.engine.lose(error.status if error.error_class == "AUTH_FATAL" else "TOKEN_LOST")
            else:
                break
        self._probing = False
        self.engine.recoveries["MEMBER_DOWN"] += 1
        self.engine.lose("")
        get_logger().info("member up again", member=self.name)

    async def _renew(self) -> None:
        """Have the SDK renew temporary credentials in time, or when they were refused, in the member's thread."""
        credentials = await asyncio.get_running_loop().run_in_executor(self._thread, self._session.credentials)
        client = _made(self._client)
        if credentials != client.credentials:
            client.credentials = credentials
            self.renewed()

    async def stop(self) -> None:
        """Answer every caller and close the connections. Idempotent."""
        await self._scope.close()
        if self._engine is not None:
            await self._engine.stop(STOP_SECONDS)
        if self._client is not None:
            await self._client.close()
        self._thread.shutdown(wait=False)


def _made(thing: T | None) -> T:
    if thing is None:
        raise NotInitialized("used before initialize()")
    return thing
