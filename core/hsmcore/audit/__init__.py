"""The tamper-evident audit log; docs/AUDIT.md describes its files and how to check them.

Reading order: record (what is written), sealer (tree, index, checkpoints), recover (after a crash),
log (all of it together); then query, verify, prove, retention. layout, note, checkpoint, tiles, segment and index are
the files.
"""

from hsmcore.audit.log import AuditLog
from hsmcore.audit.record import tagged

__all__ = ["AuditLog", "tagged"]
