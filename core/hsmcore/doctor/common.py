"""The check that every provider has: its configuration is complete and its secret is available."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hsmcore.doctor.report import Step, failed, ok, warn
from hsmcore.doctor.subject import Subject
from hsmcore.errors import HsmError


def check_configuration(subject: Subject, fetch: Callable[[], bytearray | None] | None) -> Iterator[Step]:
    """Check that no placeholder of an example is left, and that `fetch` returns the secret, which is then wiped."""
    where = subject.provider.where
    blanks = [path for path in subject.config.placeholders if path.startswith(f"{where}.config")]
    if blanks:
        yield Step(
            name="configuration",
            outcome="fail",
            found=f"placeholders are left: {', '.join(blanks)}",
            hint="Put in the real values.",
            configuration=True,
            data={"placeholders": blanks},
        )
        return
    if fetch is not None:
        try:
            secret = fetch()
        except HsmError as error:
            yield failed("configuration", error)
            return
        if secret is not None:
            secret[:] = bytes(len(secret))
    plain = getattr(getattr(subject.provider.config, "pin_secret", None), "kind", None) == "plain"
    if plain:
        hint = 'Use {"env": "NAME"} or {"file": "path"}.'
        yield warn("configuration", f"{where}.config holds a secret in plain text", hint)
    else:
        yield ok("configuration", f"complete at {where}")
