/* A vendor's behaviour from JSON. Fields of the configuration file replace those of a profile. */
#include <stdlib.h>
#include <string.h>

#include "vendor_json.h"

#include "parse.h"

struct name {
    const char *name;
    CK_ULONG number;
};

#define NOTHING(name)
#define ROW(name) {#name, name},
static const struct name attribute_names[] = {
#define CHAOS_ATTRIBUTE ROW
#define CHAOS_MECHANISM NOTHING
#include "names.def"
#undef CHAOS_ATTRIBUTE
#undef CHAOS_MECHANISM
    {NULL, 0}};
static const struct name mechanism_names[] = {
#define CHAOS_ATTRIBUTE NOTHING
#define CHAOS_MECHANISM ROW
#include "names.def"
#undef CHAOS_ATTRIBUTE
#undef CHAOS_MECHANISM
    {NULL, 0}};

/* A name of the table or a number. */
static bool number_of(const struct chaos_reader *here, const struct name *table, const char *text, CK_ULONG *out) {
    for (; text != NULL && table->name != NULL; table++) {
        if (strcmp(table->name, text) == 0) {
            *out = table->number;
            return true;
        }
    }
    if (text == NULL && json_is_integer(here->value) && json_integer_value(here->value) >= 0 &&
        json_integer_value(here->value) <= UINT32_MAX) {
        *out = (CK_ULONG)json_integer_value(here->value);
        return true;
    }
    return text == NULL ? chaos_refuse(here, "must be a name or a number of 32 bits")
                        : chaos_refuse(here, "unknown name \"%s\" (a number is taken as it is)", text);
}

static bool get_number(const struct chaos_reader *reader, const char *key, const struct name *table, CK_ULONG *out) {
    struct chaos_at at = {reader->at, key, 0};
    struct chaos_reader here = {json_object_get(reader->value, key), &at, reader->error};
    return here.value == NULL || number_of(&here, table, json_string_value(here.value), out);
}

/* A text of at most `size` - 1 bytes. */
static bool get_text(const struct chaos_reader *reader, const char *key, char *out, size_t size) {
    const char *text = NULL;
    if (!chaos_get_string(reader, key, &text) || text == NULL) {
        return json_object_get(reader->value, key) == NULL;
    }
    if (strlen(text) >= size) {
        return chaos_refuse_key(reader, key, "is longer than %zu bytes", size - 1);
    }
    memcpy(out, text, strlen(text) + 1);
    return true;
}

static bool parse_curve(const struct chaos_reader *here, void *out) {
    struct chaos_curve *curve = out;
    const char *text = json_string_value(here->value);
    size_t digits = text != NULL ? strlen(text) : 0;
    if (digits == 0 || digits % 2 != 0 || digits / 2 > sizeof curve->params ||
        strspn(text, "0123456789abcdefABCDEF") != digits) {
        return chaos_refuse(here, "must be 1 to %d bytes of CKA_EC_PARAMS in hexadecimal", CHAOS_CURVE);
    }
    curve->length = digits / 2;
    for (size_t i = 0; i < curve->length; i++) {
        char byte[3] = {text[2 * i], text[2 * i + 1], '\0'};
        curve->params[i] = (CK_BYTE)strtoul(byte, NULL, 16);
    }
    return true;
}

/* An object of functions, and what each gives. */
static bool parse_denied(const struct chaos_reader *reader, void *out) {
    CK_RV *denied = out;
    if (!json_is_object(reader->value)) {
        return chaos_refuse(reader, "must be an object of functions and CKRs");
    }
    memset(denied, 0, sizeof(chaos_denied));
    const char *name;
    json_t *value;
    json_object_foreach(reader->value, name, value) {
        struct chaos_at at = {reader->at, name, 0};
        struct chaos_reader here = {value, &at, reader->error};
        enum chaos_function function;
        CK_RV ckr = CKR_OK;
        if (!chaos_function_named(&here, name, &function) || !chaos_get_ckr(reader, name, &ckr)) {
            return false;
        }
        denied[function] = ckr;
    }
    return true;
}

