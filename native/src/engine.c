/* The engine's life: load the module, find the token, log in, start the workers; stop. Read worker.c next. */
#include "engine.h"

#include <errno.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "token.h"

static hsm_status check_options(const hsm_client *client, const hsm_engine_options *options, hsm_error *error) {
    if (client->fork_generation != hsm_fork_generation()) {
        return hsm_fail(error, HSM_FORKED, "", "the client belongs to the parent process");
    }
    if (options->module_path == NULL) {
        return hsm_fail(error, HSM_BAD_ARGUMENT, "", "no module path");
    }
    if (options->workers < 1 || options->workers > client->area->max_workers) {
        return hsm_fail(error, HSM_BAD_ARGUMENT, "", "workers: %u is not within 1..%u", options->workers,
                        client->area->max_workers);
    }
    if (options->quirks != NULL && !hsm_quirks_known(options->quirks)) {
        return hsm_fail(error, HSM_BAD_ARGUMENT, "", "no quirks named '%s'", options->quirks);
    }
    return HSM_OK;
}

static void disclaim(void *module) {
    hsm_module_disclaim(module);
}

/* Initialize the module again, if no other engine uses it. Releases the claim. */
static hsm_status initialize_alone(hsm_engine *engine, hsm_error *error) {
    bool alone = engine->module->first == engine && engine->next == NULL;
    hsm_status status;
    pthread_cleanup_push(disclaim, engine->module); /* a module may end its thread in a call */
    status = alone ? hsm_module_reinitialize(engine->module, error) : HSM_TOKEN_NOT_FOUND;
    pthread_cleanup_pop(1);
    return status;
}

/* Milliseconds before each new look for a token that is not there. */
static const uint64_t look_pauses[] = {0, 10, 30, 90};

/* Call in a turn. A token that is not there is looked for again after another C_Initialize, where no other engine uses
 * the module: its slots are of the first one. Where a login hides it for a moment, and other software takes no turns,
 * one more look can fall into the next login. */
static hsm_status find_token(hsm_engine *engine, const hsm_token_selector *selector, hsm_error *error) {
    hsm_status status = hsm_token_find(engine->p11, selector, &engine->token, error);
    size_t looks = engine->quirks->login_hides_token ? sizeof look_pauses / sizeof look_pauses[0] : 1;
    for (size_t i = 0; i < looks && status == HSM_TOKEN_NOT_FOUND; i++) {
        hsm_sleep(look_pauses[i] * 1000000U);
        if (!hsm_module_claim(engine->module)) {
            return status;
        }
        hsm_status initialized = initialize_alone(engine, error);
        if (initialized != HSM_OK) {
            return initialized;
        }
        status = hsm_token_find(engine->p11, selector, &engine->token, error);
    }
    return status;
}

static hsm_status open_token(hsm_engine *engine, const hsm_engine_options *options, hsm_error *error) {
    CK_INFO info = {0};
    CK_RV rv = engine->p11->C_GetInfo(&info);
    if (rv != CKR_OK) {
        return hsm_fail_ckr(error, rv, "C_GetInfo", "%s", options->module_path);
    }
    engine->quirks = options->quirks != NULL ? hsm_quirks_of_name(options->quirks) : hsm_quirks_of_info(&info);
    if (engine->patience_ns == 0) {
        engine->patience_ns = (uint64_t)engine->quirks->patience_ms * 1000000U;
    }
    engine->selector.label = hsm_strdup(options->token.label);
    engine->selector.serial = hsm_strdup(options->token.serial);
    engine->selector.slot_id = options->token.slot_id;
    if ((options->token.label != NULL && engine->selector.label == NULL) ||
        (options->token.serial != NULL && engine->selector.serial == NULL)) {
        return hsm_fail(error, HSM_OUT_OF_MEMORY, "", "token"); /* without them, any token would do after an outage */
    }
    hsm_status status = find_token(engine, &options->token, error);
    if (status != HSM_OK) {
        return status;
    }
    /* The engine stays with this token, even if another one by that name is plugged in later. */
    if (engine->selector.serial == NULL && engine->token.serial[0] != '\0') {
        engine->selector.serial = hsm_strdup(engine->token.serial);
        if (engine->selector.serial == NULL) {
            return hsm_fail(error, HSM_OUT_OF_MEMORY, "", "token");
        }
    }
    engine->slot = engine->token.slot_id;
    char description[sizeof info.libraryDescription + 1];
    hsm_copy_padded(description, sizeof description, info.libraryDescription, sizeof info.libraryDescription);
    (void)snprintf(engine->token.library, sizeof engine->token.library, "%s %u.%u", description,
                   (unsigned)info.libraryVersion.major, (unsigned)info.libraryVersion.minor);
    (void)snprintf(engine->token.quirks, sizeof engine->token.quirks, "%s", engine->quirks->name);
    uint32_t bearable = engine->quirks->sessions;
    engine->worker_count = bearable != 0 && bearable < options->workers ? bearable : options->workers;
    if (engine->token.max_sessions != 0 && engine->worker_count + 1U > engine->token.max_sessions) {
        return hsm_fail(error, HSM_BAD_ARGUMENT, "C_GetTokenInfo",
                        "sessions: %u and the login session are more than the token's limit of %llu",
                        engine->worker_count, (unsigned long long)engine->token.max_sessions);
    }
    return HSM_OK;
}

