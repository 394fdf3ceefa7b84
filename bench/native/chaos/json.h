/* Reading JSON strictly: every refusal names the place as a JSON path. */
#ifndef HSMCORE_CHAOS_JSON_H
#define HSMCORE_CHAOS_JSON_H

#include <jansson.h>

#include "chaos.h"

/* One step of a path, on the stack of whoever descends: a key, or an index if `key` is NULL. */
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

/* parse.c: the objects that the file and the control socket share. */
bool chaos_parse_function(const struct chaos_reader *reader, enum chaos_function *out);
bool chaos_parse_fault(const struct chaos_reader *reader, struct chaos_fault *fault);
bool chaos_parse_random(const struct chaos_reader *reader, struct chaos_random *random);
/* `function`: what the latency is for; a latency per byte needs a message, which only C_Sign has. */
bool chaos_parse_latency(const struct chaos_reader *reader, enum chaos_function function,
                         struct chaos_latency *latency);
bool chaos_parse_latencies(const struct chaos_reader *reader, struct chaos_settings *settings);
bool chaos_parse_capacity(const struct chaos_reader *reader, struct chaos_capacity *capacity);
bool chaos_get_ckr(const struct chaos_reader *reader, const char *key, CK_RV *out);
bool chaos_function_named(const struct chaos_reader *reader, const char *name, enum chaos_function *out);

/* vendor_json.c: the fields of a vendor's manners, each of which replaces what is there. */
#define CHAOS_MANNERS_FIELDS                                                                                           \
    "denied", "sessions", "attributes", "curves", "mechanisms", "library", "slots", "users", "handlesPerSession",      \
        "handlesAtLogin"
bool chaos_parse_manners(const struct chaos_reader *reader, struct chaos_manners *manners);

#endif