typedef bool parse_value(const struct chaos_reader *reader, void *out);

/* The value of a field, if the object has it. */
static bool get_part(const struct chaos_reader *reader, const char *key, parse_value *parse, void *out) {
    struct chaos_at at = {reader->at, key, 0};
    struct chaos_reader here = {json_object_get(reader->value, key), &at, reader->error};
    return here.value == NULL || parse(&here, out);
}

/* Each item of an array into one place of an array of `size`-byte structures. */
static bool parse_array(const struct chaos_reader *reader, parse_value *parse, void *items, size_t size,
                        size_t *count) {
    if (!json_is_array(reader->value) || json_array_size(reader->value) > CHAOS_MANY) {
        return chaos_refuse(reader, "must be an array of at most %d items", CHAOS_MANY);
    }
    *count = json_array_size(reader->value);
    memset(items, 0, size * CHAOS_MANY);
    for (size_t i = 0; i < *count; i++) {
        struct chaos_at at = {reader->at, NULL, i};
        struct chaos_reader here = {json_array_get(reader->value, i), &at, reader->error};
        if (!parse(&here, (char *)items + i * size)) {
            return false;
        }
    }
    return true;
}

static bool get_array(const struct chaos_reader *reader, const char *key, parse_value *parse, void *items, size_t size,
                      size_t *count) {
    struct chaos_at at = {reader->at, key, 0};
    struct chaos_reader here = {json_object_get(reader->value, key), &at, reader->error};
    return here.value == NULL || parse_array(&here, parse, items, size, count);
}

/* ---- the sections ---- */

static bool parse_sessions(const struct chaos_reader *reader, void *out) {
    static const char *const fields[] = {"readOnly", "limit", "overLimit", NULL};
    struct chaos_vendor *vendor = out;
    vendor->over_limit = CKR_SESSION_COUNT;
    return chaos_check_object(reader, fields) && chaos_get_ckr(reader, "readOnly", &vendor->read_only) &&
           chaos_get_u64(reader, "limit", 1, INT64_MAX, &vendor->session_limit) &&
           chaos_get_ckr(reader, "overLimit", &vendor->over_limit);
}

static bool parse_attribute(const struct chaos_reader *here, void *out) {
    return number_of(here, attribute_names, json_string_value(here->value), out);
}

static bool parse_fixed(const struct chaos_reader *reader, void *out) {
    struct chaos_vendor *vendor = out;
    const char *name;
    json_t *value;
    vendor->fixed_count = 0;
    if (!json_is_object(reader->value) || json_object_size(reader->value) > CHAOS_MANY) {
        return chaos_refuse(reader, "must be an object of attributes and true or false");
    }
    json_object_foreach(reader->value, name, value) {
        struct chaos_at at = {reader->at, name, 0};
        struct chaos_reader here = {value, &at, reader->error};
        struct chaos_fixed *fixed = &vendor->fixed[vendor->fixed_count++];
        if (!number_of(&here, attribute_names, name, &fixed->type)) {
            return false;
        }
        if (!json_is_boolean(value)) {
            return chaos_refuse(&here, "must be true or false");
        }
        fixed->value = json_is_true(value) ? CK_TRUE : CK_FALSE;
    }
    return true;
}

static bool parse_attributes(const struct chaos_reader *reader, void *out) {
    static const char *const fields[] = {"known", "unknown", "fixed", "wrongValue", NULL};
    struct chaos_vendor *vendor = out;
    vendor->unknown_attribute = CKR_ATTRIBUTE_TYPE_INVALID;
    vendor->wrong_value = CKR_ATTRIBUTE_VALUE_INVALID;
    return chaos_check_object(reader, fields) && chaos_get_ckr(reader, "unknown", &vendor->unknown_attribute) &&
           chaos_get_ckr(reader, "wrongValue", &vendor->wrong_value) &&
           get_array(reader, "known", parse_attribute, vendor->known, sizeof vendor->known[0], &vendor->known_count) &&
           get_part(reader, "fixed", parse_fixed, vendor);
}

