/* What a message is. Each class has a recognizer of its own, and no message satisfies two (tests/proofs); first bytes,
 * lengths and prefixes keep them apart. Then what transactions move, and the rules for them: rules.c. */
#include <hsmcore/payload.h>

#include <string.h>

#include "transaction.h"

#define OFF_CHAIN_PREFIX "\xffsolana offchain"
#define OWN_PREFIX "\xffhsmcore"
#define KEY_TEST "hsmcore key test" /* and 32 random bytes: keytable.c, providers/kms/keys.py */
#define DOCTOR "hsmcore doctor"
#define BATCH_LINE "hsmcore/batch-root/v1 "
#define TIME_LINE "time "
#define KEY_SET "\xc2\xa7 hsmcore/key-set/v1\n" /* begins with a byte that no transaction and no other text has */

enum { DIGEST = 32, DIGEST_BASE64 = 44, MOST_DIGITS = 20, VERSION_0 = 0x80, VERSION_1 = 0x81, TAG = 0xff };

static bool begins(const uint8_t *message, size_t size, const char *prefix, size_t length) {
    return size >= length && memcmp(message, prefix, length) == 0;
}

#define BEGINS(message, size, prefix) begins(message, size, prefix, sizeof(prefix) - 1)

static bool is_utf8(const uint8_t *text, size_t size) {
    static const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
    for (size_t i = 0; i < size; i++) {
        uint8_t lead = text[i];
        if (lead < 0x80) {
            continue;
        }
        if (lead < 0xc2 || lead > 0xf4) {
            return false;
        }
        unsigned more = 1U + (lead >= 0xe0) + (lead >= 0xf0);
        if (size - i <= more) {
            return false;
        }
        uint32_t code = lead & (0x3fU >> more);
        for (unsigned left = more; left > 0; left--) {
            i++;
            if ((text[i] & 0xc0U) != 0x80) {
                return false;
            }
            code = code << 6 | (text[i] & 0x3fU);
        }
        if (code < least[more] || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff)) {
            return false;
        }
    }
    return true;
}

static bool is_printable(const uint8_t *text, size_t size) {
    for (size_t i = 0; i < size; i++) {
        if (text[i] < 0x20 || text[i] > 0x7e) {
            return false;
        }
    }
    return true;
}

/* Version 0: application domain, format, signers, length, text. A text of format 0 is ASCII; with 0 and 1 the whole is
 * what a hardware wallet takes. */
static bool is_off_chain_0(struct hsm_reader body, size_t size) {
    const uint8_t *domain = hsm_take(&body, 32);
    const uint8_t *counts = hsm_take(&body, 2);
    if (domain == NULL || counts == NULL || counts[0] > 2 || counts[1] == 0) {
        return false;
    }
    const uint8_t *signers = hsm_take(&body, (size_t)counts[1] * HSM_ADDRESS);
    const uint8_t *length = hsm_take(&body, 2);
    if (signers == NULL || length == NULL || body.left == 0 || body.left != (length[0] | (size_t)length[1] << 8) ||
        size > (counts[0] == 2 ? 65535U : 1232U)) {
        return false;
    }
    return counts[0] == 0 ? is_printable(body.at, body.left) : is_utf8(body.at, body.left);
}

/* Version 1: signers in ascending order, each once, and the text to the end. */
static bool is_off_chain_1(struct hsm_reader body) {
    const uint8_t *count = hsm_take(&body, 1);
    const uint8_t *signers = count != NULL ? hsm_take(&body, (size_t)*count * HSM_ADDRESS) : NULL;
    if (signers == NULL || *count == 0 || body.left == 0) {
        return false;
    }
    for (size_t i = 1; i < *count; i++) {
        if (memcmp(signers + (i - 1) * HSM_ADDRESS, signers + i * HSM_ADDRESS, HSM_ADDRESS) >= 0) {
            return false;
        }
    }
    return is_utf8(body.at, body.left);
}

