"""The fuzzers: each one in Python tries a few inputs here, and a broken reader is found; OSS-Fuzz's build makes each of
those in C. `make check-deep` runs all of them for longer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib import import_module

import pytest
import yaml
from tests.fuzz.engine import fuzz
from tests.support.paths import ROOT

from hsmcore.manager.rotation.backup import envelope

pytestmark = pytest.mark.integration
FOLDER = ROOT / "tests" / "fuzz"
IN_C = sorted(path.stem for path in FOLDER.glob("fuzz_*.c"))
IN_PYTHON = sorted(path.stem for path in FOLDER.glob("fuzz_*.py"))
# What each hostile input of docs/SECURITY.md is read by.
INPUTS = {
    "fuzz_wire", "fuzz_batch_proof", "fuzz_audit_proof", "fuzz_audit_log", "fuzz_audit_scan", "fuzz_backup",
    "fuzz_state", "fuzz_positions", "fuzz_config", "fuzz_module_answers", "fuzz_ec_point", "fuzz_payload", "fuzz_area",
}  # fmt: skip


def test_each_hostile_input_has_a_fuzzer():
    assert set(IN_C + IN_PYTHON) >= INPUTS


@pytest.mark.parametrize("name", [name for name in IN_PYTHON if name not in ("fuzz_state", "fuzz_audit_log")])
def test_a_fuzzer_tries_a_few_inputs(name):
    module = import_module(f"tests.fuzz.{name}")
    done, seen = fuzz(module.seeds, module.one, count=100, seconds=60, seed=3, most=4096)
    assert done == 100
    assert len(seen) > 1


@pytest.mark.deep
@pytest.mark.parametrize("name", ["fuzz_state", "fuzz_audit_log"])
def test_a_fuzzer_of_files_tries_a_few_inputs(name):
    """In a process of its own: it keeps its files open."""
    command = [sys.executable, "-m", f"tests.fuzz.{name}", "--count", "20"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("20 inputs")


def test_a_reader_that_believes_what_was_changed_is_found(monkeypatch):
    module = import_module("tests.fuzz.fuzz_backup")
    monkeypatch.setattr(envelope, "verify", lambda *_: True)
    with pytest.raises(AssertionError) as caught:
        fuzz(module.seeds, module.one, count=20_000, seconds=60, seed=1, most=4096)
    assert caught.value.__notes__[0].startswith("input: ")


def test_the_project_is_described_as_oss_fuzz_wants_it():
    project = yaml.safe_load((ROOT / ".clusterfuzzlite" / "project.yaml").read_text())
    assert project["language"] == "python"
    assert project["fuzzing_engines"] == ["libfuzzer"]
    assert set(project["sanitizers"]) == {"address", "undefined"}
    assert os.access(ROOT / ".clusterfuzzlite" / "build.sh", os.X_OK)


@pytest.mark.deep
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("clang-19") is None, reason="needs clang")
def test_the_build_of_oss_fuzz_makes_each_fuzzer_in_c(tmp_path):
    source, out = tmp_path / "src", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    (source / "hsmcore").symlink_to(ROOT)
    flags = "-O1 -fno-omit-frame-pointer -gline-tables-only -fsanitize=address -fsanitize=fuzzer-no-link"
    environment = {
        **os.environ, "SRC": str(source), "OUT": str(out), "WORK": str(tmp_path / "work"), "CC": "clang-19",
        "CFLAGS": flags, "LIB_FUZZING_ENGINE": "-fsanitize=fuzzer",
    }  # fmt: skip
    subprocess.run([str(ROOT / ".clusterfuzzlite" / "build.sh")], check=True, env=environment)
    made = sorted(path.name for path in out.glob("fuzz_*") if path.suffix != ".zip")
    assert made == [name for name in IN_C if name != "fuzz_module_answers"]
    with zipfile.ZipFile(out / "fuzz_ec_point_seed_corpus.zip") as corpus:
        assert len(corpus.namelist()) > 1
    for name in made:
        done = subprocess.run([str(out / name), "-runs=50"], capture_output=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr.decode()
