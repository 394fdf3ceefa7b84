"""The `init` command."""

from __future__ import annotations

import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from hsmcore.base.base58 import base58
from hsmcore.cli.invocation import Invocation
from hsmcore.cli.output import BadUsage
from hsmcore.cli.settings import StateOption
from hsmcore.config.root import default_state
from hsmcore.members.control.curves import Algorithm
from hsmcore.members.control.softhsm import KEY_LABEL, TOKEN_LABEL, StateFolder


def init(
    cli: Invocation,
    state: StateOption = None,
    config: Annotated[Path | None, "PATH: Write the configuration here, the token beside it."] = None,
    module: Annotated[Path | None, "PATH: SoftHSM's PKCS#11 module."] = None,
    token_label: Annotated[str, "Label of the new token."] = TOKEN_LABEL,
    key_label: Annotated[str, "Label of the new key."] = KEY_LABEL,
    algorithm: Annotated[Algorithm, "Algorithm of the new key."] = "ed25519",
    sessions: Annotated[int | None, "Signing sessions (default: one per processor).", {"min": 1, "max": 1024}] = None,
    gateway: Annotated[bool, "Let your programs sign through `hsmcore gateway`, too."] = False,
) -> None:
    """Make a SoftHSM token, a key and a configuration in a folder of their own.

    The PINs, and the secret of the state store's seal, are random; they are in files that only you may read.
    Idempotent: existing files stay as they are. SoftHSM is software: use it to develop and test, and a real HSM in
    production.

    Examples:

      hsmcore init

      hsmcore init --state /srv/sequencer --algorithm ecdsa-p256

      hsmcore init --gateway
    """
    if config is not None and state is not None:
        raise BadUsage("give --state or --config, not both")
    folder = StateFolder(config.parent, config.name) if config is not None else StateFolder(state or default_state())
    key = folder.create(
        module_path=str(module) if module is not None else None,
        token_label=token_label,
        key_label=key_label,
        algorithm=algorithm,
        sessions=sessions,
        gateway=gateway,
    )
    made: dict[str, object] = {"created": key is not None, "config": str(folder.config), "state": str(folder.path)}
    if key is not None and key.public_key is not None:
        made |= {"keyId": key.id, "algorithm": key.algorithm, "publicKey": key.public_key.hex()}
        if key.algorithm == "ed25519":
            made["address"] = base58(key.public_key)
    cli.show(made, None if key is not None else f"{folder.path} was ready before; nothing was changed.")
    if not cli.as_json:
        print(
            _use(
                folder,
                gateway and key is not None,
                [] if config is None and state is None else ["--config", str(folder.config)],
            )
        )


def _use(folder: StateFolder, serves: bool, options: list[str]) -> str:
    """Return the lines that sign with the token: on the command line, in Python with its configuration, and the
    variables for a program that has a configuration of its own, such as that of the README."""
    here = folder.path.resolve()
    command = shlex.join(["hsmcore", "sign", "--text", "hello", *options])
    gateway = f"""
Serve it to other processes of yours, and sign in one of them:

  {shlex.join(["hsmcore", "gateway", *options])}
  {shlex.join(["hsmcore", "sign", "--text", "hello", "--gateway", f"unix:{folder.socket}"])}
"""
    demo = "\nSee it at work: hsmcore demo" if find_spec("hsmcore_bench") is not None else ""
    return f"""
Sign on the command line:   {command}

Sign in Python:

  import asyncio, hsmcore
  async def main():
      async with hsmcore.create_key_manager({str(here / folder.config_name)!r}) as km:
          print((await km.sign(b"hello")).hex())
  asyncio.run(main())

For a configuration of your own, with "pin": {{"env": "HSM_PIN"}}:

  export SOFTHSM2_CONF={shlex.quote(str(folder.softhsm_conf.resolve()))}
  export HSM_PIN="$(cat {shlex.quote(str(here / "pin"))})"
{gateway if serves else ""}{demo}"""
