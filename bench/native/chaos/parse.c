/* Faults, random schedules, latencies and capacity from JSON. A setting that could have no effect is refused. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "parse.h"

#define DAY_MS 86400000.0
#define DAY_US 86400000000.0
#define NS_PER_MS 1e6

static const struct {
    const char *name;
    CK_RV ckr;
} ckrs[] = {
#define HSM_CKR(name, number, status) {#name, number},
#include <hsmcore/ckr.def>
#undef HSM_CKR
};

/* A name of the table, or a number: vendors have codes of their own. */
bool chaos_get_ckr(const struct chaos_reader *reader, const char *key, CK_RV *out) {
    const json_t *value = json_object_get(reader->value, key);
    if (value == NULL || json_is_integer(value)) {
        uint64_t number = *out;
        bool ok = chaos_get_u64(reader, key, 0, UINT32_MAX, &number);
        *out = number;
        return ok;
    }
    const char *name = NULL;
    if (!chaos_get_string(reader, key, &name)) {
        return false;
    }
    for (size_t i = 0; i < sizeof ckrs / sizeof ckrs[0]; i++) {
        if (strcmp(ckrs[i].name, name) == 0) {
            *out = ckrs[i].ckr;
            return true;
        }
    }
    return chaos_refuse_key(reader, key, "unknown CKR \"%s\" (a number is taken as it is)", name);
}

bool chaos_function_named(const struct chaos_reader *reader, const char *name, enum chaos_function *out) {
    *out = chaos_function_of_name(name);
    if (*out == CHAOS_FUNCTIONS) {
        return chaos_refuse(reader, "unknown function \"%s\"", name);
    }
    switch (*out) {
    case CHAOS_C_Initialize:
    case CHAOS_C_Finalize:
    case CHAOS_C_GetFunctionList:
    case CHAOS_C_GetInterfaceList:
    case CHAOS_C_GetInterface:
        return chaos_refuse(reader, "%s can't be struck or delayed", name);
    default:
        return true;
    }
}

bool chaos_parse_function(const struct chaos_reader *reader, enum chaos_function *out) {
    const char *name = NULL;
    struct chaos_at at = {reader->at, "function", 0};
    struct chaos_reader here = {reader->value, &at, reader->error};
    return chaos_need(reader, "function") && chaos_get_string(reader, "function", &name) &&
           chaos_function_named(&here, name, out);
}

/* An array of function names into a set. */
static bool get_functions(const struct chaos_reader *reader, const char *key, bool set[CHAOS_FUNCTIONS]) {
    json_t *array = json_object_get(reader->value, key);
    if (!json_is_array(array) || json_array_size(array) == 0) {
        return chaos_refuse_key(reader, key, "must be a non-empty array of function names");
    }
    memset(set, 0, CHAOS_FUNCTIONS * sizeof set[0]);
    size_t i;
    json_t *item;
    struct chaos_at up = {reader->at, key, 0};
    json_array_foreach(array, i, item) {
        struct chaos_at at = {&up, NULL, i};
        struct chaos_reader here = {item, &at, reader->error};
        enum chaos_function function;
        if (!json_is_string(item)) {
            return chaos_refuse(&here, "must be a function name");
        }
        if (!chaos_function_named(&here, json_string_value(item), &function)) {
            return false;
        }
        set[function] = true;
    }
    return true;
}

/* ---- actions ---- */

/* The fields that one action takes, beside "action". */
static const char *const fields_return[] = {"ckr", NULL};
static const char *const fields_time[] = {"milliseconds", "forever", NULL};
static const char *const fields_exit[] = {"code", NULL};
static const char *const fields_none[] = {NULL};

static const char *const *fields_of(enum chaos_action action) {
    switch (action) {
    case ACTION_RETURN:
        return fields_return;
    case ACTION_HANG:
    case ACTION_REMOVE_TOKEN:
        return fields_time;
    case ACTION_EXIT:
        return fields_exit;
    default:
        return fields_none;
    }
}

