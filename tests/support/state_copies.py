"""Backups of state stores, whole in memory."""

from __future__ import annotations

from hsmcore.config import Config
from hsmcore.recovery.restore import back_up
from hsmcore.state.backup import BackupStatement


async def backed_up(config: Config) -> tuple[BackupStatement, bytes]:
    """What a backup says, and its content."""
    async with back_up(config) as (statement, *parts):
        return statement, b"".join(parts)
