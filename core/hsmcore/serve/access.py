"""Authorization: bearer tokens compared in constant time, and a rate limit on wrong ones."""

from __future__ import annotations

import hmac
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from hsmcore.config import Monitoring
from hsmcore.config.secret import MAX_TOKEN_BYTES, TokenDigests
from hsmcore.errors import ConfigFault, ConfigurationError

Role = Literal["viewer", "operator"]
FAILURES: Final = 10
"""Wrong tokens that an address may send at once; then one in REFILL_SECONDS."""
REFILL_SECONDS: Final = 1.0
_MAX_PEERS: Final = 1024


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision about a request. `problem`: "" or why it is refused: "missing", "wrong", "forbidden" (the token's
    role is not enough) or "limited" (too many wrong tokens before)."""

    role: Role | None
    problem: Literal["", "missing", "wrong", "forbidden", "limited"] = ""


class Access:
    """Holds digests of the tokens only, under a key of this process. For the server's thread."""

    def __init__(self, settings: Monitoring, clock: Callable[[], float] = time.monotonic) -> None:
        """Fetch the tokens. May block. Raises SecretUnavailable, and ConfigurationError for a token that is too
        short."""
        self._digests = digests = TokenDigests()
        viewer, operator = settings.viewer_token, settings.operator_token
        self._viewer = None if viewer is None else digests.of_secret(viewer)
        self._operator = None if operator is None else digests.of_secret(operator)
        if self._viewer is not None and self._viewer == self._operator:
            problem = "is the same token as viewerToken: whoever may look could act"
            raise ConfigurationError.of([ConfigFault(f"{settings.where}.operatorToken", problem)])
        self._nobody = os.urandom(32)  # the digest of no token
        self._failures = _Failures(clock)

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
        digest = self._digests.of(presented)
        is_operator = hmac.compare_digest(digest, self._operator or self._nobody)
        is_viewer = hmac.compare_digest(digest, self._viewer or self._nobody)
        right: Role | None = "operator" if is_operator else "viewer" if is_viewer else None
        limited = self._failures.spent(peer) and not self._failures.is_known(peer, right)
        role = right if not limited else None
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
            self._failures.note(peer)
        return Verdict(None, "wrong" if presented else "missing")

    def _presented(self, header: str | None) -> bytes:
        scheme, _, token = (header or "").partition(" ")
        if scheme.lower() != "bearer":
            return b""
        return token.strip().encode("latin-1", "replace")[:MAX_TOKEN_BYTES]


class _Failures:
    """Token buckets, one for each address that has sent a wrong token lately; and the addresses that have sent a right
    one, which goes on working there: behind a proxy all clients have one address, and no one's guesses may lock out the
    others."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._peers: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """Attempts left, and at what time; the latest address last."""
        self._known: OrderedDict[tuple[str, Role], None] = OrderedDict()
        """Addresses with the role of a right token that came from there; the latest last."""

    def spent(self, peer: str) -> bool:
        return self._left(peer) < 1

    def note(self, peer: str) -> None:
        self._peers[peer] = (self._left(peer) - 1, self._clock())
        self._peers.move_to_end(peer)
        if len(self._peers) > _MAX_PEERS:
            self._peers.popitem(last=False)

    def is_known(self, peer: str, role: Role | None) -> bool:
        return role is not None and (peer, role) in self._known

    def know(self, peer: str, role: Role) -> None:
        self._known[peer, role] = None
        self._known.move_to_end((peer, role))
        if len(self._known) > _MAX_PEERS:
            self._known.popitem(last=False)

    def _left(self, peer: str) -> float:
        left, then = self._peers.get(peer, (float(FAILURES), 0.0))
        return min(float(FAILURES), left + (self._clock() - then) / REFILL_SECONDS)
