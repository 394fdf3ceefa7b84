/* The Merkle tree against RFC 6962's own test vectors and its recursive definition, and the scan of lines. */
#include <hsmcore/audit.h>

#include "harness.h"
#include "rfc6962.h"

static void hex(const uint8_t hash[HSM_MERKLE_HASH], char text[65]) {
    for (int i = 0; i < HSM_MERKLE_HASH; i++) {
        (void)snprintf(text + 2 * i, 3, "%02x", hash[i]);
    }
}

/* The inputs and roots that Certificate Transparency's reference implementation publishes for RFC 6962. */
static const struct {
    const char *data;
    size_t len;
    const char *root; /* of the tree that ends with this leaf */
} vectors[] = {
    {"", 0, "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"},
    {"\x00", 1, "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"},
    {"\x10", 1, "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"},
    {"\x20\x21", 2, "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"},
    {"\x30\x31", 2, "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4"},
    {"\x40\x41\x42\x43", 4, "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef"},
    {"\x50\x51\x52\x53\x54\x55\x56\x57", 8, "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c"},
    {"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f", 16,
     "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"},
};

static void the_published_vectors_hold(void) {
    hsm_merkle *tree = hsm_merkle_new();
    REQUIRE(tree != NULL);
    uint8_t hash[HSM_MERKLE_HASH];
    char text[65];
    hsm_merkle_root(tree, hash);
    hex(hash, text);
    CHECK_TEXT(text, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    for (size_t i = 0; i < COUNT_OF(vectors); i++) {
        hsm_merkle_leaf(tree, vectors[i].data, vectors[i].len, hash);
        hsm_merkle_append(tree, hash);
        hsm_merkle_root(tree, hash);
        hex(hash, text);
        CHECK_TEXT(text, vectors[i].root);
        CHECK_INT(hsm_merkle_size(tree), ==, i + 1);
    }
    hsm_merkle_free(tree);
}

enum { MOST = 300 };
static uint8_t leaves[MOST][HSM_MERKLE_HASH];

static void every_size_has_the_root_of_the_definition(void) {
    hsm_merkle *tree = hsm_merkle_new();
    REQUIRE(tree != NULL);
    for (uint32_t i = 0; i < MOST; i++) {
        hsm_merkle_leaf(tree, &i, sizeof i, leaves[i]);
        hsm_merkle_append(tree, leaves[i]);
        uint8_t expected[HSM_MERKLE_HASH];
        uint8_t root[HSM_MERKLE_HASH];
        root_by_definition(tree, leaves[0], i + 1, expected);
        hsm_merkle_root(tree, root);
        CHECK_BYTES(root, expected, sizeof root);
        hsm_merkle_over(tree, leaves[0], i + 1, root);
        CHECK_BYTES(root, expected, sizeof root);
        CHECK_INT(hsm_merkle_size(tree), ==, i + 1);

        /* A tree that goes on from the frontier is the same tree. */
        uint8_t frontier[HSM_MERKLE_HEIGHT * HSM_MERKLE_HASH];
        CHECK_INT(hsm_merkle_frontier(tree, frontier), ==, __builtin_popcount(i + 1));
        hsm_merkle *other = hsm_merkle_new();
        REQUIRE(other != NULL);
        hsm_merkle_restore(other, i + 1, frontier);
        hsm_merkle_root(other, root);
        CHECK_BYTES(root, expected, sizeof root);
        hsm_merkle_free(other);
    }
    hsm_merkle_free(tree);
}

#define LINE(seq, time, operation) "{\"seq\":" seq ",\"time_ns\":" time ",\"operation\":\"" operation "\""

static const struct {
    const char *line;
    hsm_audit_stop stop;
} lines[] = {
    {LINE("7", "5", "sign") "}\n", HSM_AUDIT_END},
    {LINE("7", "18446744073709551615", "") ",\"x\":1}\n", HSM_AUDIT_END},
    {LINE("7", "5", "sign") "}", HSM_AUDIT_TORN},
    {LINE("8", "5", "sign") "}\n", HSM_AUDIT_ORDER},
    {LINE("07", "5", "sign") "}\n", HSM_AUDIT_FOREIGN},
    {LINE("-7", "5", "sign") "}\n", HSM_AUDIT_FOREIGN},
    {LINE("", "5", "sign") "}\n", HSM_AUDIT_FOREIGN},
    {LINE("7", "18446744073709551616", "sign") "}\n", HSM_AUDIT_FOREIGN},
    {LINE("18446744073709551623", "5", "sign") "}\n", HSM_AUDIT_FOREIGN}, /* 7 modulo 2^64 */
    {LINE("7", "5", "sign") "\n", HSM_AUDIT_FOREIGN},
    {"{\"seq\":7,\"time_ns\":5,\"operation\":\"sign}\n", HSM_AUDIT_FOREIGN},
    {"{\"seq\": 7,\"time_ns\":5,\"operation\":\"sign\"}\n", HSM_AUDIT_FOREIGN},
    {"\n", HSM_AUDIT_FOREIGN},
    {"", HSM_AUDIT_END},
};

static void a_line_is_a_record_or_it_is_not(void) {
    for (size_t i = 0; i < COUNT_OF(lines); i++) {
        hsm_merkle *tree = hsm_merkle_new();
        REQUIRE(tree != NULL);
        hsm_audit_summary summary = {0};
        size_t consumed;
        size_t count;
        size_t len = strlen(lines[i].line);
        hsm_audit_stop stop = hsm_audit_scan(tree, lines[i].line, len, 7, 10, NULL, &summary, &consumed, &count);
        if (stop != lines[i].stop) {
            FAIL("line %zu: %d instead of %d", i, (int)stop, (int)lines[i].stop);
        }
        CHECK_INT(consumed, ==, stop == HSM_AUDIT_END ? len : 0);
        CHECK_INT(hsm_merkle_size(tree), ==, count);
        CHECK_INT(summary.count, ==, count);
        hsm_merkle_free(tree);
    }
}

static void a_scan_stops_where_it_should_and_sums_up(void) {
    static const char text[] = LINE("1", "30", "sign") ",\"key_id\":\"ab\"}\n" LINE("2", "10", "login") "}\n" LINE(
        "3", "20", "sign") ",\"key_id\":\"ab\",\"p\":{\"key_id\":\"cd\"}}\n{\"seq\":4,";
    hsm_merkle *tree = hsm_merkle_new();
    REQUIRE(tree != NULL);
    hsm_audit_summary summary = {0};
    uint8_t hashes[3][HSM_MERKLE_HASH];
    size_t consumed;
    size_t count;
    CHECK_INT(hsm_audit_scan(tree, text, sizeof text - 1, 1, 2, hashes[0], &summary, &consumed, &count), ==,
              HSM_AUDIT_LIMIT);
    CHECK_INT(count, ==, 2);
    size_t rest = consumed;
    CHECK_INT(hsm_audit_scan(tree, text + rest, sizeof text - 1 - rest, 3, 9, hashes[2], &summary, &consumed, &count),
              ==, HSM_AUDIT_TORN);
    CHECK_INT(count, ==, 1);
    CHECK_INT(summary.count, ==, 3);
    CHECK_INT(summary.min_time_ns, ==, 10);
    CHECK_INT(summary.max_time_ns, ==, 30);
    uint64_t operations = UINT64_C(1) << (hsm_audit_fnv1a("sign", 4) % 64) | UINT64_C(1)
                                                                                 << (hsm_audit_fnv1a("login", 5) % 64);
    CHECK_INT(summary.operations == operations, ==, 1);
    uint64_t keys[HSM_AUDIT_KEY_BITS / 64] = {0};
    static const char *const ids[] = {"ab", "cd"};
    for (size_t i = 0; i < COUNT_OF(ids); i++) {
        uint64_t hash = hsm_audit_fnv1a(ids[i], 2);
        keys[hash % HSM_AUDIT_KEY_BITS / 64] |= UINT64_C(1) << (hash % 64);
        keys[(hash >> 32U) % HSM_AUDIT_KEY_BITS / 64] |= UINT64_C(1) << ((hash >> 32U) % 64);
    }
    CHECK_BYTES(summary.keys, keys, sizeof keys);
    uint8_t root[HSM_MERKLE_HASH];
    uint8_t expected[HSM_MERKLE_HASH];
    root_by_definition(tree, hashes[0], 3, expected);
    hsm_merkle_root(tree, root);
    CHECK_BYTES(root, expected, sizeof root);
    hsm_merkle_free(tree);
}

static void a_line_that_is_too_long_is_no_record(void) {
    static char text[HSM_AUDIT_MAX_LINE + 16];
    static const char head[] = LINE("1", "2", "sign") ",\"x\":\"";
    for (size_t len = HSM_AUDIT_MAX_LINE; len <= HSM_AUDIT_MAX_LINE + 1; len++) {
        memset(text, 'x', sizeof text);
        memcpy(text, head, sizeof head - 1);
        memcpy(text + len - 2, "\"}\n", 3);
        hsm_merkle *tree = hsm_merkle_new();
        REQUIRE(tree != NULL);
        hsm_audit_summary summary = {0};
        size_t consumed;
        size_t count;
        CHECK_INT(hsm_audit_scan(tree, text, len + 1, 1, 9, NULL, &summary, &consumed, &count), ==,
                  len > HSM_AUDIT_MAX_LINE ? HSM_AUDIT_LONG : HSM_AUDIT_END);
        hsm_merkle_free(tree);
    }
}

static void the_digest_of_names_is_fnv1a(void) {
    /* Vectors of the draft draft-eastlake-fnv. */
    CHECK_INT(hsm_audit_fnv1a("", 0) == UINT64_C(0xcbf29ce484222325), ==, 1);
    CHECK_INT(hsm_audit_fnv1a("a", 1) == UINT64_C(0xaf63dc4c8601ec8c), ==, 1);
    CHECK_INT(hsm_audit_fnv1a("foobar", 6) == UINT64_C(0x85944171f73967e8), ==, 1);
}

static const struct test tests[] = {
    TEST(the_published_vectors_hold),           TEST(every_size_has_the_root_of_the_definition),
    TEST(a_line_is_a_record_or_it_is_not),      TEST(a_scan_stops_where_it_should_and_sums_up),
    TEST(a_line_that_is_too_long_is_no_record), TEST(the_digest_of_names_is_fnv1a),
};
HARNESS_MAIN(tests)
