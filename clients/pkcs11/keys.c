/* Slots are key managers, objects are the halves of their keys. Each version of a key has a public half; the one that
 * signs now has a private half too. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "p11.h"

enum { TEXT = 300, FIRST_ROOM = 16 };
static const CK_ULONG ABSENT = CK_UNAVAILABLE_INFORMATION;

struct p11_slot *p11_slots;
struct p11_key *p11_keys;
unsigned p11_slot_count, p11_key_count;

/* By enum p11_algorithm. */
static const struct {
    CK_KEY_TYPE type;
    CK_MECHANISM_TYPE generated_by;
    uint8_t params[10], params_len; /* the curve's OBJECT IDENTIFIER, in DER */
} kinds[] = {
    {0, 0, {0}, 0},
    {CKK_EC_EDWARDS, CKM_EC_EDWARDS_KEY_PAIR_GEN, {0x06, 0x03, 0x2b, 0x65, 0x70}, 5},
    {CKK_EC, CKM_EC_KEY_PAIR_GEN, {0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07}, 10},
    {CKK_EC, CKM_EC_KEY_PAIR_GEN, {0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x0a}, 7},
};

bool p11_grow(void **list, unsigned count, size_t size) {
    if (count != 0 && (count < FIRST_ROOM || (count & (count - 1)) != 0)) {
        return true;
    }
    void *more = realloc(*list, (count == 0 ? FIRST_ROOM : 2 * (size_t)count) * size);
    *list = more == NULL ? *list : more;
    return more != NULL;
}

int p11_slot_put(const uint8_t *name, uint8_t len) {
    for (unsigned i = 0; i < p11_slot_count; i++) {
        if (p11_slots[i].name_len == len && memcmp(p11_slots[i].name, name, len) == 0) {
            return (int)i;
        }
    }
    if (p11_slot_count == P11_SLOTS || !p11_grow((void **)&p11_slots, p11_slot_count, sizeof *p11_slots)) {
        return -1;
    }
    struct p11_slot *slot = &p11_slots[p11_slot_count];
    *slot = (struct p11_slot){.name_len = len, .number = -1};
    memcpy(slot->name, name, len);
    return (int)p11_slot_count++;
}

static bool is_key(unsigned place, unsigned slot, const uint8_t *public_key, size_t len) {
    const struct p11_key *key = &p11_keys[place];
    return key->slot == slot && key->public_len == len && memcmp(key->public_key, public_key, len) == 0;
}

/* `hint`: where it probably is. A gateway lists its keys in the same order each time. */
int p11_key_find(unsigned slot, const uint8_t *public_key, size_t len, unsigned hint) {
    if (hint < p11_key_count && is_key(hint, slot, public_key, len)) {
        return (int)hint;
    }
    for (unsigned i = 0; i < p11_key_count; i++) {
        if (is_key(i, slot, public_key, len)) {
            return (int)i;
        }
    }
    return -1;
}

int p11_key_put(const struct p11_key *key, unsigned hint) {
    int place = p11_key_find(key->slot, key->public_key, key->public_len, hint);
    if (place < 0) {
        if (p11_key_count == P11_KEYS || !p11_grow((void **)&p11_keys, p11_key_count, sizeof *p11_keys)) {
            return -1;
        }
        place = (int)p11_key_count++;
    }
    p11_keys[place] = *key;
    return place;
}

void p11_keys_free(void) {
    free(p11_slots), free(p11_keys);
    p11_slots = NULL, p11_keys = NULL;
    p11_slot_count = p11_key_count = 0;
}

/* ---- objects: of the key at place n, 2n + 1 is the public half and 2n + 2 the private one ---- */

struct p11_key *p11_object(CK_SLOT_ID slot, CK_OBJECT_HANDLE object, bool *is_private) {
    if (object == 0 || object > 2 * (CK_ULONG)p11_key_count) {
        return NULL;
    }
    struct p11_key *key = &p11_keys[(object - 1) / 2];
    *is_private = object % 2 == 0;
    return key->slot == slot && key->listed && (key->current || !*is_private) ? key : NULL;
}

