"""Parsers and arithmetic, for all inputs up to a bound, with CBMC. See README.md; `make proofs` runs this."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.proofs.mutants import mutated

ROOT = Path(__file__).resolve().parents[2]
HARNESSES = Path("tests/proofs/bounded")
SOURCES = Path("native/src")
# No undefined behaviour, and no loop that goes on beyond the bound.
CHECKS = [
    "--bounds-check",
    "--pointer-check",
    "--pointer-overflow-check",
    "--signed-overflow-check",
    "--undefined-shift-check",
    "--div-by-zero-check",
    "--unwinding-assertions",
]


@dataclass(frozen=True)
class Proof:
    """A function of a harness that asserts, over all values of what it does not set."""

    harness: str
    function: str
    unwind: int
    source: str | None = None
    replaced: str | None = None  # calls of functions are calls of others, as goto-instrument says it
    # Text of the source, and what breaks it so that the proof must fail.
    mutant: tuple[str, str, str] = ("", "", "")


_COMPACT = "take_compact:any_compact"
_STEPS = f"{_COMPACT} hsm_walk_next:any_step take_lookup:any_lookup highest:any_index each_once:any_keys"

PROOFS = [
    Proof(
        "wire",
        "prove_get",
        1,
        "wire.c",
        mutant=("wire.c", "field->length >= HSM_WIRE_TEXT - field", "field->length > HSM_WIRE_TEXT - field"),
    ),
    Proof(
        "wire",
        "prove_put",
        10,
        "wire.c",
        mutant=("wire.c", "length >= HSM_WIRE_TEXT - message->used", "length > HSM_WIRE_TEXT - message->used"),
    ),
    Proof(
        "ec_point",
        "prove_point",
        81,
        "algorithm.c",
        mutant=("algorithm.c", "point_len == want + 3U", "point_len >= want + 3U"),
    ),
    Proof(
        "ec_point",
        "prove_params",
        30,
        "algorithm.c",
        mutant=("algorithm.c", "ec_params_len == info->oid_len && memcmp(ec_params", "memcmp(ec_params"),
    ),
    Proof(
        "low_s",
        "prove_low_s",
        66,
        "algorithm.c",
        mutant=("algorithm.c", "borrow = column < 256U", "borrow = column <= 256U"),
    ),
    Proof(
        "low_s",
        "prove_ed25519",
        66,
        "algorithm.c",
        mutant=(
            "algorithm.c",
            "if (algorithm == HSM_ED25519) {\n        return true;\n    }\n    const uint8_t *order",
            "const uint8_t *order",
        ),
    ),
    Proof("histogram", "prove_bucket", 1, "hist.c", mutant=("hist.c", "octave - STEP_BITS + 1U", "octave - STEP_BITS")),
    Proof("histogram", "prove_upper", 1, "hist.c", mutant=("hist.c", "<< shift) - 1U", "<< shift)")),
    Proof(
        "ladder",
        "prove_walk",
        31,
        "ladder.c",
        mutant=("ladder.c", "if (calls->over(on)) {", "if (false) {"),
    ),
    Proof("audit_line", "prove_number", 22, mutant=("journal_line.c", "char digits[20]", "char digits[19]")),
    Proof("audit_line", "prove_hex", 8, mutant=("journal_line.c", "('a' - '0' - 10)", "('a' - '0' - 9)")),
    Proof(
        "audit_line",
        "prove_line",
        70,
        replaced="put_number:longest_number",
        mutant=("journal_line.c", "#define SIGN_BYTES 512U", "#define SIGN_BYTES 352U"),
    ),
    Proof("message", "prove_compact", 5, mutant=("transaction.c", "(byte > 0 || i == 0) && value", "value")),
    Proof(
        "message",
        "prove_instruction",
        5,
        replaced=_COMPACT,
        mutant=("transaction.h", "count > reader->left", "count > reader->left + 1"),
    ),
    Proof(
        "message",
        "prove_instruction_v1",
        5,
        replaced=_COMPACT,
        mutant=("transaction.c", "walk->headers += 4", "walk->headers += 3"),
    ),
    Proof(
        "message",
        "prove_lookup",
        5,
        replaced=_COMPACT,
        mutant=("transaction.c", "take_bytes(reader, &read) == NULL", "false"),
    ),
    Proof(
        "message",
        "prove_legacy",
        10,
        replaced=_STEPS,
        mutant=("transaction.c", "*sound = header[1] < header[0]", "*sound = header[1] <= header[0]"),
    ),
    Proof(
        "message",
        "prove_v0",
        10,
        replaced=_STEPS,
        mutant=("transaction.c", "return tables >= 0;", "return true;"),
    ),
    Proof(
        "message",
        "prove_v1",
        10,
        replaced=_STEPS,
        mutant=("transaction.c", "(size_t)counts[0] * 4", "(size_t)counts[0] * 3"),
    ),
    Proof("form", "prove_form", 10, mutant=("instructions.c", "size >= form->size && ", "")),
    Proof("message", "prove_text", 10, mutant=("utf8.h", "lead > 0xf4", "lead > 0xfe")),
    Proof("message", "prove_note_line", 16, mutant=("payload.c", "one < ' '", "one == 0")),
    Proof(
        "message",
        "prove_note",
        24,
        replaced="take_line:any_line",
        mutant=("payload.c", "take_line(&rest, BASE64, DIGEST_BASE64)", "take_line(&rest, BASE64, 1)"),
    ),
    Proof(
        "message",
        "prove_classes",
        34,
        replaced="hsm_read_legacy:any_legacy hsm_read_v0:any_v0 hsm_read_v1:any_v1 is_utf8:any_text"
        " is_printable:any_text is_off_chain_1:any_off_chain_1 note_of:any_note",
        mutant=("payload.c", "size == DIGEST && !is_reserved(message, size)", "size == DIGEST"),
    ),
]


def prove(proof: Proof, sources: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Compile the harness with the source that it is about, and check it."""
    pkcs11 = subprocess.run(["pkg-config", "--cflags", "p11-kit-1"], check=True, capture_output=True, text=True)
    flags = ["-D_GNU_SOURCE", f"-I{sources}", "-Inative/include", *pkcs11.stdout.split(), "--function", proof.function]
    files = [HARNESSES / f"{proof.harness}.c", *([sources / proof.source] if proof.source is not None else [])]
    program = folder / "program"
    subprocess.run(["goto-cc", *flags, *files, "-o", program], cwd=ROOT, check=True, capture_output=True)
    if proof.replaced is not None:
        calls = [part for call in proof.replaced.split() for part in ("--replace-calls", call)]
        replace = ["goto-instrument", *calls, program, program]
        subprocess.run(replace, cwd=ROOT, check=True, capture_output=True)
    command = ["cbmc", program, *CHECKS, "--unwind", str(proof.unwind), "--object-bits", "12"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)


def failures(result: subprocess.CompletedProcess[str]) -> str:
    return "\n".join(line for line in result.stdout.splitlines() if line.endswith(": FAILURE")) or result.stdout


@pytest.mark.parametrize("proof", PROOFS, ids=lambda proof: proof.function)
def test_it_holds(proof: Proof, tmp_path: Path) -> None:
    result = prove(proof, SOURCES, tmp_path)
    assert result.returncode == 0, failures(result)
    assert "VERIFICATION SUCCESSFUL" in result.stdout


@pytest.mark.parametrize("proof", PROOFS, ids=lambda proof: proof.function)
def test_a_mutant_is_found(proof: Proof, tmp_path: Path) -> None:
    result = prove(proof, mutated(tmp_path, proof.mutant[0], [proof.mutant[1:]]), tmp_path)
    assert result.returncode == 10, result.stdout
    assert "VERIFICATION FAILED" in result.stdout
