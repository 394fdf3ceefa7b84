"""Payloads for tests of policies: hsmcore's own ordered form, and transactions as solders writes them."""

from __future__ import annotations

import hashlib
from typing import Any

from solders.hash import Hash
from solders.instruction import AccountMeta, Instruction
from solders.message import Message, MessageV0, to_bytes_versioned
from solders.pubkey import Pubkey
from solders.system_program import TransferParams, transfer

import hsmcore
from hsmcore.base.payload import OrderedKind


def ordered(position: int, content: bytes = b"", *, kind: OrderedKind = "block", domain: str = "default") -> bytes:
    """A payload of hsmcore's own form. `content`: what its digest is of."""
    return hsmcore.payload(kind, domain, position, hashlib.sha256(content).digest())


def key(number: int) -> Pubkey:
    """Some address."""
    return Pubkey.from_bytes(bytes([number]) * 32)


def moving(payer: Pubkey, lamports: int, to: Pubkey | None = None, *, version: str = "v0") -> bytes:
    """A transaction that transfers lamports from its fee payer."""
    return made(
        payer, [transfer(TransferParams(from_pubkey=payer, to_pubkey=to or key(9), lamports=lamports))], version
    )


def calling(payer: Pubkey, program: Pubkey, *accounts: AccountMeta, data: bytes = b"x", version: str = "v0") -> bytes:
    """A transaction that calls a program."""
    return made(payer, [Instruction(program, data, list(accounts))], version)


def made(payer: Pubkey, instructions: list[Any], version: str = "v0", tables: Any = ()) -> bytes:
    """A transaction's message."""
    if version == "legacy":
        return bytes(Message.new_with_blockhash(instructions, payer, Hash.default()))
    return to_bytes_versioned(MessageV0.try_compile(payer, instructions, list(tables), Hash.default()))
