/* A batch of messages under one signature: the leaves, their tree, and what proves one of them. docs/BATCHING.md has
 * the formats. Any thread; nothing here blocks, allocates or keeps anything. */
#ifndef HSMCORE_BATCH_H
#define HSMCORE_BATCH_H

#include <hsmcore/audit.h>

#define HSM_BATCH_BLINDER 32      /* bytes */
#define HSM_BATCH_PROOF_ROOM 3072 /* bytes of the longest proof, without its checkpoint */

typedef struct hsm_batch_message {
    uint8_t digest[HSM_MERKLE_HASH]; /* SHA-256 of the message */
    uint8_t kind;                    /* as hsmcore-wire/1 numbers it */
} hsm_batch_message;

/* Build the tree in `nodes`, which has hsm_merkle_room(count) hashes. `blinders`: HSM_BATCH_BLINDER bytes for each
 * leaf; NULL: none. Returns the root. */
const uint8_t *hsm_batch_tree(hsm_merkle *hasher, const hsm_batch_message *messages, const uint8_t *blinders,
                              uint64_t first, size_t count, uint8_t *nodes);
/* Write the proof of one leaf up to the blank line before the checkpoint. `blinder`: its own, or NULL. Returns the
 * number of bytes. */
size_t hsm_batch_proof(const uint8_t *nodes, size_t count, size_t index, uint8_t kind, uint64_t first,
                       const uint8_t *blinder, char text[HSM_BATCH_PROOF_ROOM]);

#endif
