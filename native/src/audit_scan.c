/* From the text of an audit log to leaves. Every record begins with the same three fields, which are read by position;
 * only the key id, for the index, is searched for. */
#include <stdbool.h>
#include <string.h>

#include <hsmcore/audit.h>

struct text {
    const char *at;
    const char *end;
};

static bool take_word(struct text *text, const char *word, size_t len) {
    if ((size_t)(text->end - text->at) < len || memcmp(text->at, word, len) != 0) {
        return false;
    }
    text->at += len;
    return true;
}
#define TAKE(text, word) take_word(text, word, sizeof(word) - 1)

/* A JSON number without sign, leading nought, fraction or exponent, below 2^64. */
static bool take_number(struct text *text, uint64_t *number) {
    const char *begin = text->at;
    uint64_t value = 0;
    for (; text->at < text->end && *text->at >= '0' && *text->at <= '9'; text->at++) {
        uint64_t digit = (uint64_t)(*text->at - '0');
        if (value > (UINT64_MAX - digit) / 10) {
            return false;
        }
        value = value * 10 + digit;
    }
    *number = value;
    return text->at > begin && (*begin != '0' || text->at == begin + 1);
}

/* The text before the next quote. Names and ids have no escapes; of a text with one, the index knows only the part
 * before it, and a query uses the same part. */
static bool take_quoted(struct text *text, struct text *inner) {
    const char *quote = memchr(text->at, '"', (size_t)(text->end - text->at));
    if (quote == NULL) {
        return false;
    }
    *inner = (struct text){.at = text->at, .end = quote};
    text->at = quote + 1;
    return true;
}

uint64_t hsm_audit_fnv1a(const char *text, size_t len) {
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < len; i++) {
        hash = (hash ^ (unsigned char)text[i]) * UINT64_C(0x100000001b3);
    }
    return hash;
}

static uint64_t hash_of(const struct text *text) {
    return hsm_audit_fnv1a(text->at, (size_t)(text->end - text->at));
}

static void note_key(hsm_audit_summary *summary, uint64_t hash) {
    uint64_t bits[2] = {hash % HSM_AUDIT_KEY_BITS, (hash >> 32U) % HSM_AUDIT_KEY_BITS};
    for (int i = 0; i < 2; i++) {
        summary->keys[bits[i] / 64] |= UINT64_C(1) << (bits[i] % 64);
    }
}

static void summarize(hsm_audit_summary *summary, uint64_t time_ns, const struct text *operation, struct text rest) {
    static const char key[] = "\"key_id\":\"";
    if (summary->count++ == 0) {
        summary->min_time_ns = summary->max_time_ns = time_ns;
    }
    summary->min_time_ns = time_ns < summary->min_time_ns ? time_ns : summary->min_time_ns;
    summary->max_time_ns = time_ns > summary->max_time_ns ? time_ns : summary->max_time_ns;
    summary->operations |= UINT64_C(1) << (hash_of(operation) % 64);
    struct text id;
    while ((rest.at = memmem(rest.at, (size_t)(rest.end - rest.at), key, sizeof key - 1)) != NULL) {
        rest.at += sizeof key - 1;
        if (!take_quoted(&rest, &id)) {
            return;
        }
        note_key(summary, hash_of(&id));
    }
}

hsm_audit_stop hsm_audit_scan(hsm_merkle *tree, const char *text, size_t len, uint64_t next_seq, size_t max_lines,
                              uint8_t *leaves, hsm_audit_summary *summary, size_t *consumed, size_t *lines) {
    *consumed = 0;
    *lines = 0;
    while (*consumed < len) {
        if (*lines == max_lines) {
            return HSM_AUDIT_LIMIT;
        }
        const char *begin = text + *consumed;
        const char *newline = memchr(begin, '\n', len - *consumed);
        if (newline == NULL) {
            return HSM_AUDIT_TORN;
        }
        struct text line = {.at = begin, .end = newline};
        struct text operation;
        uint64_t seq;
        uint64_t time_ns;
        if (newline - begin > HSM_AUDIT_MAX_LINE) {
            return HSM_AUDIT_LONG;
        }
        if (!TAKE(&line, "{\"seq\":") || !take_number(&line, &seq) || !TAKE(&line, ",\"time_ns\":") ||
            !take_number(&line, &time_ns) || !TAKE(&line, ",\"operation\":\"") || !take_quoted(&line, &operation) ||
            newline[-1] != '}') {
            return HSM_AUDIT_FOREIGN;
        }
        if (seq != next_seq + *lines) {
            return HSM_AUDIT_ORDER;
        }
        uint8_t hash[HSM_MERKLE_HASH];
        hsm_merkle_leaf(tree, begin, (size_t)(newline - begin), hash);
        hsm_merkle_append(tree, hash);
        if (leaves != NULL) {
            memcpy(leaves + *lines * HSM_MERKLE_HASH, hash, sizeof hash);
        }
        summarize(summary, time_ns, &operation, line);
        *consumed += (size_t)(newline - begin) + 1;
        (*lines)++;
    }
    return HSM_AUDIT_END;
}
