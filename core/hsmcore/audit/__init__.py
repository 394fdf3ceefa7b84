"""The tamper-evident audit log; docs/AUDIT.md describes its files and how to check them.

Reading order: record (what is written), sealer (tree, index, checkpoints), recover (after a crash), log (all of it
together); then query, retention, and check. The files are layout, note, checkpoint, tiles, genuine, segment and index.
"""

from hsmcore.audit.log import AuditLog
from hsmcore.audit.record import tagged

__all__ = ["AuditLog", "tagged"]
