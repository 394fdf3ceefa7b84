/* RFC 6962's tree as a binary counter: subtree i of the frontier is there when bit i of the size is set, and appending
 * a leaf carries. One hash context serves a tree for its life: making one costs more than hashing a line. */
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#include <hsmcore/audit.h>

#include "base.h"

struct hsm_merkle {
    EVP_MD_CTX *context;
    EVP_MD *sha256;
    uint64_t size;
    uint8_t subtrees[HSM_MERKLE_HEIGHT][HSM_MERKLE_HASH]; /* by height */
};

hsm_merkle *hsm_merkle_new(void) {
    hsm_merkle *tree = hsm_alloc(sizeof *tree);
    if (tree == NULL) {
        return NULL;
    }
    tree->context = EVP_MD_CTX_new();
    /* Fetched once: the implicit fetch of EVP_sha256() takes a lock and a look-up at each use. */
    tree->sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
    if (tree->context == NULL || tree->sha256 == NULL) {
        hsm_merkle_free(tree);
        return NULL;
    }
    return tree;
}

void hsm_merkle_free(hsm_merkle *tree) {
    if (tree != NULL) {
        EVP_MD_CTX_free(tree->context);
        EVP_MD_free(tree->sha256);
        hsm_free(tree);
    }
}

static void digest(hsm_merkle *tree, const void *first, size_t first_len, const void *second, size_t second_len,
                   uint8_t hash[HSM_MERKLE_HASH]) {
    if (EVP_DigestInit_ex2(tree->context, tree->sha256, NULL) != 1 ||
        EVP_DigestUpdate(tree->context, first, first_len) != 1 ||
        (second_len > 0 && EVP_DigestUpdate(tree->context, second, second_len) != 1) ||
        EVP_DigestFinal_ex(tree->context, hash, NULL) != 1) {
        abort(); /* a hash that was not computed must never be taken for one */
    }
}

void hsm_merkle_leaf(hsm_merkle *tree, const void *line, size_t len, uint8_t hash[HSM_MERKLE_HASH]) {
    digest(tree, "", 1, line, len, hash);
}

void hsm_merkle_node(hsm_merkle *tree, const uint8_t left[HSM_MERKLE_HASH], const uint8_t right[HSM_MERKLE_HASH],
                     uint8_t hash[HSM_MERKLE_HASH]) {
    uint8_t node[1 + 2 * HSM_MERKLE_HASH] = {0x01}; /* a copy of 64 bytes costs less than a second update */
    memcpy(node + 1, left, HSM_MERKLE_HASH);
    memcpy(node + 1 + HSM_MERKLE_HASH, right, HSM_MERKLE_HASH);
    digest(tree, node, sizeof node, NULL, 0, hash);
}

/* Append to a frontier, `size` being its leaves before. */
static void carry(hsm_merkle *tree, uint8_t (*subtrees)[HSM_MERKLE_HASH], uint64_t size, const uint8_t *leaf) {
    uint8_t hash[HSM_MERKLE_HASH];
    memcpy(hash, leaf, sizeof hash);
    unsigned height = 0;
    for (; (size >> height & 1U) != 0; height++) {
        hsm_merkle_node(tree, subtrees[height], hash, hash);
    }
    memcpy(subtrees[height], hash, sizeof hash);
}

/* The root over a frontier: from the smallest subtree to the largest. `size` is not 0. */
static void fold(hsm_merkle *tree, uint8_t (*subtrees)[HSM_MERKLE_HASH], uint64_t size, uint8_t *root) {
    unsigned height = (unsigned)__builtin_ctzll(size);
    memcpy(root, subtrees[height], HSM_MERKLE_HASH);
    for (height++; height < HSM_MERKLE_HEIGHT; height++) {
        if ((size >> height & 1U) != 0) {
            hsm_merkle_node(tree, subtrees[height], root, root);
        }
    }
}

