"""What a configuration asks of a module, for the checks."""

from __future__ import annotations

from dataclasses import asdict

from hsmcore.config import Pkcs11Settings
from hsmcore.control.records import TokenSelector
from hsmcore.doctor.context import Question


def question(settings: Pkcs11Settings, member: str) -> Question:
    """What a configuration says of module, token and key."""
    return Question(
        member=member,
        module_path=settings.module_path,
        module_args=settings.initialize_args,
        quirks=settings.quirks,
        token=asdict(TokenSelector.of(settings)),
        key_label=settings.key_label,
        key_id=settings.key_id,
        key_handle=settings.key_handle_number(),
        algorithm=settings.algorithm,
        public_key=settings.public_key,
        sessions=settings.sessions,
        isolation=settings.isolation,
        has_pin=settings.pin_secret is not None,
    )
