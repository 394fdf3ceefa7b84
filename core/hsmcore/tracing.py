"""OpenTelemetry: a span for each request to sign, and trace ids in logs and audit records.

Only for applications that set a tracer provider before `initialize()`. Without one, nothing is imported or wrapped, and
a signature pays nothing.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from hsmcore.audit.record import traced
from hsmcore.errors import HsmError
from hsmcore.errors.batch import batch_of

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer, TracerProvider

T = TypeVar("T")
_SIGN: Final = "hsmcore.sign"


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

    @property
    def submit(self) -> Callable[..., asyncio.Future[Any] | None]:
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
    """Make spans in `sign`, `sign_many`, `sign_with_receipt` and `submit` of this manager. `initialize()` calls this
    where a provider is set. Idempotent."""
    provider = provider or configured_provider()
    if provider is None or "sign" in vars(manager):
        return
    from hsmcore.base.version import __version__  # it parses what the distribution says of itself

    spans = _Spans(provider.get_tracer("hsmcore", __version__), manager)
    # On the instance: without a provider, callers use the class's methods at no extra cost.
    many, receipt = spans.sign_many, spans.sign_with_receipt
    vars(manager).update(sign=spans.sign, sign_many=many, sign_with_receipt=receipt, submit=spans.submit)


class _Spans:
    def __init__(self, tracer: Tracer, manager: _Signer) -> None:
        self._tracer = tracer
        self._plain, self._many, self._receipt = manager.sign, manager.sign_many, manager.sign_with_receipt
        self._submit = manager.submit

    async def sign(self, message: Any, timeout: float | None = None, **options: Any) -> bytes:
        """As KeyManager.sign."""

        async def work(span: Span) -> bytes:
            if not span.is_recording():
                return await self._plain(message, timeout, **options)
            receipt = await self._receipt(message, timeout, **options)
            _describe(span, receipt)
            signature: bytes = receipt.signature
            return signature

        return await self._traced(_SIGN, work)

    async def sign_with_receipt(self, message: Any, timeout: float | None = None, **options: Any) -> Any:
        """As KeyManager.sign_with_receipt."""

        async def work(span: Span) -> Any:
            receipt = await self._receipt(message, timeout, **options)
            _describe(span, receipt)
            return receipt

        return await self._traced(_SIGN, work)

    async def sign_many(self, messages: Any, *arguments: Any, **options: Any) -> Any:
        """As KeyManager.sign_many."""
        messages = batch_of(messages)

        async def work(span: Span) -> Any:
            span.set_attribute("hsmcore.messages", len(messages))
            return await self._many(messages, *arguments, **options)

        return await self._traced("hsmcore.sign_many", work)

    def submit(self, *arguments: Any) -> asyncio.Future[Any] | None:
        """As KeyManager.submit. The span ends with the future; there is none where another method signs instead."""
        span = self._tracer.start_span(_SIGN)
        try:
            with _inside(span, ends=False):
                asked = self._submit(*arguments)
        except HsmError:
            span.end()
            raise
        if asked is not None:
            asked.add_done_callback(partial(_ended, span))
        return asked

    async def _traced(self, name: str, work: Callable[[Span], Awaitable[T]]) -> T:
        span = self._tracer.start_span(name)
        with _inside(span):
            return await work(span)


@contextmanager
def _inside(span: Span, *, ends: bool = True) -> Iterator[None]:
    """Make it the current span, which has the error that is raised. Audit records name its trace, unless it is known to
    nobody: neither recorded nor a caller's, whose logs have it also where it is not sampled."""
    from opentelemetry.trace import get_current_span, use_span

    known = span.is_recording() or get_current_span().get_span_context().is_valid
    named = traced(f"{span.get_span_context().trace_id:032x}") if known else nullcontext()
    with use_span(span, end_on_exit=ends), named:
        try:
            yield
        except HsmError as error:
            span.set_attribute("error.type", error.status)
            raise


def _ended(span: Span, asked: asyncio.Future[Any]) -> None:
    with suppress(Exception, asyncio.CancelledError), _inside(span):
        _describe(span, asked.result())


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
