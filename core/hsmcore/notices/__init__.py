"""Telling people: a durable outbox, and its delivery through apprise beside everything else."""

from hsmcore.notices.service import NoticeService

__all__ = ["NoticeService"]
