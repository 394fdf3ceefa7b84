"""What a flush costs by itself: a line of the audit log's length appended to a file beside it, and fdatasync."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from hsmcore_bench.suite.child.protocol import Job
from hsmcore_bench.suite.child.threads import threaded_slice

LINE_BYTES = 640


class Flushing:
    """One thread, one flush after the other. Nothing is signed."""

    def __init__(self, job: Job) -> None:
        self._file = os.open(job.audit_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._line = bytes(LINE_BYTES)

    def describe(self) -> Mapping[str, Any]:
        return {}

    def run(self, seconds: float) -> Mapping[str, Any]:
        return threaded_slice([self._flush], seconds)

    def _flush(self) -> None:
        os.write(self._file, self._line)
        os.fdatasync(self._file)

    def close(self) -> None:
        os.close(self._file)
