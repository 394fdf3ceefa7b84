"""Secrets: the place of a PIN or password, never its value."""

from __future__ import annotations

import hmac
import os
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NoReturn

from pydantic import GetJsonSchemaHandler, ValidationInfo, model_validator
from pydantic_core import core_schema

from hsmcore._native import wipe
from hsmcore.base.digests import TokenDigester
from hsmcore.base.log import get_logger
from hsmcore.base.ownership import ownership_of
from hsmcore.config.base import Model, Text, clash, hidden_fault, is_placeholder
from hsmcore.errors import ConfigFault, ConfigurationError, SecretUnavailable

MAX_SECRET_BYTES = 4096
AWS_VARIABLES = frozenset(
    {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN"}
)
"""The environment variables that the AWS SDK reads credentials from."""

_NAME = Text(256, form=r"[A-Za-z_][A-Za-z0-9_]*", says="the name of an environment variable", hidden=True)
_MODE_HINT = (
    "Set it where the volume is described: `mode: 0400` for a Docker secret, `defaultMode: 0400` for a Kubernetes "
    "volume (with an fsGroup it becomes 0440, which is accepted). docs/DEPLOY.md has both."
)
_OWNER_HINT = "Give what is in the folder to the user that runs hsmcore (chown -R), or run hsmcore as its owner."
_ALLOWED = 'must be {"env": "NAME"}, {"file": "path"}, {"awsSecretsManager": {…}} or a string that is not empty'


class AwsSecretsManagerReference(Model):
    """A secret in AWS Secrets Manager: its name or ARN, and the key inside it where it holds a JSON object."""

    secret_id: Annotated[str, Text(2048)]
    """The name or ARN of the secret."""
    key: Annotated[str, Text(256)] | None = None
    """The key whose string is taken, if the secret is a JSON object. Default: the whole secret."""
    region: Annotated[str, Text(64)] | None = None
    """The region. Default: that of the ARN, or the AWS SDK's own settings."""


class SecretReference(Model):
    """The place of a secret: exactly one of the keys."""

    env: Annotated[str, _NAME] | None = None
    """The environment variable that holds the secret."""
    file: Annotated[str, Text(4096, hidden=True)] | None = None
    """The file that holds the secret, for its owner only (mode 0600). A relative path starts at the
    folder of the configuration's file, or, in a dict, at the working directory."""
    aws_secrets_manager: AwsSecretsManagerReference | None = None
    """A secret in AWS Secrets Manager."""

    @model_validator(mode="after")
    def _one(self) -> SecretReference:
        if sum(part is not None for part in (self.env, self.file, self.aws_secrets_manager)) != 1:
            raise clash("must name exactly one of env, file and awsSecretsManager")
        return self


Kind = Literal["plain", "env", "file", "awsSecretsManager"]


class Secret:
    """A reference to a secret, or (kind "plain") one that stands in the configuration itself.

    Its repr, its dump and its errors never show the value. One given in plain refuses to be pickled. Immutable but for
    the JSON path, which the loader sets.
    """

    __slots__ = ("_aws", "_name", "_plain", "_where", "kind")

    kind: Kind

    def __init__(
        self, kind: Kind, *, name: str = "", plain: str = "", aws: AwsSecretsManagerReference | None = None
    ) -> None:
        self.kind = kind
        self._name = name
        self._plain = plain
        self._aws = aws
        self._where = "$"

    @classmethod
    def plain(cls, value: str) -> Secret:
        """A secret that is already known; raises ValueError for an empty one."""
        if not value:
            raise ValueError("a secret cannot be empty")
        return cls("plain", plain=value)

    @classmethod
    def env(cls, name: str) -> Secret:
        """A secret in the environment variable `name`, read whenever it is resolved."""
        return cls("env", name=name)

    @classmethod
    def file(cls, path: str) -> Secret:
        """A secret in the file `path` (relative to the working directory), read whenever it is resolved."""
        return cls("file", name=path)

    def moved(self, path: str) -> Secret:
        """Return this secret of a file as that of another file, at the same place of the configuration. For the
        loader."""
        return _restore("file", path, None, self._where)

    @property
    def where(self) -> str:
        """The JSON path of this secret in the configuration."""
        return self._where

    def locate(self, path: str) -> None:
        """Set `where`. For the loader."""
        self._where = path

    @property
    def is_placeholder(self) -> bool:
        """Whether this is an example's blank in plain text, such as `<password>`, or the "<hidden>" of a dump. It is
        never sent to a token: that would cost one of the few attempts that a PIN has."""
        return is_placeholder(self._plain)

    @property
    def variable(self) -> str | None:
        """The environment variable that holds the secret, or None."""
        return self._name if self.kind == "env" else None

    @property
    def path(self) -> str | None:
        """The file that holds the secret, or None."""
        return self._name if self.kind == "file" else None

    @property
    def asks_aws(self) -> bool:
        """Whether `resolve` asks AWS Secrets Manager, which takes up to half a minute."""
        return self._aws is not None

    def describe(self) -> str:
        """Where the secret is, for a person: "environment variable HSM_PIN". Never its value."""
        if self.kind == "plain":
            return f"the plain text at {self._where}"
        if self._aws is not None:
            return f"AWS Secrets Manager secret {self._aws.secret_id}"
        return f"environment variable {self._name}" if self.kind == "env" else f"file {self._name}"

    def redacted(self) -> Any:
        """Return the form of a dump: the reference as it was given, or "<hidden>"."""
        if self.kind == "plain":
            return "<hidden>"
        if self._aws is not None:
            return {"awsSecretsManager": self._aws.model_dump(by_alias=True, exclude_none=True)}
        return {self.kind: self._name}

    def resolve(self) -> bytearray:
        """Fetch the secret. The caller owns the bytearray and must wipe it. May read a file or ask AWS, which takes up
        to half a minute: keep off event loops.

        One newline at the end is dropped, but for a plain one. Raises SecretUnavailable, which names the JSON path and
        the variable, file or secret.
        """
        if self.kind == "plain":
            if self.is_placeholder:
                self._fail("is a placeholder: put in a reference to the real secret")
            return bytearray(self._plain.encode())
        if self._aws is not None:
            found = self._from_aws(self._aws)
        else:
            found = self._from_env() if self.kind == "env" else self._from_file()
        if found.endswith(b"\n"):
            del found[-1:]
            if found.endswith(b"\r"):
                del found[-1:]
        if not found:
            self._fail(f"{self.describe()} is empty")
        return found

    def _from_env(self) -> bytearray:
        value = os.environb.get(os.fsencode(self._name))
        if value is None:
            self._fail(f"environment variable {self._name} is not set")
        return bytearray(value)

    def _from_file(self) -> bytearray:
        try:
            # Non-blocking, so that a pipe put there by mistake cannot hang the start.
            descriptor = os.open(self._name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            problem, hint = f"file {self._name} cannot be opened: {os.strerror(error.errno or 0)}", None
            if isinstance(error, PermissionError):
                hint = f"{ownership_of(Path(self._name))}. {_OWNER_HINT}"
            self._fail(problem, hint)
        try:
            self._check_file(os.fstat(descriptor), descriptor)
            buffer = bytearray(MAX_SECRET_BYTES + 1)
            try:
                # Straight into memory that can be wiped: no bytes object is made of it on the way.
                length = os.readv(descriptor, [buffer])
                if length > MAX_SECRET_BYTES:
                    self._fail(f"file {self._name} is longer than {MAX_SECRET_BYTES} bytes")
                return buffer[:length]
            finally:
                buffer[:] = bytes(len(buffer))
        finally:
            os.close(descriptor)

    def _from_aws(self, reference: AwsSecretsManagerReference) -> bytearray:
        from hsmcore.config.secretsmanager import SecretProblem, fetch

        problem = ""
        try:
            return fetch(reference.secret_id, key=reference.key, region=reference.region)
        except SecretProblem as error:
            problem = str(error)
        # Raised out here, so that no error of the AWS SDK, with a response in its frames, is this one's context.
        return self._fail(f"{self.describe()}: {problem}")

    def _check_file(self, status: os.stat_result, descriptor: int) -> None:
        mode = status.st_mode
        if (mode & 0o170000) != 0o100000:
            self._fail(f"{self._name} is not a regular file")
        if mode & 0o006:
            problem = f"file {self._name} is open to everyone (mode {mode & 0o777:04o})"
            if _is_mounted_so(self._name, descriptor):
                self._fail(f"{problem}, as its volume is mounted", hint=_MODE_HINT)
            self._fail(f"{problem}: run chmod 600 on it")
        if mode & 0o060 and not _is_lent(status):
            get_logger().warning("secret file is open to its group", path=self._where, file=self._name)

    def _fail(self, problem: str, hint: str | None = None) -> NoReturn:
        raise SecretUnavailable.of([ConfigFault(self._where, problem)], source="secret", hint=hint)

    def __repr__(self) -> str:
        return "Secret(plain, hidden)" if self.kind == "plain" else f"Secret({self.describe()})"

    __str__ = __repr__

    def __format__(self, _spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return (self.kind, self._name, self._aws) == (other.kind, other._name, other._aws) and hmac.compare_digest(
            self._plain.encode(), other._plain.encode()
        )

    def __hash__(self) -> int:
        return hash((self.kind, self._name, self._aws))

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, _memo: object) -> Secret:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self.kind == "plain":
            raise TypeError("a secret given in plain is not pickled: that would write it out")
        return _restore, (self.kind, self._name, self._aws, self._where)

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: Any, _handler: Any) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(
            _validated, serialization=core_schema.plain_serializer_function_ser_schema(Secret.redacted)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler(SecretReference.referred()), {"type": "string", "minLength": 1}]}


