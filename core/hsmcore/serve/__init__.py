"""Watching a key manager over HTTP: `/metrics`, `/healthz`, `/readyz` and the operator's console.

    async with km, hsmcore.serve.attached(km) as site:
        print(site.address)

Needs the extra `serve`. Reading order: site (the thread), protocol (limits), app (routes), access (who may), monitor
(the state that all look at) with source or watch, series, ledger, trail; checks, actions, feed. docs/CONSOLE.md says
how it is used.
"""

from hsmcore.serve.attach import attached
from hsmcore.serve.site import Site

__all__ = ["Site", "attached"]
