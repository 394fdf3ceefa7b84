/* Which call a fault strikes: counters and chances that depend on nothing but the order of calls and a seed. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "chaos.h"

#define STREAM_RANDOM UINT64_C(2000)
#define STREAM_CHOICE UINT64_C(3000)
#define STREAM_FAULT UINT64_C(4000)

const char *const chaos_action_names[CHAOS_ACTIONS] = {
#define CHAOS_ACTION(name, text) text,
#include "actions.def"
#undef CHAOS_ACTION
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* adding only; calls walk the lists without it */
static struct chaos_fault *_Atomic heads[CHAOS_FUNCTIONS];
static struct chaos_fault *all;
static uint64_t streams;
static struct chaos_random random_storage;
static const struct chaos_random *_Atomic random_faults;
static atomic_uint_fast64_t struck[CHAOS_ACTIONS], skipped;

bool chaos_action_fits(enum chaos_action action, enum chaos_function function) {
    enum chaos_scope scope = chaos_function_scopes[function];
    switch (action) {
    case ACTION_KILL_SESSION:
        return scope == SCOPE_SESSION;
    case ACTION_KILL_ALL_SESSIONS:
    case ACTION_LOGOUT:
    case ACTION_REMOVE_TOKEN:
        return scope != SCOPE_MODULE;
    case ACTION_WRONG_SIGNATURE:
    case ACTION_LONG_SIGNATURE:
    case ACTION_SHORT_SIGNATURE:
        return function == CHAOS_C_Sign || function == CHAOS_C_SignFinal;
    case ACTION_OTHER_KEY_SIGNATURE:
        return function == CHAOS_C_Sign; /* the message must be at hand */
    case ACTION_RECYCLE_HANDLE:
        return function == CHAOS_C_SignInit || function == CHAOS_C_Sign || function == CHAOS_C_FindObjects;
    default:
        return true;
    }
}

void chaos_fault_add(struct chaos_fault *fault) {
    (void)pthread_mutex_lock(&lock);
    fault->stream = STREAM_FAULT + streams++;
    fault->all = all;
    all = fault;
    struct chaos_fault *_Atomic *link = &heads[fault->function];
    while (atomic_load(link) != NULL) {
        link = &atomic_load(link)->next;
    }
    atomic_store_explicit(link, fault, memory_order_release);
    (void)pthread_mutex_unlock(&lock);
}

void chaos_random_set(struct chaos_random *random) {
    random_storage = *random;
    atomic_store(&random_faults, random->on ? &random_storage : NULL);
}

void chaos_faults_clear(void) {
    (void)pthread_mutex_lock(&lock);
    for (int i = 0; i < CHAOS_FUNCTIONS; i++) {
        atomic_store(&heads[i], NULL);
    }
    atomic_store(&random_faults, NULL);
    (void)pthread_mutex_unlock(&lock);
}

void chaos_faults_reset(bool free_them) {
    (void)pthread_mutex_init(&lock, NULL);
    chaos_faults_clear();
    while (free_them && all != NULL) {
        struct chaos_fault *next = all->all;
        free(all);
        all = next;
    }
    all = NULL;
    streams = 0;
    for (int i = 0; i < CHAOS_ACTIONS; i++) {
        atomic_store(&struck[i], 0);
    }
    atomic_store(&skipped, 0);
}

/* ---- the choice ---- */

static bool strikes(struct chaos_fault *fault) {
    uint64_t seen = atomic_fetch_add_explicit(&fault->seen, 1, memory_order_relaxed) + 1;
    bool hit = false;
    switch (fault->when) {
    case WHEN_NTH:
        hit = seen == fault->n;
        break;
    case WHEN_EVERY:
        hit = seen % fault->n == 0;
        break;
    case WHEN_PROBABILITY:
        hit = chaos_unit(chaos_draw(chaos_config.seed, fault->stream, seen)) < fault->probability;
        break;
    }
    return hit && atomic_fetch_add_explicit(&fault->struck, 1, memory_order_relaxed) < fault->limit;
}

static bool pick_random(const struct chaos_random *random, const struct chaos_call *call, struct chaos_effect *effect) {
    uint64_t function = (uint64_t)call->function;
    if (!random->functions[call->function] ||
        chaos_unit(chaos_draw(random->seed, STREAM_RANDOM + function, call->number)) >= random->probability) {
        return false;
    }
    const struct chaos_effect *fitting[sizeof random->effects / sizeof random->effects[0]];
    size_t count = 0;
    for (size_t i = 0; i < random->effect_count; i++) {
        if (chaos_action_fits(random->effects[i].action, call->function)) {
            fitting[count++] = &random->effects[i];
        }
    }
    if (count > 0) {
        *effect = *fitting[chaos_draw(random->seed, STREAM_CHOICE + function, call->number) % count];
    }
    return count > 0;
}

/* The first fault that wants the call has it; the others have counted it. */
bool chaos_fault_pick(const struct chaos_call *call, struct chaos_effect *effect) {
    bool picked = false;
    struct chaos_fault *fault = atomic_load_explicit(&heads[call->function], memory_order_acquire);
    for (; fault != NULL; fault = atomic_load_explicit(&fault->next, memory_order_acquire)) {
        bool here = fault->any_slot || (call->slot->real && call->slot->id == fault->slot);
        if (here && !picked && strikes(fault)) {
            *effect = fault->effect;
            picked = true;
        } else if (here && picked) {
            (void)atomic_fetch_add_explicit(&fault->seen, 1, memory_order_relaxed);
        }
    }
    const struct chaos_random *random = atomic_load_explicit(&random_faults, memory_order_acquire);
    return picked || (random != NULL && pick_random(random, call, effect));
}

/* ---- counters ---- */

void chaos_fault_count(enum chaos_action action) {
    (void)atomic_fetch_add(&struck[action], 1);
}
uint64_t chaos_faults_struck(enum chaos_action action) {
    return atomic_load(&struck[action]);
}
uint64_t chaos_faults_skipped(void) {
    return atomic_load(&skipped);
}

void chaos_fault_skip(const struct chaos_call *call, enum chaos_action action, const char *why) {
    (void)atomic_fetch_add(&skipped, 1);
    chaos_log("%s call %llu: %s skipped: %s", chaos_function_names[call->function], (unsigned long long)call->number,
              chaos_action_names[action], why);
}