bool p11_is_mechanism_of(enum p11_algorithm algorithm, CK_MECHANISM_TYPE type) {
    return algorithm == P11_ED25519 ? type == CKM_EDDSA : type == CKM_ECDSA || type == CKM_ECDSA_SHA256;
}

CK_ULONG p11_mechanisms(CK_SLOT_ID slot, const struct p11_key *only, CK_MECHANISM_TYPE *list) {
    static const CK_MECHANISM_TYPE all[] = {CKM_EDDSA, CKM_ECDSA, CKM_ECDSA_SHA256};
    CK_ULONG count = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        bool found = only != NULL && p11_is_mechanism_of(only->algorithm, all[i]);
        for (unsigned k = 0; only == NULL && !found && k < p11_key_count; k++) {
            const struct p11_key *key = &p11_keys[k];
            found = key->slot == slot && key->listed && p11_is_mechanism_of(key->algorithm, all[i]);
        }
        if (found) {
            list[count++] = all[i];
        }
    }
    return count;
}

/* A key id is hexadecimal, as tokens have it in bytes. */
static size_t bytes_of_id(const struct p11_key *key, uint8_t out[255]) {
    static const char digits[16] = {'0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'};
    size_t len = 0;
    for (size_t i = 0; i + 1 < key->id_len && key->id_len % 2 == 0; i += 2) {
        const char *high = memchr(digits, key->id[i], sizeof digits);
        const char *low = memchr(digits, key->id[i + 1], sizeof digits);
        if (high == NULL || low == NULL) {
            break;
        }
        out[len++] = (uint8_t)((high - digits) << 4 | (low - digits));
    }
    if (key->id_len == 0 || 2 * len != key->id_len) {
        memcpy(out, key->id, key->id_len);
        len = key->id_len;
    }
    return len;
}

/* Attributes of one byte, of public and of private halves: 'y' CK_TRUE, 'n' CK_FALSE, '-' there is none. */
static const struct {
    CK_ATTRIBUTE_TYPE type;
    char of[2];
} flags[] = {
    {CKA_TOKEN, {'y', 'y'}},
    {CKA_LOCAL, {'n', 'n'}}, /* no gateway tells where a key was made */
    {CKA_PRIVATE, {'n', 'n'}},
    {CKA_MODIFIABLE, {'n', 'n'}},
    {CKA_COPYABLE, {'n', 'n'}},
    {CKA_DESTROYABLE, {'n', 'n'}},
    {CKA_DERIVE, {'n', 'n'}},
    {CKA_VERIFY, {'y', '-'}},
    {CKA_VERIFY_RECOVER, {'n', '-'}},
    {CKA_ENCRYPT, {'n', '-'}},
    {CKA_WRAP, {'n', '-'}},
    {CKA_TRUSTED, {'n', '-'}},
    {CKA_SIGN, {'-', 'y'}},
    {CKA_SENSITIVE, {'-', 'y'}},
    {CKA_ALWAYS_SENSITIVE, {'-', 'y'}},
    {CKA_NEVER_EXTRACTABLE, {'-', 'y'}},
    {CKA_EXTRACTABLE, {'-', 'n'}},
    {CKA_SIGN_RECOVER, {'-', 'n'}},
    {CKA_DECRYPT, {'-', 'n'}},
    {CKA_UNWRAP, {'-', 'n'}},
    {CKA_ALWAYS_AUTHENTICATE, {'-', 'n'}},
    {CKA_WRAP_WITH_TRUSTED, {'-', 'n'}},
};

static CK_ULONG put_number(uint8_t *value, CK_ULONG number) {
    memcpy(value, &number, sizeof number);
    return sizeof number;
}

