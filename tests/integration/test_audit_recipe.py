"""The recipe in docs/AUDIT.md, run as it stands there."""

from __future__ import annotations

import asyncio
import re
import subprocess
from pathlib import Path

from tests.support.audit_logs import copy_of, keys_of, write_log

PAGE = Path(__file__).parents[2] / "docs" / "AUDIT.md"


def test_an_auditor_needs_only_public_tools(tmp_path):
    layout = asyncio.run(write_log(tmp_path / "log" / "audit.log", 700))
    copy = copy_of(layout, tmp_path / "copy")
    [key] = keys_of(layout)
    recipe = PAGE.read_text().partition("## The auditor's recipe")[2]
    signed, records = re.findall(r"```sh\n(.*?)```", recipe, re.DOTALL)[:2]
    script = re.sub(r"'name\+[^']*'", f"'{key}'", signed) + records
    done = subprocess.run(
        ["bash", "-euc", script], cwd=copy.log.parent, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    root = layout.checkpoint.read_text().splitlines()[2]
    assert done.stdout.splitlines() == ["Signature Verified Successfully", root, root, "700"]

    copy.log.write_bytes(copy.log.read_bytes().replace(b'"result":"ok"', b'"result":"no"', 1))
    done = subprocess.run(
        ["bash", "-euc", script], cwd=copy.log.parent, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.splitlines()[1] != root
