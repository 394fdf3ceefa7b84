"""Watching a key manager over HTTP: `/metrics`, `/healthz`, `/readyz` and the operator's console.

    async with km, hsmcore.serve.attached(km) as site:
        print(site.address)

Needs the extra `serve`; docs/CONSOLE.md has the operator's view.

Reading order: site (the thread) on hsmcore.base.listening (limits), app (routes), access (tokens), monitor (the
state that every page shows) with source or watch, series, ledger, trail; checks, actions, feed.
"""

from hsmcore.serve.attach import attached
from hsmcore.serve.site import Site

__all__ = ["Site", "attached"]
