"""The engine's own synchronisation under every order that C11 allows. See README.md; `make proofs` runs this.

Each model is explored whole, or within its bound, and must hold. Each mutant takes one ordering away from a copy of the
source and must be found: otherwise the model would show nothing."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.proofs.mutants import mutated

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "tests/proofs/models"
EXPLORER = ("search.c", "memory.c", "runtime.c")

# A model's sources in native/src beside those that it includes, and the arguments that choose a variant.
SOURCES = {
    "ring": [],
    "park": ["area.c", "client.c", "aside.c"],
    "notify": ["area.c", "client.c"],
    "gate": ["session.c"],
    "wipe": ["login.c"],
}
VARIANTS = {"park": range(8), "notify": range(4)}


@dataclass(frozen=True)
class Mutant:
    """A change of one source, and the model that must notice."""

    name: str
    model: str
    source: str
    changes: tuple[tuple[str, str], ...]
    variant: int = 0


FENCE = "atomic_thread_fence(memory_order_seq_cst);"
MUTANTS = [
    Mutant(
        "claim-takes-a-newer-head-with-an-older-tail",
        "ring",
        "area.h",
        (
            (
                "uint64_t head = atomic_load_explicit(&area->shared->request_head, memory_order_acquire);\n    for",
                "uint64_t head = atomic_load_explicit(&area->shared->request_head, memory_order_relaxed);\n    for",
            ),
            (
                "if (hsm_area_queued_from(area, head) == 0) {",
                "if (atomic_load_explicit(&area->shared->request_tail, memory_order_acquire) == head) {",
            ),
            (
                "memory_order_acq_rel,\n                                                  memory_order_acquire",
                "memory_order_acq_rel, memory_order_relaxed",
            ),
        ),
    ),
    Mutant(
        "claim-reads-the-tail-relaxed",
        "ring",
        "area.h",
        (("request_tail, memory_order_acquire) - head", "request_tail, memory_order_relaxed) - head"),),
    ),
    Mutant(
        "completions-are-not-ordered",
        "ring",
        "area.h",
        (("completion_tail, 1U, memory_order_acq_rel", "completion_tail, 1U, memory_order_relaxed"),),
    ),
    Mutant(
        "complete-does-not-release",
        "ring",
        "area.h",
        (("slot + 1U, memory_order_release", "slot + 1U, memory_order_relaxed"),),
    ),
    Mutant(
        "take-does-not-acquire",
        "ring",
        "area.h",
        (("load_explicit(place, memory_order_acquire)", "load_explicit(place, memory_order_relaxed)"),),
    ),
    Mutant(
        "park-without-its-fence",
        "park",
        "area.c",
        (("atomic_fetch_or(word, bit);\n    " + FENCE, "atomic_fetch_or(word, bit);"),),
    ),
    Mutant(
        "publish-without-its-fence",
        "park",
        "client.c",
        (("client->tail, memory_order_release);\n    " + FENCE, "client->tail, memory_order_release);"),),
    ),
    Mutant(
        "unpark-all-without-its-fence", "park", "area.c", ((FENCE + "\n    hsm_area_unpark(", "hsm_area_unpark("),), 1
    ),
    Mutant("restart-without-its-fence", "park", "area.c", ((FENCE + "\n    hsm_area_unpark(", "hsm_area_unpark("),), 2),
    Mutant(
        "a-spinning-worker-is-counted-on-for-two",
        "park",
        "worker.c",
        (("atomic_store(&area->shared->spinning, 0);", ""),),
        3,
    ),
    Mutant(
        "a-request-is-left-to-a-worker-that-sleeps",
        "park",
        "client.c",
        (("busy -= (uint64_t)__builtin_popcountll(sleeping);", "(void)sleeping;"),),
        7,
    ),
    Mutant(
        "a-request-is-left-before-it-is-seen",
        "park",
        "client.c",
        (("client->tail, memory_order_release);\n    " + FENCE, "client->tail, memory_order_release);"),),
        7,
    ),
    Mutant(
        "a-quarantined-worker-keeps-the-wake",
        "park",
        "worker.c",
        (("pass_wake_on(area, *waited);", "pass_wake_on(area, *waited && !leaves);"),),
        6,
    ),
    Mutant("notify-without-its-fence", "notify", "wake.c", (("record) {\n    " + FENCE, "record) {"),)),
    Mutant(
        "wake-clear-without-its-fence",
        "notify",
        "client.c",
        (
            (
                "by the drain that follows. */\n    " + FENCE,
                "by the drain that follows. */",
            ),
        ),
    ),
    Mutant(
        "the-event-is-cleared-last",
        "notify",
        "client.c",
        (
            ("hsm_event_clear(client->event_fd);\n", ""),
            (
                "    begin_taking(client);\n    if",
                "    hsm_event_clear(client->event_fd);\n    begin_taking(client);\n    if",
            ),
        ),
        3,
    ),
    Mutant(
        "an-alarm-that-went-off-is-trusted",
        "notify",
        "client.c",
        (
            ("atomic_store(&client->area->shared->alarm_at_ns, 0);", ""),
            ("uint64_t now = hsm_now_ns();\n    uint64_t at", "uint64_t now = 1000000;\n    uint64_t at"),
        ),
        1,
    ),
    Mutant(
        "enter-without-an-exchange",
        "gate",
        "session.h",
        (
            (
                "(void)atomic_exchange(&worker->record->call_started_ns, now);",
                "atomic_store_explicit(&worker->record->call_started_ns, now, memory_order_release);",
            ),
        ),
    ),
    Mutant(
        "leave-does-not-release",
        "gate",
        "session.h",
        (("call_started_ns, 0, memory_order_release", "call_started_ns, 0, memory_order_relaxed"),),
    ),
    Mutant(
        "the-gate-is-closed-with-a-release",
        "gate",
        "reinit.c",
        (("atomic_store(&engine->gate, 1);", "atomic_store_explicit(&engine->gate, 1, memory_order_release);"),),
    ),
    Mutant("the-pin-is-wiped-without-a-fence", "wipe", "login.c", ((FENCE, ""),)),
]


def build(model: str, folder: Path, mutant: Mutant | None = None) -> Path:
    """Compile a model, with a changed copy of one source if there is a mutant."""
    sources = ROOT / "native/src"
    if mutant is not None:
        sources = mutated(folder, mutant.source, mutant.changes)
    includes = [MODELS, sources, ROOT / "native/include"]
    pkcs11 = subprocess.run(["pkg-config", "--cflags", "p11-kit-1"], check=True, capture_output=True, text=True)
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-g", "-ffunction-sections", *pkcs11.stdout.split()]
    flags += [f"-I{include}" for include in includes]
    clang = "clang-19"
    objects = []
    for name in EXPLORER:
        objects.append(folder / f"{name}.o")
        subprocess.run([clang, *flags, "-O2", "-Wall", "-c", MODELS / name, "-o", objects[-1]], check=True)
    for source in [MODELS / f"{model}.c", *(sources / name for name in SOURCES[model])]:
        objects.append(folder / f"{source.name}.o")
        # What the compiler would have the sanitizer's runtime do, the explorer does.
        instrumented = ["-O1", "-fsanitize=thread", "-fno-builtin", "-include", MODELS / "explore.h"]
        instrumented += ["-D__builtin_ia32_pause=mm_relax", "-Wno-unused-function", "-c", source, "-o", objects[-1]]
        subprocess.run([clang, *flags, *instrumented], check=True)
    # A model calls few functions of a source, and what the others call is not there.
    link = ["-Wl,--gc-sections", "-Wl,--unresolved-symbols=ignore-all", "-no-pie", "-o", folder / model]
    subprocess.run([clang, *objects, *link], check=True)
    return folder / model


def explore(program: Path, variant: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, str(variant)], capture_output=True, text=True, timeout=1200, check=False)


@pytest.mark.parametrize(
    ("model", "variant"), [(model, variant) for model in SOURCES for variant in VARIANTS.get(model, [0])]
)
def test_it_holds(model: str, variant: int, tmp_path: Path) -> None:
    result = explore(build(model, tmp_path), variant)
    assert result.returncode == 0, result.stdout
    assert result.stdout.startswith("holds")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.model}-{mutant.name}")
def test_a_mutant_is_found(mutant: Mutant, tmp_path: Path) -> None:
    result = explore(build(mutant.model, tmp_path, mutant), mutant.variant)
    assert result.returncode == 1, result.stdout
    assert result.stdout.startswith("violated")
