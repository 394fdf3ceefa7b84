"""Secrets from AWS Secrets Manager, against moto's server: what is fetched, what is said when it cannot be, and that it
shows up nowhere."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import signal
import traceback

import boto3
import pytest
from tests.support.aws import CREDENTIALS, OFFLINE, REGION, UNSET, moto_server
from tests.support.chaos import Chaos, engine_of, send_signal, wrap
from tests.support.loops import one_loop
from tests.support.managers import becomes, opened
from tests.support.ports import bound
from tests.support.verifiers import is_good

from hsmcore.config import load
from hsmcore.errors import HsmError, PinIncorrect, SecretUnavailable

pytestmark = pytest.mark.integration
VALUE = "zq-Secret-4711"


@pytest.fixture(scope="module")
def server():
    with moto_server() as address:
        yield address


@pytest.fixture
def aws(server, monkeypatch):
    """boto3's client for the service, and an environment in which hsmcore finds it."""
    for name in UNSET:
        monkeypatch.delenv(name, raising=False)
    for name, value in (OFFLINE | CREDENTIALS).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", server)
    client = boto3.session.Session().client("secretsmanager")
    made = []

    def put(name, **value):
        made.append(name)
        return client.create_secret(Name=name, **value)["ARN"]

    yield put
    for name in made:
        client.delete_secret(SecretId=name, ForceDeleteWithoutRecovery=True)
    client.close()


def secret(**reference):
    """A PIN that is such a reference, as the loader makes it."""
    config = {"keyLabel": "k", "pin": {"awsSecretsManager": reference}}
    return load({"keyManager": {"type": "softhsm", "config": config}}).key_manager.config.pin


@pytest.mark.parametrize(
    ("stored", "key"),
    [
        ({"SecretString": VALUE}, None),
        ({"SecretString": f"{VALUE}\n"}, None),
        ({"SecretBinary": VALUE.encode()}, None),
        ({"SecretString": json.dumps({"pin": VALUE, "other": 1})}, "pin"),
        ({"SecretBinary": json.dumps({"pin": VALUE}).encode()}, "pin"),
    ],
)
def test_what_is_fetched(aws, stored, key):
    arn = aws("prod/hsm", **stored)
    for name in ("prod/hsm", arn):
        found = secret(secretId=name, **({"key": key} if key else {})).resolve()
        assert isinstance(found, bytearray)
        assert found == VALUE.encode()


def test_the_region_is_given_or_that_of_the_arn(aws, monkeypatch):
    arn = aws("regional", SecretString=VALUE)
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(SecretUnavailable, match="region is not known"):
        secret(secretId="regional").resolve()
    assert secret(secretId=arn).resolve() == VALUE.encode()
    assert secret(secretId="regional", region=REGION).resolve() == VALUE.encode()
    with pytest.raises(SecretUnavailable, match="ResourceNotFoundException"):
        secret(secretId="regional", region="eu-west-1").resolve()


@pytest.mark.parametrize(
    ("stored", "key", "problem"),
    [
        ({"SecretString": VALUE}, "pin", "it is no JSON object"),
        ({"SecretString": json.dumps([VALUE])}, "pin", "it is no JSON object"),
        ({"SecretString": json.dumps({"pan": VALUE})}, "pin", "it has no string under the key 'pin'"),
        ({"SecretString": json.dumps({"pin": 4711})}, "pin", "it has no string under the key 'pin'"),
        ({"SecretBinary": b"\xff" + VALUE.encode()}, "pin", "it is no JSON object"),
        ({"SecretString": "\n"}, None, "is empty"),
        ({"SecretString": VALUE * 300}, None, "longer than 4096 bytes"),
    ],
)
def test_what_cannot_be_used_is_named_and_not_shown(aws, stored, key, problem):
    aws("odd", **stored)
    with pytest.raises(SecretUnavailable) as caught:
        secret(secretId="odd", **({"key": key} if key else {})).resolve()
    _names_and_hides(caught.value, "odd", problem)


def test_what_is_not_there_is_named(aws):
    with pytest.raises(SecretUnavailable) as caught:
        secret(secretId="absent").resolve()
    _names_and_hides(caught.value, "absent", "there is no such secret in this region (ResourceNotFoundException)")


def test_without_credentials_it_says_what_to_give(aws, monkeypatch):
    aws("there", SecretString=VALUE)
    for name in CREDENTIALS:
        monkeypatch.delenv(name)
    with pytest.raises(SecretUnavailable, match="there are no AWS credentials"):
        secret(secretId="there").resolve()


def test_an_endpoint_that_does_not_answer_is_an_error(aws, monkeypatch):
    with bound() as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(SecretUnavailable, match=r"cannot be reached \(EndpointConnectionError\)"):
            secret(secretId="there").resolve()


def _names_and_hides(error, name, problem):
    assert error.path == "$.keyManager.config.pin"
    assert f"AWS Secrets Manager secret {name}" in str(error)
    assert problem in str(error)
    seen = f"{error!r}{vars(error)}{''.join(traceback.format_exception(error))}".encode() + pickle.dumps(error)
    assert VALUE.encode() not in seen
    assert error.__cause__ is None
    assert error.__context__ is None


def test_the_sdks_debug_log_does_not_show_it(aws, caplog):
    aws("logged", SecretString=VALUE)
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("botocore").debug("this thread may log")
        assert secret(secretId="logged").resolve() == VALUE.encode()
        logging.getLogger("botocore.parsers").debug("and so it may afterwards")
    assert VALUE not in caplog.text
    assert "this thread may log" in caplog.text
    assert "and so it may afterwards" in caplog.text


@one_loop
@pytest.mark.parametrize("isolation", ["thread", "process"])
async def test_a_token_is_opened_with_it(aws, world, isolation):
    aws("token", SecretString=json.dumps({"pin": world.pin}))
    pin = {"awsSecretsManager": {"secretId": "token", "key": "pin"}}
    config = world.config(settings={"pin": pin, "isolation": isolation})
    hidden = load(config).secret_variables
    assert {"AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"} <= hidden
    async with opened(config) as manager:
        assert is_good("ed25519", world.keys["ed25519"].public_key, b"m", await manager.sign(b"m"))


@one_loop
async def test_a_pin_of_aws_that_is_refused_when_the_host_starts_again_is_sent_once_and_the_new_one_is_fetched(
    aws, fresh_token, tmp_path, monkeypatch
):
    monkeypatch.setattr("hsmcore.members.pkcs11.LOGIN_AWS_SECONDS", 0.2)
    token = fresh_token()
    aws("prod/pin", SecretString=token.pin)
    logged = [{"function": "C_Login", "every": 1, "action": "hang", "milliseconds": 1}]
    chaos = Chaos(tmp_path, wrap(token), faults=logged)
    settings = {"isolation": "process", "pin": {"awsSecretsManager": {"secretId": "prod/pin"}}}

    async def ends_with(kind):
        try:
            await manager.sign(b"m", 1.0)
        except HsmError as error:
            return type(error) is kind
        return kind is None

    def logins():
        return chaos.log.read_text().split().count("C_Login")

    async with opened(chaos.config(settings=settings, stateFile=str(tmp_path / "state.db"))) as manager:
        token.change_pin("another-pin")
        assert send_signal(engine_of(manager).host_pid, signal.SIGKILL)
        await becomes(lambda: ends_with(PinIncorrect))
        await asyncio.sleep(1.0)
        assert logins() == 2
        boto3.session.Session().client("secretsmanager").put_secret_value(
            SecretId="prod/pin", SecretString="another-pin"
        )
        await becomes(lambda: ends_with(None))
        assert logins() == 3
