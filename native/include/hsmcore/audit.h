/* The audit log's cryptography: an RFC 6962 Merkle tree over the lines of the log, and the scan that turns lines into
 * leaves. Batches of messages have trees of their own (batch.h). docs/AUDIT.md describes the files; of them only
 * hsm_audit_store touches any.
 *
 * A leaf is a record's line without its newline. Hashes are SHA-256 (FIPS 180-4), 32 bytes, as RFC 6962 section 2.1
 * has them: leaf = H(0x00 || line), node = H(0x01 || left || right), empty tree = H(""). A tree is for one thread at a
 * time; different trees may be used at once. No other function takes a lock or blocks; those of trees abort without a
 * SHA-256. */
#ifndef HSMCORE_AUDIT_H
#define HSMCORE_AUDIT_H

#include <stddef.h>
#include <stdint.h>

#define HSM_MERKLE_HASH 32   /* bytes of a hash */
#define HSM_MERKLE_HEIGHT 64 /* subtrees in a frontier at most: one for each bit of the size */

/* A tree that grows by leaves and keeps only its frontier: the roots of the perfect subtrees it consists of. */
typedef struct hsm_merkle hsm_merkle;

/* An empty tree, owned by the caller; NULL if there is no memory. */
hsm_merkle *hsm_merkle_new(void);
void hsm_merkle_free(hsm_merkle *tree);
/* Make the tree one of `size` leaves. `frontier` holds a hash for each one-bit of `size`, that of the largest subtree
 * first. */
void hsm_merkle_restore(hsm_merkle *tree, uint64_t size, const uint8_t *frontier);
uint64_t hsm_merkle_size(const hsm_merkle *tree);
/* Write the frontier, as hsm_merkle_restore takes it; returns the number of hashes. */
size_t hsm_merkle_frontier(const hsm_merkle *tree, uint8_t frontier[HSM_MERKLE_HEIGHT * HSM_MERKLE_HASH]);
void hsm_merkle_append(hsm_merkle *tree, const uint8_t leaf[HSM_MERKLE_HASH]);
void hsm_merkle_root(hsm_merkle *tree, uint8_t root[HSM_MERKLE_HASH]);
void hsm_merkle_leaf(hsm_merkle *tree, const void *line, size_t len, uint8_t hash[HSM_MERKLE_HASH]);
void hsm_merkle_node(hsm_merkle *tree, const uint8_t left[HSM_MERKLE_HASH], const uint8_t right[HSM_MERKLE_HASH],
                     uint8_t hash[HSM_MERKLE_HASH]);
/* The root over `count` hashes of one height, as when they are the leaves of a tree. The tree itself stays as it is. */
void hsm_merkle_over(hsm_merkle *tree, const uint8_t *hashes, size_t count, uint8_t root[HSM_MERKLE_HASH]);

/* ---- a tree that is kept whole, so that each of its leaves can be proved ---- */

/* The hashes that hsm_merkle_build needs room for. */
size_t hsm_merkle_room(size_t count);
/* Build the tree over the `count` hashes of leaves, 1 at least, at the beginning of `nodes`; the other levels follow
 * them. Returns the root, which lies in `nodes`. `hasher` stays as it is. */
const uint8_t *hsm_merkle_build(hsm_merkle *hasher, uint8_t *nodes, size_t count);
/* The inclusion proof of a leaf: the siblings from below. Returns their number. */
size_t hsm_merkle_path(const uint8_t *nodes, size_t count, size_t index,
                       uint8_t path[HSM_MERKLE_HEIGHT * HSM_MERKLE_HASH]);
/* Plain SHA-256. */
void hsm_merkle_sha256(hsm_merkle *hasher, const void *data, size_t len, uint8_t hash[HSM_MERKLE_HASH]);

/* ---- lines ---- */

#define HSM_AUDIT_MAX_LINE 65535 /* bytes without the newline: what an entry of a C2SP tlog-tiles bundle may have */
#define HSM_AUDIT_KEY_BITS 256   /* of the filter over the key ids of a block */

/* What an index knows of consecutive records. The filters have a bit set for each value that occurs: absent bits prove
 * absence. An operation sets bit h % 64, a key id the bits h % 256 and (h >> 32) % 256, where h is the 64-bit FNV-1a
 * hash of the text between the quotes. */
typedef struct hsm_audit_summary {
    uint64_t count;
    uint64_t min_time_ns; /* Unix time; both 0 while count is 0 */
    uint64_t max_time_ns;
    uint64_t operations;
    uint64_t keys[HSM_AUDIT_KEY_BITS / 64];
} hsm_audit_summary;

typedef enum hsm_audit_stop {
    HSM_AUDIT_END,     /* everything was consumed */
    HSM_AUDIT_LIMIT,   /* `max_lines` were */
    HSM_AUDIT_TORN,    /* what is left has no newline */
    HSM_AUDIT_FOREIGN, /* the next line does not begin as a record: {"seq":N,"time_ns":T,"operation":" */
    HSM_AUDIT_ORDER,   /* the next line is a record with another sequence number than expected */
    HSM_AUDIT_LONG     /* the next line is longer than HSM_AUDIT_MAX_LINE */
} hsm_audit_stop;

/* Hash whole lines as leaves and append them to `tree`, the first of which must have the sequence number `next_seq`.
 * `leaves` (may be NULL) has room for `max_lines` hashes. `summary` is added to, so zero it for a new block. Says in
 * `consumed` how many bytes of `text` were used, and in `lines` how many lines. Anything may stand in `text`. */
hsm_audit_stop hsm_audit_scan(hsm_merkle *tree, const char *text, size_t len, uint64_t next_seq, size_t max_lines,
                              uint8_t *leaves, hsm_audit_summary *summary, size_t *consumed, size_t *lines);
/* 64-bit FNV-1a. */
uint64_t hsm_audit_fnv1a(const char *text, size_t len);

/* ---- files ---- */

#define HSM_AUDIT_MAX_FILE 8192 /* bytes: a full tile */

typedef struct hsm_audit_file {
    const char *path; /* in a folder that is there */
    const uint8_t *data;
    size_t size;
} hsm_audit_file;

/* Write files whole and flush them and the folders' entries; one that holds this content already is only flushed. In
 * groups of 64, whose files are open at once: all are on their way to the disk before the first is waited for. A file
 * comes under its name by a rename, from <path>.new, has mode 0600 and belongs to the owner of its folder. Any thread;
 * blocks on the disk, in a few threads of its own. Returns 0, or the errno for the file `failed`: others may be written
 * by then, and the call may be repeated. */
int hsm_audit_store(const hsm_audit_file *files, size_t count, size_t *failed);

#endif
