"""One attempt to deliver one notice. Blocking; apprise knows the services and their time limits."""

from __future__ import annotations


def send(url: bytearray, title: str, body: str) -> str:
    """Send to an apprise URL, which is wiped. "" if it was taken, else why not; never any part of the URL."""
    try:
        import apprise
    except ImportError:
        return "apprise is not installed: pip install 'hsmcore[notices]'"
    try:
        # The plug-in itself, in this thread: apprise.Apprise would start threads that never end.
        asset = apprise.AppriseAsset(app_id="hsmcore", async_mode=False)
        target = apprise.Apprise.instantiate(url.decode("utf-8", "replace"), asset=asset)
        if target is None:
            return "apprise does not understand the target's URL"
        return "" if target.notify(title=title, body=body) else "the target did not take it"
    except Exception as error:  # noqa: BLE001  # a plug-in's, whatever it is; its text may hold the URL
        return f"sending failed: {type(error).__name__}"
    finally:
        url[:] = bytes(len(url))
