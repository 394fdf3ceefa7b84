"""`hsmcore gateway` in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired
from tempfile import TemporaryDirectory
from typing import Any, Final

import orjson

from hsmcore.members.control.process import python
from hsmcore_bench.harness.certificate import Certificate
from hsmcore_bench.harness.process import ChildError

_PROGRAM: Final = (
    "import sys; from hsmcore_bench.harness.parent import die_with_parent; die_with_parent(); "
    "from hsmcore.cli import main; sys.exit(main())"
)
_END_SECONDS: Final = 20.0


@contextmanager
def gateway_process(
    document: Mapping[str, Any],
    clients: Mapping[str, Any],
    faces: Sequence[str] = (),
    files: Certificate | None = None,
    secrets: Mapping[str, str] | None = None,
) -> Iterator[tuple[list[str], int]]:
    """Run a gateway for key managers of this configuration and these clients. Yields its addresses, of a Unix socket
    and of these faces on ports of their own, which need the `files`; and its process id. `secrets`: variables of its
    environment. Raises ChildError."""
    with TemporaryDirectory(prefix="hsmcore-bench-") as name:
        path = Path(name) / "gateway.json"
        block: dict[str, Any] = {"listen": [f"unix:{name}/sign.sock"], "clients": clients}
        if files is not None:
            block["listen"] += [f"{face}:127.0.0.1:0" for face in faces]
            shown = {"certificateFile": files.certificate, "keyFile": files.key}
            block["tls"] = {**shown, "clientCaFile": files.certificate}
        path.write_bytes(orjson.dumps({**document, "gateway": block}))
        command = python("-c", _PROGRAM, "gateway", "--config", str(path), "--json")
        process = Popen(command, stdout=PIPE, env={**os.environ, **(secrets or {})})
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise ChildError(f"the gateway ended with {process.wait()}")
            yield orjson.loads(line)["addresses"], process.pid
        finally:
            process.terminate()
            try:
                process.wait(_END_SECONDS)
            except TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
