"""Each code block of the documents is what it looks like: JSON is a configuration, a command has these options.

Programs in Python are run by tests/integration/test_doc_programs.py and the tests that PROGRAMS names; those in Rust
are compiled for tests/integration/test_rust.py.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import tomllib
from typing import Any

import pytest
import yaml
from tests.support.commands import BENCH, application
from tests.support.doc_blocks import SHELLS, Block, blocks
from tests.support.paths import ROOT

from hsmcore.config import load_each

TOKEN = {"tokenLabel": "sequencer", "pin": {"env": "HSM_PIN"}, "keyLabel": "sequencer-key"}
MANAGER = {"type": "softhsm", "config": TOKEN}
PROVIDER_KEYS = {"connectors": {"type": "yubihsm", "config": {"authKeyId": 2, "password": {"env": "Y"}, "keyId": "01"}}}
"""Keys of fragments that are settings of a provider, and the provider."""
NO_CONFIGURATION = {
    "clients/typescript/README.md:json-1": "read by the client in TypeScript: clients/typescript/test",
    "clients/typescript/README.md:json-2": "read by the client in TypeScript: clients/typescript/test",
    "docs/CHAOS.md:json-1": "read by the chaos module",
    "docs/CHAOS.md:json-2": "read by the chaos module",
    "docs/FLEET.md:json-2": "the interchange of a fleet",
    "docs/BENCHMARKS.md:json-1": "faults of `hsmcore load`",
    "docs/operations/aws-kms.md:json-2": "a policy of AWS",
    "docs/operations/aws-kms.md:json-3": "a policy of AWS",
    "docs/operations/aws-kms.md:json-4": "a policy of AWS",
}
"""JSON that is no configuration of a key manager, and what reads it."""
ONLY_READ = {
    "clients/typescript/README.md:javascript-1": "tests/integration/test_typescript.py makes the same calls",
    "clients/typescript/README.md:typescript-1": "tests/integration/test_typescript.py makes the same calls",
    "clients/typescript/README.md:typescript-2": "tests/integration/test_typescript.py makes the same calls",
    "docs/KEYSET.md:typescript-1": "clients/typescript/test/key-set.test.ts makes the same calls",
    "docs/FLEET.md:sql-1": "for an administrator of PostgreSQL; the tests make their roles and databases otherwise",
}
"""Blocks of a language that no test here reads, and why."""
CHECKED = ("json", "yaml", "toml", "python", "rust", "mermaid", "text", *SHELLS)


def named(*languages: str) -> Any:
    found = blocks(*languages)
    return pytest.mark.parametrize("block", found, ids=[block.name for block in found])


def test_every_block_is_of_a_language_that_is_checked_or_has_a_reason():
    assert {block.name for block in blocks() if block.language not in CHECKED} == set(ONLY_READ)
    names = {block.name for block in blocks("json")}
    assert set(NO_CONFIGURATION) <= names
    assert len(NO_CONFIGURATION) + len(ONLY_READ) <= 14, "the lists stay short"


def as_document(part: dict[str, Any]) -> dict[str, Any]:
    """A whole configuration around a fragment of one."""
    if part.keys() & {"sequencer", "keyManager", "keyManagers"}:
        inner = part.get("sequencer", part)
        if "keyManager" in inner and not inner["keyManager"].keys() & {"type", "failover"}:
            inner["keyManager"] = MANAGER | inner["keyManager"]
        return part
    for key, provider in PROVIDER_KEYS.items():
        if key in part:
            return {"keyManager": provider | {"config": provider["config"] | part}}
    if "stateSecret" in part:
        return {"keyManager": MANAGER} | part
    if part.keys() <= {"programs", "owned"}:
        part = {"programs": {}} | part
        return {"keyManager": MANAGER | {"policy": {"kinds": ["tx-v0"], "transactions": part}}}
    if part.keys() <= {"formats"}:
        return {"keyManager": MANAGER | {"policy": {"kinds": ["block", "state-root"], **part}}}
    return {"keyManager": MANAGER | part}


@named("json")
def test_json_is_a_configuration(block: Block):
    text = block.text.strip()
    part = json.loads(text if text[0] in "{[" else f"{{{text}}}")
    if block.name not in NO_CONFIGURATION:
        assert load_each(as_document(part))


@named("yaml")
def test_yaml_is_of_prometheus(block: Block):
    assert "scrape_configs" in yaml.safe_load(block.text)


@named("toml")
def test_toml_is_a_scenario(block: Block):
    from hsmcore_bench.suite import catalogue

    read = tomllib.loads(block.text)
    assert {"title", "contender"} <= read.keys()
    assert catalogue


@named(*SHELLS)
def test_a_shell_can_read_its_commands(block: Block):
    assert block.commands.strip(), "a block for a shell holds no command"
    subprocess.run(["bash", "-n"], input=block.commands, text=True, check=True)


COMMANDS = [
    (block.name, line)
    for block in blocks(*SHELLS)
    for line in re.sub(r"\\\n\s*", " ", block.commands).splitlines()
    if re.match(r"(\w+=\S+ )*(hsmcore|make) ", line)
]


@pytest.mark.parametrize(("name", "line"), COMMANDS, ids=[f"{name} {line[:40]}" for name, line in COMMANDS])
def test_every_command_has_these_options(name: str, line: str):
    words = first_command(line)
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets
        return
    parsed(words[1:])


def first_command(line: str) -> list[str]:
    """The words of the first command of a line, with variables replaced and assignments left out."""
    line = re.sub(r'"?\$\((?:[^()]|\([^()]*\))*\)"?', "x", line)
    line = re.sub(r"\$\{?(\w+)\}?", lambda found: "7" if found[1] == "POSITION" else "x", line)
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = []
    for word in lexer:
        if word in ("|", "||", "&&", ";", ">", ">>"):
            break
        words.append(word)
    while re.match(r"\w+=", words[0]):
        words.pop(0)
    return words


def parsed(words: list[str]) -> None:
    """Parse a command line as the program does, and run nothing."""
    group = application(words[0] if words[0] in BENCH else "")
    command, context = group, group.context_class(group, info_name="hsmcore")
    while hasattr(command, "commands"):
        if command.invoke_without_command and (not words or words[0].startswith("-")):
            break
        assert words, "a group without a command"
        name, command, words = command.resolve_command(context, words)
        context = command.context_class(command, info_name=name, parent=context)
    command.make_context("command", list(words), parent=context.parent)


def test_an_option_that_does_not_exist_is_found():
    with pytest.raises(Exception, match="No such option"):
        parsed(["sign", "--texts", "hello"])
    with pytest.raises(Exception, match="No such command"):
        parsed(["audit", "verfy"])
