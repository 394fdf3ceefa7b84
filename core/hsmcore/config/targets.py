"""What apprise makes of a target of notices. An address holds credentials: no part of it is told or logged."""

from __future__ import annotations

from typing import Any, Final

from hsmcore._native import wipe
from hsmcore.base.extras import install
from hsmcore.base.log import muted
from hsmcore.config.secret import Secret
from hsmcore.errors import SecretUnavailable

UNKNOWN: Final = "is no address that apprise understands"
MISSING: Final = f"apprise is not installed: {install('notices')}"
_TALK: Final = ("apprise", "urllib3.connectionpool")
"""The loggers that show most of an address: of one that is not understood, and of one that is called."""


def problem_of(target: Secret) -> str:
    """Return why no notice can be sent to a target, or "". Blocks: the first call loads apprise's plug-ins, which takes
    a second."""
    with muted(_TALK):
        return _plug_in(target)[1]


def send(target: Secret, title: str, body: str) -> str:
    """Send a notice. Returns "" if the target accepted, else the reason. Blocks; apprise has time limits for each
    service."""
    with muted(_TALK):
        plug_in, problem = _plug_in(target)
        if problem:
            return problem
        try:
            return "" if plug_in.notify(title=title, body=body) else "the target did not take it"
        except Exception as error:  # noqa: BLE001  # any error of a plug-in; its text may hold the URL
            return f"sending failed: {type(error).__name__}"


def _plug_in(target: Secret) -> tuple[Any, str]:
    """Return what sends to a target, and why there is none."""
    try:
        url = target.resolve()
    except SecretUnavailable as error:
        return None, "; ".join(fault.problem for fault in error.faults)
    try:
        import apprise

        # The plug-in itself, in this thread: apprise.Apprise would start threads that never end.
        asset = apprise.AppriseAsset(app_id="hsmcore", async_mode=False)
        made = apprise.Apprise.instantiate(url.decode("utf-8", "replace"), asset=asset)
    except ImportError:
        return None, MISSING
    except Exception:  # noqa: BLE001  # of a plug-in that does not understand its address
        made = None
    finally:
        wipe(url)
    return made, "" if made is not None else UNKNOWN
