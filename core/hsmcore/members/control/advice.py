"""Where to look when a module cannot start or shows no token: its own configuration, daemon or device. Data, not
branches; the module is recognized by its file's name, for one that cannot start does not say who it is."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from hsmcore.errors import HsmError

Moment = Literal["start", "empty"]
"""C_Initialize failed; or the module shows no initialized token."""

_EMPTY: Final = "no initialized token is present"
"""The native core's words for the second one."""


@dataclass(frozen=True, slots=True)
class Advice:
    """One row. In the text, `{connector}` and names of environment variables are replaced by what they are."""

    file: str
    """A part of the file's name, in lower case."""
    moments: tuple[Moment, ...]
    text: str


_ROWS: Final = (
    Advice(
        "softhsm",
        ("start",),
        "Check SoftHSM's configuration: {SOFTHSM2_CONF}. Its directories.tokendir must exist, and its "
        "objectstore.backend be compiled in, which on Debian is file alone.",
    ),
    Advice(
        "softhsm", ("empty",), "SoftHSM shows the tokens in its configuration's directories.tokendir: {SOFTHSM2_CONF}."
    ),
    Advice(
        "opencryptoki",
        ("start",),
        "Check that openCryptoki's daemon runs (pkcsslotd), and that this user is in the group pkcs11.",
    ),
    Advice(
        "cloudhsm_pkcs11",
        ("start", "empty"),
        "Check that configure-pkcs11 was run with the cluster's address, that its certificate is at "
        "/opt/cloudhsm/etc/customerCA.crt, and that TCP 2223 to 2225 reach its HSMs; the client says why in its log, "
        "by default /opt/cloudhsm/run/cloudhsm-pkcs11.log.",
    ),
    Advice("yubihsm_pkcs11", ("start", "empty"), "Check that a connector with a device answers at {connector}."),
    Advice(
        "tpm2_pkcs11",
        ("start", "empty"),
        "Check where tpm2-pkcs11 keeps its tokens and how it reaches the TPM: {TPM2_PKCS11_STORE}, {TPM2_PKCS11_TCTI}.",
    ),
    Advice(
        "p11-kit-client",
        ("start", "empty"),
        "Check that p11-kit's server runs where this process looks for it: {P11_KIT_SERVER_ADDRESS}.",
    ),
)


def advice(moment: Moment, module_path: str, module_args: str | None = None) -> str:
    """Return where to look; "" for a module that no row names."""
    name = Path(module_path).name.lower()
    text = next((row.text for row in _ROWS if row.file in name and moment in row.moments), "")
    connectors = re.findall(r"connector=(\S+)", module_args or "")
    return re.sub(
        r"\{(\w+)\}",
        lambda found: " or ".join(connectors) if found[1] == "connector" else _variable(found[1], os.environ),
        text,
    )


def advise(error: HsmError, module_path: str, module_args: str | None = None) -> None:
    """Put the advice into an error of the start, if there is any for it."""
    moment: Moment | None = None
    if error.call == "C_Initialize":
        moment = "start"
    elif error.status == "TOKEN_NOT_FOUND" and _EMPTY in str(error):
        moment = "empty"
    if moment is not None:
        error.hint = advice(moment, module_path, module_args) or error.hint


def _variable(name: str, environment: Mapping[str, str]) -> str:
    value = environment.get(name)
    if value is None:
        return f"{name} is not set"
    if value.startswith("/") and not os.path.exists(value):  # noqa: PTH110  # it never raises
        return f"{name} is {value}, which is not there"
    return f"{name} is {value}"
