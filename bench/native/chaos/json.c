/* Reading JSON strictly: see json.h. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "json.h"

static size_t put_path(const struct chaos_at *at, char *out, size_t size) {
    if (at == NULL) {
        return (size_t)snprintf(out, size, "$");
    }
    size_t used = put_path(at->up, out, size);
    if (used >= size) {
        return used;
    }
    int more = at->key != NULL ? snprintf(out + used, size - used, ".%s", at->key)
                               : snprintf(out + used, size - used, "[%zu]", at->index);
    return used + (size_t)more;
}

static void refuse(const struct chaos_at *at, struct chaos_error *error, const char *format, va_list arguments) {
    size_t used = put_path(at, error->text, sizeof error->text);
    if (used + 2 < sizeof error->text) {
        used += (size_t)snprintf(error->text + used, sizeof error->text - used, ": ");
        (void)vsnprintf(error->text + used, sizeof error->text - used, format, arguments);
    }
}

bool chaos_refuse(const struct chaos_reader *reader, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    refuse(reader->at, reader->error, format, arguments);
    va_end(arguments);
    return false;
}

bool chaos_refuse_key(const struct chaos_reader *reader, const char *key, const char *format, ...) {
    struct chaos_at at = {reader->at, key, 0};
    va_list arguments;
    va_start(arguments, format);
    refuse(&at, reader->error, format, arguments);
    va_end(arguments);
    return false;
}

static const char *type_name(const json_t *value) {
    static const char *const names[] = {"an object", "an array", "a string", "an integer",
                                        "a number",  "true",     "false",    "null"};
    return names[json_typeof(value)];
}

bool chaos_check_object(const struct chaos_reader *reader, const char *const *keys) {
    if (!json_is_object(reader->value)) {
        return chaos_refuse(reader, "must be an object, not %s", type_name(reader->value));
    }
    const char *key;
    json_t *value;
    json_object_foreach(reader->value, key, value) {
        size_t i = 0;
        while (keys[i] != NULL && strcmp(keys[i], key) != 0) {
            i++;
        }
        if (keys[i] == NULL) {
            return chaos_refuse_key(reader, key, "unknown field");
        }
    }
    return true;
}

bool chaos_need(const struct chaos_reader *reader, const char *key) {
    return json_object_get(reader->value, key) != NULL || chaos_refuse_key(reader, key, "is missing");
}

bool chaos_get_u64(const struct chaos_reader *reader, const char *key, uint64_t min, uint64_t max, uint64_t *out) {
    const json_t *value = json_object_get(reader->value, key);
    if (value == NULL) {
        return true;
    }
    if (!json_is_integer(value)) {
        return chaos_refuse_key(reader, key, "must be an integer, not %s", type_name(value));
    }
    json_int_t number = json_integer_value(value);
    if (number < 0 || (uint64_t)number < min || (uint64_t)number > max) {
        return chaos_refuse_key(reader, key, "must be %" PRIu64 " to %" PRIu64 ", not %" JSON_INTEGER_FORMAT, min, max,
                                number);
    }
    *out = (uint64_t)number;
    return true;
}

bool chaos_get_real(const struct chaos_reader *reader, const char *key, double min, double max, double *out) {
    const json_t *value = json_object_get(reader->value, key);
    if (value == NULL) {
        return true;
    }
    if (!json_is_number(value)) {
        return chaos_refuse_key(reader, key, "must be a number, not %s", type_name(value));
    }
    double number = json_number_value(value);
    if (!(number >= min && number <= max)) {
        return chaos_refuse_key(reader, key, "must be %g to %g, not %g", min, max, number);
    }
    *out = number;
    return true;
}

bool chaos_get_true(const struct chaos_reader *reader, const char *key, bool *out) {
    const json_t *value = json_object_get(reader->value, key);
    if (value == NULL) {
        return true;
    }
    if (!json_is_true(value)) {
        return chaos_refuse_key(reader, key, "must be true, or be left out");
    }
    *out = true;
    return true;
}

bool chaos_get_string(const struct chaos_reader *reader, const char *key, const char **out) {
    const json_t *value = json_object_get(reader->value, key);
    if (value == NULL) {
        return true;
    }
    if (!json_is_string(value)) {
        return chaos_refuse_key(reader, key, "must be a string, not %s", type_name(value));
    }
    *out = json_string_value(value);
    return true;
}

bool chaos_get_path(const struct chaos_reader *reader, const char *key, char out[CHAOS_PATH]) {
    const char *text = NULL;
    if (!chaos_get_string(reader, key, &text) || text == NULL) {
        return text == NULL && json_object_get(reader->value, key) == NULL;
    }
    if (text[0] == '\0') {
        return chaos_refuse_key(reader, key, "is empty");
    }
    if (strlen(text) >= CHAOS_PATH) {
        return chaos_refuse_key(reader, key, "is longer than %d bytes", CHAOS_PATH - 1);
    }
    memcpy(out, text, strlen(text) + 1);
    return true;
}
