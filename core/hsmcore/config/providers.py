"""A provider, `{"type": …, "config": {…}}`, wherever the configuration names one, and the members that it becomes."""

from __future__ import annotations

from collections.abc import Iterable
from pkgutil import resolve_name
from typing import Annotated, Any, Final, Self

from pydantic import (
    Field,
    GetJsonSchemaHandler,
    PrivateAttr,
    SerializeAsAny,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)
from pydantic_core import PydanticCustomError, core_schema

from hsmcore.base.extras import install
from hsmcore.config.base import Model, Text
from hsmcore.config.descriptor import ProviderDescriptor, ProviderSettings
from hsmcore.config.registry import descriptor_of, known_types
from hsmcore.errors import ModuleMissing

_NAME: Final = Text(64, form="[!-~]([ -~]*[!-~])?", says="1 to 64 characters of printable ASCII, without spaces around")


class Provider(Model):
    """One provider. `type` decides which keys `config` may have."""

    type: str
    """The type of the provider."""
    config: SerializeAsAny[ProviderSettings] = Field(default_factory=dict, validate_default=True)
    """Settings of the provider; their keys depend on the type."""
    given_name: Annotated[str, _NAME] | None = Field(default=None, alias="name")
    """The member's name in orders, receipts, metrics and logs, unique over all levels. Of a provider with several
    members it is what their names begin with. Default: the type, and what tells the device or key apart."""

    @field_validator("type", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        known = known_types()
        if value not in known:
            names = [f"'{name}'" for name in known]
            expected = f"{', '.join(names[:-1])} or {names[-1]}"
            raise PydanticCustomError("literal_error", "must be {expected}", {"expected": expected})
        descriptor_of(value)
        return value

    @field_validator("config", mode="wrap")
    @classmethod
    def _by_type(cls, value: Any, _handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        # Without a type, `config` cannot be checked; the fault in `type` is reported separately.
        if "type" not in info.data:
            return value
        return descriptor_of(info.data["type"]).settings.model_validate(value, context=info.context)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return the JSON Schema, in which `config` is that of the type's settings."""
        made = super().__get_pydantic_json_schema__(schema, handler)
        whole = handler.resolve_ref_schema(made)
        described = whole["properties"]["config"].get("description", "")
        whole["properties"]["config"] = {"type": "object", "description": described}
        whole["properties"]["type"]["enum"] = list(known_types())
        whole["allOf"] = [
            {
                "if": {"properties": {"type": {"const": name}}, "required": ["type"]},
                "then": {"properties": {"config": handler(descriptor_of(name).settings.referred())}},
            }
            for name in known_types()
        ]
        return made

    _name: str | None = PrivateAttr(default=None)

    def named(self, name: str) -> Self:
        """Return a copy of this name, whatever key its settings name later."""
        copy = self.model_copy()
        copy._name = name  # noqa: SLF001 - a copy of our own
        return copy

    @property
    def name(self) -> str:
        """The member's name in messages, receipts and logs, such as "softhsm:sequencer". Holds no secret."""
        if self._name is not None:
            return self._name
        return self.given_name or _told_apart(self.type, self.config)

    @property
    def descriptor(self) -> ProviderDescriptor:
        """The descriptor of the type."""
        return descriptor_of(self.type)

    @property
    def patience_ms(self) -> int:
        """The longest usual time of one answer of the device, in milliseconds; 0: too short to matter."""
        configured = getattr(self.config, "hang_after_ms", None)
        return self.descriptor.patience_ms if configured is None else int(configured)

    @property
    def install_hint(self) -> str:
        """The advice if the provider's software is missing."""
        hint, extra = self.descriptor.install_hint, self.descriptor.extra
        return f"{hint} Run: {install(extra)}" if extra else hint

    def resolve(self, reference: str) -> Any:
        """Import the object of a reference in the descriptor. Raises ModuleMissing if a package is missing."""
        try:
            return resolve_name(reference)
        except ModuleNotFoundError as error:
            text = f"member {self.name!r}: a provider of type {self.type} needs the package {error.name}"
            raise ModuleMissing(text, member=self.name, hint=self.install_hint) from None


def members_of(provider: Provider) -> tuple[Provider, ...]:
    """Return one provider for each member, in the order of the configuration."""
    parts = provider.config.split()
    if len(parts) == 1:
        return (provider,)
    members = []
    for settings in parts:
        member = Provider.model_construct(type=provider.type, config=settings)
        member.locate(provider.where)
        prefix = provider.given_name
        members.append(member if prefix is None else member.named(_told_apart(prefix, settings)))
    return tuple(members)


def all_members(providers: Iterable[Provider]) -> tuple[Provider, ...]:
    """Return the members of a level."""
    return tuple(member for provider in providers for member in members_of(provider))


def _told_apart(prefix: str, settings: ProviderSettings) -> str:
    if settings.name_part is None:
        return prefix
    # As it is, an invisible character would be redacted in audit records, which are found again by the name.
    part = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in str(settings.name_part))
    return f"{prefix}:{part}"
