"""Authorization: bearer tokens compared in constant time, a rate limit on wrong ones, and one on requests without a
right one."""

from __future__ import annotations

import hmac
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Self

from hsmcore.base.digests import MAX_TOKEN_BYTES, TokenDigester
from hsmcore.base.listening.rates import AddressBuckets
from hsmcore.errors import ConfigFault, ConfigurationError

if TYPE_CHECKING:
    from hsmcore.config import Monitoring

Role = Literal["viewer", "operator"]
FAILURES: Final = 10
"""Wrong tokens that an address may send at once; then one in REFILL_SECONDS."""
REFILL_SECONDS: Final = 1.0
STRANGERS: Final = 200
"""Requests without a right token that an address may send at once; as many come back in a second."""
WAIT_SECONDS: Final = 0.5
"""The most seconds that such a request waits for its turn: a probe of /healthz gets its own beside a flood."""
_MAX_PEERS: Final = 1024


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision about a request. `problem`: "" or why it is refused: "missing", "wrong", "forbidden" (the token's
    role is not enough) or "limited" (too many wrong tokens before)."""

    role: Role | None
    problem: Literal["", "missing", "wrong", "forbidden", "limited"] = ""


@dataclass(frozen=True, slots=True)
class HeldTokens:
    """The digests of the tokens, and their key: what the process that compares them gets. None: no such token."""

    key: bytes
    viewer: bytes | None
    operator: bytes | None

    @classmethod
    def of(cls, settings: Monitoring) -> Self:
        """Fetch the tokens. May block. Raises SecretUnavailable, and ConfigurationError for a token that is too
        short."""
        from hsmcore.config.secret import TokenDigests  # for who reads the configuration, not for who serves

        digests = TokenDigests()
        viewer, operator = (
            None if token is None else digests.of_secret(token)
            for token in (settings.viewer_token, settings.operator_token)
        )
        if viewer is not None and viewer == operator:
            problem = "is the same token as viewerToken: whoever may look could act"
            raise ConfigurationError.of([ConfigFault(f"{settings.where}.operatorToken", problem)])
        return cls(digests.key, viewer, operator)


class Access:
    """Holds digests of the tokens only. For one event loop."""

    def __init__(self, tokens: HeldTokens, clock: Callable[[], float] = time.monotonic) -> None:
        self._digests = TokenDigester(tokens.key)
        self._viewer, self._operator = tokens.viewer, tokens.operator
        self._nobody = os.urandom(32)  # the digest of no token
        self._failures = _Failures(FAILURES, REFILL_SECONDS, clock)
        self._strangers = AddressBuckets(STRANGERS, 1 / STRANGERS, clock)

    @property
    def open_to_view(self) -> bool:
        """Whether viewing needs no token."""
        return self._viewer is None

    @property
    def can_operate(self) -> bool:
        """Whether an operator token is configured."""
        return self._operator is not None

    def judge(self, header: str | None, wanted: Role, peer: str) -> Verdict:
        """Decide whether a request with this Authorization header has the role `wanted`. The work is the same for a
        right, a wrong and a missing token."""
        presented = self._presented(header)
        role, limited = self._granted(presented, peer)
        if role is not None:
            self._failures.know(peer, role)
        elif self._viewer is None and not presented:
            role = "viewer"
        if role == "operator" or (role == "viewer" and wanted == "viewer"):
            return Verdict(role)
        if role == "viewer":
            return Verdict(role, "forbidden" if presented else "missing")
        if limited:
            return Verdict(None, "limited")
        if presented:
            self._failures.take(peer)
        return Verdict(None, "wrong" if presented else "missing")

    def turn(self, header: str | None, peer: str) -> float | None:
        """Count a request, unless its token is right. Return how many seconds it waits for its turn; None: there were
        so many from this address that it gets none."""
        if self._granted(self._presented(header), peer)[0] is not None:
            return 0.0
        return self._strangers.turn(peer, WAIT_SECONDS)

    def _granted(self, presented: bytes, peer: str) -> tuple[Role | None, bool]:
        """The role of a token, and whether it has none because too many wrong ones came before."""
        digest = self._digests.of(presented)
        is_operator = hmac.compare_digest(digest, self._operator or self._nobody)
        is_viewer = hmac.compare_digest(digest, self._viewer or self._nobody)
        right: Role | None = "operator" if is_operator else "viewer" if is_viewer else None
        limited = self._failures.left(peer) < 1 and not self._failures.is_known(peer, right)
        return None if limited else right, limited

    def _presented(self, header: str | None) -> bytes:
        scheme, _, token = (header or "").partition(" ")
        if scheme.lower() != "bearer":
            return b""
        return token.strip().encode("latin-1", "replace")[:MAX_TOKEN_BYTES]


class _Failures(AddressBuckets):
    """Wrong tokens; and the addresses that have sent a right one, which goes on working there: behind a proxy all
    clients have one address, and no one's guesses may lock out the others."""

    def __init__(self, most: float, seconds: float, clock: Callable[[], float]) -> None:
        super().__init__(most, seconds, clock)
        self._known: OrderedDict[tuple[str, Role], None] = OrderedDict()
        """Addresses with the role of a right token that came from there; the latest last."""

    def is_known(self, peer: str, role: Role | None) -> bool:
        return role is not None and (peer, role) in self._known

    def know(self, peer: str, role: Role) -> None:
        self._known[peer, role] = None
        self._known.move_to_end((peer, role))
        if len(self._known) > _MAX_PEERS:
            self._known.popitem(last=False)