static hsm_status start_workers(hsm_engine *engine, hsm_error *error) {
    uint32_t count = engine->worker_count;
    engine->workers = hsm_alloc(engine->area->max_workers * sizeof *engine->workers);
    if (engine->workers == NULL) {
        return hsm_fail(error, HSM_OUT_OF_MEMORY, "", "workers");
    }
    engine->aside = hsm_alloc(engine->area->slots * sizeof *engine->aside);
    if (engine->aside == NULL) {
        return hsm_fail(error, HSM_OUT_OF_MEMORY, "", "requests put aside");
    }
    engine->worker_slots = engine->area->max_workers;
    engine->starting = count;
    for (uint32_t i = 0; i < count; i++) {
        hsm_status status = hsm_worker_start(engine, i, false);
        if (status != HSM_OK) {
            status = status == HSM_SYSTEM ? hsm_fail_errno(error, "pthread_create", "worker")
                                          : hsm_fail(error, status, "", "worker");
            (void)pthread_mutex_lock(&engine->state);
            engine->starting -= count - i;
            (void)pthread_mutex_unlock(&engine->state);
            return status;
        }
    }
    (void)pthread_mutex_lock(&engine->state);
    while (engine->starting > 0) {
        (void)pthread_cond_wait(&engine->changed, &engine->state);
    }
    hsm_status status = engine->start_error.status;
    if (status != HSM_OK && error != NULL) {
        *error = engine->start_error;
    }
    (void)pthread_mutex_unlock(&engine->state);
    return status;
}

static hsm_engine *allocate(hsm_client *client, const hsm_engine_options *options) {
    hsm_engine *engine = hsm_alloc(sizeof *engine);
    if (engine == NULL) {
        return NULL;
    }
    engine->client = client;
    atomic_fetch_add(&client->users, 1);
    engine->area = client->area;
    engine->spin_ns = options->spin_ns;
    engine->patience_ns = options->patience_ns;
    engine->verify_every = options->verify_every;
    engine->fork_generation = hsm_fork_generation();
    pthread_condattr_t attributes;
    (void)pthread_condattr_init(&attributes);
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_mutex_init(&engine->control, NULL);
    (void)pthread_mutex_init(&engine->state, NULL);
    (void)pthread_mutex_init(&engine->aside_lock, NULL);
    (void)pthread_cond_init(&engine->changed, &attributes);
    (void)pthread_condattr_destroy(&attributes);
    return engine;
}

typedef struct beginning {
    hsm_engine *engine;
    const hsm_engine_options *options;
} beginning;

