"""The command line. `main` is the entry point of the script `hsmcore`."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command that sys.argv names and exit with its code: 0, 1 (failed), 2 (bad usage or configuration), 130
    (interrupted)."""
    try:
        from hsmcore.cli.app import run
        from hsmcore.cli.streams import prepare

        prepare()
        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # while it starts, or ends; `run` answers all others
        code = 130
        sys.stderr.write("hsmcore: interrupted\n")
    sys.exit(code)
