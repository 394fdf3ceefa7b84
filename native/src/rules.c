/* A policy's rules for transactions, and what System and Token instructions move. */
#include <stdlib.h>
#include <string.h>

#include "transaction.h"

static const uint8_t system_program[HSM_ADDRESS];
static const uint8_t token_program[HSM_ADDRESS] = {
    0x06, 0xdd, 0xf6, 0xe1, 0xd7, 0x65, 0xa1, 0x93, 0xd9, 0xcb, 0xe1, 0x46, 0xce, 0xeb, 0x79, 0xac,
    0x1c, 0xb4, 0x85, 0xed, 0x5f, 0x5b, 0x37, 0x91, 0x3a, 0x8c, 0xf5, 0x85, 0x7e, 0xff, 0x00, 0xa9,
}; /* TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA */
static const uint8_t token_2022_program[HSM_ADDRESS] = {
    0x06, 0xdd, 0xf6, 0xe1, 0xee, 0x75, 0x8f, 0xde, 0x18, 0x42, 0x5d, 0xbc, 0xe4, 0x6c, 0xcd, 0xda,
    0xb6, 0x1a, 0xfc, 0x4d, 0x83, 0xb9, 0x0d, 0x27, 0xfe, 0xbd, 0xf9, 0x28, 0xd8, 0xa1, 0x8b, 0xfc,
}; /* TokenzQdBNbLqP5VEhdkAS6EPFLC1PHnBqCXEpPxuEb */

enum {
    SYSTEM_TAG = 4, /* bytes, little-endian */
    TOKEN_TAG = 1,
    AMOUNT = 8,
    CREATE_WITH_SEED = 3,
    SEED = SYSTEM_TAG + HSM_ADDRESS, /* offset of its length, 8 bytes, in CreateAccountWithSeed */
};

/* Instructions that move an amount, which follows the tag unless a seed does. */
struct move {
    uint8_t tag;
    uint8_t recipient; /* which of the instruction's accounts */
};
static const struct move system_moves[] = {
    {0, 1},                /* CreateAccount */
    {2, 1},                /* Transfer */
    {CREATE_WITH_SEED, 1}, /* CreateAccountWithSeed */
    {5, 1},                /* WithdrawNonceAccount */
    {11, 2},               /* TransferWithSeed */
};
static const struct move token_moves[] = {
    {3, 1},  /* Transfer */
    {12, 2}, /* TransferChecked */
};

static bool same(const uint8_t *one, const uint8_t *other) {
    return memcmp(one, other, HSM_ADDRESS) == 0;
}

static int by_bytes(const void *one, const void *other) {
    return memcmp(one, other, HSM_ADDRESS);
}

static bool listed(const uint8_t *address, const uint8_t *list, size_t count) {
    return count > 0 && bsearch(address, list, count, HSM_ADDRESS, by_bytes) != NULL;
}

static const uint8_t *key(const hsm_transaction *transaction, size_t index) {
    return transaction->keys + index * HSM_ADDRESS;
}

static bool signs(const hsm_rules *rules, const uint8_t *address) {
    for (size_t i = 0; i < rules->signer_count; i++) {
        if (same(rules->signers + i * HSM_ADDRESS, address)) {
            return true;
        }
    }
    return false;
}

static uint64_t little64(const uint8_t *at) {
    uint64_t value = 0;
    for (unsigned i = 8; i > 0; i--) {
        value = value << 8 | at[i - 1];
    }
    return value;
}

/* The table that an account is loaded from; NULL: it is a static key. All tables' accounts to be written come first. */
static const uint8_t *table_of(const hsm_transaction *transaction, size_t index) {
    if (index < transaction->key_count) {
        return NULL;
    }
    size_t left = index - transaction->key_count;
    bool read = left >= transaction->written;
    left -= read ? transaction->written : 0;
    struct hsm_reader reader = {transaction->tables, transaction->tables_len};
    for (struct hsm_lookup lookup; hsm_take_lookup(&reader, &lookup);) {
        size_t count = read ? lookup.read : lookup.written;
        if (left < count) {
            return lookup.table;
        }
        left -= count;
    }
    return NULL;
}

/* The offset of the amount; 0: there is none, and the program refuses the instruction. */
static size_t amount_at(const struct hsm_instruction *next, bool tokens, uint8_t tag) {
    size_t at = tokens ? TOKEN_TAG : SYSTEM_TAG;
    if (!tokens && tag == CREATE_WITH_SEED) {
        if (next->data_len < SEED + 8) {
            return 0;
        }
        uint64_t seed = little64(next->data + SEED);
        if (seed > next->data_len) {
            return 0;
        }
        at = SEED + 8 + (size_t)seed;
    }
    return at + AMOUNT <= next->data_len ? at : 0;
}