static bool parse_curves(const struct chaos_reader *reader, void *out) {
    static const char *const fields[] = {"refused", "ckr", "rawPoints", NULL};
    struct chaos_vendor *vendor = out;
    vendor->wrong_curve = CKR_CURVE_NOT_SUPPORTED;
    vendor->raw_points = false;
    return chaos_check_object(reader, fields) && chaos_get_ckr(reader, "ckr", &vendor->wrong_curve) &&
           chaos_get_true(reader, "rawPoints", &vendor->raw_points) &&
           get_array(reader, "refused", parse_curve, vendor->curves, sizeof vendor->curves[0], &vendor->curve_count);
}

static bool parse_mechanism(const struct chaos_reader *reader, void *out) {
    static const char *const fields[] = {"mechanism", "absent", "as", "curve", NULL};
    struct chaos_mechanism *rule = out;
    if (!chaos_check_object(reader, fields) || !chaos_need(reader, "mechanism") ||
        !get_number(reader, "mechanism", mechanism_names, &rule->mechanism) ||
        !chaos_get_true(reader, "absent", &rule->absent) || !get_number(reader, "as", mechanism_names, &rule->as) ||
        !get_part(reader, "curve", parse_curve, &rule->curve)) {
        return false;
    }
    if (rule->absent == (json_object_get(reader->value, "as") != NULL)) {
        return chaos_refuse(reader, "needs either \"as\" or \"absent\": true");
    }
    return true;
}

static bool parse_library(const struct chaos_reader *reader, void *out) {
    static const char *const fields[] = {"manufacturer", "description", NULL};
    struct chaos_vendor *vendor = out;
    return chaos_check_object(reader, fields) &&
           get_text(reader, "manufacturer", vendor->manufacturer, sizeof vendor->manufacturer) &&
           get_text(reader, "description", vendor->description, sizeof vendor->description);
}

static bool parse_slot(const struct chaos_reader *reader, void *out) {
    static const char *const fields[] = {"token", "label", "serial", "manufacturer", "model", "description", NULL};
    struct chaos_slot_info *slot = out;
    return chaos_check_object(reader, fields) && chaos_need(reader, "token") &&
           get_text(reader, "token", slot->token, sizeof slot->token) &&
           get_text(reader, "label", slot->label, sizeof slot->label) &&
           get_text(reader, "serial", slot->serial, sizeof slot->serial) &&
           get_text(reader, "manufacturer", slot->manufacturer, sizeof slot->manufacturer) &&
           get_text(reader, "model", slot->model, sizeof slot->model) &&
           get_text(reader, "description", slot->description, sizeof slot->description);
}

static bool parse_user(const struct chaos_reader *reader, void *out) {
    static const char *const fields[] = {"pin", "tokenPin", "denied", NULL};
    struct chaos_user *user = out;
    return chaos_check_object(reader, fields) && chaos_need(reader, "pin") && chaos_need(reader, "tokenPin") &&
           get_text(reader, "pin", user->pin, sizeof user->pin) &&
           get_text(reader, "tokenPin", user->token_pin, sizeof user->token_pin) &&
           get_part(reader, "denied", parse_denied, user->denied);
}

bool chaos_parse_vendor(const struct chaos_reader *reader, struct chaos_vendor *vendor) {
    return get_part(reader, "sessions", parse_sessions, vendor) &&
           get_part(reader, "attributes", parse_attributes, vendor) &&
           get_part(reader, "curves", parse_curves, vendor) && get_part(reader, "library", parse_library, vendor) &&
           get_part(reader, "denied", parse_denied, vendor->denied) &&
           get_array(reader, "mechanisms", parse_mechanism, vendor->mechanisms, sizeof vendor->mechanisms[0],
                     &vendor->mechanism_count) &&
           get_array(reader, "slots", parse_slot, vendor->slots, sizeof vendor->slots[0], &vendor->slot_count) &&
           get_array(reader, "users", parse_user, vendor->users, sizeof vendor->users[0], &vendor->user_count) &&
           chaos_get_true(reader, "handlesPerSession", &vendor->handles_per_session) &&
           chaos_get_true(reader, "handlesAtLogin", &vendor->handles_at_login);
}
