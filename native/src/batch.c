#include <hsmcore/batch.h>

#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>

enum { HEAD = 1 + 8 }; /* kind and index */

/* What the proof says of a leaf beside its tree. Returns the number of bytes. */
static size_t head_of(uint8_t kind, uint64_t index, const uint8_t *blinder, uint8_t head[HEAD + HSM_BATCH_BLINDER]) {
    head[0] = kind;
    for (unsigned i = 0; i < 8; i++) {
        head[1 + i] = (uint8_t)(index >> (56 - 8 * i));
    }
    if (blinder == NULL) {
        return HEAD;
    }
    memcpy(head + HEAD, blinder, HSM_BATCH_BLINDER);
    return HEAD + HSM_BATCH_BLINDER;
}

const uint8_t *hsm_batch_tree(hsm_merkle *hasher, const hsm_batch_message *messages, const uint8_t *blinders,
                              uint64_t first, size_t count, uint8_t *nodes) {
    for (size_t i = 0; i < count; i++) {
        /* The blinder stands behind the digest here, and in its place in the proof. */
        uint8_t entry[HEAD + HSM_MERKLE_HASH + HSM_BATCH_BLINDER];
        size_t len = head_of(messages[i].kind, first + i, NULL, entry);
        memcpy(entry + len, messages[i].digest, HSM_MERKLE_HASH);
        len += HSM_MERKLE_HASH;
        if (blinders != NULL) {
            memcpy(entry + len, blinders + i * HSM_BATCH_BLINDER, HSM_BATCH_BLINDER);
            len += HSM_BATCH_BLINDER;
        }
        hsm_merkle_leaf(hasher, entry, len, nodes + i * HSM_MERKLE_HASH);
    }
    return hsm_merkle_build(hasher, nodes, count);
}

size_t hsm_batch_proof(const uint8_t *nodes, size_t count, size_t index, uint8_t kind, uint64_t first,
                       const uint8_t *blinder, char text[HSM_BATCH_PROOF_ROOM]) {
    uint8_t head[HEAD + HSM_BATCH_BLINDER];
    char encoded[4 * ((HEAD + HSM_BATCH_BLINDER + 2) / 3) + 1];
    uint8_t path[HSM_MERKLE_HEIGHT * HSM_MERKLE_HASH];
    size_t len = head_of(kind, first + index, blinder, head);
    (void)EVP_EncodeBlock((uint8_t *)encoded, head, (int)len);
    size_t used =
        (size_t)snprintf(text, HSM_BATCH_PROOF_ROOM, "c2sp.org/tlog-proof@v1\nextra %s\nindex %zu\n", encoded, index);
    size_t siblings = hsm_merkle_path(nodes, count, index, path);
    for (size_t i = 0; i < siblings; i++) {
        used += (size_t)EVP_EncodeBlock((uint8_t *)text + used, path + i * HSM_MERKLE_HASH, HSM_MERKLE_HASH);
        text[used++] = '\n';
    }
    text[used++] = '\n';
    return used;
}
