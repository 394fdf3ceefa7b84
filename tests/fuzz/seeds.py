"""Write the inputs that a fuzzer begins with into a folder: `python -m tests.fuzz.seeds fuzz_config FOLDER`."""

from __future__ import annotations

import hashlib
import sys
from importlib import import_module
from pathlib import Path


def main() -> None:
    _, name, folder = sys.argv
    Path(folder).mkdir(parents=True, exist_ok=True)
    for data in import_module(f"tests.fuzz.{name}").seeds():
        (Path(folder) / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


if __name__ == "__main__":
    main()
