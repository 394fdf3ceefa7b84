/* The programs whose instructions hsmcore can tell apart, and those that change a fee: the one list of their names.
 *
 * Sources: the programs' own interfaces (solana-program/system, token, token-2022, associated-token-account, stake,
 * address-lookup-table, loader-v3) and Agave's list of builtins. What is not here has no name, and is not signed where
 * a policy lists programs: an instruction that is new, and `Batch` (255) of the Token programs, which hides others. */
#include <string.h>

#include "instructions.h"

/* Rows: bytes of the tag, name, recipient. FROM1: the first account is the source of an amount, which stands at `at`,
 * and of the accounts up to the place `last` it is the only one that loses. */
#define FORM(bytes, number, called, ...) {.name = (called), .tag = (number), .size = (bytes), .recipient = __VA_ARGS__}
#define WORD(number, called, ...) FORM(4, number, called, __VA_ARGS__)
#define BYTE(number, called, ...) FORM(1, number, called, __VA_ARGS__)
#define PAIR(number, sub, called, ...) FORM(2, (number) | (sub) << 8, called, __VA_ARGS__)
#define HASH(number, called) FORM(8, UINT64_C(number), called, 0)
#define FROM1(at, last) .source = 1, .amount = (at), .harmless = (last)

static const hsm_instruction_form system_forms[] = {
    WORD(0, "CreateAccount", 2, FROM1(4, 2)),
    WORD(1, "Assign", 0),
    WORD(2, "Transfer", 2, FROM1(4, 2)),
    WORD(3, "CreateAccountWithSeed", 2),
    WORD(4, "AdvanceNonceAccount", 0, .harmless = 3),
    WORD(5, "WithdrawNonceAccount", 2, FROM1(4, 5)),
    WORD(6, "InitializeNonceAccount", 0),
    WORD(7, "AuthorizeNonceAccount", 0),
    WORD(8, "Allocate", 0),
    WORD(9, "AllocateWithSeed", 0),
    WORD(10, "AssignWithSeed", 0),
    WORD(11, "TransferWithSeed", 3, FROM1(4, 3)),
    WORD(12, "UpgradeNonceAccount", 0),
    /* What the new account has already goes with it to its new owner. */
    WORD(13, "CreateAccountAllowPrefund", 1, .source = 1),
};

/* Of both Token programs. A delegate counts as a recipient: it may take what it is approved for. */
#define TOKEN_FORMS                                                                                                    \
    BYTE(0, "InitializeMint", 0), BYTE(1, "InitializeAccount", 0), BYTE(2, "InitializeMultisig", 0),                   \
        BYTE(3, "Transfer", 2, FROM1(1, 3)), BYTE(4, "Approve", 2), BYTE(5, "Revoke", 0), BYTE(6, "SetAuthority", 0),  \
        BYTE(7, "MintTo", 2), BYTE(8, "Burn", 0, FROM1(1, 3)), BYTE(9, "CloseAccount", 2),                             \
        BYTE(10, "FreezeAccount", 0), BYTE(11, "ThawAccount", 0), BYTE(12, "TransferChecked", 3, FROM1(1, 4)),         \
        BYTE(13, "ApproveChecked", 3), BYTE(14, "MintToChecked", 2), BYTE(15, "BurnChecked", 0, FROM1(1, 3)),          \
        BYTE(16, "InitializeAccount2", 0), BYTE(17, "SyncNative", 0), BYTE(18, "InitializeAccount3", 0),               \
        BYTE(19, "InitializeMultisig2", 0), BYTE(20, "InitializeMint2", 0), BYTE(21, "GetAccountDataSize", 0),         \
        BYTE(22, "InitializeImmutableOwner", 0), BYTE(23, "AmountToUiAmount", 0), BYTE(24, "UiAmountToAmount", 0),     \
        BYTE(38, "WithdrawExcessLamports", 2), BYTE(45, "UnwrapLamports", 2)

static const hsm_instruction_form token_forms[] = {TOKEN_FORMS};

