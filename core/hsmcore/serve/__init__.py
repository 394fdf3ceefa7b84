"""Watching a key manager over HTTP: `/metrics`, `/healthz`, `/readyz` and the operator's console.

    async with km, hsmcore.serve.attached(km) as site:
        print(site.address)

Needs the extra `serve`; docs/MONITORING.md has the operator's view.

Reading order: site (in the process that is shown) with source or watch, answers, ledger, actions; child (the server's
process) on hsmcore.base.listening (limits), app (routes), access (tokens), questions, monitor (the state that every
page shows) with series, checks, trail, feed.
"""

from typing import TYPE_CHECKING

from hsmcore.base.lazy import names

if TYPE_CHECKING:
    from hsmcore.serve.attach import attached
    from hsmcore.serve.site import Site

__all__ = ["Site", "attached"]

# Loaded when they are used: the server's process needs nothing of the key manager.
if not TYPE_CHECKING:
    __getattr__ = names(__name__, {"attach": ["attached"], "site": ["Site"]}, "serve")
