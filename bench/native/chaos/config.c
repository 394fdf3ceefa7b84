/* The configuration file, and the profiles that it names. */
#include <dirent.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "parse.h"
#include "vendor_json.h"

/* The folder "profiles" next to this shared object. */
static void default_profile_dir(char out[CHAOS_PATH]) {
    Dl_info info;
    const char *file = dladdr(&chaos_config, &info) != 0 && info.dli_fname != NULL ? info.dli_fname : "";
    const char *slash = strrchr(file, '/');
    int folder = slash == NULL ? 1 : (int)(slash - file);
    (void)snprintf(out, CHAOS_PATH, "%.*s/profiles", folder, slash == NULL ? "." : file);
}

/* "%p" becomes the process id, so that several processes can share one file. */
static bool expand_pid(const struct chaos_reader *reader, const char *key, char path[CHAOS_PATH]) {
    char *mark = strstr(path, "%p");
    if (mark == NULL) {
        return true;
    }
    char out[CHAOS_PATH];
    int length = snprintf(out, sizeof out, "%.*s%ld%s", (int)(mark - path), path, (long)getpid(), mark + 2);
    if (length < 0 || (size_t)length >= sizeof out) {
        return chaos_refuse_key(reader, key, "is too long");
    }
    memcpy(path, out, (size_t)length + 1);
    return true;
}

static json_t *load_file(const char *path, struct chaos_error *error) {
    json_error_t reason;
    json_t *document = json_load_file(path, JSON_REJECT_DUPLICATES, &reason);
    if (document == NULL && reason.line > 0) {
        (void)snprintf(error->text, sizeof error->text, "%s:%d:%d: %s", path, reason.line, reason.column, reason.text);
    } else if (document == NULL) {
        (void)snprintf(error->text, sizeof error->text, "%s: %s", path, reason.text);
    }
    return document;
}

/* ---- profiles ---- */

static void list_profiles(const char *dir, char *out, size_t size) {
    DIR *folder = opendir(dir);
    const struct dirent *entry;
    size_t used = 0;
    out[0] = '\0';
    while (folder != NULL && (entry = readdir(folder)) != NULL) {
        size_t length = strlen(entry->d_name);
        if (length > 5 && strcmp(entry->d_name + length - 5, ".json") == 0 && used + length + 2 < size) {
            used += (size_t)snprintf(out + used, size - used, "%s%.*s", used > 0 ? ", " : "", (int)length - 5,
                                     entry->d_name);
        }
    }
    if (folder != NULL) {
        (void)closedir(folder);
    }
}

static bool parse_settings(const struct chaos_reader *reader, struct chaos_settings *settings) {
    json_t *latency = json_object_get(reader->value, "latency");
    json_t *capacity = json_object_get(reader->value, "capacity");
    struct chaos_at at_latency = {reader->at, "latency", 0};
    struct chaos_at at_capacity = {reader->at, "capacity", 0};
    struct chaos_reader of_latency = {latency, &at_latency, reader->error};
    struct chaos_reader of_capacity = {capacity, &at_capacity, reader->error};
    return (latency == NULL || chaos_parse_latencies(&of_latency, settings)) &&
           (capacity == NULL || chaos_parse_capacity(&of_capacity, &settings->capacity));
}

bool chaos_profile_load(const char *dir, const char *name, struct chaos_settings *settings, struct chaos_vendor *vendor,
                        struct chaos_error *error) {
    static const char *const fields[] = {"description", "latency", "capacity", CHAOS_VENDOR_FIELDS, NULL};
    char path[CHAOS_PATH + 256];
    char known[512];
    if (name[0] == '\0' || strchr(name, '/') != NULL || strlen(name) > 128) {
        (void)snprintf(error->text, sizeof error->text, "\"%.128s\" is not a profile's name", name);
        return false;
    }
    (void)snprintf(path, sizeof path, "%s/%s.json", dir, name);
    if (access(path, R_OK) != 0) {
        list_profiles(dir, known, sizeof known);
        (void)snprintf(error->text, sizeof error->text, "no profile \"%s\" in %.256s (there: %s)", name, dir, known);
        return false;
    }
    json_t *document = load_file(path, error);
    if (document == NULL) {
        return false;
    }
    struct chaos_settings out = *settings;
    struct chaos_error inner = {""};
    struct chaos_reader reader = {document, NULL, &inner};
    const char *description = NULL;
    bool ok = chaos_check_object(&reader, fields) && chaos_get_string(&reader, "description", &description) &&
              parse_settings(&reader, &out) && (vendor == NULL || chaos_parse_vendor(&reader, vendor));
    if (ok) {
        *settings = out;
    } else {
        (void)snprintf(error->text, sizeof error->text, "%.256s: %.700s", path, inner.text);
    }
    json_decref(document);
    return ok;
}