static const hsm_instruction_form token_2022_forms[] = {
    TOKEN_FORMS,
    BYTE(25, "InitializeMintCloseAuthority", 0),
    PAIR(26, 0, "TransferFeeExtension.InitializeTransferFeeConfig", 0),
    PAIR(26, 1, "TransferFeeExtension.TransferCheckedWithFee", 3, FROM1(2, 4)),
    PAIR(26, 2, "TransferFeeExtension.WithdrawWithheldTokensFromMint", 2),
    PAIR(26, 3, "TransferFeeExtension.WithdrawWithheldTokensFromAccounts", 2),
    PAIR(26, 4, "TransferFeeExtension.HarvestWithheldTokensToMint", 0),
    PAIR(26, 5, "TransferFeeExtension.SetTransferFee", 0),
    PAIR(27, 0, "ConfidentialTransferExtension.InitializeMint", 0),
    PAIR(27, 1, "ConfidentialTransferExtension.UpdateMint", 0),
    PAIR(27, 2, "ConfidentialTransferExtension.ConfigureAccount", 0),
    PAIR(27, 3, "ConfidentialTransferExtension.ApproveAccount", 0),
    PAIR(27, 4, "ConfidentialTransferExtension.EmptyAccount", 0),
    PAIR(27, 5, "ConfidentialTransferExtension.Deposit", 0),
    PAIR(27, 6, "ConfidentialTransferExtension.Withdraw", 0),
    PAIR(27, 7, "ConfidentialTransferExtension.Transfer", 3),
    PAIR(27, 8, "ConfidentialTransferExtension.ApplyPendingBalance", 0),
    PAIR(27, 9, "ConfidentialTransferExtension.EnableConfidentialCredits", 0),
    PAIR(27, 10, "ConfidentialTransferExtension.DisableConfidentialCredits", 0),
    PAIR(27, 11, "ConfidentialTransferExtension.EnableNonConfidentialCredits", 0),
    PAIR(27, 12, "ConfidentialTransferExtension.DisableNonConfidentialCredits", 0),
    PAIR(27, 13, "ConfidentialTransferExtension.TransferWithFee", 3),
    PAIR(27, 14, "ConfidentialTransferExtension.ConfigureAccountWithRegistry", 0),
    PAIR(28, 0, "DefaultAccountStateExtension.Initialize", 0),
    PAIR(28, 1, "DefaultAccountStateExtension.Update", 0),
    BYTE(29, "Reallocate", 0),
    PAIR(30, 0, "MemoTransferExtension.Enable", 0),
    PAIR(30, 1, "MemoTransferExtension.Disable", 0),
    BYTE(31, "CreateNativeMint", 0),
    BYTE(32, "InitializeNonTransferableMint", 0),
    PAIR(33, 0, "InterestBearingMintExtension.Initialize", 0),
    PAIR(33, 1, "InterestBearingMintExtension.UpdateRate", 0),
    PAIR(34, 0, "CpiGuardExtension.Enable", 0),
    PAIR(34, 1, "CpiGuardExtension.Disable", 0),
    BYTE(35, "InitializePermanentDelegate", 0),
    PAIR(36, 0, "TransferHookExtension.Initialize", 0),
    PAIR(36, 1, "TransferHookExtension.Update", 0),
    PAIR(37, 0, "ConfidentialTransferFeeExtension.InitializeConfidentialTransferFeeConfig", 0),
    PAIR(37, 1, "ConfidentialTransferFeeExtension.WithdrawWithheldTokensFromMint", 2),
    PAIR(37, 2, "ConfidentialTransferFeeExtension.WithdrawWithheldTokensFromAccounts", 2),
    PAIR(37, 3, "ConfidentialTransferFeeExtension.HarvestWithheldTokensToMint", 0),
    PAIR(37, 4, "ConfidentialTransferFeeExtension.EnableHarvestToMint", 0),
    PAIR(37, 5, "ConfidentialTransferFeeExtension.DisableHarvestToMint", 0),
    PAIR(39, 0, "MetadataPointerExtension.Initialize", 0),
    PAIR(39, 1, "MetadataPointerExtension.Update", 0),
    PAIR(40, 0, "GroupPointerExtension.Initialize", 0),
    PAIR(40, 1, "GroupPointerExtension.Update", 0),
    PAIR(41, 0, "GroupMemberPointerExtension.Initialize", 0),
    PAIR(41, 1, "GroupMemberPointerExtension.Update", 0),
    PAIR(42, 0, "ConfidentialMintBurnExtension.InitializeMint", 0),
    PAIR(42, 1, "ConfidentialMintBurnExtension.RotateSupplyElGamalPubkey", 0),
    PAIR(42, 2, "ConfidentialMintBurnExtension.UpdateDecryptableSupply", 0),
    PAIR(42, 3, "ConfidentialMintBurnExtension.Mint", 1),
    PAIR(42, 4, "ConfidentialMintBurnExtension.Burn", 0),
    PAIR(42, 5, "ConfidentialMintBurnExtension.ApplyPendingBurn", 0),
    PAIR(43, 0, "ScaledUiAmountExtension.Initialize", 0),
    PAIR(43, 1, "ScaledUiAmountExtension.UpdateMultiplier", 0),
    PAIR(44, 0, "PausableExtension.Initialize", 0),
    PAIR(44, 1, "PausableExtension.Pause", 0),
    PAIR(44, 2, "PausableExtension.Resume", 0),
    PAIR(46, 0, "PermissionedBurnExtension.Initialize", 0),
    PAIR(46, 1, "PermissionedBurnExtension.Burn", 0),
    PAIR(46, 2, "PermissionedBurnExtension.BurnChecked", 0),
    /* The first eight bytes of the SHA-256 of a name: of the interfaces for metadata and groups. */
    HASH(0x8d4db858a21ee1d2, "TokenMetadata.Initialize"),
    HASH(0xc8dccab52d31e9dd, "TokenMetadata.UpdateField"),
    HASH(0xb5258d59382012ea, "TokenMetadata.RemoveKey"),
    HASH(0x7b566454e4a6e4d7, "TokenMetadata.UpdateAuthority"),
    HASH(0x46b80c0dfab4a6fa, "TokenMetadata.Emit"),
    HASH(0x04003336276c7179, "TokenGroup.InitializeGroup"),
    HASH(0x6e121ef88fab256c, "TokenGroup.UpdateGroupMaxSize"),
    HASH(0xcbd8dded015869a1, "TokenGroup.UpdateGroupAuthority"),
    HASH(0x8674eddfb0de2098, "TokenGroup.InitializeMember"),
};

