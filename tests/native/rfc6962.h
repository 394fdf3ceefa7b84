/* The trees of RFC 6962 by its own, slow definitions, to hold the native ones against. */
#pragma once

#include <string.h>

#include <hsmcore/audit.h>

/* MTH(D[n]) as section 2.1 defines it. `leaves`: the hashes of `count` leaves, in a row; at least one. */
static void root_by_definition(hsm_merkle *hasher, const uint8_t *leaves, size_t count, uint8_t *root) {
    if (count == 1) {
        memcpy(root, leaves, HSM_MERKLE_HASH);
        return;
    }
    size_t k = 1;
    while (2 * k < count) {
        k *= 2;
    }
    uint8_t left[HSM_MERKLE_HASH];
    uint8_t right[HSM_MERKLE_HASH];
    root_by_definition(hasher, leaves, k, left);
    root_by_definition(hasher, leaves + k * HSM_MERKLE_HASH, count - k, right);
    hsm_merkle_node(hasher, left, right, root);
}
