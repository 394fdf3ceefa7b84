"""Follow a public log of positions, and find an equivocation: with the standard library and PyNaCl, without hsmcore.

    python follow_positions.py POLICY_FILE SOURCE STATE_FILE [CHECKPOINT_FILE ...]

SOURCE is a folder or an address that has the log's files. Each run reads what is new, and checks that the log has only
grown since the last run: STATE_FILE keeps the leaf hashes that were seen. A CHECKPOINT_FILE, of anybody, is compared
with the own history: if it is another one, the keys of the log and the witnesses that signed it are named, and the
program ends with 2. docs/PUBLIC_LOG.md has the formats.
"""

import sys
import urllib.request
from base64 import b64decode
from pathlib import Path
from typing import NoReturn

from verify_position import NOTE, sha256, witnessed

WIDTH = 256


def fetched(source: str, path: str) -> bytes:
    if source.startswith(("http://", "https://")):
        with urllib.request.urlopen(f"{source.rstrip('/')}/{path}", timeout=10) as answer:  # noqa: S310  # of one of two schemes
            return answer.read(1 << 20)
    return Path(source, path).read_bytes()


def root_over(hashes: list[bytes]) -> bytes:
    """RFC 6962, section 2.1; of leaf hashes."""
    if len(hashes) < 2:
        return hashes[0] if hashes else sha256()
    half = 1 << (len(hashes) - 1).bit_length() - 1
    return sha256(b"\x01", root_over(hashes[:half]), root_over(hashes[half:]))


def bundle(source: str, number: int, width: int) -> list[bytes]:
    """The entries of a bundle: each behind its length in two bytes."""
    groups = [f"{number % 1000:03d}"]
    while number := number // 1000:
        groups.insert(0, f"x{number % 1000:03d}")
    path = f"tile/entries/{'/'.join(groups)}"
    data, found, at = fetched(source, path if width == WIDTH else f"{path}.p/{width}"), [], 0
    while at < len(data):
        end = at + 2 + int.from_bytes(data[at : at + 2], "big")
        found.append(data[at + 2 : end])
        at = end
    return found[:width]


def leaves_from(source: str, begin: int, size: int) -> list[bytes]:
    """The leaf hashes from a bundle's first one on."""
    starts = range(begin, size, WIDTH)
    bundles = [bundle(source, start // WIDTH, min(WIDTH, size - start)) for start in starts]
    return [sha256(b"\x00", entry) for entries in bundles for entry in entries]


def caught_up(policy: str, source: str, known: list[bytes]) -> list[bytes]:
    """The leaf hashes of the log as it is now. Ends the program if it did not grow from what is known."""
    note = fetched(source, "checkpoint").decode()
    shown = witnessed(policy, note)
    if shown is None:
        sys.exit("the checkpoint is of another log, or no quorum has cosigned it")
    size, root, _ = shown
    begin = len(known) // WIDTH * WIDTH
    leaves = known[:begin] + leaves_from(source, begin, size) if size > len(known) else known[:size]
    if root_over(leaves) == root and leaves[: len(known)] == known[:size]:
        return leaves if size > len(known) else known
    if size > len(known) and root_over(leaves_from(source, 0, size)) != root:
        sys.exit(
            "the files are not those of the checkpoint: they are damaged, which proves nothing against its signers"
        )
    return accuse(note)


def accuse(note: str) -> NoReturn:
    """Name the signers of another history."""
    lines = [line.split(" ") for line in NOTE.fullmatch(note)[5].split("\n")[:-1]]
    print("EQUIVOCATION: this checkpoint is of another history than the one that was followed")
    for _, name, value in lines:
        print(f"  signed by {name}, {value[:12]}…")
    print(note)
    sys.exit(2)


def main(policy: str, source: str, state: Path, others: list[str]) -> None:
    data = state.read_bytes() if state.exists() else b""
    leaves = caught_up(policy, source, [data[at : at + 32] for at in range(0, len(data), 32)])
    state.write_bytes(b"".join(leaves))
    for other in others:
        note = Path(other).read_text()
        found = NOTE.fullmatch(note)
        size = int(found[3]) if found else 0
        if found is None or size > len(leaves):
            print(f"{other}: nothing is known of it yet")
        elif b64decode(found[4]) != root_over(leaves[:size]):
            accuse(note)
    print(f"{len(leaves)} positions, one history")


if __name__ == "__main__":
    main(Path(sys.argv[1]).read_text(), sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