static hsm_status begin(void *argument, hsm_error *error) {
    const beginning *self = argument;
    hsm_engine *engine = self->engine;
    const hsm_engine_options *options = self->options;
    hsm_turn_begin(options->quirks, options->module_path);
    hsm_status status = hsm_module_acquire(options->module_path, options->module_args, &engine->module, error);
    hsm_engine_lock(engine); /* no other engine initializes the module again until the workers run */
    if (status == HSM_OK) {
        hsm_engine_join(engine);
        engine->p11 = engine->module->p11;
        status = open_token(engine, options, error);
    }
    HSM_THEN(status, hsm_engine_login(engine, error));
    hsm_turn_end();
    HSM_THEN(status, start_workers(engine, error));
    hsm_engine_unlock(engine);
    return status;
}

hsm_status hsm_engine_start(hsm_client *client, const hsm_engine_options *options, hsm_engine **out, hsm_error *error) {
    *out = NULL;
    hsm_status status = check_options(client, options, error);
    if (status != HSM_OK) {
        return status;
    }
    if (sodium_init() < 0) {
        return hsm_fail(error, HSM_SYSTEM, "sodium_init", "libsodium");
    }
    hsm_engine *engine = allocate(client, options);
    if (engine == NULL) {
        return hsm_fail(error, HSM_OUT_OF_MEMORY, "", "engine");
    }
    engine->keep_queued = atomic_load(&engine->area->shared->mode) == HSM_MODE_PAUSED;
    if (!engine->keep_queued) {
        /* This host replaces no other one: the state of an earlier engine does not count. */
        atomic_store(&engine->area->shared->mode, HSM_MODE_RUN);
        atomic_store(&engine->area->shared->down, 0);
    }
    hsm_keys_begin(engine);
    engine->pin_len = options->pin_len;
    if (!hsm_secret_copy(options->pin, options->pin_len, &engine->pin)) {
        status = hsm_fail(error, HSM_OUT_OF_MEMORY, "sodium_malloc", "locked memory for the PIN");
    }
    beginning self = {.engine = engine, .options = options};
    HSM_THEN(status, hsm_visit(engine, begin, &self, error));
    if (status != HSM_OK) {
        /* A host that does not start leaves queued requests to the next one. */
        hsm_area *area = engine->area;
        bool paused = engine->keep_queued;
        (void)hsm_engine_stop(engine, UINT64_MAX);
        if (paused) {
            atomic_store(&area->shared->mode, HSM_MODE_PAUSED);
        }
        return status;
    }
    engine->keep_queued = false;
    *out = engine;
    return HSM_OK;
}

/* Answer the requests that no worker will take any more. */
static void complete_queued(hsm_engine *engine) {
    uint32_t index;
    static hsm_worker_record unread; /* the wake counts for no worker */
    bool any = false;
    hsm_worker none = {.engine = engine, .others_first = true};
    while (hsm_take_aside(&none, UINT64_MAX, &index) || hsm_area_claim(engine->area, &index)) {
        hsm_area_fail(engine->area, index, HSM_CLOSED);
        any = true;
    }
    if (any) {
        hsm_notify(engine->area, engine->client->event_fd, engine->client->timer_fd, true, 0, &unread);
    }
}

/* How many threads use the engine. Call with `state` held. */
static uint32_t inside(const hsm_engine *engine) {
    return engine->running + engine->starting + engine->visitors;
}

/* Wait until no thread uses the engine and, if `ended`, nothing of it is left in the module; or until a time. Call with
 * `state` held. Returns how many threads are in its way. */
static uint32_t wait_for_threads(hsm_engine *engine, bool ended, uint64_t until_ns) {
    struct timespec until = hsm_timespec(until_ns);
    uint32_t left;
    while ((left = inside(engine)) > 0 || (left = ended && !engine->ended) > 0) {
        if (pthread_cond_timedwait(&engine->changed, &engine->state, &until) == ETIMEDOUT) {
            break;
        }
    }
    return left;
}

static void destroy(hsm_engine *engine) {
    for (uint32_t i = 0; i < engine->worker_slots; i++) {
        hsm_free(engine->workers[i].message);
    }
    hsm_free(engine->workers);
    hsm_free(engine->aside);
    hsm_free((void *)(uintptr_t)engine->selector.label);
    hsm_free((void *)(uintptr_t)engine->selector.serial);
    for (size_t i = 0; i < HSM_MAX_KEYS; i++) {
        hsm_free(engine->keys[i].label);
    }
    if (engine->pin != NULL) {
        sodium_free(engine->pin); /* wipes */
    }
    (void)pthread_cond_destroy(&engine->changed);
    (void)pthread_mutex_destroy(&engine->state);
    (void)pthread_mutex_destroy(&engine->aside_lock);
    (void)pthread_mutex_destroy(&engine->control);
    hsm_client_free(engine->client);
    hsm_free(engine);
}