/* How an instruction moves something; NULL: it does not. */
static const struct move *move_of(const uint8_t *program, const struct hsm_instruction *next, bool *tokens) {
    bool lamports = same(program, system_program);
    *tokens = !lamports && (same(program, token_program) || same(program, token_2022_program));
    size_t tag_len = lamports ? SYSTEM_TAG : TOKEN_TAG;
    if ((!lamports && !*tokens) || next->data_len < tag_len ||
        (lamports && (next->data[1] | next->data[2] | next->data[3]) != 0)) {
        return NULL;
    }
    const struct move *moves = lamports ? system_moves : token_moves;
    size_t count = lamports ? sizeof system_moves / sizeof *moves : sizeof token_moves / sizeof *moves;
    for (size_t i = 0; i < count; i++) {
        if (moves[i].tag == next->data[0]) {
            return &moves[i];
        }
    }
    return NULL;
}

static hsm_refusal judge_programs(const hsm_rules *rules, const hsm_transaction *transaction, const uint8_t **address) {
    struct hsm_walk walk = hsm_walk_begin(transaction);
    for (struct hsm_instruction next; hsm_walk_next(&walk, &next);) {
        *address = key(transaction, next.program);
        if (!listed(*address, rules->programs, rules->program_count)) {
            return HSM_REFUSAL_PROGRAM;
        }
    }
    return HSM_REFUSAL_NONE;
}

static hsm_refusal judge_payer(const hsm_rules *rules, const hsm_transaction *transaction) {
    const uint8_t *payer = transaction->keys;
    if (!signs(rules, payer)) {
        return HSM_REFUSAL_ROLE;
    }
    struct hsm_walk walk = hsm_walk_begin(transaction);
    for (struct hsm_instruction next; hsm_walk_next(&walk, &next);) {
        for (size_t i = 0; i < next.account_count; i++) {
            /* By its bytes: only the runtime refuses a key that is listed twice. */
            if (next.accounts[i] < transaction->key_count && same(key(transaction, next.accounts[i]), payer)) {
                return HSM_REFUSAL_NAMED;
            }
        }
    }
    return HSM_REFUSAL_NONE;
}

static hsm_refusal judge_role(const hsm_rules *rules, const hsm_transaction *transaction) {
    if (rules->role == HSM_ROLE_FEE_PAYER) {
        return judge_payer(rules, transaction);
    }
    for (size_t i = 0; i < transaction->signers; i++) {
        if (signs(rules, key(transaction, i))) {
            return HSM_REFUSAL_NONE;
        }
    }
    return HSM_REFUSAL_ROLE;
}

static void add(uint64_t *sum, uint64_t amount) {
    if (__builtin_add_overflow(*sum, amount, sum)) {
        *sum = UINT64_MAX;
    }
}

static hsm_refusal judge_moves(const hsm_rules *rules, const hsm_transaction *transaction, hsm_judgement *judgement) {
    struct hsm_walk walk = hsm_walk_begin(transaction);
    for (struct hsm_instruction next; hsm_walk_next(&walk, &next);) {
        bool tokens;
        const struct move *move = move_of(key(transaction, next.program), &next, &tokens);
        if (move == NULL) {
            continue;
        }
        size_t at = amount_at(&next, tokens, move->tag);
        if (at > 0 && rules->counts) {
            add(tokens ? &judgement->tokens : &judgement->lamports, little64(next.data + at));
        }
        if (rules->tables == NULL || next.account_count <= move->recipient) {
            continue;
        }
        judgement->address = table_of(transaction, next.accounts[move->recipient]);
        if (judgement->address != NULL && !listed(judgement->address, rules->tables, rules->table_count)) {
            return HSM_REFUSAL_TABLE;
        }
    }
    return HSM_REFUSAL_NONE;
}

hsm_refusal hsm_rules_judge(const hsm_rules *rules, const hsm_transaction *transaction, hsm_judgement *judgement) {
    *judgement = (hsm_judgement){0};
    if (!transaction->sound) {
        return HSM_REFUSAL_UNSOUND;
    }
    hsm_refusal refusal = HSM_REFUSAL_NONE;
    if (rules->programs != NULL) {
        refusal = judge_programs(rules, transaction, &judgement->address);
    }
    if (refusal == HSM_REFUSAL_NONE && rules->role != HSM_ROLE_ANY) {
        refusal = judge_role(rules, transaction);
    }
    if (refusal == HSM_REFUSAL_NONE && (rules->counts || rules->tables != NULL)) {
        refusal = judge_moves(rules, transaction, judgement);
    }
    if (refusal != HSM_REFUSAL_NONE) {
        judgement->lamports = judgement->tokens = 0;
    }
    return refusal;
}