/* ---- the file ---- */

static bool parse_faults(const struct chaos_reader *reader, struct chaos_config *config) {
    json_t *faults = json_object_get(reader->value, "faults");
    json_t *item;
    if (faults == NULL) {
        return true;
    }
    if (!json_is_array(faults)) {
        return chaos_refuse_key(reader, "faults", "must be an array");
    }
    struct chaos_fault **tail = &config->faults;
    struct chaos_at up = {reader->at, "faults", 0};
    size_t i;
    json_array_foreach(faults, i, item) {
        struct chaos_at at = {&up, NULL, i};
        struct chaos_reader here = {item, &at, reader->error};
        struct chaos_fault *fault = calloc(1, sizeof *fault);
        if (fault == NULL) {
            return chaos_refuse(&here, "out of memory");
        }
        *tail = fault;
        tail = &fault->all;
        if (!chaos_parse_fault(&here, fault)) {
            return false;
        }
    }
    return true;
}

/* One name, or several, each over those before it. */
static bool parse_profiles(const struct chaos_reader *reader, struct chaos_config *config) {
    const json_t *given = json_object_get(reader->value, "profile");
    size_t count = json_is_array(given) ? json_array_size(given) : given != NULL;
    for (size_t i = 0; i < count; i++) {
        struct chaos_error reason = {""};
        const json_t *name = json_is_array(given) ? json_array_get(given, i) : given;
        if (!json_is_string(name)) {
            return chaos_refuse_key(reader, "profile", "must be a profile's name or an array of names");
        }
        if (!chaos_profile_load(config->profile_dir, json_string_value(name), &config->settings, &config->vendor,
                                &reason)) {
            return chaos_refuse_key(reader, "profile", "%s", reason.text);
        }
    }
    return true;
}

static bool parse_config(const struct chaos_reader *reader, struct chaos_config *config) {
    static const char *const fields[] = {"description", "module",  "socket",   "log",    "seed",   "profile",
                                         "profileDir",  "latency", "capacity", "faults", "random", CHAOS_VENDOR_FIELDS,
                                         NULL};
    const char *description = NULL;
    /* The log first, so that it gets the reason of any later refusal. */
    if (json_is_object(reader->value) &&
        (!chaos_get_path(reader, "log", config->log) || !expand_pid(reader, "log", config->log))) {
        return false;
    }
    struct chaos_error reason = {""};
    if (config->log[0] != '\0' && !chaos_log_open(config->log, &reason)) {
        return chaos_refuse_key(reader, "log", "%s", reason.text);
    }
    if (!chaos_check_object(reader, fields) || !chaos_need(reader, "module") ||
        !chaos_get_string(reader, "description", &description) || !chaos_get_path(reader, "module", config->module) ||
        !chaos_get_path(reader, "socket", config->socket) || !expand_pid(reader, "socket", config->socket) ||
        !chaos_get_u64(reader, "seed", 0, INT64_MAX, &config->seed) ||
        !chaos_get_path(reader, "profileDir", config->profile_dir) || !parse_profiles(reader, config)) {
        return false;
    }
    if (!parse_settings(reader, &config->settings) || !chaos_parse_vendor(reader, &config->vendor) ||
        !parse_faults(reader, config)) {
        return false;
    }
    json_t *random = json_object_get(reader->value, "random");
    struct chaos_at at = {reader->at, "random", 0};
    struct chaos_reader of_random = {random, &at, reader->error};
    return random == NULL || chaos_parse_random(&of_random, &config->random);
}

bool chaos_config_load(const char *path, struct chaos_config *config, struct chaos_error *error) {
    memset(config, 0, sizeof *config);
    config->seed = 1;
    config->settings.capacity.queue = UINT64_MAX;
    default_profile_dir(config->profile_dir);
    json_t *document = load_file(path, error);
    if (document == NULL) {
        return false;
    }
    struct chaos_error inner = {""};
    struct chaos_reader reader = {document, NULL, &inner};
    bool ok = parse_config(&reader, config);
    json_decref(document);
    if (!ok) {
        (void)snprintf(error->text, sizeof error->text, "%.256s: %.700s", path, inner.text);
        chaos_config_free(config);
    }
    return ok;
}

void chaos_config_free(struct chaos_config *config) {
    while (config->faults != NULL) {
        struct chaos_fault *fault = config->faults;
        config->faults = fault->all;
        free(fault);
    }
}
