"""How to install what an extra of hsmcore needs: by the packages' own names.

`pip install 'hsmcore[x]'` would ask the package index for hsmcore, where that name is not ours.
"""

from __future__ import annotations


def install(extra: str) -> str:
    """Return the command that installs what the extra needs, from the metadata of what is installed."""
    import re  # all slow to import, and seldom needed
    import shlex
    from importlib import metadata

    own = __name__.partition(".")[0]
    distribution, extra = ("hsmcore-bench", "full") if extra == "bench" else (own, extra)
    try:
        declared = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:  # not installed, or hsmcore runs from files that no installer has laid out
        behind = "" if distribution == "hsmcore-bench" else f", with [{extra}] behind it"
        return f"pip install FILE, where FILE is the wheel or folder of {distribution}{behind}"
    marker = re.compile(rf"""extra == ["']{re.escape(extra)}["']""")
    wanted = [needed.partition(";")[0].strip() for needed in declared if marker.search(needed)]
    return shlex.join(["pip", "install", *wanted])
