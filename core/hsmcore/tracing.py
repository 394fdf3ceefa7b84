"""OpenTelemetry: a span for each request to sign, and trace ids in logs and audit records.

Only for applications that set a tracer provider before `initialize()`. Without one, nothing is imported or wrapped, and
a signature pays nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from hsmcore.audit.record import current_tag, tagged
from hsmcore.errors import HsmError

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer, TracerProvider

T = TypeVar("T")


class _Signer(Protocol):
    """The traced methods of a key manager."""

    @property
    def sign(self) -> Callable[..., Awaitable[bytes]]:
        """See KeyManager."""

    @property
    def sign_many(self) -> Callable[..., Awaitable[Any]]:
        """See KeyManager."""

    @property
    def sign_with_receipt(self) -> Callable[..., Awaitable[Any]]:
        """See KeyManager."""


def configured_provider() -> TracerProvider | None:
    """The tracer provider that the application set, or None."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    provider: TracerProvider = trace.get_tracer_provider()
    idle = (trace.ProxyTracerProvider, trace.NoOpTracerProvider)
    return None if isinstance(provider, idle) else provider


def instrument(manager: _Signer, provider: TracerProvider | None = None) -> None:
    """Make spans in `sign`, `sign_many` and `sign_with_receipt` of this manager. `initialize()` calls this where a
    provider is set. Idempotent."""
    provider = provider or configured_provider()
    if provider is None or "sign" in vars(manager):
        return
    from hsmcore.base.version import __version__  # it parses what the distribution says of itself

    spans = _Spans(provider.get_tracer("hsmcore", __version__), manager)
    # On the instance: without a provider, callers use the class's methods at no extra cost.
    vars(manager).update(sign=spans.sign, sign_many=spans.sign_many, sign_with_receipt=spans.sign_with_receipt)


class _Spans:
    def __init__(self, tracer: Tracer, manager: _Signer) -> None:
        self._tracer = tracer
        self._plain, self._many, self._receipt = manager.sign, manager.sign_many, manager.sign_with_receipt

    async def sign(self, message: Any, timeout: float | None = None, **options: Any) -> bytes:
        """As KeyManager.sign."""

        async def work(span: Span) -> bytes:
            if not span.is_recording():
                return await self._plain(message, timeout, **options)
            receipt = await self._receipt(message, timeout, **options)
            _describe(span, receipt)
            signature: bytes = receipt.signature
            return signature

        return await self._traced("hsmcore.sign", work)

    async def sign_with_receipt(self, message: Any, timeout: float | None = None, **options: Any) -> Any:
        """As KeyManager.sign_with_receipt."""

        async def work(span: Span) -> Any:
            receipt = await self._receipt(message, timeout, **options)
            _describe(span, receipt)
            return receipt

        return await self._traced("hsmcore.sign", work)

    async def sign_many(self, messages: Any, *arguments: Any, **options: Any) -> Any:
        """As KeyManager.sign_many."""
        messages = list(messages)

        async def work(span: Span) -> Any:
            span.set_attribute("hsmcore.messages", len(messages))
            return await self._many(messages, *arguments, **options)

        return await self._traced("hsmcore.sign_many", work)

    async def _traced(self, name: str, work: Callable[[Span], Awaitable[T]]) -> T:
        with self._tracer.start_as_current_span(name) as span:
            context = span.get_span_context()
            own = span.is_recording() and current_tag() is None
            try:
                with tagged(f"trace:{context.trace_id:032x}") if own else nullcontext():
                    return await work(span)
            except HsmError as error:
                span.set_attribute("error.type", error.status)
                raise


def _describe(span: Span, receipt: Any) -> None:
    span.set_attributes(
        {
            "hsmcore.member": receipt.member,
            "hsmcore.level": receipt.level,
            "hsmcore.key_id": receipt.key_id,
            "hsmcore.cached": receipt.cached,
        }
    )
    if receipt.audit_seq is not None:
        span.set_attribute("hsmcore.audit_seq", receipt.audit_seq)
