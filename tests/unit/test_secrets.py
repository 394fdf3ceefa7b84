"""A secret is found where the configuration says, and shows up nowhere else."""

from __future__ import annotations

import copy
import io
import json
import logging
import os
import pickle
import string
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from hsmcore.base import log
from hsmcore.config import Config, Secret, load, secretsmanager
from hsmcore.errors import ConfigurationError, SecretUnavailable
from hsmcore.providers.yubihsm.settings import YubiHsmSettings

# Long and of one alphabet, so that it cannot stand in an output by chance.
SECRETS = st.text(string.ascii_uppercase + string.digits, min_size=12, max_size=40).map(lambda text: f"zq{text}")


@pytest.fixture(autouse=True)
def _structlog_as_it_was() -> Iterator[None]:
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


def softhsm(**changes: Any) -> dict[str, Any]:
    config = {"tokenLabel": "sequencer", "keyLabel": "sequencer-key", "pin": {"env": "HSM_PIN"}, **changes}
    return {"keyManager": {"type": "softhsm", "config": config}}


def pin_of(config: Config) -> Secret:
    settings = config.key_manager.config
    secret = getattr(settings, "pin_secret", None)
    assert isinstance(secret, Secret)
    return secret


def secret_file(folder: Path, content: bytes, mode: int = 0o600) -> Path:
    path = folder / "pin"
    path.write_bytes(content)
    path.chmod(mode)
    return path


# ---- resolving -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"1234", b"1234"),
        (b"1234\n", b"1234"),
        (b"1234\r\n", b"1234"),
        (b"1234\n\n", b"1234\n"),
        (b" 12 34 ", b" 12 34 "),
        (b"\xff\xfe", b"\xff\xfe"),
    ],
)
def test_a_variable_and_a_file_give_the_same(
    content: bytes, expected: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HSM_PIN", os.fsdecode(content))
    for secret in (Secret.env("HSM_PIN"), Secret.file(str(secret_file(tmp_path, content)))):
        resolved = secret.resolve()
        assert isinstance(resolved, bytearray)
        assert resolved == expected


def test_each_caller_gets_its_own_copy_to_wipe() -> None:
    secret = Secret.plain("1234")
    first = secret.resolve()
    first[:] = bytes(len(first))
    assert secret.resolve() == b"1234"


def test_an_unset_variable_is_named_with_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HSM_PIN", raising=False)
    secret = pin_of(load({"sequencer": softhsm()}))
    with pytest.raises(SecretUnavailable) as caught:
        secret.resolve()
    assert str(caught.value) == "secret: $.sequencer.keyManager.config.pin: environment variable HSM_PIN is not set"
    assert caught.value.path == "$.sequencer.keyManager.config.pin"


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n"])
def test_an_empty_secret_is_refused(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HSM_PIN", content.decode())
    for secret in (Secret.env("HSM_PIN"), Secret.file(str(secret_file(tmp_path, content)))):
        with pytest.raises(SecretUnavailable, match="is empty"):
            secret.resolve()
    with pytest.raises(ValueError, match="cannot be empty"):
        Secret.plain("")


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o606, 0o644, 0o666])
def test_a_world_readable_file_is_refused(mode: int, tmp_path: Path) -> None:
    with pytest.raises(SecretUnavailable, match=r"open to everyone \(mode 0[0-7]{3}\): run chmod 600"):
        Secret.file(str(secret_file(tmp_path, b"1234", mode))).resolve()


def test_a_group_readable_file_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Secret.file(str(secret_file(tmp_path, b"1234", 0o640))).resolve() == b"1234"
    assert "open to its group" in caplog.text
    caplog.clear()
    assert Secret.file(str(secret_file(tmp_path, b"1234", 0o400))).resolve() == b"1234"
    assert not caplog.text


def resolved_by_4711(folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    """A process of another user that reads a secret from a file in `folder`, and exits with the hint if it may not."""
    program = (
        "import os, sys\n"
        "from hsmcore.config.secret import Secret\n"
        "os.setgroups([]); os.setgid(4711); os.setuid(4711)\n"
        f"try: Secret.file({name!r}).resolve()\n"
        "except Exception as error: sys.exit(error.hint)\n"
    )
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="makes files of root's and reads them as another user")
@pytest.mark.parametrize("folder_mode", [0o700, 0o711])
def test_a_file_of_another_user_is_said_to_be_that(tmp_path: Path, folder_mode: int) -> None:
    tmp_path.chmod(0o711)
    folder = tmp_path / "folder"
    folder.mkdir()
    path = secret_file(folder, b"1234", 0o600)
    folder.chmod(folder_mode)
    done = resolved_by_4711(tmp_path, "folder/pin")
    place, mode = (folder, "0700") if folder_mode == 0o700 else (path, "0600")
    assert f"{place} belongs to root (mode {mode}), and this process runs as uid 4711. Give what" in done.stderr