/* Reads an action and its own fields. `others` are the fields that the object may have besides. */
static bool parse_effect(const struct chaos_reader *reader, const char *const *others, struct chaos_effect *effect) {
    const char *name = NULL;
    if (!chaos_need(reader, "action") || !chaos_get_string(reader, "action", &name)) {
        return false;
    }
    int action = 0;
    while (action < CHAOS_ACTIONS && strcmp(chaos_action_names[action], name) != 0) {
        action++;
    }
    if (action == CHAOS_ACTIONS) {
        return chaos_refuse_key(reader, "action", "unknown action \"%s\"", name);
    }
    *effect = (struct chaos_effect){.action = (enum chaos_action)action, .code = 86};

    const char *allowed[16] = {"action"};
    size_t count = 1;
    for (const char *const *own = fields_of(effect->action); *own != NULL; own++) {
        allowed[count++] = *own;
    }
    for (; *others != NULL; others++) {
        allowed[count++] = *others;
    }
    if (!chaos_check_object(reader, allowed)) {
        return false;
    }
    if (action == ACTION_RETURN) {
        return chaos_need(reader, "ckr") && chaos_get_ckr(reader, "ckr", &effect->ckr);
    }
    if (action == ACTION_EXIT) {
        uint64_t code = (uint64_t)effect->code;
        bool ok = chaos_get_u64(reader, "code", 0, 255, &code);
        effect->code = (int)code;
        return ok;
    }
    if (action == ACTION_HANG || action == ACTION_REMOVE_TOKEN) {
        double milliseconds = -1;
        bool forever = false;
        if (!chaos_get_real(reader, "milliseconds", 0, DAY_MS, &milliseconds) ||
            !chaos_get_true(reader, "forever", &forever)) {
            return false;
        }
        if (forever == (milliseconds >= 0)) {
            return chaos_refuse(reader, "%s needs either \"milliseconds\" or \"forever\": true", name);
        }
        effect->nanoseconds = forever ? CHAOS_FOREVER : (int64_t)(milliseconds * NS_PER_MS);
    }
    return true;
}

bool chaos_parse_fault(const struct chaos_reader *reader, struct chaos_fault *fault) {
    static const char *const fields[] = {"function", "slot", "nth", "every", "probability", "count", NULL};
    if (!json_is_object(reader->value)) {
        return chaos_refuse(reader, "must be an object");
    }
    if (!chaos_parse_function(reader, &fault->function) || !parse_effect(reader, fields, &fault->effect)) {
        return false;
    }
    const char *function = chaos_function_names[fault->function];
    if (!chaos_action_fits(fault->effect.action, fault->function)) {
        return chaos_refuse_key(reader, "action", "%s can't strike %s", chaos_action_names[fault->effect.action],
                                function);
    }
    fault->any_slot = json_object_get(reader->value, "slot") == NULL;
    if (!fault->any_slot && chaos_function_scopes[fault->function] == SCOPE_MODULE) {
        return chaos_refuse_key(reader, "slot", "%s has no slot", function);
    }
    uint64_t slot = 0;
    fault->limit = UINT64_MAX;
    fault->probability = -1;
    if (!chaos_get_u64(reader, "slot", 0, INT64_MAX, &slot)) {
        return false;
    }
    fault->slot = slot;
    bool nth = json_object_get(reader->value, "nth") != NULL, every = json_object_get(reader->value, "every") != NULL;
    bool chance = json_object_get(reader->value, "probability") != NULL;
    if (nth + every + chance != 1) {
        return chaos_refuse(reader, "needs one of \"nth\", \"every\" and \"probability\"");
    }
    fault->when = WHEN_PROBABILITY;
    if (nth || every) {
        fault->when = nth ? WHEN_NTH : WHEN_EVERY;
    }
    if (nth && json_object_get(reader->value, "count") != NULL) {
        return chaos_refuse_key(reader, "count", "has no meaning with \"nth\"");
    }
    return chaos_get_u64(reader, nth ? "nth" : "every", 1, INT64_MAX, &fault->n) &&
           chaos_get_real(reader, "probability", 0, 1, &fault->probability) &&
           chaos_get_u64(reader, "count", 1, INT64_MAX, &fault->limit);
}

