"""One signature for several requests: the cache, and single-flight. The native core owns and wipes the memory."""

from __future__ import annotations

from hsmcore._native import Cache
from hsmcore.members.offload.requests import Request


class SingleFlight:
    """A cache of `cache_size` signatures (0: none) and, with a cache or `single_flight`, the requests in flight."""

    def __init__(self, cache_size: int, single_flight: bool) -> None:
        self.enabled = cache_size > 0 or single_flight
        self.generation = 0
        self._cache = Cache(cache_size) if cache_size > 0 else None
        self._flights: dict[tuple[int, bytes], Request] = {}
        self._looked = dict.fromkeys(("hits", "misses", "joined"), 0)

    def look_up(self, key: int, message: bytes) -> bytes | Request | None:
        """Return the signature, or the request that is making it, or None."""
        flight = self._flights.get((key, message))
        if flight is not None:
            self._looked["joined"] += 1
            return flight
        held = None if self._cache is None else self._cache.get(key, message)
        self._looked["misses" if held is None else "hits"] += 1
        return held

    def begin(self, request: Request) -> None:
        """Allow other requests to join this one."""
        self._flights[request.key, request.message] = request

    def keep(self, request: Request, signature: bytes) -> None:
        """Store a signature, unless the cache was wiped since the request began."""
        if self._cache is not None and request.generation == self.generation:
            self._cache.put(request.key, request.message, signature)

    def end(self, request: Request) -> None:
        """Forbid other requests to join this one."""
        where = request.key, request.message
        if self._flights.get(where) is request:
            del self._flights[where]

    def clear(self) -> None:
        """Wipe the signatures. Those in flight are not cached and not joined any more."""
        self.generation += 1
        self._flights.clear()
        if self._cache is not None:
            self._cache.clear()

    def close(self) -> None:
        """Wipe everything and free the memory."""
        self.clear()
        self._cache = None

    def stats(self) -> dict[str, int]:
        """Return the counters as in Engine.cache_stats."""
        counted = {"evictions": 0, "entries": 0, "bytes": 0} if self._cache is None else self._cache.stats()
        kept = {name: counted[name] for name in ("evictions", "entries", "bytes")}
        if not self.enabled:
            return dict.fromkeys((*self._looked, *kept, "in_flight"), 0)
        return {**self._looked, **kept, "in_flight": len(self._flights)}
