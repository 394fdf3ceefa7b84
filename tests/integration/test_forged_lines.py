"""Whatever line another writer appends to the audit log of a sealed store at rest: it stops no start, ends no domain,
is believed by nobody, and `audit verify` goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator

import pytest
from tests.support.loops import one_loop
from tests.support.managers import opened
from tests.support.policed import ordered
from tests.support.state_rollbacks import config_of

from hsmcore.audit.check.verify import verify
from hsmcore.audit.layout import Layout
from hsmcore.config import load
from hsmcore.errors import DoubleSign
from hsmcore.recovery.reconcile import reconcile

pytestmark = pytest.mark.integration
OTHER = hashlib.sha256(b"what nobody signed").hexdigest()
FAR = 4_102_444_800_000_000_000
OPERATIONS = (
    "sign", "verify", "state-mark", "state-behind", "state-backup", "emergency-reset", "emergency-entered",
    "emergency-exhausted", "key-rotated", "rotation-begun", "rotation-failed", "set-current-key", "generate-key",
    "deactivate-key", "configuration-load", "clock-step", "audit-prune", "audit-void", "audit-recovered", "audit-lost",
    "audit-key", "audit-adopted", "command", "failover", "member-down", "login", "open", "close",
)  # fmt: skip
VALUES = {
    "position": (1 << 62, 4, 2, 0, -1, "4", None, 1e9, True, [4], 1 << 70),
    "domain": ("other/block", "default/block ", "", 7, None, "a" * 300),
    "message_sha256": (OTHER, "zz", "", 5, None),
    "mac": ("", "ab", 7, None, "é" * 8),
    "time_ns": (0, -5, FAR, "1", None, 1.5),
    "level": ("emergency", 3),
    "public_key": ("aa" * 32, "zz", None),
    "result": ("error", "ok", None),
    "error": ("DEADLINE_EXCEEDED", 1),
    "state": ("00" * 16, "", 9),
    "process": ({}, "other", None),
}
"""Of a record of a signature with a position."""
TEXTS = (
    b"", b"{}", b"null", b"[]", b"\0" * 64, b"\xff\xfe", b"not JSON", b'{"seq":', b"{" * 4000, b"[" * 4000,
    b"a" * 70_000, b'{"seq":"%(seq)d","time_ns":1,"operation":"sign"}', b'{"seq":1,"time_ns":1,"operation":"sign"}',
    b'{"seq":%(more)d,"time_ns":1,"operation":"sign"}', b'{"seq":%(seq)d,"time_ns":1,"operation":""}',
    b'{"seq":%(seq)d,"time_ns":1e400,"operation":"sign"}', b'{"seq":%(seq)d, "time_ns":1,"operation":"sign"}',
    b'{"time_ns":1,"seq":%(seq)d,"operation":"sign"}',
    b'{"seq":%(seq)d,"time_ns":1,"operation":"sign","position":4,"position":5}',
)  # fmt: skip


def shapes(like: dict[str, object]) -> Iterator[tuple[str, bytes]]:
    """Yield names and lines, made of a record of a signature; the last number is `seq`."""
    whole = like | {"seq": int(str(like["seq"])), "time_ns": time.time_ns()}

    def line(record: dict[str, object]) -> bytes:
        return json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode(errors="surrogatepass")

    for name, values in VALUES.items():
        for value in values:
            yield f"{name}={value!r:.20}", line(whole | {name: value})
        yield f"without {name}", line({key: value for key, value in whole.items() if key != name})
    for operation in OPERATIONS:
        yield operation, line(whole | {"operation": operation})
        bare = {"seq": whole["seq"], "time_ns": FAR, "operation": operation, "first": 1, "last": 3, "records": 3}
        yield f"{operation}, far ahead", line(bare | {"to_ns": FAR, "state": "00" * 16, "domain": "default/block"})
        yield (
            f"{operation}, a floor",
            line(bare | {"command": "policy floor set", "floor": 1 << 40, "position": 1 << 40}),
        )
    for number, text in enumerate(TEXTS):
        seq = int(str(whole["seq"]))
        yield f"text {number}", text % {b"seq": seq, b"more": seq + 9} if b"%(" in text else text
        yield f"text {number}, no end", (text % {b"seq": seq, b"more": seq + 9} if b"%(" in text else text) + b"\\"


def test_there_are_enough():
    like = dict.fromkeys(VALUES, 1) | {"seq": 9}
    assert len(list(shapes(like))) >= 180


@one_loop
@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.deep) for part in range(1, 12))])
async def test_no_line_stops_a_start_ends_a_domain_or_is_believed(tmp_path, part):
    config, home = config_of(tmp_path / "a"), tmp_path / "a"
    home.mkdir(mode=0o700)
    async with opened(config) as manager:
        for position in (1, 2, 3):
            await manager.sign(ordered(position))
    layout = Layout(home / "audit.log")
    lines = [json.loads(line) for line in layout.log.read_bytes().splitlines()]
    like = next(record for record in reversed(lines) if record["operation"] == "sign") | {"seq": lines[-1]["seq"] + 1}
    shutil.copytree(home, tmp_path / "whole")
    wrong = []
    for name, text in [*shapes(like)][part::12]:
        shutil.rmtree(home)
        shutil.copytree(tmp_path / "whole", home)
        with layout.log.open("ab") as file:
            file.write(text if text.endswith(b"\\") else text + b"\n")
        try:
            async with opened(config) as manager:
                await manager.sign(ordered(4))
                for position, content in ((2, b"another"), (4, b"another")):
                    with pytest.raises(DoubleSign):
                        await manager.sign(ordered(position, content))
            done = await reconcile(load(config), ring_compared=True)
            assert (done["added"], done["conflicts"], done["floors"]) == (0, [], {})
            assert done["emergencySignatures"] == done["keyBindings"] == 0
            async with opened(config) as manager:
                await manager.sign(ordered(5))
            report = verify(layout)
            # Who can append may have the log say that it was adopted, which a verifier is told; and nothing else.
            told = {"adopted"} if name.startswith("audit-adopted") else set()
            assert {finding.kind for finding in report.findings} <= told, report.findings
        except Exception as error:  # noqa: BLE001  # each shape is tried
            wrong.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
    # A whole record of another number is what is left of a log from which records were cut: such a log is refused.
    assert [each for each in wrong if not each.startswith(("text 12: AuditUn", "text 13: AuditUn"))] == []