def test_a_mode_that_a_platform_has_set_comes_with_what_to_do_there(tmp_path: Path) -> None:
    """Kubernetes: the file of a volume is a link through ..data, with mode 0644 unless told otherwise."""
    (tmp_path / "..2026_11_28").mkdir()
    secret_file(tmp_path / "..2026_11_28", b"1234", 0o644)
    (tmp_path / "..data").symlink_to("..2026_11_28")
    (tmp_path / "pin").symlink_to("..data/pin")
    with pytest.raises(SecretUnavailable, match="as its volume is mounted") as caught:
        Secret.file(str(tmp_path / "pin")).resolve()
    assert "defaultMode: 0400" in caught.value.hint
    assert "chmod" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="makes files of root's and reads them as another user")
@pytest.mark.parametrize(
    ("owner", "group", "mode", "warned"),
    [(0, 4711, 0o440, False), (0, 4711, 0o460, True), (4711, 4711, 0o440, True), (0, 4712, 0o440, None)],
)
def test_the_group_of_a_file_of_roots_may_be_how_it_is_read(
    tmp_path: Path, owner: int, group: int, mode: int, warned: bool | None
) -> None:
    """As Kubernetes mounts secrets with an fsGroup. None: it cannot be read at all."""
    path = secret_file(tmp_path, b"1234", mode)
    os.chown(path, owner, group)
    tmp_path.chmod(0o711)
    done = resolved_by_4711(tmp_path, "pin")
    assert (done.returncode == 0) is (warned is not None), done.stderr
    assert ("open to its group" in done.stderr + done.stdout) is bool(warned)


def test_what_is_no_readable_file_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(SecretUnavailable, match="cannot be opened: No such file"):
        Secret.file(str(tmp_path / "absent")).resolve()
    with pytest.raises(SecretUnavailable, match="is not a regular file"):
        Secret.file(str(tmp_path)).resolve()
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(SecretUnavailable, match="is not a regular file"):
        Secret.file(str(tmp_path / "pipe")).resolve()
    with pytest.raises(SecretUnavailable, match="longer than 4096 bytes"):
        Secret.file(str(secret_file(tmp_path, b"x" * 4097))).resolve()


def test_reading_leaves_no_descriptor_open(tmp_path: Path) -> None:
    good, bad = secret_file(tmp_path, b"1234"), tmp_path / "dir"
    bad.mkdir()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(8):
        Secret.file(str(good)).resolve()
        with pytest.raises(SecretUnavailable):
            Secret.file(str(bad)).resolve()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


# ---- what the login gets ---------------------------------------------------------------------------------------------


def test_cloudhsm_joins_user_and_password() -> None:
    config = {"username": "sequencer-üser", "password": "päss:word", "keyLabel": "k"}
    settings = load({"keyManager": {"type": "aws-cloudhsm", "config": config}}).key_manager.config
    assert settings.resolve_pin() == "sequencer-üser:päss:word".encode()  # type: ignore[union-attr]


def test_yubihsm_joins_key_id_and_password() -> None:
    config = {"authKeyId": 10, "password": "password", "keyLabel": "k", "connectors": ["http://a:1", "yhusb://"]}
    settings = load({"keyManager": {"type": "yubihsm", "config": config}}).key_manager.config
    assert isinstance(settings, YubiHsmSettings)
    assert bytes(settings.resolve_pin() or b"") == b"000apassword"
    assert settings.initialize_args == "connector=http://a:1 connector=yhusb://"


def test_a_module_may_need_no_login() -> None:
    config = {"modulePath": "/m.so", "keyLabel": "k"}
    settings = load({"keyManager": {"type": "pkcs11", "config": config}}).key_manager.config
    assert settings.resolve_pin() is None  # type: ignore[union-attr]


