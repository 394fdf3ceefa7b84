/* The objects that the configuration file and the control socket share. */
#ifndef HSMCORE_CHAOS_PARSE_H
#define HSMCORE_CHAOS_PARSE_H

#include "json.h"

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

#endif
