/* Solana's messages: legacy, version 0 and version 1 (SIMD-0385). */
#ifndef HSM_TRANSACTION_H
#define HSM_TRANSACTION_H

#include <hsmcore/payload.h>

/* What is left of a message. */
struct hsm_reader {
    const uint8_t *at;
    size_t left;
};

/* The next `count` bytes; NULL, and nothing is taken, if there are fewer. */
static inline const uint8_t *hsm_take(struct hsm_reader *reader, size_t count) {
    const uint8_t *at = reader->at;
    if (count > reader->left) {
        return NULL;
    }
    reader->at += count;
    reader->left -= count;
    return at;
}

/* Read a message from its header on, behind the byte of its version. False: it is none. What follows it is left. */
bool hsm_read_legacy(struct hsm_reader *reader, hsm_transaction *transaction);
bool hsm_read_v0(struct hsm_reader *reader, hsm_transaction *transaction);
bool hsm_read_v1(struct hsm_reader *reader, hsm_transaction *transaction);

struct hsm_instruction {
    const uint8_t *accounts; /* indexes */
    const uint8_t *data;
    size_t account_count;
    size_t data_len;
    uint8_t program; /* index */
};

/* Where a walk over instructions stands. */
struct hsm_walk {
    const uint8_t *headers; /* of version 1, else NULL */
    struct hsm_reader rest;
    uint32_t left; /* instructions */
};

static inline struct hsm_walk hsm_walk_begin(const hsm_transaction *transaction) {
    return (struct hsm_walk){.headers = transaction->headers,
                             .rest = {transaction->instructions, transaction->instructions_len},
                             .left = transaction->instruction_count};
}

/* False: there is no other instruction, or, with `left` above 0, what follows is none. */
bool hsm_walk_next(struct hsm_walk *walk, struct hsm_instruction *instruction);

#endif
