/* Settings: lines of "name value" on standard input, the PIN among them, so that it is in no argument list and no
 * environment. */
#include "load.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

enum kind { TEXT, BYTES, NUMBER32, NUMBER64, SIGNED64, FLAG, SHARE, ALGORITHM, SEGMENT, MIX };

static const struct entry {
    const char *name;
    enum kind kind;
    size_t offset;
} entries[] = {
#define ENTRY(name, kind, field) {name, kind, offsetof(load_settings, field)}
    ENTRY("module", TEXT, module),
    ENTRY("module-args", TEXT, module_args),
    ENTRY("quirks", TEXT, quirks),
    ENTRY("token-label", TEXT, token_label),
    ENTRY("token-serial", TEXT, token_serial),
    ENTRY("slot-id", SIGNED64, slot_id),
    ENTRY("key-label", TEXT, key_label),
    ENTRY("key-id", BYTES, key_id),
    ENTRY("key-handle", SIGNED64, key_handle),
    ENTRY("public-key", BYTES, public_key),
    ENTRY("algorithm", ALGORITHM, algorithm),
    ENTRY("pin", BYTES, pin),
    ENTRY("raw", FLAG, raw),
    ENTRY("workers", NUMBER32, workers),
    ENTRY("slots", NUMBER32, slots),
    ENTRY("max-message", NUMBER32, max_message),
    ENTRY("verify-every", NUMBER32, verify_every),
    ENTRY("digests", FLAG, digests),
    ENTRY("coalesce-ns", NUMBER64, coalesce_ns),
    ENTRY("spin-ns", NUMBER64, spin_ns),
    ENTRY("patience-ns", NUMBER64, patience_ns),
    ENTRY("timeout-ns", NUMBER64, timeout_ns),
    ENTRY("cache", NUMBER64, cache),
    ENTRY("seed", NUMBER64, seed),
    ENTRY("interval-ns", NUMBER64, interval_ns),
    ENTRY("poisson", FLAG, poisson),
    ENTRY("phase", SHARE, phase),
    ENTRY("segment", SEGMENT, segments),
    ENTRY("mix", MIX, mix),
    ENTRY("spool", TEXT, spool),
#undef ENTRY
};

_Noreturn static void refuse(const char *name) {
    /* Never the value: it may be the PIN. */
    (void)fprintf(stderr, "hsmcore-load: the setting %s is unknown or has an impossible value\n", name);
    _exit(2);
}

static uint64_t number(const char *name, const char *text, uint64_t most) {
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end != '\0' || errno != 0 || value > most) {
        refuse(name);
    }
    return value;
}

static double real(const char *name, const char **text) {
    char *end;
    double value = strtod(*text, &end);
    if (end == *text || !(value >= 0.0 && value <= 1e12)) {
        refuse(name);
    }
    *text = end;
    return value;
}

static unsigned digit(const char *name, char c) {
    static const char digits[] = "0123456789abcdef";
    const char *at = c != '\0' ? strchr(digits, c) : NULL;
    if (at == NULL) {
        refuse(name);
    }
    return (unsigned)(at - digits);
}

/* Hexadecimal digits as bytes; the length goes where the structure has it, right behind the pointer. */
static void set_bytes(const char *name, const char *text, uint8_t **bytes, size_t *len) {
    *len = strlen(text) / 2;
    free(*bytes);
    *bytes = load_alloc(*len + 1);
    for (size_t i = 0; i < *len; i++) {
        (*bytes)[i] = (uint8_t)(digit(name, text[2 * i]) << 4 | digit(name, text[2 * i + 1]));
    }
}

static void add_segment(load_settings *settings, const char *text) {
    if (settings->segment_count == LOAD_MAX_SEGMENTS) {
        refuse("segment");
    }
    load_segment *segment = &settings->segments[settings->segment_count++];
    segment->seconds = real("segment", &text);
    segment->from = real("segment", &text);
    segment->to = real("segment", &text);
    if (!(segment->seconds > 0.0) || *text != '\0') {
        refuse("segment");
    }
}