void hsm_merkle_restore(hsm_merkle *tree, uint64_t size, const uint8_t *frontier) {
    tree->size = size;
    for (unsigned height = HSM_MERKLE_HEIGHT; height-- > 0;) {
        if ((size >> height & 1U) != 0) {
            memcpy(tree->subtrees[height], frontier, HSM_MERKLE_HASH);
            frontier += HSM_MERKLE_HASH;
        }
    }
}

uint64_t hsm_merkle_size(const hsm_merkle *tree) {
    return tree->size;
}

size_t hsm_merkle_frontier(const hsm_merkle *tree, uint8_t frontier[HSM_MERKLE_HEIGHT * HSM_MERKLE_HASH]) {
    size_t count = 0;
    for (unsigned height = HSM_MERKLE_HEIGHT; height-- > 0;) {
        if ((tree->size >> height & 1U) != 0) {
            memcpy(frontier + count * HSM_MERKLE_HASH, tree->subtrees[height], HSM_MERKLE_HASH);
            count++;
        }
    }
    return count;
}

void hsm_merkle_append(hsm_merkle *tree, const uint8_t leaf[HSM_MERKLE_HASH]) {
    carry(tree, tree->subtrees, tree->size, leaf);
    tree->size++;
}

static void empty_root(hsm_merkle *tree, uint8_t *root) {
    if (EVP_DigestInit_ex2(tree->context, tree->sha256, NULL) != 1 ||
        EVP_DigestFinal_ex(tree->context, root, NULL) != 1) {
        abort();
    }
}

void hsm_merkle_root(hsm_merkle *tree, uint8_t root[HSM_MERKLE_HASH]) {
    if (tree->size == 0) {
        empty_root(tree, root);
    } else {
        fold(tree, tree->subtrees, tree->size, root);
    }
}

void hsm_merkle_over(hsm_merkle *tree, const uint8_t *hashes, size_t count, uint8_t root[HSM_MERKLE_HASH]) {
    uint8_t subtrees[HSM_MERKLE_HEIGHT][HSM_MERKLE_HASH];
    for (size_t i = 0; i < count; i++) {
        carry(tree, subtrees, i, hashes + i * HSM_MERKLE_HASH);
    }
    if (count == 0) {
        empty_root(tree, root);
    } else {
        fold(tree, subtrees, count, root);
    }
}

void hsm_merkle_sha256(hsm_merkle *hasher, const void *data, size_t len, uint8_t hash[HSM_MERKLE_HASH]) {
    digest(hasher, data, len, NULL, 0, hash);
}

size_t hsm_merkle_room(size_t count) {
    return 2 * count + HSM_MERKLE_HEIGHT; /* each level has half of the one below, rounded up */
}

const uint8_t *hsm_merkle_build(hsm_merkle *hasher, uint8_t *nodes, size_t count) {
    while (count > 1) {
        uint8_t *above = nodes + count * HSM_MERKLE_HASH;
        for (size_t i = 0; i + 1 < count; i += 2) {
            const uint8_t *left = nodes + i * HSM_MERKLE_HASH;
            hsm_merkle_node(hasher, left, left + HSM_MERKLE_HASH, above + i / 2 * HSM_MERKLE_HASH);
        }
        if (count % 2 != 0) { /* a node without a sibling stands for itself one level up */
            memcpy(above + count / 2 * HSM_MERKLE_HASH, above - HSM_MERKLE_HASH, HSM_MERKLE_HASH);
        }
        nodes = above;
        count = (count + 1) / 2;
    }
    return nodes;
}

size_t hsm_merkle_path(const uint8_t *nodes, size_t count, size_t index,
                       uint8_t path[HSM_MERKLE_HEIGHT * HSM_MERKLE_HASH]) {
    size_t found = 0;
    for (; count > 1; count = (count + 1) / 2, index /= 2) {
        size_t sibling = index ^ 1U;
        if (sibling < count) {
            memcpy(path + found++ * HSM_MERKLE_HASH, nodes + sibling * HSM_MERKLE_HASH, HSM_MERKLE_HASH);
        }
        nodes += count * HSM_MERKLE_HASH;
    }
    return found;
}