/* The owner of a new account may close it and have its rent. No data at all means Create, too. */
static const hsm_instruction_form associated_token_forms[] = {
    BYTE(0, "Create", 3),
    BYTE(1, "CreateIdempotent", 3),
    BYTE(2, "RecoverNested", 6),
    FORM(0, 0, "Create", 3),
};

static const hsm_instruction_form compute_budget_forms[] = {
    BYTE(HSM_REQUEST_UNITS, "RequestUnits", 0),     BYTE(1, "RequestHeapFrame", 0),
    BYTE(HSM_UNIT_LIMIT, "SetComputeUnitLimit", 0), BYTE(HSM_UNIT_PRICE, "SetComputeUnitPrice", 0),
    BYTE(4, "SetLoadedAccountsDataSizeLimit", 0),
};

static const hsm_instruction_form stake_forms[] = {
    WORD(0, "Initialize", 0),
    WORD(1, "Authorize", 0),
    WORD(2, "DelegateStake", 0),
    WORD(3, "Split", 2, FROM1(4, 3)),
    WORD(4, "Withdraw", 2, FROM1(4, 5)),
    WORD(5, "Deactivate", 0),
    WORD(6, "SetLockup", 0),
    WORD(7, "Merge", 1),
    WORD(8, "AuthorizeWithSeed", 0),
    WORD(9, "InitializeChecked", 0),
    WORD(10, "AuthorizeChecked", 0),
    WORD(11, "AuthorizeCheckedWithSeed", 0),
    WORD(12, "SetLockupChecked", 0),
    WORD(13, "GetMinimumDelegation", 0),
    WORD(14, "DeactivateDelinquent", 0),
    WORD(15, "Redelegate", 2),
    WORD(16, "MoveStake", 2, FROM1(4, 3)),
    WORD(17, "MoveLamports", 2, FROM1(4, 3)),
};

