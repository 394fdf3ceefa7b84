"""`hsmcore tune` on five simulated devices, from one server to 128: the knee is known from their profiles. For a quiet
machine: 128 servers answer 25,600 times a second."""

from __future__ import annotations

import json

import pytest
from tests.support.tuning import assert_found, device

from hsmcore.cli.app import run


@pytest.mark.parametrize(
    "profile", ["yubihsm2", "cloudhsm-hsm2m-x2", "cloudhsm-hsm2m-x3", "cloudhsm-hsm2m-x6", "network-5ms"]
)
def test_the_knee_is_found(profile, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HSMCORE_CONFIG", raising=False)
    assert run(["tune", str(device(tmp_path, profile=profile)), "--most", "256", "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)["members"]
    assert_found(found, profile)
