"""A very long audit log, made quickly: the lines as the writer leaves them, sealed as they are in service."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

from hsmcore.audit.layout import Layout
from hsmcore.audit.recover import add_key, open_log
from hsmcore.audit.sealer import Sealer
from hsmcore.audit.segment import segments
from hsmcore.audit.signers import FileSigner
from hsmcore.tlog.checkpoint import Checkpoint
from hsmcore.tlog.note import signed

SEGMENT_BYTES = 256 << 20
BEGIN_NS = 1_790_000_000_000_000_000
STEP_NS = 10_000_000
"""Between two records: a hundred a second."""


def write_volume(path: Path, records: int, *, checkpoint_every: int = 100_000) -> Layout:
    """A log of `records` signatures, with a login every 100,000."""
    layout = Layout(path)
    layout.folder.mkdir(parents=True)
    opened = open_log(layout, "example.com/volume")
    opened.sealer.close()
    signer = FileSigner.load(layout.default_key, opened.origin)
    add_key(layout, signer.key)
    _write_lines(layout, records)
    sealer = Sealer(layout, segments(layout)[0], 0)
    for size in [*range(checkpoint_every, records, checkpoint_every), records]:
        sealer.advance(size)
        bare = sealer.finish(opened.origin)
        note = signed(bare.text, signer.key, asyncio.run(signer.sign(bare.text)))
        sealer.store(Checkpoint(bare.origin, bare.size, bare.root, note))
        sealer.compress_full(lambda size=size: size)
    sealer.close()
    return layout


def _write_lines(layout: Layout, records: int) -> None:
    first, written = 1, 0
    file = layout.log.open("wb", buffering=1 << 20)
    for seq in range(1, records + 1):
        digest = hashlib.sha256(seq.to_bytes(8, "big")).hexdigest()
        operation = "login" if seq % 100_000 == 0 else "sign"
        line = (
            f'{{"seq":{seq},"time_ns":{BEGIN_NS + seq * STEP_NS},"operation":"{operation}","message_sha256":"{digest}",'
            f'"message_bytes":200,"result":"ok","signature":"{digest[::-1]}{digest}","key_id":"{"0a" * 16}",'
            f'"public_key":"{"5b" * 32}","member":"softhsm:token","level":"primary","cached":false,"latency_ns":123456,'
            f'"user":"sequencer","source":{{"hostname":"sequencer-1","pid":4711,"ip":"192.0.2.2"}}}}\n'
        ).encode()
        if written + len(line) > SEGMENT_BYTES:
            file.close()
            layout.log.rename(layout.archived(first, compressed=False))
            file, first, written = layout.log.open("wb", buffering=1 << 20), seq, 0
        file.write(line)
        written += len(line)
    file.close()