static bool parse_random_action(const struct chaos_reader *reader, struct chaos_random *random) {
    if (random->effect_count == sizeof random->effects / sizeof random->effects[0]) {
        return chaos_refuse(reader, "too many actions");
    }
    struct chaos_effect *effect = &random->effects[random->effect_count];
    json_t *object = NULL;
    struct chaos_reader here = *reader;
    if (json_is_string(reader->value)) { /* a bare name, for the actions that need no more */
        object = json_pack("{s:O}", "action", reader->value);
        if (object == NULL) {
            return chaos_refuse(reader, "out of memory");
        }
        here.value = object;
    }
    bool ok = json_is_object(here.value) ? parse_effect(&here, fields_none, effect)
                                         : chaos_refuse(reader, "must be an action's name or an object");
    json_decref(object);
    if (!ok) {
        return false;
    }
    bool fits = false;
    for (int i = 0; i < CHAOS_FUNCTIONS; i++) {
        fits = fits || (random->functions[i] && chaos_action_fits(effect->action, (enum chaos_function)i));
    }
    if (!fits) {
        return chaos_refuse(reader, "%s can't strike any of the functions", chaos_action_names[effect->action]);
    }
    random->effect_count++;
    return true;
}

bool chaos_parse_random(const struct chaos_reader *reader, struct chaos_random *random) {
    static const char *const fields[] = {"seed", "probability", "functions", "actions", NULL};
    random->on = true;
    random->seed = 1;
    if (!chaos_check_object(reader, fields) || !chaos_need(reader, "probability") || !chaos_need(reader, "functions") ||
        !chaos_need(reader, "actions") || !chaos_get_u64(reader, "seed", 0, INT64_MAX, &random->seed) ||
        !chaos_get_real(reader, "probability", 0, 1, &random->probability) ||
        !get_functions(reader, "functions", random->functions)) {
        return false;
    }
    json_t *actions = json_object_get(reader->value, "actions");
    json_t *item;
    if (!json_is_array(actions) || json_array_size(actions) == 0) {
        return chaos_refuse_key(reader, "actions", "must be a non-empty array");
    }
    size_t i;
    struct chaos_at up = {reader->at, "actions", 0};
    json_array_foreach(actions, i, item) {
        struct chaos_at at = {&up, NULL, i};
        struct chaos_reader here = {item, &at, reader->error};
        if (!parse_random_action(&here, random)) {
            return false;
        }
    }
    return true;
}

/* ---- latency and capacity ---- */

