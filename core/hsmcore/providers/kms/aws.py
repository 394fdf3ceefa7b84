"""Credentials, region and endpoint from the AWS SDK. Blocks: call it in a thread."""

from __future__ import annotations

import importlib.util
import ssl
from typing import Any, Final, NamedTuple

from hsmcore.base.listening.certificates import require_readable
from hsmcore.base.log import said
from hsmcore.errors import AccessDenied, ConfigFault, ConfigurationError, ModuleMissing
from hsmcore.providers.kms.settings import AwsKmsSettings
from hsmcore.providers.kms.sigv4 import AwsCredentials

NEEDED: Final = ("boto3", "botocore", "httptools")


def require_installed(member: str, hint: str) -> None:
    """Raise ModuleMissing unless the packages of the extra are installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        text = f"member {member!r}: signing with AWS KMS needs {' and '.join(missing)}"
        raise ModuleMissing(text, member=member, hint=hint)


class Surroundings(NamedTuple):
    """The destination of requests. `proxied`: the environment names a proxy for the endpoint, which is not used."""

    region: str
    url: str
    tls: ssl.SSLContext | None
    proxied: bool


class AwsSession:
    """The SDK's default session: environment, shared files, web identity, SSO, container or instance role."""

    def __init__(self, settings: AwsKmsSettings, member: str) -> None:
        self._settings = settings
        self._member = member
        self._session: Any = None
        self._source: Any = None

    def open(self) -> tuple[Surroundings, AwsCredentials]:
        """Find endpoint and credentials. Raises ConfigurationError without a region, AccessDenied without
        credentials."""
        import botocore.session

        self._session = botocore.session.get_session()
        try:
            surroundings = self._surroundings()
            self._source = self._session.get_credentials()
        except ConfigurationError:
            raise
        except Exception as error:  # noqa: BLE001  # see `credentials`
            raise self._no_credentials(type(error).__name__) from None
        return surroundings, self.credentials()

    def _surroundings(self) -> Surroundings:
        from botocore.utils import get_environ_proxies

        settings = self._settings
        region = settings.region or settings.arn_region or self._session.get_config_variable("region")
        if region is None:
            fault = ConfigFault(f"{settings.where}.region", "is required: nothing else names it")
            raise ConfigurationError.of([fault])
        client = self._session.create_client(
            "kms",
            region_name=region,
            endpoint_url=settings.endpoint_url,
            aws_access_key_id="unused",  # the client sends nothing: only its endpoint is read
            aws_secret_access_key="unused",
        )
        url: str = client.meta.endpoint_url
        client.close()
        return Surroundings(region, url, self._tls(url), bool(get_environ_proxies(url)))

    def _tls(self, url: str) -> ssl.SSLContext | None:
        from botocore.httpsession import get_cert_path

        if not url.startswith("https:"):
            return None
        bundle = self._session.get_config_variable("ca_bundle") or get_cert_path(True)
        try:
            require_readable(bundle)
            context = ssl.create_default_context(cafile=bundle)
        except OSError as error:
            problem = f"the authorities of AWS_CA_BUNDLE, or of ca_bundle in the profile, cannot be used: {said(error)}"
            raise ConfigurationError.of([ConfigFault(self._settings.where, problem)]) from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context

    @property
    def method(self) -> str:
        """The place in the SDK's chain where the credentials are from."""
        return str(self._source.method)

    @property
    def renews(self) -> bool:
        """Whether the credentials are temporary, so that `credentials` renews them."""
        return hasattr(self._source, "refresh_needed")

    def credentials(self) -> AwsCredentials:
        """Return the credentials, renewed if it is time. Raises AccessDenied."""
        if self._source is None:
            raise self._no_credentials("no provider of the AWS SDK's chain has any")
        try:
            frozen = self._source.get_frozen_credentials()
        except Exception as error:  # noqa: BLE001  # a provider of the SDK's chain may raise anything
            raise self._no_credentials(type(error).__name__) from None
        return AwsCredentials(frozen.access_key, frozen.secret_key, frozen.token)

    def _no_credentials(self, why: str) -> AccessDenied:
        return AccessDenied(
            f"member {self._member!r}: no AWS credentials ({why})",
            member=self._member,
            hint="Give the process a role, or set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
        )
