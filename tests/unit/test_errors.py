"""Every status of the native core has one exception, and every exception keeps what it knows."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path

import pytest

from hsmcore import errors
from hsmcore.errors import EXCEPTION_OF_STATUS, ConfigFault, ConfigurationError, HsmError, error_of
from hsmcore.errors.statuses import RETRYABLE_CLASSES, STATUSES
from hsmcore.failover.errors import AllLevelsFailed, AllLevelsLate, EmergencyRefused

HEADERS = Path(__file__).parents[2] / "native" / "include" / "hsmcore"
ROWS = re.findall(r'^HSM_STATUS\((\w+), (\w+), "(.*)"\)$', (HEADERS / "status.def").read_text(), re.MULTILINE)
RETRYABLE = {"RETRY", "RESET", "REOPEN", "RELOGIN", "REFIND", "MEMBER_DOWN", "REINIT"}


def all_exceptions() -> set[type[HsmError]]:
    """The exceptions of the module itself; other parts of the package derive their own from them."""
    return {made for made in vars(errors).values() if isinstance(made, type) and issubclass(made, HsmError)}


def assert_same(copied: HsmError, error: HsmError) -> None:
    assert type(copied) is type(error)
    assert str(copied) == str(error)
    assert vars(copied) == vars(error)
    assert copied.retryable == error.retryable


def test_the_tables_have_the_same_rows_as_the_native_core() -> None:
    names = [name for name, _, _ in ROWS]
    assert list(EXCEPTION_OF_STATUS) == names
    assert list(STATUSES) == names
    assert [(row.class_, row.text) for row in STATUSES.values()] == [(class_, text) for _, class_, text in ROWS]


def test_the_classes_are_those_of_the_native_core() -> None:
    declared = re.findall(r"^    HSM_CLASS_(\w+)", (HEADERS / "status.h").read_text(), re.MULTILINE)
    assert [*RETRYABLE_CLASSES, "COUNT"] == declared
    assert {name for name, retryable in RETRYABLE_CLASSES.items() if retryable} == RETRYABLE


@pytest.mark.parametrize(("status", "class_", "text"), ROWS)
def test_a_status_becomes_its_exception(status: str, class_: str, text: str) -> None:
    error = error_of(
        status, ckr=0x1234, ckr_name="CKR_EXAMPLE", call="C_Sign", detail="key 'a'", member="softhsm:sequencer"
    )
    assert type(error) is EXCEPTION_OF_STATUS[status]
    # With a key that is another one nothing is signed until a restart, whatever others of its class may do.
    assert (error.status, error.error_class) == (status, class_)
    assert error.retryable == (class_ in RETRYABLE and status != "KEY_MISMATCH")
    assert (error.ckr, error.ckr_name, error.call, error.member) == (
        0x1234,
        "CKR_EXAMPLE",
        "C_Sign",
        "softhsm:sequencer",
    )
    start = f"C_Sign: CKR_EXAMPLE (0x1234) on member 'softhsm:sequencer': {text} (key 'a')."
    assert str(error) == f"{start} {error.hint}".rstrip()
    assert_same(pickle.loads(pickle.dumps(error)), error)  # noqa: S301
    assert_same(copy.copy(error), error)
    assert_same(copy.deepcopy(error), error)


@pytest.mark.parametrize("exception", sorted(all_exceptions(), key=str), ids=str)
def test_every_exception_can_be_raised_by_itself(exception: type[HsmError]) -> None:
    with pytest.raises(exception, match="something happened") as caught:
        raise exception("something happened")
    error = caught.value
    assert error.status in STATUSES
    assert (error.ckr, error.ckr_name, error.call, error.member) == (None, None, "", None)
    assert isinstance(error.hint, str)
    # A class that stands for statuses calls itself by one of them.
    mapped = [name for name, mapped_to in EXCEPTION_OF_STATUS.items() if mapped_to is exception]
    assert not mapped or exception.default_status in mapped
    assert_same(pickle.loads(pickle.dumps(error)), error)  # noqa: S301


def test_every_exception_of_the_native_core_is_in_the_table() -> None:
    python_only = {
        HsmError,
        errors.InvalidTimeout,
        errors.InvalidMessage,
        errors.InvalidMessageType,
        errors.EmptyMessage,
        errors.NotInitialized,
        errors.WrongEventLoop,
        errors.ConfigurationError,
        errors.SecretUnavailable,
        errors.AuditUnavailable,
    }
    assert all_exceptions() - python_only == set(EXCEPTION_OF_STATUS.values())


def test_the_errors_of_failover_keep_their_causes() -> None:
    causes = {"primary": error_of("TOKEN_LOST", member="a"), "secondary": EmergencyRefused("spent")}
    for kind in (AllLevelsFailed, AllLevelsLate):
        error = kind.of(causes)
        copied = pickle.loads(pickle.dumps(error))  # noqa: S301
        assert str(copied) == str(error)
        assert list(copied.causes) == list(causes)
        assert error.retryable
        assert "primary: " in str(error)
        assert "secondary: spent" in str(error)
    assert issubclass(AllLevelsLate, TimeoutError)
    assert not EmergencyRefused("spent").retryable


@pytest.mark.parametrize(
    ("exception", "builtin"),
    [
        (errors.DeadlineExceeded, TimeoutError),
        (errors.MessageTooLarge, ValueError),
        (errors.BadArgument, ValueError),
        (errors.InvalidTimeout, ValueError),
        (errors.InvalidMessageType, TypeError),
        (errors.EmptyMessage, ValueError),
        (errors.OutOfMemory, MemoryError),
        (errors.ConfigurationError, ValueError),
        (errors.NotInitialized, errors.EngineClosed),
        (errors.PinIncorrect, errors.LoginError),
    ],
)
def test_exceptions_are_also_what_python_calls_them(exception: type[HsmError], builtin: type[Exception]) -> None:
    assert issubclass(exception, builtin)


def test_a_hint_is_a_sentence_after_the_message() -> None:
    error = error_of("MODULE_MISSING", call="dlopen", detail="/m.so")
    error.hint = "Install it."
    text = "dlopen: the PKCS#11 module cannot be loaded (/m.so). Install it."
    assert str(error) == text
    assert_same(pickle.loads(pickle.dumps(error)), error)  # noqa: S301
    # One that went through another process as text does not get its hint twice.
    assert str(errors.ModuleMissing(text, hint="Install it.")) == text
    assert str(errors.KeyDeactivated("key 01 is retired", hint="Use another.")) == "key 01 is retired. Use another."
    assert str(errors.KeyDeactivated("key 01 is retired", hint="")) == "key 01 is retired"
    assert (
        str(error_of("INVALID")) == "native core: unknown status 'INVALID'. Please report this with the log around it."
    )


def test_an_unknown_status_does_not_hide_the_failure() -> None:
    error = error_of("INVALID", call="C_Sign", detail="status 99", member="m")
    assert type(error) is errors.InternalError
    assert str(error) == f"C_Sign: unknown status 'INVALID' status 99. {error.hint}"
    assert not error.retryable


def test_a_configuration_error_lists_its_faults() -> None:
    one = ConfigurationError.of([ConfigFault("$.a", "is required")], source="configuration x.json")
    assert (str(one), one.path) == ("configuration x.json: $.a: is required", "$.a")
    two = ConfigurationError.of([ConfigFault("$.a", "is required"), ConfigFault("$.b", "unknown key")])
    assert str(two) == "configuration: 2 faults\n  $.a: is required\n  $.b: unknown key"
    assert (two.path, len(two.faults), two.retryable) == ("$.a", 2, False)
    assert ConfigurationError("as a whole").path == "$"
    assert_same(pickle.loads(pickle.dumps(two)), two)  # noqa: S301
