"""`{pid}` and `{env:NAME}` in the values that differ from process to process."""

from __future__ import annotations

import os

import pytest

from hsmcore.config import Config, load
from hsmcore.errors import ConfigurationError


def loaded(monkeypatch: pytest.MonkeyPatch, **rules: object) -> Config:
    monkeypatch.setenv("WORKER", "2")
    config = {"tokenLabel": "a", "keyLabel": "k", "pin": {"env": "HSM_PIN"}}
    return load({"keyManager": {"type": "softhsm", "config": config, **rules}})


def problem(monkeypatch: pytest.MonkeyPatch, **rules: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        loaded(monkeypatch, **rules)
    [fault] = caught.value.faults
    return f"{fault.path}: {fault.problem}"


def test_they_are_put_in_when_the_configuration_is_loaded(monkeypatch):
    rules = loaded(
        monkeypatch,
        auditLogFile="/var/lib/x/audit-{pid}.log",
        stateFile="/var/lib/x/state-{env:WORKER}.db",
        monitoring={"listen": "127.0.0.1:946{env:WORKER}"},
    ).key_manager
    assert rules.audit_log_file == f"/var/lib/x/audit-{os.getpid()}.log"
    assert rules.state_file == "/var/lib/x/state-2.db"
    assert rules.monitoring is not None
    assert rules.monitoring.address.port == 9462


def test_the_gateways_addresses_have_them_too(monkeypatch):
    monkeypatch.setenv("WORKER", "2")
    config = {"tokenLabel": "a", "keyLabel": "k", "pin": {"env": "HSM_PIN"}}
    gateway = {"listen": ["unix:/run/x/{env:WORKER}-{pid}.sock"], "clients": {"a": {"uid": [1], "keys": ["default"]}}}
    made = load({"keyManager": {"type": "softhsm", "config": config}, "gateway": gateway}).gateway
    assert made is not None
    assert made.listen == (f"unix:/run/x/2-{os.getpid()}.sock",)


@pytest.mark.parametrize(
    "text", ["audit-{PID}.log", "audit-{env:}.log", "audit-{env:A B}.log", "a{.log", "a}.log", "{}"]
)
def test_other_braces_are_refused(monkeypatch, text):
    assert "{pid} and {env:NAME}" in problem(monkeypatch, auditLogFile=text)


@pytest.mark.parametrize("value", ["a/b", "..", ".zq", "a b", "x" * 65, "a\n"])
def test_a_variable_holds_a_plain_word_which_no_error_shows(monkeypatch, value):
    monkeypatch.setenv("OTHER", value)
    found = problem(monkeypatch, auditLogFile="audit-{env:OTHER}.log")
    assert "environment variable OTHER must hold 1 to 64 letters" in found
    assert value not in found


def test_a_variable_that_is_not_set_is_named(monkeypatch):
    monkeypatch.delenv("OTHER", raising=False)
    assert "environment variable OTHER is not set" in problem(monkeypatch, auditLogFile="audit-{env:OTHER}.log")


def test_no_state_store_is_forgotten_with_its_process(monkeypatch):
    assert "must be without {pid}" in problem(monkeypatch, stateFile="state-{pid}.db")
    assert "file's name only" in problem(monkeypatch, auditLogFile="audit/{pid}/audit.log")
