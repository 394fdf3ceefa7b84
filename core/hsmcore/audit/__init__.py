"""The tamper-evident audit log: an RFC 6962 Merkle tree over lines of JSON. docs/AUDIT.md describes its files.

Read record (a line), sealer (tree, index, checkpoints), recover (the start after a crash), open_log and log (the
whole), shared (that of several key managers); then query, backwards, retention and check. The file formats are layout,
note, checkpoint, tiles, genuine, segment and index.
"""

from typing import TYPE_CHECKING

from hsmcore.base.lazy import names

if TYPE_CHECKING:
    from hsmcore.audit.log import AuditLog
    from hsmcore.audit.record import caller, tagged

__all__ = ["AuditLog", "caller", "tagged"]

# Loaded when they are used: the process that serves monitoring reads the log's files, and keeps none.
if not TYPE_CHECKING:
    __getattr__ = names(__name__, {"log": ["AuditLog"], "record": ["caller", "tagged"]})
