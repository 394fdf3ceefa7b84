/* The bodies of a gateway's frames. Whatever it sends, no byte outside of them is read, and fields that do not fit are
 * refused. */
#include <stdio.h>
#include <string.h>

#include "p11.h"
#include "utf8.h"

struct fields {
    const uint8_t *at;
    size_t left;
    bool bad;
};

static const uint8_t *take(struct fields *fields, size_t size) {
    static const uint8_t nothing[256]; /* for lengths of one byte; longer fields look at `bad` first */
    if (fields->bad || size > fields->left) {
        fields->bad = true;
        return nothing;
    }
    const uint8_t *found = fields->at;
    fields->at += size;
    fields->left -= size;
    return found;
}

static uint32_t number(struct fields *fields, unsigned size) {
    const uint8_t *data = take(fields, size);
    uint32_t value = 0;
    for (unsigned i = 0; i < size; i++) {
        value |= (uint32_t)data[i] << (8 * i);
    }
    return value;
}

static const uint8_t *text(struct fields *fields, unsigned length_size, size_t *len) {
    *len = number(fields, length_size);
    const uint8_t *found = take(fields, *len);
    fields->bad = fields->bad || !is_utf8(found, *len);
    *len = fields->bad ? 0 : *len;
    return found;
}

static struct p11_key read_key(struct fields *fields, unsigned *slot) {
    struct p11_key key = {.listed = true};
    size_t id_len = 0;
    *slot = number(fields, 2);
    key.version = number(fields, 4);
    uint32_t state = number(fields, 1);
    uint32_t algorithm = number(fields, 1);
    const uint8_t *id = text(fields, 1, &id_len);
    key.public_len = (uint8_t)number(fields, 1);
    const uint8_t *public_key = take(fields, key.public_len);
    key.kinds = (uint16_t)number(fields, 2);
    size_t whole = algorithm == P11_ED25519 ? 32 : P11_PUBLIC_KEY;
    if (state > 1 || algorithm == 0 || algorithm > P11_SECP256K1 || key.public_len != whole ||
        (algorithm != P11_ED25519 && public_key[0] != 0x04)) {
        fields->bad = true;
    }
    if (!fields->bad) {
        key.algorithm = (enum p11_algorithm)algorithm;
        key.current = state == 1;
        memcpy(key.id, id, id_len);
        key.id_len = (uint8_t)id_len;
        memcpy(key.public_key, public_key, key.public_len);
    }
    return key;
}

/* The place of the slot with this number, by `places` (WELCOME), or as WELCOME said. */
static int place_of(unsigned slot, const int *places, unsigned count) {
    if (places != NULL) {
        return slot < count ? places[slot] : -1;
    }
    for (unsigned i = 0; i < p11_slot_count; i++) {
        if (p11_slots[i].number == (int)slot) {
            return (int)i;
        }
    }
    return -1;
}

/* Whether a slot of which keys are known lists others, and none of them. */
static bool is_strange(struct fields fields, const int *places, unsigned count) {
    enum { KNOWN = 1, LISTS = 2, AGREES = 4 };
    static uint8_t seen[P11_SLOTS]; /* under the lock */
    memset(seen, 0, sizeof seen);
    for (unsigned i = 0; i < p11_key_count; i++) {
        seen[p11_keys[i].slot] |= p11_keys[i].listed ? KNOWN : 0;
    }
    for (uint32_t keys = number(&fields, 2), i = 0; i < keys; i++) {
        unsigned slot = 0;
        struct p11_key key = read_key(&fields, &slot);
        int place = place_of(slot, places, count);
        int known = place < 0 ? -1 : p11_key_find((unsigned)place, key.public_key, key.public_len, i);
        if (place >= 0) {
            seen[place] |= (uint8_t)(LISTS | (known >= 0 && p11_keys[known].listed ? AGREES : 0));
        }
    }
    for (unsigned i = 0; i < p11_slot_count; i++) {
        if (seen[i] == (KNOWN | LISTS)) {
            return true;
        }
    }
    return false;
}

static bool are_keys(struct fields fields, unsigned slots) {
    for (uint32_t keys = number(&fields, 2), i = 0; i < keys && !fields.bad; i++) {
        unsigned slot = 0;
        (void)read_key(&fields, &slot);
        fields.bad = fields.bad || slot >= slots;
    }
    return !fields.bad && fields.left == 0;
}

static bool put_keys(struct fields fields) {
    for (unsigned i = 0; i < p11_key_count; i++) {
        p11_keys[i].listed = p11_keys[i].current = false;
    }
    for (uint32_t keys = number(&fields, 2), i = 0; i < keys; i++) {
        unsigned slot = 0;
        struct p11_key key = read_key(&fields, &slot);
        key.slot = (unsigned)place_of(slot, NULL, 0);
        if (p11_key_put(&key, i) < 0) {
            return false;
        }
    }
    return true;
}

static unsigned slots_now(void) {
    unsigned count = 0;
    for (unsigned i = 0; i < p11_slot_count; i++) {
        count += p11_slots[i].number >= 0;
    }
    return count;
}

enum p11_learned p11_read_keys(const uint8_t *body, size_t len) {
    struct fields fields = {body, len, false};
    return are_keys(fields, slots_now()) && put_keys(fields) ? P11_LEARNED : P11_MALFORMED;
}