# ---- what is accepted as a secret ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "path", "problem"),
    [
        ("", "pin", 'must be {"env"'),
        (1234, "pin", "a number was given"),
        (True, "pin", "a boolean was given"),
        (["1234"], "pin", "a list was given"),
        (None, "pin", "null was given"),
        ("", "pin", "or a string that is not empty; an empty string was given"),
        ({}, "pin", 'must be {"env"'),
        ({"env": "A", "file": "b"}, "pin", "exactly one of env, file and awsSecretsManager"),
        ({"env": None}, "pin", "exactly one"),
        ({"enf": "A"}, "pin.enf", 'unknown key; did you mean "env"?'),
        ({"env": 1}, "pin.env", "must be the name of an environment variable; a number was given"),
        ({"env": "no name"}, "pin.env", "must be the name of an environment variable; a string was given"),
        ({"file": ""}, "pin.file", "must be a string of 1 to 4096 bytes"),
        ({"file": "a\0b"}, "pin.file", "without control characters"),
        ({"awsSecretsManager": {}}, "pin.awsSecretsManager.secretId", "is required"),
        ({"awsSecretsManager": {"secretId": "a", "keys": "b"}}, "pin.awsSecretsManager.keys", 'mean "key"?'),
    ],
)
def test_what_is_no_secret_is_refused_without_showing_it(value: object, path: str, problem: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(softhsm(pin=value))
    (fault,) = caught.value.faults
    assert fault.path == f"$.keyManager.config.{path}"
    assert problem in fault.problem
    assert "1234" not in str(caught.value)


def test_plain_text_is_warned_about_by_path_only(caplog: pytest.LogCaptureFixture) -> None:
    load(softhsm(pin="87654321"))
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("hsmcore", logging.WARNING)
    assert "$.keyManager.config.pin" in record.getMessage()
    assert "87654321" not in caplog.text
    caplog.clear()
    load(softhsm())
    assert not caplog.records


@pytest.mark.parametrize("blank", ["<password>", "<hidden>", "<>"])
def test_a_placeholder_is_never_sent_to_a_token(blank: str) -> None:
    config = load(softhsm(pin=blank))
    assert config.placeholders == ("$.keyManager.config.pin",)
    with pytest.raises(SecretUnavailable, match=r"^secret: \$\.keyManager\.config\.pin: is a placeholder"):
        pin_of(config).resolve()


# ---- it shows up nowhere ---------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(SECRETS)
def test_a_secret_never_shows_in_a_valid_configuration(value: str) -> None:
    output = io.StringIO()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(output))
    documents = [
        softhsm(pin=value),
        {"keyManager": {"type": "pkcs11", "config": {"uri": f"pkcs11:object=k?module-path=/m.so&pin-value={value}"}}},
        {"keyManager": {"type": "yubihsm", "config": {"authKeyId": 1, "password": value, "keyLabel": "k"}}},
        softhsm(pin=value, adminCredentials={"pin": {"env": "ADMIN_PIN"}}),
    ]
    for document in documents:
        config = load(document)
        secret = pin_of(config)
        assert secret.resolve() == value.encode()
        shown = [
            *(repr(config), str(config), f"{config}", repr(vars(config.key_manager)), repr(config.model_dump())),
            *(json.dumps(config.redacted()), config.model_dump_json(), str(config.model_dump(mode="json"))),
            *(repr(secret), str(secret), f"{secret:>80}", "%s" % secret, secret.describe(), str(secret.redacted())),  # noqa: UP031
            *(config.key_manager.name, repr(copy.deepcopy(config)), str(hash(secret))),
        ]
        assert not [text for text in shown if value in text]
        with pytest.raises(TypeError, match="not pickled") as caught:
            pickle.dumps(config)
        assert value not in str(caught.value)
    assert output.getvalue().count("plain text") == len(documents)
    assert value not in output.getvalue()
    structlog.reset_defaults()


def _broken_documents() -> list[Callable[[str], object]]:
    def provider(type_: str, **config: object) -> dict[str, Any]:
        return {"keyManager": {"type": type_, "config": config}}

    uri = "pkcs11:object=k?module-path=/m.so&pin-value="
    return [
        lambda s: softhsm(pin=s, sessions=0),
        lambda s: softhsm(pin=s, unknown=1),
        lambda s: softhsm(pin=[s]),
        lambda s: softhsm(pin={"plain": s}),
        lambda s: softhsm(pin={"env": f"{s} "}),
        lambda s: softhsm(pin={"env": "A", "file": s}),
        lambda s: softhsm(Pin=s),
        lambda s: softhsm(passwort=s),
        lambda s: softhsm(tokenLabel={"pin": s}),
        lambda s: softhsm(pin=s, keyLabel=None),
        lambda s: {**softhsm(pin=s), "failover": {"enabled": 1}},
        lambda s: {"sequencer": softhsm(pin=s), "other": 1},
        lambda s: {"keymanager": {"pin": s}},
        lambda s: {"keyManager": {"type": "softhms", "config": {"pin": s}}},
        lambda s: {"keyManager": {"config": {"pin": s}}},
        lambda s: {"keyManager": {"type": "softhsm", "config": s}},
        lambda s: {"keyManager": s},
        lambda s: provider("pkcs11", uri=uri + s, keyLabel="other"),
        lambda s: provider("pkcs11", uri=uri + s, pin=f"{s}0"),
        lambda s: provider("pkcs11", uri=uri + s, sessions=0),
        lambda s: provider("pkcs11", uri=f"{uri}{s}&pin-value={s}"),
        lambda s: provider("pkcs11", uri=f"{uri}%ff{s}"),
        lambda s: provider("pkcs11", uri=f"{uri}{s};more={s}\n"),
        lambda s: provider("pkcs11", uri=f"pkcs11:pin-value={s}"),
        lambda s: provider("yubihsm", authKeyId=1, password=s, keyLabel="k", connector=f"http://u:{s}@h"),
        lambda s: provider("aws-cloudhsm", username="u", password={"plain": s}, keyLabel="k"),
        lambda s: softhsm(adminCredentials={"pin": s, "user": "x"}),
        lambda s: softhsm(adminCredentials=s),
        lambda s: softhsm(adminCredentials={"password": s}),
        lambda s: {"keyManager": {**softhsm()["keyManager"], "keyRotation": {"backupLocation": f"s3://id:{s}@bucket"}}},
        lambda s: f'{{"keyManager": {{"pin": "{s}"}}}}',
        lambda s: [s],
    ]


