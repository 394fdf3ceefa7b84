"""The certificate that a device makes of a key, judged as `hsmcore keys attest` does. PKCS#11 does not offer it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hsmcore.config import Provider
from hsmcore.doctor.public_keys import UNPROVEN_HINT
from hsmcore.doctor.report import Step, ok, warn
from hsmcore.doctor.subject import CheckBegun
from hsmcore.errors import HsmError


def check_attestation(provider: Provider, found: Mapping[str, Step]) -> Iterator[Step | CheckBegun]:
    """Warn unless certificates lead to a root of `attestationRoots`, if there are any. `found`: steps, by name; nothing
    is asked before they show token and key."""
    token, key, public = (found.get(name) for name in ("token", "key", "public-key"))
    public_key = None if public is None else public.data.get("publicKey")
    certificates, judge = provider.descriptor.certificates, provider.descriptor.judge
    roots = getattr(provider.config, "attestation_roots", None)
    if not certificates or not judge or roots is None or token is None or key is None or not public_key:
        return
    yield CheckBegun("attestation")
    key_id, serial = str(key.data["id"]), str(token.data["serial"])
    try:
        chain = provider.resolve(certificates)(provider.config, key_id)
        problem = provider.resolve(judge)(chain, provider.config, bytes.fromhex(public_key), key_id, serial)
    except HsmError as error:
        yield warn("attestation", f"no certificate was given: {error.args[0]}", error.hint)
    except OSError as error:
        yield warn("attestation", f"{error.filename}: {error.strerror}", "Correct attestationRoots.")
    else:
        if problem:
            yield warn("attestation", problem, UNPROVEN_HINT)
        else:
            asked = provider.descriptor.exportable
            leaves = "; it can leave it under a wrapping key" if asked and provider.resolve(asked)(chain) else ""
            yield ok("attestation", f"certificates show that the device generated the key{leaves}")
