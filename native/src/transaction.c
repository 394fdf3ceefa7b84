/* The structure of a transaction, as the runtime's deserializer has it, and its sanitization. */
#include "transaction.h"

#include <string.h>

enum {
    BLOCKHASH = 32,
    MOST_ACCOUNTS = 256, /* of version 0, loaded ones included */
    /* Of version 1. */
    MOST_SIGNERS = 12,
    MOST_KEYS = 64,
    MOST_INSTRUCTIONS = 64,
    KNOWN_SETTINGS = 0x1f,
    HAS_FEE = 3,
    HAS_HEAP = 0x10,
    /* Bytes. */
    HEAP_UNIT = 1024,
    LEAST_HEAP = 32 * HEAP_UNIT,
    MOST_HEAP = 256 * HEAP_UNIT,
};

/* A number of 16 bits in one to three bytes, seven bits each, the lowest first, in its shortest form; -1: none. */
static int32_t take_compact(struct hsm_reader *reader) {
    uint32_t value = 0;
    for (unsigned i = 0; i < 3 && i < reader->left; i++) {
        uint32_t byte = reader->at[i];
        value |= (byte & 0x7fU) << (7 * i);
        if (byte < 0x80) {
            (void)hsm_take(reader, i + 1);
            return (byte > 0 || i == 0) && value <= UINT16_MAX ? (int32_t)value : -1;
        }
    }
    return -1;
}

/* Bytes behind their compact length. */
static const uint8_t *take_bytes(struct hsm_reader *reader, size_t *count) {
    int32_t length = take_compact(reader);
    *count = length < 0 ? 0 : (size_t)length;
    return length < 0 ? NULL : hsm_take(reader, *count);
}

static uint16_t little16(const uint8_t *at) {
    return (uint16_t)(at[0] | at[1] << 8);
}

static uint32_t little32(const uint8_t *at) {
    return little16(at) | (uint32_t)little16(at + 2) << 16;
}

bool hsm_walk_next(struct hsm_walk *walk, struct hsm_instruction *instruction) {
    if (walk->left == 0) {
        return false;
    }
    if (walk->headers != NULL) {
        instruction->program = walk->headers[0];
        instruction->account_count = walk->headers[1];
        instruction->data_len = little16(walk->headers + 2);
        instruction->accounts = hsm_take(&walk->rest, instruction->account_count);
        instruction->data = hsm_take(&walk->rest, instruction->data_len);
        walk->headers += 4;
    } else {
        const uint8_t *program = hsm_take(&walk->rest, 1);
        if (program == NULL) {
            return false;
        }
        instruction->program = *program;
        instruction->accounts = take_bytes(&walk->rest, &instruction->account_count);
        instruction->data = take_bytes(&walk->rest, &instruction->data_len);
    }
    if (instruction->accounts == NULL || instruction->data == NULL) {
        return false;
    }
    walk->left--;
    return true;
}

/* A look-up in an address table: its address, the accounts that it loads to be written, and those only to be read. */
static bool take_lookup(struct hsm_reader *reader, size_t *loaded) {
    size_t written, read;
    if (hsm_take(reader, HSM_ADDRESS) == NULL || take_bytes(reader, &written) == NULL ||
        take_bytes(reader, &read) == NULL) {
        return false;
    }
    *loaded = written + read;
    return true;
}

static uint8_t highest(const uint8_t *indexes, size_t count) {
    uint8_t most = 0;
    for (size_t i = 0; i < count; i++) {
        most = indexes[i] > most ? indexes[i] : most;
    }
    return most;
}

/* One more than the highest index that instructions use. */
struct ends {
    size_t program, account;
    bool payer_called;
};

/* Read the instructions from where the reader stands, or with version 1 those of the headers. */
static bool read_instructions(struct hsm_reader *reader, hsm_transaction *transaction, struct ends *ends) {
    transaction->instructions = reader->at;
    transaction->instructions_len = reader->left;
    *ends = (struct ends){0};
    struct hsm_walk walk = hsm_walk_begin(transaction);
    for (struct hsm_instruction next; hsm_walk_next(&walk, &next);) {
        ends->payer_called = ends->payer_called || next.program == 0;
        ends->program = next.program >= ends->program ? next.program + 1U : ends->program;
        if (next.account_count > 0) {
            size_t end = highest(next.accounts, next.account_count) + 1U;
            ends->account = end > ends->account ? end : ends->account;
        }
    }
    transaction->instructions_len -= walk.rest.left;
    *reader = walk.rest;
    return walk.left == 0;
}