enum p11_learned p11_read_welcome(const uint8_t *body, size_t len, bool elsewhere, struct p11_welcome *welcome) {
    static int places[P11_SLOTS]; /* under the lock */
    struct fields fields = {body, len, false};
    size_t ignored = 0;
    if (number(&fields, 2) != 1) {
        return fields.bad ? P11_MALFORMED : P11_OTHER_VERSION;
    }
    memcpy(welcome->instance, take(&fields, sizeof welcome->instance), sizeof welcome->instance);
    welcome->credits = number(&fields, 4);
    (void)take(&fields, 6); /* what all key managers sign: one may take more, and the gateway says what is too long */
    welcome->remember_ms = number(&fields, 4);
    (void)text(&fields, 1, &ignored);
    unsigned slots = number(&fields, 2);
    struct fields names = fields;
    for (unsigned i = 0; i < slots && !fields.bad; i++) {
        size_t name_len = 0;
        const uint8_t *name = text(&fields, 1, &name_len);
        fields.bad = fields.bad || memchr(name, 0, name_len) != NULL;
    }
    if (fields.bad || slots > P11_SLOTS || !are_keys(fields, slots)) {
        return P11_MALFORMED;
    }
    for (unsigned i = 0; i < slots; i++) {
        size_t name_len = 0;
        const uint8_t *name = text(&names, 1, &name_len);
        places[i] = p11_slot_put(name, (uint8_t)name_len);
        for (unsigned k = 0; k < i; k++) { /* one name twice */
            places[i] = places[k] == places[i] ? -1 : places[i];
        }
        if (places[i] < 0) {
            return P11_MALFORMED;
        }
    }
    if (elsewhere && is_strange(fields, places, slots)) {
        return P11_STRANGE;
    }
    for (unsigned i = 0; i < p11_slot_count; i++) {
        p11_slots[i].number = -1;
    }
    for (unsigned i = 0; i < slots; i++) {
        p11_slots[places[i]].number = (int)i;
    }
    return put_keys(fields) ? P11_LEARNED : P11_MALFORMED;
}

bool p11_read_error(const uint8_t *body, size_t len, struct p11_refusal *refusal) {
    static const char before_holder[] = "\nholder: ";
    struct fields fields = {body, len, false};
    uint32_t flags = number(&fields, 1);
    size_t status_len = 0;
    size_t kind_len = 0;
    size_t text_len = 0;
    refusal->retry_after_ms = number(&fields, 4);
    const uint8_t *status = text(&fields, 1, &status_len);
    const uint8_t *kind = text(&fields, 1, &kind_len);
    const uint8_t *says = text(&fields, 2, &text_len);
    if (fields.bad || fields.left != 0 || flags > 3) {
        return false;
    }
    refusal->retryable = (flags & 1) != 0;
    refusal->maybe_signed = (flags & 2) != 0;
    (void)snprintf(refusal->status, sizeof refusal->status, "%.*s", (int)status_len, (const char *)status);
    (void)snprintf(refusal->kind, sizeof refusal->kind, "%.*s", (int)kind_len, (const char *)kind);
    (void)snprintf(refusal->text, sizeof refusal->text, "%.*s", (int)text_len, (const char *)says);
    refusal->holder[0] = '\0';
    const uint8_t *found = memmem(says, text_len, before_holder, sizeof before_holder - 1);
    if (found != NULL && strcmp(refusal->status, "NOT_HOLDER") == 0) {
        found += sizeof before_holder - 1;
        (void)snprintf(refusal->holder, sizeof refusal->holder, "%.*s", (int)(says + text_len - found),
                       (const char *)found);
    }
    return true;
}

bool p11_read_credit(const uint8_t *body, size_t len, uint32_t *credits) {
    struct fields fields = {body, len, false};
    *credits = number(&fields, 4);
    return !fields.bad && fields.left == 0;
}

bool p11_read_goaway(const uint8_t *body, size_t len) {
    struct fields fields = {body, len, false};
    size_t ignored = 0;
    (void)number(&fields, 4);
    (void)text(&fields, 1, &ignored);
    return !fields.bad && fields.left == 0;
}

CK_RV p11_rv_of(const struct p11_refusal *refusal) {
    static const struct {
        const char *name; /* a status of hsmcore.errors, or a class for all others of it */
        CK_RV rv;
    } rows[] = {
        {"POLICY_REFUSED", CKR_FUNCTION_REJECTED},
        {"DOUBLE_SIGN", CKR_FUNCTION_REJECTED},
        {"KEY_NOT_CURRENT", CKR_KEY_HANDLE_INVALID}, /* a client that finds the key again finds the one that signs */
        {"KEY_DEACTIVATED", CKR_KEY_HANDLE_INVALID},
        {"KEY_NOT_FOUND", CKR_KEY_HANDLE_INVALID},
        {"KEY_UNUSABLE", CKR_KEY_FUNCTION_NOT_PERMITTED},
        {"MESSAGE_TOO_LARGE", CKR_DATA_LEN_RANGE},
        {"MESSAGE_REJECTED", CKR_DATA_INVALID},
        {"BAD_ARGUMENT", CKR_DATA_INVALID},
        {"MECHANISM_UNSUPPORTED", CKR_MECHANISM_INVALID},
        {"ALGORITHM_UNSUPPORTED", CKR_MECHANISM_INVALID},
        {"CANCELLED", CKR_FUNCTION_CANCELED},
        {"RETRY", CKR_FUNCTION_FAILED},
        {"REQUEST_FATAL", CKR_FUNCTION_FAILED},
    };
    const char *names[] = {refusal->status, refusal->kind};
    for (size_t n = 0; n < 2; n++) {
        for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
            if (strcmp(names[n], rows[i].name) == 0) {
                return rows[i].rv;
            }
        }
    }
    return CKR_DEVICE_ERROR;
}
