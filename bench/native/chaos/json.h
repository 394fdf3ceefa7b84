/* Reading JSON strictly: every refusal names the place as a JSON path. */
#ifndef HSMCORE_CHAOS_JSON_H
#define HSMCORE_CHAOS_JSON_H

#include <jansson.h>

#include "chaos.h"

/* One step of a path, on the stack of the function that descends: a key, or an index if `key` is NULL. */
struct chaos_at {
    const struct chaos_at *up; /* NULL: the document, "$" */
    const char *key;
    size_t index;
};

struct chaos_reader {
    json_t *value; /* borrowed */
    const struct chaos_at *at;
    struct chaos_error *error;
};

/* Both write the reason, led by the path, and return false. */
__attribute__((format(printf, 2, 3))) bool chaos_refuse(const struct chaos_reader *reader, const char *format, ...);
__attribute__((format(printf, 3, 4))) bool chaos_refuse_key(const struct chaos_reader *reader, const char *key,
                                                            const char *format, ...);

/* Is it an object without keys beyond these (the list ends with NULL)? */
bool chaos_check_object(const struct chaos_reader *reader, const char *const *keys);

/* Each reads a key of an object. A missing key is no error and leaves *out alone; see chaos_need. */
bool chaos_need(const struct chaos_reader *reader, const char *key);
bool chaos_get_u64(const struct chaos_reader *reader, const char *key, uint64_t min, uint64_t max, uint64_t *out);
bool chaos_get_real(const struct chaos_reader *reader, const char *key, double min, double max, double *out);
bool chaos_get_true(const struct chaos_reader *reader, const char *key, bool *out);
bool chaos_get_string(const struct chaos_reader *reader, const char *key, const char **out);
bool chaos_get_path(const struct chaos_reader *reader, const char *key, char out[CHAOS_PATH]);

#endif
