"""Settings of the state store's backups."""

from __future__ import annotations

from typing import Annotated

from pydantic import field_validator

from hsmcore.config.base import EndpointUrl, Model, Text, Whole
from hsmcore.config.rotation import backup_place


class StateBackup(Model):
    """`stateBackup`: the state store is backed up every `everyHours` hours into `location`, and the newest backup is
    restored into a temporary place every `drillHours` hours."""

    PATHS = frozenset({"location"})

    location: Annotated[str, Text(2048, hidden=True)]
    """The place of the backups: a folder, or s3://, gs://, az:// or file://."""
    endpoint_url: EndpointUrl | None = None
    """Another S3 endpoint than the region's public one."""
    every_hours: Annotated[int, Whole(1, 8760)] = 1
    """Hours between two backups."""
    drill_hours: Annotated[int, Whole(1, 8760)] = 24
    """Hours between two restores of the newest backup into a temporary place."""

    @field_validator("location")
    @classmethod
    def _place_is_known(cls, value: str) -> str:
        return backup_place(value)
