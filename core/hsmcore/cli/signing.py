"""The `sign` and `verify` commands."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer

from hsmcore.base.base58 import base58
from hsmcore.cli.encoding import Format, decode_signature, encode
from hsmcore.cli.invocation import Invocation
from hsmcore.cli.output import BadUsage
from hsmcore.errors import BadArgument, EmptyMessage
from hsmcore.members.control.curves import ORDERS, Algorithm, low_s

if TYPE_CHECKING:
    from hsmcore.gateway import Client
    from hsmcore.manager.key_manager import KeyManager

_HIGH_S: Final = "s is not low; with the lower one of the two equivalent s it would be"

FileArgument = Annotated[
    Path | None, typer.Argument(metavar="[FILE]", help="The message; - or nothing: standard input.")
]
TextOption = Annotated[str | None, "The message itself, as text (UTF-8)."]
HexOption = Annotated[str | None, "--hex: The message itself, in hexadecimal."]


def sign(
    cli: Invocation,
    file: FileArgument = None,
    text: TextOption = None,
    hex_: HexOption = None,
    form: Annotated[Format, "--format: How the signature is printed."] = "hex",
    kind: Annotated[str | None, "What it is, for a policy: another kind is refused."] = None,
    position: Annotated[int | None, "Where it stands in its chain: another position is refused.", {"min": 0}] = None,
) -> None:
    """Sign one message with the configured key and print the signature.

    Examples:

      hsmcore sign block.bin > block.sig

      printf hello | hsmcore sign --format base58

      hsmcore sign --text hello --json

      hsmcore sign block.bin --kind block

      hsmcore sign --text hello --gateway unix:/run/hsmcore/sign.sock
    """
    message = _message(file, text, hex_)
    if cli.as_json and form == "raw":
        raise BadUsage("--json cannot carry --format raw")
    receipt = cli.on_signer(lambda signer: signer.sign_with_receipt(message, kind=kind, position=position))
    if form == "raw":
        sys.stdout.buffer.write(receipt.signature)
        return
    signature = encode(receipt.signature, form)
    shown = {
        "signature": signature,
        "format": form,
        "keyId": receipt.key_id,
        "publicKey": receipt.public_key.hex(),
        "member": receipt.member,
        "level": receipt.level,
        "latencyNs": receipt.latency_ns,
    }
    cli.show(shown, signature)


def verify(
    cli: Invocation,
    file: FileArgument = None,
    signature: Annotated[str | None, "In hex, base64 or base58; ECDSA also in DER."] = None,
    signature_file: Annotated[Path | None, "PATH: A file with it in any form; -: stdin."] = None,
    batched: Annotated[Path | None, "PATH: A file with the proof of a batched signature."] = None,
    domain: Annotated[str | None, "With --batched: the domain that it must be of."] = None,
    kind: Annotated[str | None, "With --batched: the kind that it must be of."] = None,
    epoch: Annotated[int | None, "With --batched: the fleet's epoch that it must be of.", {"min": 0}] = None,
    text: TextOption = None,
    hex_: HexOption = None,
    public_key: Annotated[str | None, "HEX: Verify with this key: no token is needed."] = None,
    algorithm: Annotated[Algorithm, "Algorithm of --public-key."] = "ed25519",
    key_id: Annotated[str | None, "One of the token's keys (default: current)."] = None,
) -> None:
    """Verify a signature in software. Exit code 0: it is good, 1: it is not.

    An ECDSA signature must have a low s, as every signature of hsmcore has. Of those of other software half have a high
    one: they are refused, and the answer says so.

    A key that serves several domains signs batches for each: give --domain and --kind with --batched, unless what the
    answer says of them is compared elsewhere.

    Examples:

      hsmcore verify block.bin --signature-file block.sig

      hsmcore verify --text hello --signature 5f0c… --public-key 3b6a…

      hsmcore verify receipt.json --batched receipt.tlog-proof --domain my-rollup --kind raw --public-key 3b6a…
    """
    wanted = {"domain": domain, "kind": kind, "epoch": epoch}
    if batched is None and any(value is not None for value in wanted.values()):
        raise BadUsage("--domain, --kind and --epoch go with --batched")
    if sum(given is not None for given in (signature, signature_file, batched)) != 1:
        raise BadUsage("give --signature, --signature-file or --batched")
    if batched is not None:
        _verify_batched(cli, _message(file, text, hex_), _read(batched), public_key, wanted)
        return
    if str(signature_file) == "-" and text is None and hex_ is None and file in (None, Path("-")):
        raise BadUsage("message and signature cannot both come from standard input")
    try:
        claimed = decode_signature(signature.encode() if signature is not None else _read(cast(Path, signature_file)))
    except ValueError as error:
        raise BadUsage(str(error)) from None
    message = _message(file, text, hex_)
    keys: list[tuple[str, bytes]] = []
    if public_key is not None:
        keys.append((algorithm, from_hex(public_key, "--public-key")))
        good = _verify_here(*keys[0], message, claimed)
    else:

        async def ask(signer: KeyManager | Client) -> bool:
            keys.extend((key.algorithm, key.public_key) for key in signer.keys())  # noqa: SIM118  # a list
            return await signer.verify(message, claimed, key_id=key_id)

        good = cli.on_signer(ask)
    if good:
        cli.show({"valid": True}, "valid")
    else:
        _refuse(cli, _HIGH_S if _has_high_s(keys, message, claimed) else "")


async def told_keys(client: Client) -> list[dict[str, Any]]:
    """Return the versions of a key that a gateway tells, for output."""
    signs, shown = await client.get_current_key_id(), list[dict[str, Any]]()
    for key in client.keys():  # noqa: SIM118  # a list
        about: dict[str, Any] = {"id": key.id, "version": key.index, "algorithm": key.algorithm}
        about |= {"signs": key.id == signs, "publicKey": key.public_key.hex()}
        if key.algorithm == "ed25519":
            about["address"] = base58(key.public_key)
        shown.append(about)
    return shown


def _refuse(cli: Invocation, problem: str = "") -> None:
    found = {"valid": False} | ({"problem": problem} if problem else {})
    cli.show(found, f"NOT valid: {problem}" if problem else "NOT valid", ok=False)


def _verify_batched(
    cli: Invocation, message: bytes, proof: bytes, public_key: str | None, wanted: Mapping[str, str | int | None]
) -> None:
    from hsmcore.tlog.batch_proof import read
    from hsmcore.tlog.proof import KINDS

    if wanted["kind"] not in (None, *filter(None, KINDS)):
        raise BadUsage(f"--kind: one of {', '.join(filter(None, KINDS))}")

    async def ask(signer: KeyManager | Client) -> list[bytes]:
        return [key.public_key for key in signer.keys()]  # noqa: SIM118  # a list

    keys = cli.on_signer(ask) if public_key is None else [from_hex(public_key, "--public-key")]
    found = next(filter(None, (read(key, message, proof) for key in keys)), None)
    if found is None:
        _refuse(cli)
        return
    others = [name for name, value in wanted.items() if value not in (None, getattr(found, name))]
    if others:
        _refuse(cli, f"it is of {', '.join(f'{name} {getattr(found, name)}' for name in others)}")
    shown = {name: getattr(found, name) for name in ("domain", "epoch", "index", "kind", "size")}
    shown |= {"root": found.root.hex(), "timeNs": found.time_ns}
    cli.show(
        {"valid": True, **shown},
        f"valid: number {found.index} of {found.domain}, epoch {found.epoch}, kind {found.kind}",
    )


def _verify_here(algorithm: str, public_key: bytes, message: bytes, signature: bytes) -> bool:
    from hsmcore._native import verify as verify_signature

    try:
        return verify_signature(algorithm, public_key, message, signature)
    except BadArgument as error:
        raise BadUsage(f"--public-key: {error}") from None


def _has_high_s(keys: list[tuple[str, bytes]], message: bytes, signature: bytes) -> bool:
    """Whether nothing but that is wrong with the signature."""
    return any(
        algorithm in ORDERS and _verify_here(algorithm, public_key, message, low_s(algorithm, signature))
        for algorithm, public_key in keys
        if int.from_bytes(signature[32:], "big") < ORDERS.get(algorithm, 0)
    )


def _message(file: Path | None, text: str | None, hex_: str | None) -> bytes:
    if sum(given is not None for given in (file, text, hex_)) > 1:
        raise BadUsage("give one message: FILE, --text or --hex")
    if text is not None:
        return text.encode()
    if hex_ is not None:
        return from_hex(hex_, "--hex")
    if file is None and sys.stdin.isatty():
        raise BadUsage("no message: name a FILE, pipe one in, or give --text or --hex")
    message = _read(file or Path("-"))
    if file is None and not message:
        raise EmptyMessage("standard input is empty", hint="Name a FILE, pipe one in, or give --text or --hex.")
    return message


def _read(path: Path) -> bytes:
    if str(path) == "-":
        return sys.stdin.buffer.read()
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadUsage(f"{path}: {error.strerror}") from None


def from_hex(text: str, option: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise BadUsage(f"{option} takes hexadecimal digits, two for each byte") from None