static bool is_off_chain(const uint8_t *message, size_t size) {
    const size_t head = sizeof OFF_CHAIN_PREFIX - 1;
    if (size <= head || !BEGINS(message, size, OFF_CHAIN_PREFIX)) {
        return false;
    }
    struct hsm_reader body = {message + head + 1, size - head - 1};
    return message[head] == 0 ? is_off_chain_0(body, size) : message[head] == 1 && is_off_chain_1(body);
}

static bool is_ordered(const uint8_t *message, size_t size, hsm_ordered *ordered) {
    const size_t head = sizeof OWN_PREFIX - 1 + 3;
    if (size <= head || !BEGINS(message, size, OWN_PREFIX)) {
        return false;
    }
    uint8_t kind = message[head - 3];
    size_t length = message[head - 1];
    if (kind < 1 || kind > 3 || message[head - 2] != 1 || length < 1 || length > HSM_MOST_DOMAIN ||
        size != head + length + sizeof ordered->position + DIGEST || !is_utf8(message + head, length)) {
        return false;
    }
    *ordered = (hsm_ordered){.domain = message + head, .domain_len = length};
    for (size_t i = 0; i < sizeof ordered->position; i++) {
        ordered->position = ordered->position << 8 | message[head + length + i];
    }
    return true;
}

/* A decimal number without leading zeros, and the newline behind it. UINT64_MAX stands for what is larger. */
static bool take_number(struct hsm_reader *rest, uint64_t *value) {
    size_t digits = 0;
    *value = 0;
    for (; digits < MOST_DIGITS && digits < rest->left; digits++) {
        uint8_t digit = (uint8_t)(rest->at[digits] - '0');
        if (digit > 9) {
            break;
        }
        *value = *value > (UINT64_MAX - digit) / 10 ? UINT64_MAX : *value * 10 + digit;
    }
    const uint8_t *line = digits > 0 ? hsm_take(rest, digits + 1) : NULL;
    return line != NULL && line[digits] == '\n' && (line[0] != '0' || digits == 1);
}

static bool take_text(struct hsm_reader *rest, const char *text, size_t length) {
    const uint8_t *found = hsm_take(rest, length);
    return found != NULL && memcmp(found, text, length) == 0;
}

/* The domain of a checkpoint's origin "<domain>/<epoch>": printable ASCII without spaces and '+', which a signed note
 * takes as a name. */
static bool take_origin(struct hsm_reader *rest, hsm_ordered *ordered) {
    size_t length = 0;
    size_t most = rest->left < HSM_MOST_DOMAIN + 1 + MOST_DIGITS ? rest->left : HSM_MOST_DOMAIN + 1 + MOST_DIGITS;
    for (size_t i = 0; i < most && rest->at[i] > ' ' && rest->at[i] <= '~' && rest->at[i] != '+'; i++) {
        length = rest->at[i] == '/' ? i : length;
    }
    uint64_t epoch;
    *ordered = (hsm_ordered){.domain = rest->at, .domain_len = length};
    return length > 0 && length <= HSM_MOST_DOMAIN && hsm_take(rest, length + 1) != NULL && take_number(rest, &epoch);
}

/* The text that is signed for a batch: origin, size, root in base64, first index, time. What no verifier accepts for
 * one may be among them, but nothing that one accepts is missing. */
static bool is_batch_root(const uint8_t *message, size_t size, hsm_ordered *ordered) {
    struct hsm_reader rest = {message, size};
    uint64_t count;
    uint64_t first;
    uint64_t time;
    if (!take_origin(&rest, ordered) || !take_number(&rest, &count)) {
        return false;
    }
    const uint8_t *root = hsm_take(&rest, DIGEST_BASE64 + 1);
    if (root == NULL || root[DIGEST_BASE64] != '\n' || !take_text(&rest, BATCH_LINE, sizeof BATCH_LINE - 1) ||
        !take_number(&rest, &first) || !take_text(&rest, TIME_LINE, sizeof TIME_LINE - 1) ||
        !take_number(&rest, &time) || rest.left != 0) {
        return false;
    }
    if (count == 0 || __builtin_add_overflow(first, count - 1, &ordered->position)) {
        ordered->position = UINT64_MAX;
    }
    return true;
}

