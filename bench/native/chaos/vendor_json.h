/* The fields that describe a vendor's module, each of which replaces what is there. */
#ifndef HSMCORE_CHAOS_VENDOR_JSON_H
#define HSMCORE_CHAOS_VENDOR_JSON_H

#include "json.h"

#define CHAOS_VENDOR_FIELDS                                                                                            \
    "denied", "sessions", "attributes", "curves", "mechanisms", "library", "slots", "users", "handlesPerSession",      \
        "handlesAtLogin"
bool chaos_parse_vendor(const struct chaos_reader *reader, struct chaos_vendor *vendor);

#endif
