"""`hsmcore gateway` in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired
from tempfile import TemporaryDirectory
from typing import Any, Final

import orjson

from hsmcore_bench.harness.process import ChildError

_PROGRAM: Final = (
    "import sys; from hsmcore_bench.harness.parent import die_with_parent; die_with_parent(); "
    "from hsmcore.cli import main; sys.exit(main())"
)
_END_SECONDS: Final = 20.0


@contextmanager
def gateway_process(document: Mapping[str, Any], rules: Mapping[str, Any]) -> Iterator[str]:
    """Run a gateway for key managers of this configuration and one client with these rules. Yields its address. Raises
    ChildError."""
    with TemporaryDirectory(prefix="hsmcore-bench-") as name:
        address, path = f"unix:{name}/sign.sock", Path(name) / "gateway.json"
        path.write_bytes(orjson.dumps({**document, "gateway": {"listen": [address], "clients": {"bench": rules}}}))
        process = Popen([sys.executable, "-P", "-c", _PROGRAM, "gateway", "--config", str(path), "--json"], stdout=PIPE)
        try:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise ChildError(f"the gateway ended with {process.wait()}")
            yield address
        finally:
            process.terminate()
            try:
                process.wait(_END_SECONDS)
            except TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
