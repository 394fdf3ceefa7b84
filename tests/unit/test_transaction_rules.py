"""Rules for transactions: which instructions, to whom, from which accounts, for what fee. LiteSVM says what each
would have done."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from solders import compute_budget as budget
from solders import system_program as system
from solders.account import Account
from solders.hash import Hash
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.message import Message, MessageV0, MessageV1, TransactionConfig, to_bytes_versioned
from solders.pubkey import Pubkey
from solders.transaction import VersionedTransaction
from spl.token import instructions as tokens
from spl.token import models
from spl.token.constants import TOKEN_2022_PROGRAM_ID, TOKEN_PROGRAM_ID, WRAPPED_SOL_MINT
from tests.support.solana_keys import TABLES, Svm, memo, message_of

from hsmcore._native import PROGRAMS, Gate
from hsmcore.base.base58 import base58
from hsmcore.errors import BadArgument

SOL = 1_000_000_000
KEY, THIEF, FRIEND = Keypair(), Keypair(), Keypair()
OWN, STRANGER, ACCOUNT, MINT, OTHER = KEY.pubkey(), THIEF.pubkey(), *(Pubkey(bytes([n]) * 32) for n in (7, 8, 9))
ED25519 = Pubkey.from_string("Ed25519SigVerify111111111111111111111111111")
NAMES = [(program, name) for program, (_, names) in PROGRAMS.items() for name in names]
LISTED = [
    ("System", "Transfer"),
    ("Token", "TransferChecked"),
    ("ComputeBudget", "SetComputeUnitLimit"),
    ("ComputeBudget", "SetComputeUnitPrice"),
]


def gate(**rules: object) -> Gate:
    kinds = ("tx-legacy", "tx-v0", "tx-v1")
    return Gate(kinds=kinds, domain="d", **{"programs": (), "instructions": LISTED} | rules)  # type: ignore[arg-type]


def legacy(*instructions: Instruction, payer: Pubkey = OWN) -> bytes:
    return bytes(Message.new_with_blockhash(instructions, payer, Hash.default()))


def refusal(message: bytes, **rules: object) -> str:
    """Why it is refused; "": it is not. The fast way says the same."""
    judge = gate(**rules)
    found = judge.look(message).refusal
    assert judge.passes(message, None) == (found is None)
    return found or ""


def pay(lamports: int, to: Pubkey = STRANGER, payer: Pubkey = OWN) -> Instruction:
    return system.transfer(system.TransferParams(from_pubkey=payer, to_pubkey=to, lamports=lamports))


def prefunded(to: Pubkey) -> Instruction:
    return system.create_account_allow_prefund(
        {"new_account": to, "payer": OWN, "lamports": 3 * SOL, "space": 0, "owner": system.ID}
    )


# ---- names -----------------------------------------------------------------------------------------------------------

NONCE, BASE = Pubkey(bytes([10]) * 32), Pubkey(bytes([11]) * 32)
TABLE = Pubkey(bytes([12]) * 32)


def of_system() -> Iterator[tuple[str, Instruction]]:
    new = {"from_pubkey": OWN, "to_pubkey": STRANGER, "lamports": SOL, "space": 9, "owner": OTHER}
    seeded = {"base": BASE, "seed": "a seed"}
    authorized = {"nonce_pubkey": NONCE, "authorized_pubkey": OWN}
    yield "CreateAccount", system.create_account(new)
    yield "CreateAccountAllowPrefund", prefunded(STRANGER)
    yield "CreateAccountWithSeed", system.create_account_with_seed(new | seeded)
    yield "Assign", system.assign({"pubkey": OWN, "owner": OTHER})
    yield "AssignWithSeed", system.assign_with_seed({"address": ACCOUNT, "owner": OTHER} | seeded)
    yield "Allocate", system.allocate({"pubkey": OWN, "space": 9})
    yield "AllocateWithSeed", system.allocate_with_seed({"address": ACCOUNT, "space": 9, "owner": OTHER} | seeded)
    yield "Transfer", pay(SOL)
    yield "TransferWithSeed", system.transfer_with_seed(
        {"from_pubkey": ACCOUNT, "from_base": OWN, "from_seed": "s", "from_owner": OTHER, "to_pubkey": STRANGER,
         "lamports": SOL}
    )  # fmt: skip
    yield "AdvanceNonceAccount", system.advance_nonce_account(authorized)
    yield "WithdrawNonceAccount", system.withdraw_nonce_account(authorized | {"to_pubkey": STRANGER, "lamports": SOL})
    yield "InitializeNonceAccount", system.initialize_nonce_account({"nonce_pubkey": NONCE, "authority": OWN})
    yield "AuthorizeNonceAccount", system.authorize_nonce_account(authorized | {"new_authority": STRANGER})
    yield "UpgradeNonceAccount", system.upgrade_nonce_account({"nonce_pubkey": NONCE})


def of_tables() -> Iterator[tuple[str, Instruction]]:
    held = {"lookup_table_address": TABLE, "authority_address": OWN}
    yield (
        "CreateLookupTable",
        system.create_lookup_table({"authority_address": OWN, "payer_address": OWN, "recent_slot": 1})[0],
    )
    yield "FreezeLookupTable", system.freeze_lookup_table(held)
    yield "ExtendLookupTable", system.extend_lookup_table(held | {"payer_address": OWN, "new_addresses": [OTHER]})
    yield "DeactivateLookupTable", system.deactivate_lookup_table(held)
    yield "CloseLookupTable", system.close_lookup_table(held | {"recipient_address": STRANGER})


def of_budget() -> Iterator[tuple[str, Instruction]]:
    yield "RequestUnits", Instruction(budget.ID, bytes(9), [])
    yield "RequestHeapFrame", budget.request_heap_frame(64 * 1024)
    yield "SetComputeUnitLimit", budget.set_compute_unit_limit(9)
    yield "SetComputeUnitPrice", budget.set_compute_unit_price(9)
    yield "SetLoadedAccountsDataSizeLimit", budget.set_loaded_accounts_data_size_limit(9)


TOKEN_MODELS = [name.removesuffix("Params") for name in dir(models) if name.endswith("Params")]
EXTENSION = {
    name: f"TransferFeeExtension.{name}" for name in TOKEN_MODELS if "Withheld" in name or name.endswith("FeeConfig")
}


def of_tokens(program: Pubkey) -> Iterator[tuple[str, Instruction]]:
    """All that spl.token can make."""
    given: dict[str, object] = {
        "program_id": program, "mint": MINT, "account": ACCOUNT, "owner": OWN, "source": ACCOUNT, "dest": STRANGER,
        "delegate": STRANGER, "authority": OWN, "mint_authority": OWN, "freeze_authority": None, "decimals": 6, "m": 1,
        "amount": 5, "signers": [], "multi_signers": [], "multisig": ACCOUNT, "ui_amount": "1", "sources": [],
        "new_authority": STRANGER, "current_authority": OWN, "transfer_fee_config_authority": OWN, "maximum_fee": 1,
        "withdraw_withheld_authority": OWN, "transfer_fee_basis_points": 1,
    }  # fmt: skip
    for name in TOKEN_MODELS:
        if name in EXTENSION and program == TOKEN_PROGRAM_ID:
            continue
        made, known = getattr(models, f"{name}Params"), dict(given)
        if name == "SetAuthority":
            known["authority"] = tokens.AuthorityType.ACCOUNT_OWNER
        if "Multisig" in name:
            known["signers"] = [OWN]
        function = getattr(tokens, re.sub("(?<!^)(?=[A-Z])", "_", name).lower())
        instruction = function(made(**{field: known[field] for field in inspect.signature(made).parameters}))
        yield EXTENSION.get(name, name), instruction
    for tag, name in ((38, "WithdrawExcessLamports"), (45, "UnwrapLamports")):
        metas = [AccountMeta(ACCOUNT, False, True), AccountMeta(STRANGER, False, True), AccountMeta(OWN, True, False)]
        yield name, Instruction(program, bytes([tag, 0]), metas)


def of_associated() -> Iterator[tuple[str, Instruction]]:
    create = tokens.create_associated_token_account(OWN, STRANGER, MINT)
    yield "Create", create
    yield "Create", Instruction(create.program_id, b"", create.accounts)
    yield "CreateIdempotent", tokens.create_idempotent_associated_token_account(OWN, STRANGER, MINT)
    yield "RecoverNested", Instruction(create.program_id, b"\2", create.accounts)


MADE = {
    f"{program}.{name} {number}": (program, name, instruction)
    for program, made in (
        ("System", of_system()),
        ("AddressLookupTable", of_tables()),
        ("ComputeBudget", of_budget()),
        ("Token", of_tokens(TOKEN_PROGRAM_ID)),
        ("Token-2022", of_tokens(TOKEN_2022_PROGRAM_ID)),
        ("AssociatedToken", of_associated()),
    )
    for number, (name, instruction) in enumerate(made)
}


def test_each_program_is_where_solders_has_it():
    known = {at: name for name, (places, _) in PROGRAMS.items() for at in places}
    places = {"System": system.ID, "ComputeBudget": budget.ID, "Token": TOKEN_PROGRAM_ID, "Ed25519": ED25519,
              "Token-2022": TOKEN_2022_PROGRAM_ID, "AddressLookupTable": TABLES}  # fmt: skip
    for program, at in places.items():
        assert known[bytes(at)] == program
    names = {"Stake": "Stake1", "Vote": "Vote1", "BpfLoaderUpgradeable": "BPFLoaderUpgradeab1e1", "Memo": "Memo",
             "BpfLoader": "BPFLoader2", "BpfLoaderDeprecated": "BPFLoader1", "LoaderV4": "LoaderV41",
             "Secp256k1": "KeccakSecp256k11", "Secp256r1": "Secp256r1SigVerify1",
             "AssociatedToken": "ATokenGP"}  # fmt: skip
    for program, start in names.items():
        assert all(base58(at).startswith(start) for at in PROGRAMS[program][0])
    assert len(PROGRAMS["Memo"][0]) == 2


@pytest.mark.parametrize("case", MADE)
def test_what_is_not_listed_is_refused_however_it_comes(case):
    """Five mutations of each; a listed one before it, of each version of transactions."""
    program, name, own = MADE[case]
    mutated = [
        Instruction(own.program_id, own.data + bytes(8), own.accounts),
        Instruction(own.program_id, own.data, [*own.accounts, AccountMeta(OTHER, False, True)]),
        Instruction(own.program_id, own.data, []),
        Instruction(own.program_id, own.data[:4] if len(own.data) > 4 else own.data, own.accounts[::-1]),
    ]
    others = [each for each in NAMES if each != (program, name)]
    for instruction in (own, *mutated):
        if program == "AssociatedToken" and not own.data and instruction.data:
            continue  # it has become another instruction
        for version in ("legacy", "v0", "v1"):
            message = to_bytes_versioned(message_of(version, OWN, [pay(1), instruction], Hash.default()))
            allowed = others if (program, name) != ("System", "Transfer") else []
            assert f"{program}.{name}, which" in refusal(message, instructions=allowed)


@pytest.mark.parametrize("program", [program for program, (_, names) in PROGRAMS.items() if names])
@given(data=st.binary(max_size=12), tag=st.integers(0, 50))
@example(data=b"", tag=255)
def test_of_any_bytes_only_what_is_listed_passes(program, data, tag):
    """Whatever they are, either they have one name, by which they can be listed, or none."""
    [address] = PROGRAMS[program][0]
    for told in (data, bytes([tag]) + data, bytes([tag, 0, 0, 0]) + data):
        message = legacy(Instruction(Pubkey(address), told, []))
        why = refusal(message, instructions=[])
        named = re.fullmatch(rf"it has {program}\.(\S+), which programs does not list", why)
        others = [each for each in NAMES if named is None or each != (program, named[1])]
        assert refusal(message, instructions=others) == why
        if named is None:
            assert re.fullmatch(rf"it has {program} instruction \d+, which programs does not list", why)
        else:
            assert refusal(message, instructions=[(program, named[1])]) == ""
        assert refusal(message, instructions=[], programs=[address]) == why  # its address alone allows nothing


def test_what_has_no_name_is_told_by_its_number():
    hidden = bytes([0, 12, *pay(1).data])
    for instruction, said in (
        (Instruction(system.ID, b"\x0e\0\0\0", []), "System instruction 14"),
        (Instruction(system.ID, b"\2\0\0\1", []), "System instruction 16777218"),
        (Instruction(TOKEN_PROGRAM_ID, b"\xff" + hidden, []), "Token instruction 255"),
        (Instruction(TOKEN_2022_PROGRAM_ID, b"\xff" + hidden, []), "Token-2022 instruction 255"),
        (Instruction(TOKEN_2022_PROGRAM_ID, b"\x1a\6", []), "Token-2022 instruction 26"),
        (Instruction(TOKEN_2022_PROGRAM_ID, b"\x1a", []), "Token-2022 instruction 26"),
        (memo(b"text"), "an instruction of Memo"),
    ):
        assert refusal(legacy(instruction), instructions=NAMES) == f"it has {said}, which programs does not list"
    assert refusal(legacy(memo(b"text")), programs=PROGRAMS["Memo"][0]) == ""


@pytest.mark.parametrize(
    ("name", "hashed"),
    [
        ("TokenMetadata.Initialize", "metadata_interface:initialize_account"),
        ("TokenMetadata.UpdateField", "metadata_interface:updating_field"),
        ("TokenMetadata.RemoveKey", "metadata_interface:remove_key_ix"),
        ("TokenMetadata.UpdateAuthority", "metadata_interface:update_the_authority"),
        ("TokenMetadata.Emit", "metadata_interface:emitter"),
        ("TokenGroup.InitializeGroup", "group_interface:initialize_token_group"),
        ("TokenGroup.UpdateGroupMaxSize", "group_interface:update_group_max_size"),
        ("TokenGroup.UpdateGroupAuthority", "group_interface:update_authority"),
        ("TokenGroup.InitializeMember", "group_interface:initialize_member"),
    ],
)
def test_an_interface_s_instruction_is_the_hash_of_its_name(name, hashed):
    data = hashlib.sha256(f"spl_token_{hashed}".encode()).digest()[:8]
    assert refusal(legacy(Instruction(TOKEN_2022_PROGRAM_ID, data, [])), instructions=[("Token-2022", name)]) == ""
    for cut in (data[:7], data[:7] + bytes([data[7] ^ 1])):
        assert refusal(legacy(Instruction(TOKEN_2022_PROGRAM_ID, cut, [])), instructions=NAMES)


# ---- what went around the limits ------------------------------------------------------------------------------------


def token_account(owner: Pubkey, mint: Pubkey, amount: int, native: int | None = None) -> Account:
    """A token account of 165 bytes. `native`: of wrapped SOL, with so many lamports for its rent."""
    rest = bytes(36) + b"\1" + (bytes(12) if native is None else b"\1\0\0\0" + native.to_bytes(8, "little"))
    data = bytes(mint) + bytes(owner) + amount.to_bytes(8, "little") + rest + bytes(44)
    return Account((native or 2_039_280) + (amount if native is not None else 0), data, TOKEN_PROGRAM_ID)


@pytest.fixture
def svm() -> Svm:
    """The key has money, tokens, wrapped SOL and a mint; the thief an account for tokens."""
    made = Svm(OWN, STRANGER)
    made.svm.set_account(OWN, Account(30 * SOL, b"", system.ID))
    mint = b"\1\0\0\0" + bytes(OWN) + (1000).to_bytes(8, "little") + b"\6\1" + bytes(36)
    made.svm.set_account(MINT, Account(SOL, mint, TOKEN_PROGRAM_ID))
    made.svm.set_account(ACCOUNT, token_account(OWN, MINT, 1000))
    made.svm.set_account(WRAPPED, token_account(OWN, WRAPPED_SOL_MINT, 4 * SOL, 2_039_280))
    made.svm.set_account(THEIRS, token_account(STRANGER, MINT, 0))
    return made


WRAPPED, THEIRS = Pubkey(bytes([21]) * 32), Pubkey(bytes([22]) * 32)
NEW = Keypair()


def executes(svm: Svm, *instructions: Instruction, signers: tuple[Keypair, ...] = (KEY,)) -> None:
    message = Message.new_with_blockhash(instructions, signers[0].pubkey(), svm.blockhash())
    assert svm.refusal(VersionedTransaction(message, signers)) is None


def token(tag: int, data: bytes, *accounts: Pubkey, authority: Pubkey = OWN) -> Instruction:
    """An instruction of the Token program, whose authority comes last."""
    metas = [*(AccountMeta(at, False, True) for at in accounts), AccountMeta(authority, True, False)]
    return Instruction(TOKEN_PROGRAM_ID, bytes([tag]) + data, metas)


def amount_of(svm: Svm, account: Pubkey) -> int:
    found = svm.svm.get_account(account)
    assert found is not None
    return int.from_bytes(found.data[64:72], "little")


WAYS = {
    "CreateAccountAllowPrefund": (prefunded(NEW.pubkey()), "System.CreateAccountAllowPrefund"),
    "CloseAccount": (token(9, b"", WRAPPED, STRANGER), "Token.CloseAccount"),
    "UnwrapLamports": (token(45, b"\0", WRAPPED, STRANGER), "Token.UnwrapLamports"),
    "SetAuthority": (token(6, b"\2\1" + bytes(STRANGER), ACCOUNT), "Token.SetAuthority"),
    "Approve": (token(4, b"\xff" * 8, ACCOUNT, STRANGER), "Token.Approve"),
    "MintTo": (token(7, (10**15).to_bytes(8, "little"), MINT, THEIRS), "Token.MintTo"),
    "Assign": (system.assign({"pubkey": OWN, "owner": OTHER}), "System.Assign"),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_moved_everything_without_an_amount_is_refused_by_its_name(svm, way):
    instruction, name = WAYS[way]
    before = svm.svm.get_balance(STRANGER) or 0
    executes(svm, instruction, signers=(KEY, NEW) if way == "CreateAccountAllowPrefund" else (KEY,))
    if way in ("CloseAccount", "UnwrapLamports"):
        assert (svm.svm.get_balance(STRANGER) or 0) - before >= 4 * SOL
    elif way == "Approve":
        executes(svm, token(3, (1000).to_bytes(8, "little"), ACCOUNT, THEIRS, authority=STRANGER), signers=(THIEF,))
        assert amount_of(svm, THEIRS) == 1000
    elif way == "MintTo":
        assert amount_of(svm, THEIRS) == 10**15
    assert refusal(legacy(instruction)) == f"it has {name}, which programs does not list"
    assert "recipients" in refusal(legacy(pay(SOL)), recipients=[bytes(FRIEND.pubkey())])


def test_a_fee_payer_s_whole_account_is_no_fee(svm):
    burnt = [budget.set_compute_unit_limit(1_400_000), budget.set_compute_unit_price(14_285_714_286)]
    before = svm.svm.get_balance(OWN) or 0
    executes(svm, *burnt, pay(1))
    assert before - (svm.svm.get_balance(OWN) or 0) > 20 * SOL
    assert refusal(legacy(*burnt, pay(1)), max_fee=1_000_000) == (
        "its fee may be 20000005001 lamports, and maxFeeLamports is 1000000"
    )


# ---- fees ------------------------------------------------------------------------------------------------------------


def fee_of(message: bytes) -> int:
    why = refusal(message, programs=None, instructions=(), max_fee=1)
    return int(re.fullmatch(r"its fee may be (\d+) lamports, and maxFeeLamports is 1", why)[1])


def verifying(count: int) -> Instruction:
    """No signature is looked at: the message is only judged."""
    return Instruction(ED25519, bytes([count, 0]), [])


FEES = {
    "one signature": [pay(1)],
    "a price, and only builtins": [pay(1), budget.set_compute_unit_price(1_000_000)],
    "a price, and another program": [pay(1), memo(b"text", OWN), budget.set_compute_unit_price(1_000_000)],
    "a price that is rounded up": [pay(1), budget.set_compute_unit_price(1)],
    "a limit without a price": [pay(1), budget.set_compute_unit_limit(1_400_000)],
    "a limit of 0": [pay(0), budget.set_compute_unit_limit(0), budget.set_compute_unit_price(10**6)],
    "a limit": [budget.set_compute_unit_limit(10_000), pay(1), budget.set_compute_unit_price(123_456)],
    "above the highest limit": [budget.set_compute_unit_limit(2**32 - 1), pay(1), budget.set_compute_unit_price(999)],
    "eight of another program": [*[memo(b"%d" % n, OWN) for n in range(8)], budget.set_compute_unit_price(777)],
}


@pytest.mark.parametrize("case", FEES)
def test_a_fee_is_what_the_chain_takes(svm, case):
    own = svm.svm.get_balance(OWN) or 0
    message = Message.new_with_blockhash(FEES[case], OWN, svm.blockhash())
    why = svm.refusal(VersionedTransaction(message, [KEY]))
    assert why is None or case == "a limit of 0"
    moved = (
        0 if why else sum(int.from_bytes(one.data[4:12], "little") for one in FEES[case] if one.program_id == system.ID)
    )
    taken = own - (svm.svm.get_balance(OWN) or 0) - moved
    assert taken == fee_of(bytes(message))
    assert refusal(bytes(message), programs=None, max_fee=taken) == ""
    assert refusal(bytes(message), programs=None, max_fee=max(taken - 1, 1)) != ""


def test_signatures_that_a_program_verifies_are_paid_for():
    assert fee_of(legacy(pay(1), verifying(3))) == 4 * 5000
    assert fee_of(legacy(pay(1), verifying(255), verifying(255))) == 511 * 5000
    assert fee_of(legacy(Instruction(ED25519, b"", []))) == 5000
    assert fee_of(legacy(pay(1, payer=OTHER))) == 2 * 5000


@pytest.mark.parametrize("price", [2**64 - 1, 2**63, 13_176_245_766_936])
def test_a_fee_that_does_not_fit_is_above_every_limit(price):
    message = legacy(budget.set_compute_unit_limit(1_400_000), budget.set_compute_unit_price(price), pay(1))
    assert "maxFeeLamports" in refusal(message, max_fee=10**12)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.integers(1, 12))
def test_a_fee_is_counted_as_whole_numbers_are(limit, price, signers):
    keys = [AccountMeta(Pubkey(bytes([100 + n]) * 32), True, False) for n in range(signers - 1)]
    asked = [budget.set_compute_unit_limit(limit), budget.set_compute_unit_price(price)]
    exact = 5000 * signers + -(-price * min(limit, 1_400_000) // 10**6)
    found = fee_of(legacy(*asked, Instruction(OTHER, b"", keys)))
    assert found == (exact if price * min(limit, 1_400_000) < 2**64 else 2**64 - 1)


def test_a_former_runtime_s_fee_counts():
    data = b"\0" + (9).to_bytes(4, "little") + (70_000).to_bytes(4, "little")
    assert fee_of(legacy(Instruction(budget.ID, data, []))) == 75_000


@pytest.mark.parametrize("fee", [0, 1, 95_000, 95_001, 2**64 - 1])
def test_the_fee_in_version_1_s_header_counts(fee):
    config = TransactionConfig(priority_fee=fee, compute_unit_limit=5, heap_size=64 * 1024)
    message = to_bytes_versioned(MessageV1.try_compile(OWN, [pay(1)], Hash.default(), config))
    assert fee_of(message) == min(5000 + fee, 2**64 - 1)
    assert (refusal(message, max_fee=100_000) == "") == (fee <= 95_000)


# ---- recipients ------------------------------------------------------------------------------------------------------


def test_only_who_is_listed_receives(svm):
    friend = FRIEND.pubkey()
    table = svm.table(OTHER, friend, STRANGER)
    listed = {"recipients": [bytes(friend), bytes(OTHER)]}
    assert refusal(legacy(pay(1, friend)), **listed) == ""
    assert refusal(legacy(pay(1)), **listed) == (
        f"the recipient of System.Transfer, {STRANGER}, is not among recipients"
    )
    assert refusal(legacy(pay(1)), recipients=[]) != ""
    for to in (friend, STRANGER):  # listed or not, nobody sees who it is
        hidden = to_bytes_versioned(MessageV0.try_compile(OWN, [pay(1, to)], [table], Hash.default()))
        assert to not in MessageV0.from_bytes(hidden[1:]).account_keys
        assert "a look-up table hides" in refusal(hidden, **listed)
    short = Instruction(system.ID, pay(1).data, pay(1).accounts[:1])
    assert "which is missing" in refusal(legacy(short), **listed)


RECEIVE = {
    "System": {"CreateAccount", "CreateAccountWithSeed", "CreateAccountAllowPrefund", "Transfer", "TransferWithSeed",
               "WithdrawNonceAccount"},
    "AddressLookupTable": {"CloseLookupTable"},
    "ComputeBudget": set(),
    "Token": {"Transfer", "TransferChecked", "Approve", "ApproveChecked", "CloseAccount", "WithdrawExcessLamports",
              "UnwrapLamports", "MintTo", "MintToChecked", "TransferFeeExtension.WithdrawWithheldTokensFromMint",
              "TransferFeeExtension.WithdrawWithheldTokensFromAccounts"},
    "AssociatedToken": {"Create", "CreateIdempotent"},
}  # fmt: skip


@pytest.mark.parametrize("case", MADE)
def test_who_receives_is_found_in_what_others_make(case):
    """The thief receives by each of these, at its place."""
    program, name, instruction = MADE[case]
    receives = RECEIVE["Token" if program == "Token-2022" else program]
    message, named = legacy(instruction), {"instructions": [(program, name)]}
    if name in receives:
        assert refusal(message, **named, recipients=[bytes(STRANGER)]) == ""
        others = [bytes(meta.pubkey) for meta in instruction.accounts if meta.pubkey != STRANGER]
        assert str(STRANGER) in refusal(message, **named, recipients=others)
    elif STRANGER in [meta.pubkey for meta in instruction.accounts]:
        assert name == "RecoverNested"
    elif name != "RecoverNested":
        assert refusal(message, **named, recipients=[]) == ""


# ---- what leaves an owned account ------------------------------------------------------------------------------------

STAKE, VOTE = (Pubkey(bytes(PROGRAMS[name][0][0])) for name in ("Stake", "Vote"))
STAKED, SPLIT, HELD, FEES_MINT, FEES_THEIRS = (Pubkey(bytes([n]) * 32) for n in range(31, 36))
CLOCK, HISTORY, HASHES, RENT = (
    Pubkey.from_string(f"Sysvar{name}")
    for name in (
        "C1ock11111111111111111111111111111111",
        "StakeHistory1111111111111111111111111",
        "RecentB1ockHashes11111111111111111111",
        "Rent111111111111111111111111111111111",
    )
)
AMOUNT = SOL + 7
FROM_SEED = Pubkey.create_with_seed(OWN, "s", system.ID)


def calls(program: Pubkey, data: bytes, *accounts: Pubkey, signs: tuple[Pubkey, ...] = (OWN,)) -> Instruction:
    return Instruction(program, data, [AccountMeta(at, at in signs, True) for at in accounts])


def word(value: int, size: int = 8) -> bytes:
    return value.to_bytes(size, "little")


def staked(state: int, lamports: int, active: int = 0) -> Account:
    """A stake account that is initialized (1), or has been active since the beginning (2)."""
    meta = word(2_282_880) + bytes(OWN) * 2 + bytes(48)
    stake = bytes(STRANGER) + word(active) + b"\xff" * 16 + bytes(8) + bytes(8) if active else b""
    return Account(lamports, (word(state, 4) + meta + stake).ljust(200, b"\0"), STAKE)


def extended(program: Pubkey, kind: int, *entries: tuple[int, bytes], head: bytes) -> Account:
    """An account of Token-2022 with extensions: a mint (1) or one of tokens (2)."""
    entries_of = b"".join(word(number, 2) + word(len(value), 2) + value for number, value in entries)
    return Account(SOL, head.ljust(165, b"\0") + bytes([kind]) + entries_of, program)


def own_accounts(program: Pubkey) -> Svm:
    """The key's accounts, each with 10^10 of what it has, and the thief's. `program`: of the tokens."""
    made = Svm(OWN, STRANGER)
    svm, much = made.svm, 10 * SOL
    mint = b"\1\0\0\0" + bytes(OWN) + word(2 * much) + b"\6\1" + bytes(36)
    for at, owner, amount in ((ACCOUNT, OWN, much), (THEIRS, STRANGER, 0)):
        svm.set_account(at, Account(SOL, token_account(owner, MINT, amount).data, program))
    svm.set_account(MINT, Account(SOL, mint, program))
    svm.set_account(FROM_SEED, Account(much, b"", system.ID))
    svm.set_account(
        NONCE, Account(much, word(1, 4) + word(1, 4) + bytes(OWN) + bytes([5]) * 32 + word(5000), system.ID)
    )
    svm.set_account(STAKED, staked(1, much))
    svm.set_account(HELD, staked(2, much, active=8 * SOL))
    svm.set_account(SPLIT, Account(2_282_880, bytes(200), STAKE))
    if program == TOKEN_2022_PROGRAM_ID:
        fee = bytes(8) + word(10**6) + word(0, 2)
        taken = extended(program, 1, (1, bytes(OWN) * 2 + bytes(8) + fee * 2), head=mint)
        svm.set_account(FEES_MINT, taken)
        for at, owner, amount in ((WRAPPED, OWN, much), (FEES_THEIRS, STRANGER, 0)):
            head = token_account(owner, FEES_MINT, amount).data
            svm.set_account(at, extended(program, 2, (2, bytes(8)), head=head))
    return made


def gives_of_tokens(program: Pubkey) -> dict[str, Instruction]:
    checked = word(AMOUNT) + b"\6"
    return {
        "Transfer": calls(program, b"\3" + word(AMOUNT), ACCOUNT, THEIRS, OWN),
        "Burn": calls(program, b"\10" + word(AMOUNT), ACCOUNT, MINT, OWN),
        "TransferChecked": calls(program, b"\14" + checked, ACCOUNT, MINT, THEIRS, OWN),
        "BurnChecked": calls(program, b"\17" + checked, ACCOUNT, MINT, OWN),
    }


GIVES = {
    ("System", "CreateAccount"): system.create_account(
        {"from_pubkey": OWN, "to_pubkey": NEW.pubkey(), "lamports": AMOUNT, "space": 9, "owner": OTHER}
    ),
    ("System", "Transfer"): pay(AMOUNT),
    ("System", "TransferWithSeed"): system.transfer_with_seed(
        {"from_pubkey": FROM_SEED, "from_base": OWN, "from_seed": "s", "from_owner": system.ID, "to_pubkey": STRANGER,
         "lamports": AMOUNT}
    ),
    ("System", "WithdrawNonceAccount"): calls(
        system.ID, word(5, 4) + word(AMOUNT), NONCE, STRANGER, HASHES, RENT, OWN
    ),
    ("Stake", "Split"): calls(STAKE, word(3, 4) + word(AMOUNT), STAKED, SPLIT, OWN),
    ("Stake", "Withdraw"): calls(STAKE, word(4, 4) + word(AMOUNT), STAKED, STRANGER, CLOCK, HISTORY, OWN),
    ("Stake", "MoveStake"): calls(STAKE, word(16, 4) + word(AMOUNT), HELD, STAKED, OWN),
    ("Stake", "MoveLamports"): calls(STAKE, word(17, 4) + word(AMOUNT), STAKED, HELD, OWN),
    **{("Token", name): made for name, made in gives_of_tokens(TOKEN_PROGRAM_ID).items()},
    **{("Token-2022", name): made for name, made in gives_of_tokens(TOKEN_2022_PROGRAM_ID).items()},
    ("Token-2022", "TransferFeeExtension.TransferCheckedWithFee"): calls(
        TOKEN_2022_PROGRAM_ID, b"\x1a\1" + word(AMOUNT) + b"\6" + word(0), WRAPPED, FEES_MINT, FEES_THEIRS, OWN
    ),
}  # fmt: skip
TAKES_NOTHING = {("System", "AdvanceNonceAccount")}


@pytest.mark.parametrize("case", GIVES, ids=".".join)
def test_an_amount_is_what_leaves_the_account(case):
    instruction = GIVES[case]
    [source, *others] = [meta.pubkey for meta in instruction.accounts]
    svm = own_accounts(TOKEN_2022_PROGRAM_ID if case[0] == "Token-2022" else TOKEN_PROGRAM_ID)
    read = amount_of if case[0].startswith("Token") else lambda svm, at: svm.svm.get_balance(at) or 0
    before = read(svm, source)
    new = (NEW,) if NEW.pubkey() in others else ()
    executes(svm, instruction, signers=(THIEF, KEY, *new))
    assert before - read(svm, source) == AMOUNT
    judge = gate(instructions=[case], owned=[bytes(source)])
    for version in ("legacy", "v0", "v1"):
        message = to_bytes_versioned(message_of(version, STRANGER, [instruction], Hash.default()))
        look = judge.look(message)
        assert (look.refusal, look.moves, judge.passes(message, None)) == (None, ((str(source), AMOUNT),), False)
    for other in others:  # they lose nothing by it
        assert refusal(message, instructions=[case], owned=[bytes(other)]) == ""


@pytest.mark.parametrize("case", MADE)
def test_an_owned_account_is_named_with_an_amount_or_not_at_all(case):
    program, name, instruction = MADE[case]
    key = (program, name)
    receives = RECEIVE["Token" if program == "Token-2022" else program] - {"CreateAccountAllowPrefund"}
    receiver = STRANGER if name in receives else None
    if name == "RecoverNested":
        receiver = instruction.accounts[5].pubkey
    for owned in {meta.pubkey for meta in instruction.accounts}:
        judge = gate(instructions=[key], owned=[bytes(owned)])
        look = judge.look(legacy(instruction, payer=THIEF.pubkey()))
        if key in GIVES and owned == instruction.accounts[0].pubkey:
            assert look.refusal is None
            assert [address for address, _ in look.moves] == [str(owned)]
        elif key in GIVES or key in TAKES_NOTHING or owned == receiver:
            assert (look.refusal, look.moves) == (None, ())
        else:
            assert look.refusal == f"{program}.{name} names {owned}, which is owned, and says no amount"


def test_what_takes_an_owned_account_is_refused_by_its_name():
    owned = {"instructions": NAMES, "owned": [bytes(OWN), bytes(ACCOUNT), bytes(WRAPPED), bytes(MINT)]}
    for way, (instruction, name) in WAYS.items():
        takes = [meta.pubkey for meta in instruction.accounts if bytes(meta.pubkey) in owned["owned"]]
        assert refusal(legacy(instruction, payer=STRANGER), **owned) == (
            f"{name} names {takes[0]}, which is owned, and says no amount"
        ), way
    prefunds = system.create_account_allow_prefund(
        {"new_account": OWN, "payer": STRANGER, "lamports": 1, "space": 0, "owner": OTHER}
    )
    assert "says no amount" in refusal(legacy(prefunds, payer=STRANGER), **owned)


def test_accounts_that_an_instruction_hands_on_are_named():
    """What stands behind the accounts of a transfer of Token-2022 goes to a program that its mint names."""
    transfer = GIVES["Token-2022", "TransferChecked"]
    hooked = Instruction(transfer.program_id, transfer.data, [*transfer.accounts, AccountMeta(STRANGER, True, True)])
    listed = {"instructions": [("Token-2022", "TransferChecked")], "owned": [bytes(STRANGER)]}
    assert "TransferChecked names" in refusal(legacy(hooked), **listed)


def test_what_a_program_that_is_allowed_as_a_whole_does_has_no_amount():
    listed = {"programs": [bytes(OTHER)], "owned": [bytes(OWN)]}
    assert refusal(legacy(calls(OTHER, b"any", OWN)), **listed) == (
        f"an instruction of {OTHER} names {OWN}, which is owned, and says no amount"
    )
    assert refusal(legacy(calls(OTHER, b"any", STRANGER, signs=())), **listed) == ""  # its payer is no account of it
    assert "an instruction of Memo names" in refusal(
        legacy(memo(b"", OWN)), programs=PROGRAMS["Memo"][0], owned=[bytes(OWN)]
    )


def test_no_table_hides_the_account_that_an_amount_leaves(svm):
    def judged(instruction: Instruction, *hidden: Pubkey, **rules: object) -> str:
        message = MessageV0.try_compile(OWN, [instruction], [svm.table(*hidden)], Hash.default())
        assert not set(hidden) & set(message.account_keys)
        return refusal(to_bytes_versioned(message), **{"instructions": NAMES, "owned": [bytes(WRAPPED)]} | rules)

    transfer, closes = GIVES["Token", "TransferChecked"], token(9, b"", ACCOUNT, STRANGER)
    assert judged(transfer, MINT) == judged(transfer, THEIRS) == judged(closes, STRANGER) == ""
    says = "names an account that a look-up table hides, which may be an owned one"
    assert judged(transfer, ACCOUNT) == f"Token.TransferChecked {says}"
    assert judged(closes, ACCOUNT) == f"Token.CloseAccount {says}"
    assert judged(closes, ACCOUNT, owned=()) == ""
    assert judged(calls(OTHER, b"", ACCOUNT, OWN), ACCOUNT, programs=[bytes(OTHER)]) == ""


def test_what_leaves_by_one_transaction_is_added_up():
    twice = legacy(pay(5), pay(6), pay(7, payer=STRANGER, to=OTHER), pay(0, payer=ACCOUNT))
    judge = gate(owned=[bytes(OWN), bytes(ACCOUNT), bytes(OTHER)])
    assert judge.look(twice).moves == ((str(OWN), 11),)
    assert judge.look(legacy(pay(2**64 - 1), pay(2))).moves == ((str(OWN), 2**64 - 1),)
    assert judge.look(legacy(pay(5), memo(b""))).moves == ()  # it is refused
    assert judge.passes_all([legacy(pay(1, payer=STRANGER))])
    assert not judge.passes_all([legacy(pay(1, payer=STRANGER)), legacy(pay(1))])
    with pytest.raises(BadArgument, match="at most 16 accounts are owned, not 17"):
        gate(owned=[bytes([n]) * 32 for n in range(17)])
