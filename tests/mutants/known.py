"""Mutants that a person has looked at: changes that once went unseen, made by name, and changes that change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple


class Hand(NamedTuple):
    """A text that is once in a file, and what replaces it. `near`: tests instead of those near the file."""

    path: str
    old: str
    new: str
    near: tuple[str, ...] = ()


_BREAKER: Final = "core/hsmcore/failover/breaker.py"
_BUDGET: Final = "core/hsmcore/failover/budget.py"
_ERRORS: Final = "core/hsmcore/errors/__init__.py"
_GUARD: Final = "core/hsmcore/manager/policy/guard.py"
_LEVELS: Final = "core/hsmcore/failover/levels.py"
_ROUTER: Final = "core/hsmcore/failover/router.py"
_SEAL: Final = "core/hsmcore/state/seal.py"
_SECRET: Final = "core/hsmcore/config/secret.py"
_TLS: Final = "core/hsmcore/gateway/tls.py"
_STATUSES: Final = ("tests/unit/test_failover_breaker.py",)
_BOUND: Final = tuple(
    f"tests/integration/test_key_binding.py::test_{name}"
    for name in (
        "a_request_abandoned_while_being_signed_is_bound",
        "what_is_withheld_on_the_long_way_no_other_key_signs",
        "what_is_withheld_while_hedging_no_other_key_signs",
        "an_abandoned_hedged_request_is_bound",
        "a_request_that_may_be_signed_stays_with_its_key_beside_other_bindings",
    )
)
_COUNTS: Final = ("tests/unit/test_policy_guard.py",)
_EMERGENCY: Final = tuple(
    f"tests/integration/test_emergency_budget.py::test_{name}"
    for name in (
        "a_unit_comes_back_only_if_nothing_was_signed_for_it",
        "an_emergency_key_that_goes_between_its_unit_and_its_signature_signs_nothing",
    )
)

HAND: Final[dict[str, Hand]] = {
    "a host that is lost leaves no signature": Hand(_ERRORS, '"HOST_LOST", ', "", _STATUSES),
    "an invalid signature leaves none": Hand(_ERRORS, '"SIGNATURE_INVALID", ', "", _STATUSES),
    "a lease that is over leaves no signature": Hand(_BREAKER, "EngineClosed, NotHolder)", "EngineClosed)", _STATUSES),
    "what is withheld on the long way is not bound": Hand(
        _ROUTER,
        "        except WITHHELD:\n            self.bind(messages, key)\n            raise",
        "        except WITHHELD:\n            raise",
        _BOUND,
    ),
    "what is abandoned on the long way is not bound": Hand(
        _ROUTER,
        "if endpoint.abandon(future):\n                self.bind(messages, key)",
        "endpoint.abandon(future)",
        _BOUND,
    ),
    "what is withheld while hedging is not bound": Hand(
        _ROUTER, "self.bind(request.bindable, version.public_key)\n                    raise", "raise", _BOUND
    ),
    "an emergency unit comes back whatever failed": Hand(
        _ROUTER, "if episode and not error.maybe_signed:", "if episode:", _EMERGENCY
    ),
    "the emergency key may go between unit and signature": Hand(
        _ROUTER, "if endpoint.key != version.public_key:", "if False:", _EMERGENCY
    ),
    "the emergency's time begins again with a clock that is set back": Hand(
        _BUDGET, "return row.first_ns, max(self.ns, row.latest_ns)", "return row.first_ns, self.ns"
    ),
    "the clock does not go on from what the store knows": Hand(
        _BUDGET, "        self._clock.reach(found.latest)\n", ""
    ),
    "time before the first reservation after a boot is free": Hand(
        _BUDGET, "        self._clock.reach(latest)", "        pass"
    ),
    "an attempt from before a reset gives its unit to the next episode": Hand(
        _BUDGET, "self._episode = self._units = 0  # so that an attempt", "self._units = 0  # so that an attempt"
    ),
    "units of an episode that was reset come back": Hand(_BUDGET, "if episode == self._episode:", "if episode:"),
    "units of a block outlive a reset": Hand(
        _BUDGET, "self._episode, self._units = found.episode, 0", "self._episode = found.episode"
    ),
    "an approval counts for any rotation": Hand(
        "core/hsmcore/manager/rotation/approvals.py", '        f"rotation: {rotation.id}",\n', ""
    ),
    "a TLS session outlives its authority by tickets": Hand(_TLS, "context.options |= ssl.OP_NO_TICKET", "pass"),
    "a TLS session outlives its authority": Hand(_TLS, "context.num_tickets = 0", "pass"),
    "a digest is in flight for ever": Hand(
        _GUARD, "                one.end()\n\n    def", "                pass\n\n    def", _COUNTS
    ),
    "the store's time is not the request's": Hand(
        _GUARD, "return max(most - (monotonic() - begun), 1e-3)", "return most", _COUNTS
    ),
    "a claim is made on another server": Hand(
        "core/hsmcore/fleet/machine.py", "or self.went_back(row) or server != self._server:", "or self.went_back(row):"
    ),
    "a plain signature is a witness": Hand(
        "core/hsmcore/audit/check/trust.py",
        "if witness.kind != COSIGNATURE:",
        "if False:",
        ("tests/integration/test_audit_witness.py",),
    ),
    "a secret stays in the buffer that read it": Hand(
        _SECRET, "                buffer[:] = bytes(len(buffer))", "                pass"
    ),
    "an error carries the answer of the service that holds the secret": Hand(
        _SECRET,
        "            problem = str(error)\n",
        '            problem = str(error)\n            return self._fail(f"{self.describe()}: {problem}")\n',
    ),
    "what was withheld on the long way is asked for again": Hand(
        _ROUTER,
        "        except WITHHELD:\n            self.bind(messages, key)\n            raise",
        "        except WITHHELD:\n            self.bind(messages, key)",
        _BOUND,
    ),
    "beside another binding a request that may be signed has no key": Hand(
        _ROUTER,
        "if self.bindings and not request.allow_other_key and request.attempts.bound_to is None:",
        "if self.bindings and not request.allow_other_key:",
        _BOUND,
    ),
    "stores that are adopted are one": Hand(
        _SEAL,
        "store, counter = self._store or secrets.token_hex(16), self._counter",
        "store, counter = self._store, self._counter",
    ),
    "an adoption is the next state": Hand(_SEAL, "counter or self._counter + 1", "self._counter + 1"),
    "a request for which a login does not help never reaches the module": Hand(
        "native/src/recover.c", "    note(ladder, HSM_FACT_HEALED, true);\n", ""
    ),
}

_LINES: Final = Path(__file__).with_name("equivalent.txt").read_text().splitlines()
EQUIVALENT: Final[dict[str, str]] = {
    name: reason.strip() for name, reason in zip(_LINES[::2], _LINES[1::2], strict=True)
}
"""By name, the reason why no test can see the change: each takes two lines of the file."""