static void set_mix(load_settings *settings, const char *text) {
    for (size_t i = 0; i < LOAD_MIX; i++) {
        char *end;
        long value = strtol(text, &end, 10);
        if (end == text || value < -(LOAD_MIX - 1) || value > HSM_MAX_MESSAGE) {
            refuse("mix");
        }
        settings->mix[i] = (int32_t)value;
        text = end;
    }
    for (size_t i = 0; i < LOAD_MIX; i++) {
        size_t origin = (i + LOAD_MIX + (size_t)(settings->mix[i] < 0 ? settings->mix[i] : 0)) % LOAD_MIX;
        if (settings->mix[origin] < LOAD_MIN_MESSAGE) {
            refuse("mix"); /* a repeat of a repeat, or a message without room for its number */
        }
    }
}

static void set(load_settings *settings, const struct entry *entry, const char *text) {
    void *field = (char *)settings + entry->offset;
    switch (entry->kind) {
    case TEXT:
        free(*(char **)field);
        *(char **)field = strdup(text);
        break;
    case BYTES:
        set_bytes(entry->name, text, field, (size_t *)((uint8_t **)field + 1));
        break;
    case NUMBER32:
        *(uint32_t *)field = (uint32_t)number(entry->name, text, UINT32_MAX);
        break;
    case NUMBER64:
        *(uint64_t *)field = number(entry->name, text, UINT64_MAX);
        break;
    case SIGNED64:
        *(int64_t *)field = (int64_t)number(entry->name, text, INT64_MAX);
        break;
    case FLAG:
        *(bool *)field = number(entry->name, text, 1) == 1;
        break;
    case SHARE:
        *(double *)field = real(entry->name, &text);
        break;
    case ALGORITHM:
        *(hsm_algorithm *)field = hsm_algorithm_of_name(text);
        break;
    case SEGMENT:
        add_segment(settings, text);
        break;
    case MIX:
        set_mix(settings, text);
        break;
    }
}

static void check(const load_settings *settings) {
    static const char *const needed[] = {"module",     "workers",     "slots",  "max-message",
                                         "timeout-ns", "interval-ns", "segment"};
    const bool given[] = {settings->module != NULL,   settings->workers > 0 && settings->workers <= HSM_MAX_WORKERS,
                          settings->slots > 0,        settings->max_message >= LOAD_MIN_MESSAGE,
                          settings->timeout_ns > 0,   settings->interval_ns > 0,
                          settings->segment_count > 0};
    for (size_t i = 0; i < sizeof given / sizeof given[0]; i++) {
        if (!given[i]) {
            refuse(needed[i]);
        }
    }
    for (size_t i = 0; i < LOAD_MIX; i++) {
        if (settings->mix[i] == 0 || settings->mix[i] > (int32_t)settings->max_message) {
            refuse("mix");
        }
    }
}

void load_settings_read(load_settings *settings) {
    *settings = (load_settings){.slot_id = -1, .key_handle = -1};
    char *line = NULL;
    size_t room = 0;
    ssize_t len;
    while ((len = getline(&line, &room, stdin)) > 0) {
        line[strcspn(line, "\n")] = '\0';
        if (strcmp(line, "ready") == 0) {
            break;
        }
        char *value = strchr(line, ' ');
        if (value == NULL) {
            refuse(line);
        }
        *value++ = '\0';
        const struct entry *entry = entries;
        while (entry < entries + sizeof entries / sizeof entries[0] && strcmp(entry->name, line) != 0) {
            entry++;
        }
        if (entry == entries + sizeof entries / sizeof entries[0]) {
            refuse(line);
        }
        set(settings, entry, value);
        hsm_wipe(line, (size_t)len);
    }
    if (line != NULL) {
        hsm_wipe(line, room);
        free(line);
    }
    if (len <= 0) {
        _exit(0); /* the process that started this one has ended */
    }
    check(settings);
}

hsm_key_selector load_key_selector(const load_settings *settings) {
    return (hsm_key_selector){.label = settings->key_label,
                              .id = settings->key_id,
                              .id_len = settings->key_id_len,
                              .handle = settings->key_handle,
                              .algorithm = settings->algorithm,
                              .public_key = settings->public_key,
                              .public_key_len = settings->public_key_len};
}

void load_settings_free(load_settings *settings) {
    if (settings->pin != NULL) {
        hsm_wipe(settings->pin, settings->pin_len);
    }
    void *owned[] = {settings->module,       settings->module_args, settings->quirks, settings->token_label,
                     settings->token_serial, settings->key_label,   settings->key_id, settings->public_key,
                     settings->pin,          settings->spool};
    for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++) {
        free(owned[i]);
    }
}