bool chaos_parse_latency(const struct chaos_reader *reader, enum chaos_function function,
                         struct chaos_latency *latency) {
    static const char *const kinds[] = {"none", "constant", "uniform", "lognormal", "exponential"};
    static const char *const fields[][16] = {
        {"kind", NULL},
        {"kind", "microseconds", "perByteMicroseconds", "freeBytes", NULL},
        {"kind", "minMicroseconds", "maxMicroseconds", "perByteMicroseconds", "freeBytes", NULL},
        {"kind", "medianMicroseconds", "meanMicroseconds", "sigma", "offsetMicroseconds", "capMicroseconds",
         "perByteMicroseconds", "freeBytes", NULL},
        {"kind", "meanMicroseconds", "offsetMicroseconds", "capMicroseconds", "perByteMicroseconds", "freeBytes", NULL},
    };
    const char *name = NULL;
    if (!json_is_object(reader->value)) {
        return chaos_refuse(reader, "must be an object");
    }
    if (!chaos_need(reader, "kind") || !chaos_get_string(reader, "kind", &name)) {
        return false;
    }
    int kind = 0;
    while (kind < 5 && strcmp(kinds[kind], name) != 0) {
        kind++;
    }
    if (kind == 5) {
        return chaos_refuse_key(reader, "kind", "unknown kind \"%s\"", name);
    }
    struct chaos_latency out = {.kind = (enum chaos_distribution)kind};
    if (!chaos_check_object(reader, fields[kind]) ||
        !chaos_get_real(reader, "offsetMicroseconds", 0, DAY_US, &out.offset) ||
        !chaos_get_real(reader, "capMicroseconds", 0.001, DAY_US, &out.cap) ||
        !chaos_get_real(reader, "perByteMicroseconds", 0, DAY_US, &out.per_byte) ||
        !chaos_get_u64(reader, "freeBytes", 0, INT64_MAX, &out.free_bytes)) {
        return false;
    }
    if (out.per_byte > 0 && function != CHAOS_C_Sign) {
        return chaos_refuse_key(reader, "perByteMicroseconds", "only C_Sign has a message to count");
    }
    switch (out.kind) {
    case LATENCY_NONE:
        break;
    case LATENCY_CONSTANT:
        if (!chaos_need(reader, "microseconds") || !chaos_get_real(reader, "microseconds", 0, DAY_US, &out.a)) {
            return false;
        }
        break;
    case LATENCY_UNIFORM:
        if (!chaos_need(reader, "minMicroseconds") || !chaos_need(reader, "maxMicroseconds") ||
            !chaos_get_real(reader, "minMicroseconds", 0, DAY_US, &out.a) ||
            !chaos_get_real(reader, "maxMicroseconds", out.a, DAY_US, &out.b)) {
            return false;
        }
        break;
    case LATENCY_LOGNORMAL: {
        bool median = json_object_get(reader->value, "medianMicroseconds") != NULL;
        bool mean = json_object_get(reader->value, "meanMicroseconds") != NULL;
        if (median == mean) {
            return chaos_refuse(reader, "needs one of \"medianMicroseconds\" and \"meanMicroseconds\"");
        }
        if (!chaos_need(reader, "sigma") || !chaos_get_real(reader, "sigma", 0, 5, &out.b) ||
            !chaos_get_real(reader, median ? "medianMicroseconds" : "meanMicroseconds", 0, DAY_US, &out.a)) {
            return false;
        }
        if (mean) { /* mean = median * exp(sigma^2 / 2) */
            out.a /= exp(out.b * out.b / 2);
        }
        break;
    }
    case LATENCY_EXPONENTIAL:
        if (!chaos_need(reader, "meanMicroseconds") || !chaos_get_real(reader, "meanMicroseconds", 0, DAY_US, &out.a)) {
            return false;
        }
        break;
    }
    *latency = out;
    return true;
}

bool chaos_parse_latencies(const struct chaos_reader *reader, struct chaos_settings *settings) {
    if (!json_is_object(reader->value)) {
        return chaos_refuse(reader, "must be an object of functions");
    }
    const char *name;
    json_t *value;
    json_object_foreach(reader->value, name, value) {
        struct chaos_at at = {reader->at, name, 0};
        struct chaos_reader here = {value, &at, reader->error};
        enum chaos_function function;
        if (!chaos_function_named(&here, name, &function) ||
            !chaos_parse_latency(&here, function, &settings->latency[function])) {
            return false;
        }
    }
    return true;
}

bool chaos_parse_capacity(const struct chaos_reader *reader, struct chaos_capacity *capacity) {
    static const char *const fields[] = {"servers", "queue", "overflow", "functions", NULL};
    struct chaos_capacity out = {.queue = UINT64_MAX, .overflow = CKR_FUNCTION_FAILED};
    if (!chaos_check_object(reader, fields) || !chaos_need(reader, "servers") ||
        !chaos_get_u64(reader, "servers", 1, 1000000, &out.servers) ||
        !chaos_get_u64(reader, "queue", 0, 1000000, &out.queue) || !chaos_get_ckr(reader, "overflow", &out.overflow)) {
        return false;
    }
    out.chosen = json_object_get(reader->value, "functions") != NULL;
    if (out.chosen && !get_functions(reader, "functions", out.functions)) {
        return false;
    }
    *capacity = out;
    return true;
}
