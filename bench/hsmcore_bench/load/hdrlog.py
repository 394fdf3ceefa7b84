"""HdrHistogram logs, version 1.2 of the format with V2 histograms, which HdrHistogram's own tools read. The library's
own writer knows no tags, and none of its headings can be written."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from hsmcore_bench.load.buckets import Histogram
from hsmcore_bench.load.problems import UsageProblem

_MS = 1e6


class HdrLog:
    """Writes an interval's histograms, in nanoseconds, each under its tag."""

    def __init__(self, path: Path) -> None:
        """Raises UsageProblem if the file can't be made."""
        try:
            self._file: TextIO = path.open("w", encoding="ascii")
        except OSError as error:
            raise UsageProblem(f"--hdr {path}: {error.strerror}") from None

    def begin(self, began: float) -> None:
        """Write the heading; `began` is the Unix time that intervals are counted from."""
        self._file.write(
            "#[Histogram log format version 1.2]\n"
            f"#[StartTime: {began:.3f} (seconds since epoch)]\n"
            f"#[BaseTime: {began:.3f} (seconds since epoch)]\n"
            "#[Values: nanoseconds; maxima in milliseconds]\n"
            '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"\n'
        )

    def write(self, start: float, end: float, histograms: Mapping[str, Histogram]) -> None:
        """One interval, in seconds from the start of the run."""
        for tag, histogram in histograms.items():
            largest = (histogram.percentile(100.0) or 0) / _MS
            self._file.write(f"Tag={tag},{start:.3f},{end - start:.3f},{largest:.3f},{histogram.encoded()}\n")
        self._file.flush()  # another process may read it as it grows

    def close(self) -> None:
        """Write what is left."""
        with contextlib.suppress(OSError):
            self._file.close()
