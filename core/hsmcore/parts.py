"""What a key manager is made of at one moment, for those who watch it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from hsmcore.audit import AuditLog
    from hsmcore.config import Config
    from hsmcore.failover.service import FailoverService
    from hsmcore.keyring import KeyVersion
    from hsmcore.members import Member
    from hsmcore.rotation.service import RotationService


class Parts(NamedTuple):
    """References, no copies: whoever reads them in another thread than the event loop's changes and calls nothing that
    belongs to the loop."""

    config: Config
    open: bool
    member: Member | None
    failover: FailoverService | None
    rotation: RotationService | None
    audit: AuditLog
    key: KeyVersion | None
