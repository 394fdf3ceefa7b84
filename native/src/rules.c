/* A policy's rules for transactions: which instructions, to whom, from which accounts, for what fee, in which role. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "instructions.h"
#include "transaction.h"

enum {
    LAMPORTS_PER_SIGNATURE = 5000,
    UNITS = 200000,       /* compute units of an instruction, if the transaction asks for no number */
    BUILTIN_UNITS = 3000, /* the same, of a builtin */
    MOST_UNITS = 1400000,
    MICRO = 1000000, /* a price is in millionths of a lamport for a unit */
};

static bool same(const uint8_t *one, const uint8_t *other) {
    return memcmp(one, other, HSM_ADDRESS) == 0;
}

static int by_bytes(const void *one, const void *other) {
    return memcmp(one, other, HSM_ADDRESS);
}

static const uint8_t *listed(const uint8_t *address, const uint8_t *list, size_t count) {
    return count > 0 ? bsearch(address, list, count, HSM_ADDRESS, by_bytes) : NULL;
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

/* What a transaction asks to pay for. */
struct bill {
    uint64_t signatures, units, limit, price;
    uint64_t fixed; /* lamports */
    bool limited;
};

/* A number that follows the tag; 0: the data ends before, and the runtime refuses the transaction. */
static uint64_t number_at(const struct hsm_instruction *next, size_t at, size_t size) {
    return next->data_len < at + size ? 0 : hsm_little(next->data + at, size);
}

/* An instruction that is there twice is refused by the runtime, so that of two numbers either will do. */
static void add_budget(struct bill *bill, const struct hsm_instruction *next) {
    switch (number_at(next, 0, 1)) {
    case HSM_REQUEST_UNITS: /* of former runtimes: with the whole fee */
        add(&bill->fixed, number_at(next, 5, 4));
        break;
    case HSM_UNIT_LIMIT:
        bill->limit = number_at(next, 1, 4);
        bill->limited = true;
        break;
    case HSM_UNIT_PRICE:
        bill->price = number_at(next, 1, 8);
        break;
    default:
        break;
    }
}

static void add_instruction(struct bill *bill, const hsm_program *program, const struct hsm_instruction *next) {
    uint8_t kind = program == NULL ? 0 : program->kind;
    bill->units += (kind & HSM_BUILTIN) != 0 ? BUILTIN_UNITS : UNITS;
    if ((kind & HSM_VERIFIER) != 0) {
        bill->signatures += number_at(next, 0, 1);
    }
    if ((kind & HSM_BUDGET) != 0) {
        add_budget(bill, next);
    }
}

static uint64_t fee_of(const struct bill *bill) {
    uint64_t units = bill->limited ? bill->limit : bill->units;
    uint64_t micro, fee = bill->signatures * LAMPORTS_PER_SIGNATURE;
    if (__builtin_mul_overflow(bill->price, units < MOST_UNITS ? units : MOST_UNITS, &micro)) {
        return UINT64_MAX;
    }
    add(&fee, micro / MICRO + (micro % MICRO != 0));
    add(&fee, bill->fixed);
    return fee;
}

static bool allowed(const hsm_rules *rules, const hsm_judgement *found) {
    const hsm_program *program = found->program;
    if (rules->programs == NULL) {
        return true;
    }
    if (program == NULL || program->form_count == 0) {
        return listed(found->address, rules->programs, rules->program_count) != NULL;
    }
    if (found->form == NULL) {
        return false;
    }
    size_t bit = (size_t)(found->form - program->forms);
    return (rules->forms[program - hsm_programs][bit / 64] >> bit % 64 & 1) != 0;
}

/* Add up what leaves the owned accounts. They are told by their bytes: only the runtime refuses a key that is listed
 * twice. Not inlined, so that rules without them cost no more. */
__attribute__((noinline)) static hsm_refusal judge_owned(const hsm_rules *rules, const hsm_transaction *transaction,
                                                         const struct hsm_instruction *next, hsm_judgement *found) {
    static const hsm_instruction_form unknown = {0};
    const hsm_instruction_form *form = found->form == NULL ? &unknown : found->form;
    for (size_t place = 1; place <= next->account_count; place++) {
        if (place != form->source && (place == form->recipient || place <= form->harmless)) {
            continue;
        }
        size_t index = next->accounts[place - 1];
        found->account = index < transaction->key_count ? key(transaction, index) : NULL;
        const uint8_t *owned = found->account == NULL ? NULL : listed(found->account, rules->owned, rules->owned_count);
        if (owned != NULL && place == form->source && form->amount > 0) {
            uint64_t amount = number_at(next, form->amount, 8);
            add(&found->leaves[(size_t)(owned - rules->owned) / HSM_ADDRESS], amount);
            found->moves |= amount > 0;
        } else if (owned != NULL || (found->account == NULL && found->form != NULL)) {
            return HSM_REFUSAL_OWNED; /* a table never hides what signs for a program that is allowed as a whole */
        }
    }
    return HSM_REFUSAL_NONE;
}

static hsm_refusal judge_instruction(const hsm_rules *rules, const hsm_transaction *transaction,
                                     const struct hsm_instruction *next, hsm_judgement *found) {
    found->form = found->program == NULL ? NULL : hsm_form_of(found->program, next->data, next->data_len);
    if (!allowed(rules, found)) {
        size_t size = found->program == NULL ? 0 : found->program->tag_size;
        found->tag = hsm_little(next->data, size < next->data_len ? size : next->data_len);
        return HSM_REFUSAL_PROGRAM;
    }
    size_t place = found->form == NULL ? 0 : found->form->recipient;
    if (rules->recipients != NULL && place > 0) {
        size_t index = place <= next->account_count ? next->accounts[place - 1] : transaction->key_count;
        found->address = index < transaction->key_count ? key(transaction, index) : NULL;
        if (found->address == NULL || !listed(found->address, rules->recipients, rules->recipient_count)) {
            return HSM_REFUSAL_RECIPIENT;
        }
    }
    return rules->owned_count > 0 ? judge_owned(rules, transaction, next, found) : HSM_REFUSAL_NONE;
}

static hsm_refusal judge_instructions(const hsm_rules *rules, const hsm_transaction *transaction,
                                      hsm_judgement *judgement) {
    struct bill bill = {.signatures = transaction->signers, .fixed = transaction->fee};
    struct hsm_walk walk = hsm_walk_begin(transaction);
    for (struct hsm_instruction next; hsm_walk_next(&walk, &next);) {
        judgement->address = key(transaction, next.program);
        judgement->program = hsm_program_of(judgement->address);
        hsm_refusal refusal = judge_instruction(rules, transaction, &next, judgement);
        if (refusal != HSM_REFUSAL_NONE) {
            return refusal;
        }
        add_instruction(&bill, judgement->program, &next);
    }
    judgement->fee = fee_of(&bill);
    return rules->max_fee > 0 && judgement->fee > rules->max_fee ? HSM_REFUSAL_FEE : HSM_REFUSAL_NONE;
}

hsm_refusal hsm_rules_judge(const hsm_rules *rules, const hsm_transaction *transaction, hsm_judgement *judgement) {
    memset(judgement, 0, offsetof(hsm_judgement, leaves) + rules->owned_count * sizeof *judgement->leaves);
    if (!transaction->sound) {
        return HSM_REFUSAL_UNSOUND;
    }
    hsm_refusal refusal = HSM_REFUSAL_NONE;
    if (rules->programs != NULL || rules->recipients != NULL || rules->owned_count > 0 || rules->max_fee > 0) {
        refusal = judge_instructions(rules, transaction, judgement);
    }
    if (refusal == HSM_REFUSAL_NONE && rules->role != HSM_ROLE_ANY) {
        refusal = judge_role(rules, transaction);
    }
    return refusal;
}