/* The text that is signed for a set of keys: whatever begins like one. */
static bool is_key_set(const uint8_t *message, size_t size) {
    return size > DIGEST && BEGINS(message, size, KEY_SET);
}

/* With a 0xff: failover/health.py, manager/rotation/backup/drill.py and envelope.py. */
static bool is_internal(const uint8_t *message, size_t size) {
    return BEGINS(message, size, OWN_PREFIX " ") ||
           (size == sizeof KEY_TEST - 1 + 32 && BEGINS(message, size, KEY_TEST)) ||
           (size == sizeof DOCTOR - 1 && BEGINS(message, size, DOCTOR));
}

static bool is_reserved(const uint8_t *message, size_t size) {
    return BEGINS(message, size, OWN_PREFIX) || BEGINS(message, size, OFF_CHAIN_PREFIX);
}

static bool is_digest(const uint8_t *message, size_t size) {
    return size == DIGEST && !is_reserved(message, size);
}

static bool is_v0(const uint8_t *message, size_t size, hsm_transaction *transaction) {
    if (size == 0 || message[0] != VERSION_0) {
        return false;
    }
    struct hsm_reader body = {message + 1, size - 1};
    return hsm_read_v0(&body, transaction) && body.left == 0;
}

static bool is_v1(const uint8_t *message, size_t size, hsm_transaction *transaction) {
    if (size == 0 || message[0] != VERSION_1) {
        return false;
    }
    struct hsm_reader body = {message + 1, size - 1};
    return hsm_read_v1(&body, transaction) && body.left == 0;
}

/* `left`: bytes after the transaction. */
static bool begins_with_legacy(const uint8_t *message, size_t size, hsm_transaction *transaction, size_t *left) {
    struct hsm_reader body = {message, size};
    bool read = size > 0 && message[0] < VERSION_0 && hsm_read_legacy(&body, transaction);
    *left = body.left;
    return read;
}

/* 0xff: hsmcore's own payloads and off-chain messages. */
static hsm_payload tagged(const uint8_t *message, size_t size, hsm_ordered *ordered) {
    if (is_ordered(message, size, ordered)) {
        return (hsm_payload)(HSM_PAYLOAD_BLOCK + message[sizeof OWN_PREFIX - 1] - 1);
    }
    if (is_internal(message, size)) {
        return HSM_PAYLOAD_INTERNAL;
    }
    if (is_reserved(message, size)) {
        return is_off_chain(message, size) ? HSM_PAYLOAD_OFF_CHAIN : HSM_PAYLOAD_UNKNOWN;
    }
    return is_digest(message, size) ? HSM_PAYLOAD_DIGEST32 : HSM_PAYLOAD_RAW;
}

hsm_payload hsm_payload_of(const uint8_t *message, size_t size, hsm_payload_parts *parts) {
    if (size == 0) {
        return HSM_PAYLOAD_RAW;
    }
    if (message[0] == TAG) {
        return tagged(message, size, &parts->ordered);
    }
    if (size == DIGEST) { /* less than any transaction */
        return HSM_PAYLOAD_DIGEST32;
    }
    if (message[0] >= VERSION_0) {
        if (is_v0(message, size, &parts->transaction)) {
            return HSM_PAYLOAD_TX_V0;
        }
        if (is_v1(message, size, &parts->transaction)) {
            return HSM_PAYLOAD_TX_V1;
        }
        return is_key_set(message, size) ? HSM_PAYLOAD_KEY_SET : HSM_PAYLOAD_UNKNOWN;
    }
    if (is_batch_root(message, size, &parts->ordered)) {
        return HSM_PAYLOAD_BATCH_ROOT;
    }
    size_t left;
    if (begins_with_legacy(message, size, &parts->transaction, &left)) {
        return left == 0 ? HSM_PAYLOAD_TX_LEGACY : HSM_PAYLOAD_UNKNOWN;
    }
    return is_internal(message, size) ? HSM_PAYLOAD_INTERNAL : HSM_PAYLOAD_RAW;
}