/* An attribute's value; CK_UNAVAILABLE_INFORMATION: the object has none, or never shows it. */
static CK_ULONG value_of(const struct p11_key *key, bool is_private, CK_ATTRIBUTE_TYPE type, uint8_t value[TEXT]) {
    const struct p11_slot *slot = &p11_slots[key->slot];
    CK_MECHANISM_TYPE mechanisms[3];
    CK_ULONG count = 0;
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        if (flags[i].type == type) {
            value[0] = flags[i].of[is_private] == 'y';
            return flags[i].of[is_private] == '-' ? ABSENT : 1;
        }
    }
    switch (type) {
    case CKA_CLASS:
        return put_number(value, is_private ? CKO_PRIVATE_KEY : CKO_PUBLIC_KEY);
    case CKA_KEY_TYPE:
        return put_number(value, kinds[key->algorithm].type);
    case CKA_KEY_GEN_MECHANISM:
        return put_number(value, kinds[key->algorithm].generated_by);
    case CKA_LABEL: /* the key that signs has its key manager's name, so that a name finds one key */
        return (CK_ULONG)(key->current ? snprintf((char *)value, TEXT, "%s", slot->name)
                                       : snprintf((char *)value, TEXT, "%s#%u", slot->name, key->version));
    case CKA_ID:
        return bytes_of_id(key, value);
    case CKA_SUBJECT:
    case CKA_START_DATE:
    case CKA_END_DATE:
        return 0;
    case CKA_EC_PARAMS:
        memcpy(value, kinds[key->algorithm].params, kinds[key->algorithm].params_len);
        return kinds[key->algorithm].params_len;
    case CKA_EC_POINT: /* an OCTET STRING; of private halves too, as other tokens have it */
        value[0] = 0x04;
        value[1] = key->public_len;
        memcpy(value + 2, key->public_key, key->public_len);
        return key->public_len + 2U;
    case CKA_ALLOWED_MECHANISMS:
        count = p11_mechanisms(0, key, mechanisms);
        memcpy(value, mechanisms, count * sizeof *mechanisms);
        return count * sizeof *mechanisms;
    default:
        return ABSENT;
    }
}

/* Each attribute is answered, and the result is of one that could not be. */
CK_RV p11_attributes(CK_OBJECT_HANDLE object, CK_ATTRIBUTE *wanted, CK_ULONG count) {
    const struct p11_key *key = &p11_keys[(object - 1) / 2];
    CK_RV rv = CKR_OK;
    for (CK_ULONG i = 0; i < count; i++) {
        uint8_t value[TEXT];
        bool is_private = object % 2 == 0;
        CK_ULONG len = value_of(key, is_private, wanted[i].type, value);
        if (len == ABSENT) {
            rv = is_private && wanted[i].type == CKA_VALUE ? CKR_ATTRIBUTE_SENSITIVE : CKR_ATTRIBUTE_TYPE_INVALID;
        } else if (wanted[i].pValue != NULL && wanted[i].ulValueLen < len) {
            rv = CKR_BUFFER_TOO_SMALL;
            len = ABSENT;
        } else if (wanted[i].pValue != NULL) {
            memcpy(wanted[i].pValue, value, len);
        }
        wanted[i].ulValueLen = len;
    }
    return rv;
}

static bool matches(CK_OBJECT_HANDLE object, const CK_ATTRIBUTE *wanted, CK_ULONG count) {
    const struct p11_key *key = &p11_keys[(object - 1) / 2];
    for (CK_ULONG i = 0; i < count; i++) {
        uint8_t value[TEXT];
        CK_ULONG len = value_of(key, object % 2 == 0, wanted[i].type, value);
        if (len == ABSENT || len != wanted[i].ulValueLen || memcmp(value, wanted[i].pValue, len) != 0) {
            return false;
        }
    }
    return true;
}

CK_ULONG p11_match(CK_SLOT_ID slot, const CK_ATTRIBUTE *wanted, CK_ULONG count, CK_OBJECT_HANDLE *found, CK_ULONG most,
                   CK_ULONG *next) {
    CK_ULONG made = 0;
    for (; made < most && *next < 2 * (CK_ULONG)p11_key_count; (*next)++) {
        CK_OBJECT_HANDLE object = *next + 1;
        bool is_private = false;
        if (p11_object(slot, object, &is_private) != NULL && matches(object, wanted, count)) {
            found[made++] = object;
        }
    }
    return made;
}
