"""The source tree and the modules of the build."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("HSMCORE_BUILD_DIR") or ROOT / "core" / "hsmcore" / "_bin")
CHAOS = BIN / "libhsmcore_chaos.so"
NOOP = BIN / "libhsmcore_noop.so"
CHAOS_SOURCE = ROOT / "bench" / "native" / "chaos"
PROFILES = CHAOS_SOURCE / "profiles"
