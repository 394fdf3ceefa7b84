/* The commands of the control socket. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "parse.h"

static json_t *count_of(uint64_t number) {
    return json_integer((json_int_t)number);
}

/* ---- stats ---- */

static uint64_t calls_of(enum chaos_function function) {
    uint64_t calls = atomic_load(&chaos_slot_none()->calls[function]);
    for (struct chaos_slot *slot = chaos_slot_first(); slot != NULL; slot = slot->next) {
        calls += atomic_load(&slot->calls[function]);
    }
    return calls;
}

static json_t *slot_stats(struct chaos_slot *slot) {
    (void)pthread_mutex_lock(&slot->gate);
    uint64_t busy = slot->busy;
    uint64_t waiting = slot->waiting;
    uint64_t busy_max = slot->busy_max;
    uint64_t waiting_max = slot->waiting_max;
    uint64_t refused = slot->refused;
    (void)pthread_mutex_unlock(&slot->gate);
    json_t *stats = json_object();
    (void)json_object_set_new(stats, "slot", count_of(slot->id));
    (void)json_object_set_new(stats, "present", json_boolean(!chaos_slot_absent(slot)));
    (void)json_object_set_new(stats, "serving", count_of(busy));
    (void)json_object_set_new(stats, "servingMax", count_of(busy_max));
    (void)json_object_set_new(stats, "waiting", count_of(waiting));
    (void)json_object_set_new(stats, "waitingMax", count_of(waiting_max));
    (void)json_object_set_new(stats, "refused", count_of(refused));
    return stats;
}

static void put_stats(json_t *reply) {
    json_t *calls = json_object();
    json_t *faults = json_object();
    json_t *slots = json_array();
    for (int i = 0; i < CHAOS_FUNCTIONS; i++) {
        uint64_t number = calls_of((enum chaos_function)i);
        if (number > 0) {
            (void)json_object_set_new(calls, chaos_function_names[i], count_of(number));
        }
    }
    for (int i = 0; i < CHAOS_ACTIONS; i++) {
        uint64_t number = chaos_faults_struck((enum chaos_action)i);
        if (number > 0) {
            (void)json_object_set_new(faults, chaos_action_names[i], count_of(number));
        }
    }
    for (struct chaos_slot *slot = chaos_slot_first(); slot != NULL; slot = slot->next) {
        (void)json_array_append_new(slots, slot_stats(slot));
    }
    (void)json_object_set_new(reply, "calls", calls);
    (void)json_object_set_new(reply, "faults", faults);
    (void)json_object_set_new(reply, "skipped", count_of(chaos_faults_skipped()));
    (void)json_object_set_new(reply, "inside", count_of(atomic_load(&chaos_inside)));
    (void)json_object_set_new(reply, "hung", count_of(chaos_hung()));
    (void)json_object_set_new(reply, "sessions", count_of(chaos_sessions_open()));
    (void)json_object_set_new(reply, "slots", slots);
}

/* ---- the commands ---- */

static bool no_fields(const struct chaos_reader *reader) {
    static const char *const fields[] = {NULL};
    return chaos_check_object(reader, fields);
}

static bool command_stats(const struct chaos_reader *reader, json_t *reply) {
    if (!no_fields(reader)) {
        return false;
    }
    put_stats(reply);
    return true;
}

static bool command_fault(const struct chaos_reader *reader, json_t *reply) {
    (void)reply;
    struct chaos_fault *fault = calloc(1, sizeof *fault);
    if (fault == NULL) {
        return chaos_refuse(reader, "out of memory");
    }
    if (!chaos_parse_fault(reader, fault)) {
        free(fault);
        return false;
    }
    chaos_fault_add(fault);
    return true;
}

static bool command_clear(const struct chaos_reader *reader, json_t *reply) {
    (void)reply;
    if (!no_fields(reader)) {
        return false;
    }
    chaos_faults_clear();
    return true;
}

static bool command_release(const struct chaos_reader *reader, json_t *reply) {
    if (!no_fields(reader)) {
        return false;
    }
    chaos_slots_return();
    (void)json_object_set_new(reply, "released", count_of(chaos_release()));
    return true;
}

static bool replace(const struct chaos_reader *reader, const struct chaos_settings *settings) {
    return chaos_settings_replace(settings) || chaos_refuse(reader, "out of memory");
}

static bool command_latency(const struct chaos_reader *reader, json_t *reply) {
    (void)reply;
    struct chaos_settings settings = *atomic_load(&chaos_settings);
    enum chaos_function function;
    if (!chaos_parse_function(reader, &function)) {
        return false;
    }
    (void)json_object_del(reader->value, "function");
    return chaos_parse_latency(reader, function, &settings.latency[function]) && replace(reader, &settings);
}

static bool command_capacity(const struct chaos_reader *reader, json_t *reply) {
    (void)reply;
    struct chaos_settings settings = *atomic_load(&chaos_settings);
    return chaos_parse_capacity(reader, &settings.capacity) && replace(reader, &settings);
}

static bool command_profile(const struct chaos_reader *reader, json_t *reply) {
    (void)reply;
    static const char *const fields[] = {"name", NULL};
    struct chaos_settings settings = {.capacity = {.queue = UINT64_MAX}};
    struct chaos_error reason;
    const char *name = NULL;
    if (!chaos_check_object(reader, fields) || !chaos_need(reader, "name") ||
        !chaos_get_string(reader, "name", &name)) {
        return false;
    }
    if (!chaos_profile_load(chaos_config.profile_dir, name, &settings, NULL, &reason)) {
        return chaos_refuse_key(reader, "name", "%s", reason.text);
    }
    return replace(reader, &settings);
}

static const struct {
    const char *name;
    bool (*run)(const struct chaos_reader *reader, json_t *reply);
} commands[] = {
    {"stats", command_stats},     {"fault", command_fault},     {"clear", command_clear},
    {"release", command_release}, {"latency", command_latency}, {"capacity", command_capacity},
    {"profile", command_profile},
};
#define COMMANDS (sizeof commands / sizeof commands[0])

static bool run(const struct chaos_reader *reader, json_t *reply) {
    const char *name = NULL;
    if (!json_is_object(reader->value)) {
        return chaos_refuse(reader, "must be an object");
    }
    if (!chaos_need(reader, "cmd") || !chaos_get_string(reader, "cmd", &name)) {
        return false;
    }
    size_t i = 0;
    while (i < COMMANDS && strcmp(commands[i].name, name) != 0) {
        i++;
    }
    if (i == COMMANDS) {
        return chaos_refuse_key(reader, "cmd", "unknown command \"%s\"", name);
    }
    (void)json_object_del(reader->value, "cmd"); /* the rest has the same form as in the file */
    return commands[i].run(reader, reply);
}

char *chaos_command(const char *line) {
    json_error_t reason;
    struct chaos_error error = {""};
    json_t *reply = json_object();
    json_t *document = json_loads(line, JSON_REJECT_DUPLICATES, &reason);
    struct chaos_reader reader = {document, NULL, &error};
    bool ok = false;
    if (document == NULL) {
        (void)snprintf(error.text, sizeof error.text, "column %d: %s", reason.column, reason.text);
    } else {
        ok = run(&reader, reply);
    }
    (void)json_object_set_new(reply, "ok", json_boolean(ok));
    if (!ok) {
        (void)json_object_set_new(reply, "error", json_string(error.text));
    }
    char *text = json_dumps(reply, JSON_COMPACT | JSON_SORT_KEYS);
    json_decref(document);
    json_decref(reply);
    return text;
}
