"""doctor asks AWS KMS by the client that signs: it fails where a start fails, and says why."""

from __future__ import annotations

import pytest
from tests.integration.test_doctor import failures, probed, step
from tests.support.kms import config

from hsmcore.providers.kms import aws

pytestmark = pytest.mark.integration


def test_software_that_signing_needs_is_missed_here_too(kms, monkeypatch):
    monkeypatch.setattr(aws, "NEEDED", ("boto3", "no_such_package"))
    report = probed(config(kms, kms.store.make()))
    assert failures(report) == ["sdk"]
    assert "pip install" in step(report, "sdk").hint
    assert not kms.calls


@pytest.mark.parametrize(
    ("name", "says"),
    [("AccessDeniedException", "kms:Sign"), ("ExpiredTokenException", "credentials"), ("NotFoundException", "keyId")],
)
def test_what_kms_refuses_is_the_step_s_own(kms, name, says):
    kms.faults.error(name, "Sign", times=100)
    report = probed(config(kms, kms.store.make()))
    assert failures(report) == ["signature"]
    assert says in step(report, "signature").hint
    assert step(report, "signature").data["code"] == name


def test_what_is_throttled_to_the_end_is_not_said_to_be_unreachable(kms):
    kms.faults.error("ThrottlingException", times=10**6)
    report = probed(config(kms, kms.store.make()), timeout=3.0)
    assert failures(report) == ["signature"]
    assert "ThrottlingException" in step(report, "signature").found


def test_an_endpoint_that_hangs(kms):
    kms.faults.add("hang", "DescribeKey")
    report = probed(config(kms, kms.store.make()), timeout=1.0)
    assert failures(report) == ["endpoint"]
    assert "no answer within 1 s" in step(report, "endpoint").found


def test_a_clock_that_is_off_is_said(kms):
    kms.faults.clock_ahead = 600.0
    report = probed(config(kms, kms.store.make()))
    assert failures(report) == []
    assert step(report, "endpoint").outcome == "warn"
    assert "clock and that of" in step(report, "endpoint").found