def _is_mounted_so(path: str, descriptor: int) -> bool:
    """Whether a file's mode is a container platform's, which chmod does not change: on a read-only file system, below
    Docker's /run/secrets, or behind the ..data link of a Kubernetes volume."""
    if os.fstatvfs(descriptor).f_flag & os.ST_RDONLY:
        return True
    return Path(path).resolve().is_relative_to("/run/secrets") or Path(path).with_name("..data").is_symlink()


def _is_lent(status: os.stat_result) -> bool:
    """Whether this process reads a file of root's, which only root can have put there: by its group, as Kubernetes
    mounts secrets with an fsGroup (0440), or by an access list, as systemd gives credentials."""
    return status.st_uid == 0 != os.geteuid() and not status.st_mode & 0o020


def _restore(kind: Kind, name: str, aws: AwsSecretsManagerReference | None, where: str) -> Secret:
    secret = Secret(kind, name=name, aws=aws)
    secret.locate(where)
    return secret


def _validated(value: object, info: ValidationInfo) -> Secret:
    if isinstance(value, Secret):
        return value
    if isinstance(value, str) and value:
        if any(0xD800 <= ord(character) < 0xE000 for character in value):
            raise hidden_fault("must be a string that can be written as UTF-8")
        return Secret.plain(value)
    if not isinstance(value, dict):
        raise hidden_fault(_ALLOWED)
    if not value:
        raise clash(_ALLOWED)
    reference = SecretReference.model_validate(value, context=info.context)
    if reference.env is not None:
        return Secret.env(reference.env)
    if reference.file is not None:
        return Secret.file(reference.file)
    return Secret("awsSecretsManager", aws=reference.aws_secrets_manager)


MIN_TOKEN_BYTES: Final = 20
"""Shortest accepted token. `openssl rand -hex 32` makes 64 characters; a token shorter than this can be guessed."""


class TokenDigests(TokenDigester):
    """Those of tokens that the configuration names, too."""

    def of_secret(self, secret: Secret) -> bytes:
        """Fetch a token and return its digest; the token is wiped. May block. Raises SecretUnavailable, and
        ConfigurationError for one that is too short or cannot stand in a header."""
        token = secret.resolve()
        try:
            if len(token) < MIN_TOKEN_BYTES or any(not 0x20 < byte < 0x7F for byte in token):
                problem = f"must be at least {MIN_TOKEN_BYTES} printable ASCII characters without spaces"
                hint = "Make one with: openssl rand -hex 32"
                raise ConfigurationError.of([ConfigFault(secret.where, problem)], hint=hint)
            return self.of(token)
        finally:
            wipe(token)