def _all_of(error: BaseException) -> Iterator[BaseException]:
    yield error
    for other in (error.__cause__, error.__context__):
        if other is not None:
            yield from _all_of(other)


@pytest.mark.parametrize("build", _broken_documents())
@settings(deadline=None)
@given(value=SECRETS)
def test_a_secret_never_shows_in_an_error(build: Callable[[str], Any], value: str) -> None:
    output = io.StringIO()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(output))
    with pytest.raises(ConfigurationError) as caught:
        load(build(value))
    error = caught.value
    for part in _all_of(error):
        # A parser's own error in the chain would hold the document.
        assert type(part) is ConfigurationError
        assert value not in f"{part}{part!r}{vars(part)}"
    assert value not in "".join(traceback.format_exception(error))
    assert value.encode() not in pickle.dumps(error)
    assert value not in output.getvalue()
    structlog.reset_defaults()


@pytest.mark.parametrize(
    "text",
    ['{"keyManager": {"pin": "%s",}}', '{"pin": "%s"', '{"pin": "%s", "x": NaN}', '{"pin": "%s", "pin": 1}', '["%s"]'],
)
def test_a_file_that_does_not_parse_does_not_show_its_secrets(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text.replace("%s", "zqHUNTER2"))
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    for part in _all_of(caught.value):
        assert type(part) is ConfigurationError
    assert "HUNTER2" not in "".join(traceback.format_exception(caught.value))


# ---- the log's own line of defence -----------------------------------------------------------------------------------


def test_a_secret_that_is_logged_by_mistake_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    log.get_logger(pin="1234-a").warning(
        "login", member="m", nested=[{"password": "1234-b", "n": (1, {"puk": "1234-c"})}]
    )
    assert "1234" not in caplog.text
    assert "member='m'" in caplog.text
    assert caplog.text.count(log.DROPPED) == 3


def test_a_host_that_configured_structlog_keeps_its_own_processors() -> None:
    with structlog.testing.capture_logs() as before:
        structlog.configure(processors=structlog.get_config()["processors"])
        log.get_logger().warning("login", pin="1234", member="m")
    assert before == [{"event": "login", "pin": log.DROPPED, "member": "m", "log_level": "warning"}]


def _fail_with(pin: str) -> None:
    raise RuntimeError(f"broken after {len(pin)} digits")


def _log_a_failure(**event: object) -> None:
    try:
        # Not a literal here: a traceback shows source lines, and is to show nothing else.
        _fail_with("-".join(("zq", str(len(event) * 0 + 1234))))
    except RuntimeError:
        log.get_logger().exception("failed", **event)


def test_the_command_line_logs_for_a_person_without_local_variables(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure(level=logging.DEBUG)
    _log_a_failure()
    captured = capsys.readouterr()
    assert "broken after 7 digits" in captured.err
    assert "zq-1234" not in captured.out + captured.err


def test_what_a_file_was_read_into_is_wiped(tmp_path, monkeypatch):
    path, read, seen = tmp_path / "pin", os.readv, []

    def noted(descriptor, buffers):
        seen.extend(buffers)
        return read(descriptor, buffers)

    path.write_text("a-secret")
    path.chmod(0o600)
    monkeypatch.setattr(os, "readv", noted)
    assert pin_of(load(softhsm(pin={"file": str(path)}))).resolve() == b"a-secret"
    assert [bytes(buffer).strip(b"\0") for buffer in seen] == [b""]


def test_no_answer_of_the_service_is_the_context_of_an_error(monkeypatch):
    def fails(*_args, **_named):
        raise secretsmanager.SecretProblem("cannot be read")

    monkeypatch.setattr(secretsmanager, "fetch", fails)
    with pytest.raises(SecretUnavailable, match="cannot be read") as caught:
        pin_of(load(softhsm(pin={"awsSecretsManager": {"secretId": "a", "region": "eu-central-1"}}))).resolve()
    assert caught.value.__context__ is caught.value.__cause__ is None
