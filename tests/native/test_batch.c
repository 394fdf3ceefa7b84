/* Trees that are kept whole, the leaves of batches, and their proofs as text, against the definitions of RFC 6962. */
#include <hsmcore/batch.h>

#include "harness.h"
#include "rfc6962.h"

enum { MOST = 70 };

/* PATH(m, D[n]) as section 2.1.1 defines it. Returns the number of hashes. */
static size_t path_by_definition(hsm_merkle *hasher, const uint8_t *leaves, size_t count, size_t index, uint8_t *path) {
    if (count == 1) {
        return 0;
    }
    size_t k = 1;
    while (2 * k < count) {
        k *= 2;
    }
    const uint8_t *right = leaves + k * HSM_MERKLE_HASH;
    size_t found;
    if (index < k) {
        found = path_by_definition(hasher, leaves, k, index, path);
        root_by_definition(hasher, right, count - k, path + found * HSM_MERKLE_HASH);
    } else {
        found = path_by_definition(hasher, right, count - k, index - k, path);
        root_by_definition(hasher, leaves, k, path + found * HSM_MERKLE_HASH);
    }
    return found + 1;
}

static void trees_and_paths_are_those_of_the_definition(void) {
    hsm_merkle *hasher = hsm_merkle_new();
    REQUIRE(hasher != NULL);
    for (size_t count = 1; count <= MOST; count++) {
        uint8_t *nodes = calloc(hsm_merkle_room(count), HSM_MERKLE_HASH);
        REQUIRE(nodes != NULL);
        for (size_t i = 0; i < count; i++) {
            hsm_merkle_leaf(hasher, &i, sizeof i, nodes + i * HSM_MERKLE_HASH);
        }
        uint8_t root[HSM_MERKLE_HASH];
        uint8_t path[HSM_MERKLE_HEIGHT * HSM_MERKLE_HASH];
        uint8_t wanted[HSM_MERKLE_HEIGHT * HSM_MERKLE_HASH];
        const uint8_t *built = hsm_merkle_build(hasher, nodes, count);
        root_by_definition(hasher, nodes, count, root);
        CHECK_INT(memcmp(built, root, sizeof root), ==, 0);
        for (size_t i = 0; i < count; i++) {
            size_t length = hsm_merkle_path(nodes, count, i, path);
            CHECK_INT(length, ==, path_by_definition(hasher, nodes, count, i, wanted));
            CHECK_INT(memcmp(path, wanted, length * HSM_MERKLE_HASH), ==, 0);
        }
        free(nodes);
    }
    hsm_merkle_free(hasher);
}

static void a_leaf_is_kind_number_digest_and_blinder(void) {
    hsm_merkle *hasher = hsm_merkle_new();
    REQUIRE(hasher != NULL);
    hsm_batch_message messages[] = {{.kind = 8}, {.kind = 2}};
    uint8_t blinders[2 * HSM_BATCH_BLINDER];
    uint8_t nodes[(2 * 2 + HSM_MERKLE_HEIGHT) * HSM_MERKLE_HASH];
    uint8_t entry[1 + 8 + HSM_MERKLE_HASH + HSM_BATCH_BLINDER] = {2, 1, 2, 3, 4, 5, 6, 7, 9};
    uint8_t leaf[HSM_MERKLE_HASH];
    memset(blinders, 0xb1, sizeof blinders);
    hsm_merkle_sha256(hasher, "bc", 2, messages[1].digest);
    memcpy(entry + 9, messages[1].digest, HSM_MERKLE_HASH);
    memset(entry + 9 + HSM_MERKLE_HASH, 0xb1, HSM_BATCH_BLINDER);
    (void)hsm_batch_tree(hasher, messages, blinders, 0x0102030405060708, 2, nodes);
    hsm_merkle_leaf(hasher, entry, sizeof entry, leaf);
    CHECK_INT(memcmp(nodes + HSM_MERKLE_HASH, leaf, sizeof leaf), ==, 0);
    (void)hsm_batch_tree(hasher, messages, NULL, 0x0102030405060708, 2, nodes);
    hsm_merkle_leaf(hasher, entry, 9 + HSM_MERKLE_HASH, leaf);
    CHECK_INT(memcmp(nodes + HSM_MERKLE_HASH, leaf, sizeof leaf), ==, 0);
    hsm_merkle_free(hasher);
}

static void a_proof_is_text(void) {
    uint8_t nodes[2 * HSM_MERKLE_HASH] = {0};
    char text[HSM_BATCH_PROOF_ROOM];
    size_t size = hsm_batch_proof(nodes, 2, 1, 8, 255, NULL, text);
    text[size] = '\0';
    CHECK_TEXT(text, "c2sp.org/tlog-proof@v1\nextra CAAAAAAAAAEA\nindex 1\n"
                     "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\n");
    size = hsm_batch_proof(nodes, 1, 0, 8, UINT64_MAX, nodes, text);
    text[size] = '\0';
    CHECK_TEXT(text, "c2sp.org/tlog-proof@v1\n"
                     "extra CP//////////AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\nindex 0\n\n");
}

static void the_longest_proof_has_room(void) {
    size_t longest = 23 + 6 + 56 + 1 + 6 + 20 + 1 + (size_t)HSM_MERKLE_HEIGHT * 45 + 1;
    CHECK_INT(longest, <, HSM_BATCH_PROOF_ROOM);
}

static const struct test tests[] = {
    TEST(trees_and_paths_are_those_of_the_definition),
    TEST(a_leaf_is_kind_number_digest_and_blinder),
    TEST(a_proof_is_text),
    TEST(the_longest_proof_has_room),
};
HARNESS_MAIN(tests)
