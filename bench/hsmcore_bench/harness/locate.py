"""Where the native programs and modules that come with hsmcore are."""

from __future__ import annotations

import os
from pathlib import Path

import hsmcore

PACKAGE = Path(hsmcore.__file__).resolve().parent
BIN_DIR_ENV = "HSMCORE_BIN_DIR"  # looked at first: for a build that isn't installed

RAW_SIGN = "hsmcore-rawsign"
CACHE_LOOKUP = "hsmcore-cachebench"
HAND_OVER = "hsmcore-handover"
CHAOS_MODULE = "libhsmcore_chaos.so"
CHAOS_CONFIG_ENV = "HSMCORE_CHAOS_CONFIG"  # the file that the chaos module reads
NOOP_MODULE = "libhsmcore_noop.so"
SOFTHSM_MODULE = "/usr/lib/softhsm/libsofthsm2.so"


def native(name: str) -> Path | None:
    """What the build put beside the package, or None. HSMCORE_BIN_DIR comes before it."""
    override = os.environ.get(BIN_DIR_ENV)
    for directory in ([Path(override)] if override else []) + [PACKAGE / "_bin"]:
        if (directory / name).is_file():
            return directory / name
    return None