/* The last calls of the module: close the login session, and finalize it if this was its last user. No C_Logout: it
 * would end the login for every other user of the token in this process. Closing the last session ends it too. */
static void close_login(hsm_engine *engine) {
    hsm_engine_lock(engine); /* another engine may be about to initialize the module again */
    hsm_engine_close_login(engine);
    hsm_engine_unlock(engine);
}

/* Again for a thread that the module ends in here after it has ended it once. */
static void leave_module(void *argument) {
    hsm_engine *engine = argument;
    hsm_module *module = engine->module;
    (void)hsm_engine_let_go(engine, "", NULL);
    if (module != NULL) {
        hsm_engine_leave(engine);
        engine->module = NULL;
        hsm_module_release(module);
    }
}

/* Nothing of it is left in the module. */
static void note_end(void *argument) {
    hsm_engine *engine = argument;
    for (uint32_t i = 0; i < engine->worker_slots; i++) {
        hsm_worker_reap(&engine->workers[i]);
    }
    (void)pthread_mutex_lock(&engine->state);
    engine->ended = true;
    bool left_behind = engine->left_behind;
    (void)pthread_cond_broadcast(&engine->changed);
    (void)pthread_mutex_unlock(&engine->state);
    if (left_behind) {
        destroy(engine);
        hsm_count(HSM_RESOURCE_THREAD, -1);
    }
}

/* The ender's thread: when no thread uses the engine any more, end what it has in the module; free an engine that was
 * left behind. A module may end it in a call: the steps after that one are taken all the same. */
static void *end(void *argument) {
    hsm_engine *engine = argument;
    (void)pthread_mutex_lock(&engine->state);
    (void)wait_for_threads(engine, false, UINT64_MAX);
    (void)pthread_mutex_unlock(&engine->state);
    pthread_cleanup_push(note_end, engine);
    pthread_cleanup_push(leave_module, engine);
    close_login(engine);
    pthread_cleanup_pop(1);
    pthread_cleanup_pop(1);
    return NULL;
}

uint32_t hsm_engine_stop(hsm_engine *engine, uint64_t timeout_ns) {
    if (engine == NULL || engine->fork_generation != hsm_fork_generation()) {
        return 0;
    }
    (void)pthread_mutex_lock(&engine->state); /* no guest comes after this */
    atomic_store(&engine->closing, true);
    (void)pthread_mutex_unlock(&engine->state);
    atomic_store(&engine->area->shared->mode, HSM_MODE_STOPPING);
    hsm_area_unpark_all(engine->area);
    hsm_probe_waiters_wake(engine);
    uint64_t now = hsm_now_ns();
    uint64_t until = timeout_ns > UINT64_MAX - now ? UINT64_MAX : now + timeout_ns;
    pthread_t ender;
    bool started = hsm_thread_start(&ender, end, engine) == 0;
    (void)pthread_mutex_lock(&engine->state);
    uint32_t left = wait_for_threads(engine, false, until);
    (void)pthread_mutex_unlock(&engine->state);
    if (!engine->keep_queued) {
        complete_queued(engine);
    }
    if (!started && left == 0) {
        (void)end(engine);
    }
    (void)pthread_mutex_lock(&engine->state);
    left = wait_for_threads(engine, true, until);
    engine->left_behind = left > 0;
    if (left > 0) {
        hsm_engine_wipe_pin(engine); /* a thread may still point to the engine, but logs in no more */
        if (started) {
            (void)pthread_detach(ender);
        }
    }
    (void)pthread_mutex_unlock(&engine->state);
    if (left > 0) {
        return left;
    }
    if (started) {
        hsm_thread_join(ender);
    }
    destroy(engine);
    return 0;
}

void hsm_engine_token(const hsm_engine *engine, hsm_token_info *info) {
    *info = engine->token;
}