static const hsm_instruction_form lookup_table_forms[] = {
    WORD(0, "CreateLookupTable", 0),     WORD(1, "FreezeLookupTable", 0), WORD(2, "ExtendLookupTable", 0),
    WORD(3, "DeactivateLookupTable", 0), WORD(4, "CloseLookupTable", 3),
};

static const hsm_instruction_form loader_forms[] = {
    WORD(0, "InitializeBuffer", 0),
    WORD(1, "Write", 0),
    WORD(2, "DeployWithMaxDataLen", 0),
    WORD(3, "Upgrade", 4),
    WORD(4, "SetAuthority", 0),
    WORD(5, "Close", 2),
    WORD(6, "ExtendProgram", 0),
    WORD(7, "SetAuthorityChecked", 0),
    WORD(8, "Migrate", 0),
    WORD(9, "ExtendProgramChecked", 0),
};

#define FORMS(forms) forms, sizeof(forms) / sizeof *(forms)
#define WHOLE NULL, 0

const hsm_program hsm_programs[] = {
    /* TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA */
    {"Token", FORMS(token_forms), 1, 0, {0x06, 0xdd, 0xf6, 0xe1, 0xd7, 0x65, 0xa1, 0x93, 0xd9, 0xcb, 0xe1,
                                         0x46, 0xce, 0xeb, 0x79, 0xac, 0x1c, 0xb4, 0x85, 0xed, 0x5f, 0x5b,
                                         0x37, 0x91, 0x3a, 0x8c, 0xf5, 0x85, 0x7e, 0xff, 0x00, 0xa9}},
    /* 11111111111111111111111111111111 */
    {"System", FORMS(system_forms), 4, HSM_BUILTIN, {0}},
    /* ComputeBudget111111111111111111111111111111 */
    {"ComputeBudget",
     FORMS(compute_budget_forms),
     1,
     HSM_BUILTIN | HSM_BUDGET,
     {0x03, 0x06, 0x46, 0x6f, 0xe5, 0x21, 0x17, 0x32, 0xff, 0xec, 0xad, 0xba, 0x72, 0xc3, 0x9b, 0xe7,
      0xbc, 0x8c, 0xe5, 0xbb, 0xc5, 0xf7, 0x12, 0x6b, 0x2c, 0x43, 0x9b, 0x3a, 0x40, 0x00, 0x00, 0x00}},
    /* TokenzQdBNbLqP5VEhdkAS6EPFLC1PHnBqCXEpPxuEb */
    {"Token-2022", FORMS(token_2022_forms), 1, 0, {0x06, 0xdd, 0xf6, 0xe1, 0xee, 0x75, 0x8f, 0xde, 0x18, 0x42, 0x5d,
                                                   0xbc, 0xe4, 0x6c, 0xcd, 0xda, 0xb6, 0x1a, 0xfc, 0x4d, 0x83, 0xb9,
                                                   0x0d, 0x27, 0xfe, 0xbd, 0xf9, 0x28, 0xd8, 0xa1, 0x8b, 0xfc}},
    /* ATokenGPvbdGVxr1b2hvZbsiqW5xWH25efTNsLJA8knL */
    {"AssociatedToken", FORMS(associated_token_forms), 1, 0, {0x8c, 0x97, 0x25, 0x8f, 0x4e, 0x24, 0x89, 0xf1,
                                                              0xbb, 0x3d, 0x10, 0x29, 0x14, 0x8e, 0x0d, 0x83,
                                                              0x0b, 0x5a, 0x13, 0x99, 0xda, 0xff, 0x10, 0x84,
                                                              0x04, 0x8e, 0x7b, 0xd8, 0xdb, 0xe9, 0xf8, 0x59}},
    /* Stake11111111111111111111111111111111111111 */
    {"Stake", FORMS(stake_forms), 4, 0, {0x06, 0xa1, 0xd8, 0x17, 0x91, 0x37, 0x54, 0x2a, 0x98, 0x34, 0x37,
                                         0xbd, 0xfe, 0x2a, 0x7a, 0xb2, 0x55, 0x7f, 0x53, 0x5c, 0x8a, 0x78,
                                         0x72, 0x2b, 0x68, 0xa4, 0x9d, 0xc0, 0x00, 0x00, 0x00, 0x00}},
    /* AddressLookupTab1e1111111111111111111111111 */
    {"AddressLookupTable", FORMS(lookup_table_forms), 4, 0, {0x02, 0x77, 0xa6, 0xaf, 0x97, 0x33, 0x9b, 0x7a,
                                                             0xc8, 0x8d, 0x18, 0x92, 0xc9, 0x04, 0x46, 0xf5,
                                                             0x00, 0x02, 0x30, 0x92, 0x66, 0xf6, 0x2e, 0x53,
                                                             0xc1, 0x18, 0x24, 0x49, 0x82, 0x00, 0x00, 0x00}},
    /* BPFLoaderUpgradeab1e11111111111111111111111 */
    {"BpfLoaderUpgradeable", FORMS(loader_forms), 4, HSM_BUILTIN, {0x02, 0xa8, 0xf6, 0x91, 0x4e, 0x88, 0xa1, 0xb0,
                                                                   0xe2, 0x10, 0x15, 0x3e, 0xf7, 0x63, 0xae, 0x2b,
                                                                   0x00, 0xc2, 0xb9, 0x3d, 0x16, 0xc1, 0x24, 0xd2,
                                                                   0xc0, 0x53, 0x7a, 0x10, 0x04, 0x80, 0x00, 0x00}},
    /* BPFLoader2111111111111111111111111111111111 */
    {"BpfLoader", WHOLE, 0, HSM_BUILTIN, {0x02, 0xa8, 0xf6, 0x91, 0x4e, 0x88, 0xa1, 0x6e, 0x39, 0x5a, 0xe1,
                                          0x28, 0x94, 0x8f, 0xfa, 0x69, 0x56, 0x93, 0x37, 0x68, 0x18, 0xdd,
                                          0x47, 0x43, 0x52, 0x21, 0xf3, 0xc6, 0x00, 0x00, 0x00, 0x00}},
    /* BPFLoader1111111111111111111111111111111111 */
    {"BpfLoaderDeprecated", WHOLE, 0, HSM_BUILTIN, {0x02, 0xa8, 0xf6, 0x91, 0x4e, 0x88, 0xa1, 0x6b, 0xbd, 0x23, 0x95,
                                                    0x85, 0x5f, 0x64, 0x04, 0xd9, 0xb4, 0xf4, 0x56, 0xb7, 0x82, 0x1b,
                                                    0xb0, 0x14, 0x57, 0x49, 0x42, 0x8c, 0x00, 0x00, 0x00, 0x00}},
    /* LoaderV411111111111111111111111111111111111 */
    {"LoaderV4", WHOLE, 0, HSM_BUILTIN, {0x05, 0x12, 0xb4, 0x11, 0x51, 0x51, 0xe3, 0x7a, 0xad, 0x0a, 0x8b,
                                         0xc5, 0xd3, 0x88, 0x2e, 0x7b, 0x7f, 0xda, 0x4c, 0xf3, 0xd2, 0xc0,
                                         0x28, 0xc8, 0xcf, 0x83, 0x36, 0x18, 0x00, 0x00, 0x00, 0x00}},
    /* Vote111111111111111111111111111111111111111 */
    {"Vote", WHOLE, 0, HSM_BUILTIN, {0x07, 0x61, 0x48, 0x1d, 0x35, 0x74, 0x74, 0xbb, 0x7c, 0x4d, 0x76,
                                     0x24, 0xeb, 0xd3, 0xbd, 0xb3, 0xd8, 0x35, 0x5e, 0x73, 0xd1, 0x10,
                                     0x43, 0xfc, 0x0d, 0xa3, 0x53, 0x80, 0x00, 0x00, 0x00, 0x00}},
    /* Ed25519SigVerify111111111111111111111111111 */
    {"Ed25519", WHOLE, 0, HSM_BUILTIN | HSM_VERIFIER, {0x03, 0x7d, 0x46, 0xd6, 0x7c, 0x93, 0xfb, 0xbe, 0x12, 0xf9, 0x42,
                                                       0x8f, 0x83, 0x8d, 0x40, 0xff, 0x05, 0x70, 0x74, 0x49, 0x27, 0xf4,
                                                       0x8a, 0x64, 0xfc, 0xca, 0x70, 0x44, 0x80, 0x00, 0x00, 0x00}},
    /* KeccakSecp256k11111111111111111111111111111 */
    {"Secp256k1", WHOLE, 0, HSM_BUILTIN | HSM_VERIFIER, {0x04, 0xc6, 0xfc, 0x20, 0xf0, 0x50, 0xcc, 0xf0,
                                                         0x55, 0x84, 0xd7, 0x21, 0x1c, 0x9f, 0x8c, 0xf5,
                                                         0x9e, 0xc1, 0x47, 0x85, 0xbb, 0x16, 0x6a, 0x1e,
                                                         0x28, 0x30, 0xe8, 0x12, 0x20, 0x00, 0x00, 0x00}},
    /* Secp256r1SigVerify1111111111111111111111111 */
    {"Secp256r1", WHOLE, 0, HSM_VERIFIER, {0x06, 0x92, 0x0d, 0xec, 0x2f, 0xea, 0x71, 0xb5, 0xb7, 0x23, 0x81,
                                           0x4d, 0x74, 0x2d, 0xa9, 0x03, 0x1c, 0x83, 0xe7, 0x5f, 0xdb, 0x79,
                                           0x5d, 0x56, 0x8e, 0x75, 0x47, 0x80, 0x20, 0x00, 0x00, 0x00}},
    /* MemoSq4gqABAXKb96qnH8TysNcWxMyWCqXgDLGmfcHr */
    {"Memo", WHOLE, 0, 0, {0x05, 0x4a, 0x53, 0x5a, 0x99, 0x29, 0x21, 0x06, 0x4d, 0x24, 0xe8,
                           0x71, 0x60, 0xda, 0x38, 0x7c, 0x7c, 0x35, 0xb5, 0xdd, 0xbc, 0x92,
                           0xbb, 0x81, 0xe4, 0x1f, 0xa8, 0x40, 0x41, 0x05, 0x44, 0x8d}},
    /* Memo1UhkJRfHyvLMcVucJwxXeuD728EqVDDwQDxFMNo */
    {"Memo", WHOLE, 0, 0, {0x05, 0x4a, 0x53, 0x50, 0xf8, 0x5d, 0xc8, 0x82, 0xd6, 0x14, 0xa5,
                           0x56, 0x72, 0x78, 0x8a, 0x29, 0x6d, 0xdf, 0x1e, 0xab, 0xab, 0xd0,
                           0xa6, 0x06, 0x78, 0x88, 0x49, 0x32, 0xf4, 0xee, 0xf6, 0xa0}},
};
const size_t hsm_program_count = sizeof hsm_programs / sizeof *hsm_programs;

