/* The scan of audit lines: whatever the text is, it stays inside, says the truth about what it consumed, and scanning
 * in pieces is the same as scanning at once. */
#include <hsmcore/audit.h>

#include "input.h"

enum { MOST_LINES = 64 };

struct result {
    hsm_audit_stop stop;
    size_t consumed, lines;
    hsm_audit_summary summary;
    uint8_t root[HSM_MERKLE_HASH];
};

/* A copy of exactly the right size, so that the sanitizer sees every step beyond it. */
static char *exact(const uint8_t *data, size_t size) {
    char *copy = malloc(size > 0 ? size : 1);
    REQUIRE(copy != NULL);
    if (size > 0) {
        memcpy(copy, data, size);
    }
    return copy;
}

static struct result scan(const uint8_t *data, size_t size, uint64_t seq, size_t step) {
    char *text = exact(data, size);
    hsm_merkle *tree = hsm_merkle_new();
    REQUIRE(tree != NULL);
    struct result result = {.stop = HSM_AUDIT_LIMIT};
    uint8_t leaves[MOST_LINES * HSM_MERKLE_HASH];
    do {
        size_t consumed;
        size_t lines;
        size_t left = MOST_LINES - result.lines;
        result.stop = hsm_audit_scan(tree, text + result.consumed, size - result.consumed, seq + result.lines,
                                     step < left ? step : left, leaves, &result.summary, &consumed, &lines);
        REQUIRE(lines <= step && consumed <= size - result.consumed);
        result.consumed += consumed;
        result.lines += lines;
    } while (result.stop == HSM_AUDIT_LIMIT && result.lines < MOST_LINES);
    hsm_merkle_root(tree, result.root);
    REQUIRE(hsm_merkle_size(tree) == result.lines && result.summary.count == result.lines);
    hsm_merkle_free(tree);
    free(text);
    return result;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input input = {data, size};
    uint64_t seq = take_u8(&input);
    struct result whole = scan(input.data, input.left, seq, MOST_LINES);
    struct result pieces = scan(input.data, input.left, seq, 1);
    REQUIRE(whole.stop == pieces.stop && whole.consumed == pieces.consumed && whole.lines == pieces.lines);
    REQUIRE(memcmp(whole.root, pieces.root, sizeof whole.root) == 0);
    REQUIRE(memcmp(&whole.summary, &pieces.summary, sizeof whole.summary) == 0);
    REQUIRE(whole.summary.min_time_ns <= whole.summary.max_time_ns);
    size_t newlines = 0;
    for (size_t i = 0; i < whole.consumed; i++) {
        newlines += input.data[i] == '\n' ? 1 : 0;
    }
    REQUIRE(newlines == whole.lines);
    return 0;
}