/* Header (signers, signers only read, others only read), keys, blockhash, instructions. */
static bool read_common(struct hsm_reader *reader, hsm_transaction *transaction, struct ends *ends, bool *sound) {
    *transaction = (hsm_transaction){0};
    const uint8_t *header = hsm_take(reader, 3);
    int32_t keys = header != NULL ? take_compact(reader) : -1;
    transaction->keys = keys >= 0 ? hsm_take(reader, (size_t)keys * HSM_ADDRESS) : NULL;
    if (transaction->keys == NULL || hsm_take(reader, BLOCKHASH) == NULL) {
        return false;
    }
    int32_t instructions = take_compact(reader);
    if (instructions < 0) {
        return false;
    }
    transaction->signers = header[0];
    transaction->key_count = (uint32_t)keys;
    transaction->instruction_count = (uint32_t)instructions;
    *sound = header[1] < header[0] && (uint32_t)header[0] + header[2] <= transaction->key_count;
    return read_instructions(reader, transaction, ends);
}

/* Whether each index is in range, and no program is loaded from a table or pays. */
static bool in_range(const hsm_transaction *transaction, const struct ends *ends) {
    return ends->program <= transaction->key_count && !ends->payer_called &&
           ends->account <= transaction->key_count + transaction->loaded;
}

bool hsm_read_legacy(struct hsm_reader *reader, hsm_transaction *transaction) {
    struct ends ends;
    bool sound;
    if (!read_common(reader, transaction, &ends, &sound)) {
        return false;
    }
    transaction->sound = sound && in_range(transaction, &ends);
    return true;
}

bool hsm_read_v0(struct hsm_reader *reader, hsm_transaction *transaction) {
    struct ends ends;
    bool sound;
    if (!read_common(reader, transaction, &ends, &sound)) {
        return false;
    }
    int32_t tables = take_compact(reader);
    for (int32_t i = 0; i < tables; i++) {
        size_t loaded;
        if (!take_lookup(reader, &loaded)) {
            return false;
        }
        sound = sound && loaded > 0;
        transaction->loaded += (uint32_t)loaded;
    }
    transaction->sound = sound && in_range(transaction, &ends) && transaction->key_count <= MOST_ACCOUNTS &&
                         transaction->loaded <= MOST_ACCOUNTS - transaction->key_count;
    return tables >= 0;
}

static bool each_once(const uint8_t *keys, size_t count) {
    for (size_t i = 1; i < count; i++) {
        for (size_t j = 0; j < i; j++) {
            if (memcmp(keys + i * HSM_ADDRESS, keys + j * HSM_ADDRESS, HSM_ADDRESS) == 0) {
                return false;
            }
        }
    }
    return true;
}

bool hsm_read_v1(struct hsm_reader *reader, hsm_transaction *transaction) {
    *transaction = (hsm_transaction){0};
    const uint8_t *header = hsm_take(reader, 3);
    const uint8_t *mask = hsm_take(reader, 4);
    const uint8_t *blockhash = hsm_take(reader, BLOCKHASH);
    const uint8_t *counts = hsm_take(reader, 2);
    if (header == NULL || mask == NULL || blockhash == NULL || counts == NULL) {
        return false;
    }
    /* The fee has two bits, of which one alone means nothing. */
    uint32_t settings = little32(mask);
    if (settings > KNOWN_SETTINGS || (settings & HAS_FEE) == 1 || (settings & HAS_FEE) == 2) {
        return false;
    }
    transaction->signers = header[0];
    transaction->instruction_count = counts[0];
    transaction->key_count = counts[1];
    transaction->keys = hsm_take(reader, (size_t)counts[1] * HSM_ADDRESS);
    const uint8_t *values = hsm_take(reader, (size_t)__builtin_popcount(settings) * 4);
    transaction->headers = hsm_take(reader, (size_t)counts[0] * 4);
    struct ends ends;
    if (transaction->keys == NULL || values == NULL || transaction->headers == NULL ||
        !read_instructions(reader, transaction, &ends)) {
        return false;
    }
    transaction->fee = (settings & HAS_FEE) != 0 ? little32(values) | (uint64_t)little32(values + 4) << 32 : 0;
    /* The last value. */
    uint32_t heap = (settings & HAS_HEAP) != 0 ? little32(transaction->headers - 4) : LEAST_HEAP;
    transaction->sound = header[1] < header[0] && (uint32_t)header[0] + header[2] <= transaction->key_count &&
                         heap % HEAP_UNIT == 0 && heap >= LEAST_HEAP && heap <= MOST_HEAP &&
                         header[0] <= MOST_SIGNERS && counts[0] <= MOST_INSTRUCTIONS && counts[1] <= MOST_KEYS &&
                         in_range(transaction, &ends) && each_once(transaction->keys, transaction->key_count);
    return true;
}