_Static_assert(sizeof hsm_programs / sizeof *hsm_programs == HSM_PROGRAMS, "rules have a set for each");
_Static_assert(sizeof token_2022_forms / sizeof *token_2022_forms <= HSM_MOST_FORMS, "a set has a bit for each");

const hsm_program *hsm_program_of(const uint8_t *address) {
    for (size_t i = 0; i < HSM_PROGRAMS; i++) {
        if (memcmp(hsm_programs[i].address, address, HSM_ADDRESS) == 0) {
            return &hsm_programs[i];
        }
    }
    return NULL;
}

uint64_t hsm_little(const uint8_t *at, size_t count) {
    uint64_t value = 0;
    for (size_t i = count; i > 0; i--) {
        value = value << 8 | at[i - 1];
    }
    return value;
}

const hsm_instruction_form *hsm_form_of(const hsm_program *program, const uint8_t *data, size_t size) {
    uint64_t head = hsm_little(data, size < 8 ? size : 8);
    for (size_t i = 0; i < program->form_count; i++) {
        /* Its place is mostly its tag. */
        const hsm_instruction_form *form = &program->forms[((head & 0xff) + i) % program->form_count];
        if (form->size == 0 ? size == 0 : size >= form->size && (head ^ form->tag) << (64 - 8 * form->size) == 0) {
            return form;
        }
    }
    return NULL;
}
