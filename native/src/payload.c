/* What a message is. Each class has a recognizer of its own, and no message satisfies two (tests/proofs): first bytes,
 * lengths and prefixes keep them apart. Then what transactions move, and the rules for them: rules.c. */
#include <hsmcore/payload.h>

#include <string.h>

#include "transaction.h"
#include "utf8.h"

#define OFF_CHAIN_PREFIX "\xffsolana offchain"
#define OWN_PREFIX "\xffhsmcore"
#define KEY_TEST "hsmcore key test" /* and 32 random bytes: keytable.c, providers/kms/keys.py */
#define DOCTOR "hsmcore doctor"
#define BATCH_LINE "hsmcore/batch-root/v1 "
#define COSIGNATURE "cosignature/v1\n"
#define DIGITS "0123456789"
#define BASE64 "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" DIGITS "+/=\r" /* some readers skip \r */
#define KEY_SET "\xc2\xa7 hsmcore/key-set/v1\n" /* begins with a byte that no transaction and no other text has */

enum { DIGEST = 32, DIGEST_BASE64 = 44, VERSION_0 = 0x80, VERSION_1 = 0x81, TAG = 0xff };

static bool begins(const uint8_t *message, size_t size, const char *prefix, size_t length) {
    return size >= length && memcmp(message, prefix, length) == 0;
}

#define BEGINS(message, size, prefix) begins(message, size, prefix, sizeof(prefix) - 1)

static bool is_printable(const uint8_t *text, size_t size) {
    for (size_t i = 0; i < size; i++) {
        if (text[i] < 0x20 || text[i] > 0x7e) {
            return false;
        }
    }
    return true;
}

/* What ends a message of version 0: length, text. A text of format 0 is ASCII; with 0 and 1 the whole is what a
 * hardware wallet takes. */
static bool is_off_chain_text(struct hsm_reader body, uint8_t format, size_t size) {
    const uint8_t *length = hsm_take(&body, 2);
    if (length == NULL || format > 2 || body.left == 0 || body.left != (length[0] | (size_t)length[1] << 8) ||
        size > (format == 2 ? 65535U : 1232U)) {
        return false;
    }
    return format == 0 ? is_printable(body.at, body.left) : is_utf8(body.at, body.left);
}

/* Version 0, of the specification: application domain, format, signers, text. */
static bool is_off_chain_0(struct hsm_reader body, size_t size) {
    const uint8_t *domain = hsm_take(&body, 32);
    const uint8_t *counts = hsm_take(&body, 2);
    const uint8_t *signers = counts != NULL ? hsm_take(&body, (size_t)counts[1] * HSM_ADDRESS) : NULL;
    return domain != NULL && signers != NULL && counts[1] > 0 && is_off_chain_text(body, counts[0], size);
}

/* Version 0, of the command line `solana` and of the first libraries: format, text. */
static bool is_off_chain_short(struct hsm_reader body, size_t size) {
    const uint8_t *format = hsm_take(&body, 1);
    return format != NULL && is_off_chain_text(body, *format, size);
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
    if (message[head] == 0) { /* what reads both ways is neither */
        return is_off_chain_0(body, size) != is_off_chain_short(body, size);
    }
    return message[head] == 1 && is_off_chain_1(body);
}

static bool is_ordered(const uint8_t *message, size_t size, hsm_ordered *ordered) {
    const size_t head = sizeof OWN_PREFIX - 1 + 3;
    if (size <= head || !BEGINS(message, size, OWN_PREFIX)) {
        return false;
    }
    uint8_t kind = message[head - 3];
    size_t length = message[head - 1];
    if (kind < 1 || kind > 2 || message[head - 2] != 1 || length < 1 || length > HSM_MOST_DOMAIN ||
        size != head + length + sizeof ordered->position + DIGEST || !is_utf8(message + head, length)) {
        return false;
    }
    *ordered = (hsm_ordered){.domain = message + head, .domain_len = length};
    for (size_t i = 0; i < sizeof ordered->position; i++) {
        ordered->position = ordered->position << 8 | message[head + length + i];
    }
    return true;
}

/* A line of at least so many of these characters; NULL: of any but control characters. */
static bool take_line(struct hsm_reader *rest, const char *characters, size_t least) {
    const uint8_t *end = rest->left > 0 ? memchr(rest->at, '\n', rest->left) : NULL;
    size_t length = end != NULL ? (size_t)(end - rest->at) : 0;
    if (end == NULL || length < least) {
        return false;
    }
    for (size_t i = 0; i < length; i++) {
        uint8_t one = rest->at[i];
        if (characters == NULL ? one < ' ' : one == 0 || strchr(characters, one) == NULL) {
            return false;
        }
    }
    return hsm_take(rest, length + 1) != NULL;
}

/* Over which texts C2SP's verifiers take a signature for a checkpoint or a cosignature, by the first lines: origin,
 * size and root, whatever follows. RAW: not over this one. Text begins with no control character, so as a
 * transaction it would have 32 signatures or more, for which no packet has room. */
static hsm_payload note_of(const uint8_t *message, size_t size) {
    struct hsm_reader rest = {message, size};
    if (!take_line(&rest, NULL, 1) || !take_line(&rest, DIGITS, 1) || !take_line(&rest, BASE64, DIGEST_BASE64)) {
        return BEGINS(message, size, COSIGNATURE) ? HSM_PAYLOAD_UNKNOWN : HSM_PAYLOAD_RAW;
    }
    return BEGINS(rest.at, rest.left, BATCH_LINE) ? HSM_PAYLOAD_BATCH_ROOT : HSM_PAYLOAD_UNKNOWN;
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
    hsm_payload note = note_of(message, size);
    if (note != HSM_PAYLOAD_RAW) {
        return note;
    }
    size_t left;
    if (begins_with_legacy(message, size, &parts->transaction, &left)) {
        return left == 0 ? HSM_PAYLOAD_TX_LEGACY : HSM_PAYLOAD_UNKNOWN;
    }
    return is_internal(message, size) ? HSM_PAYLOAD_INTERNAL : HSM_PAYLOAD_RAW;
}
