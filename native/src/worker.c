/* A worker's loop: claim a request, sign, complete, wake the client; sleep when there is nothing to claim. Read
 * session.c and sign.c next, then recover.c. */
#include "list.h"
#include "session.h"

#include <string.h>
#include <sys/prctl.h>

/* Where idle sessions need a call now and then, a parked worker wakes up by itself this often. */
#define PARK_NS UINT64_C(1000000000)
#define KEEP_ALIVE_TIMEOUT_NS UINT64_C(5000000000)

static hsm_status check(hsm_worker *worker, uint32_t key, size_t message_len, const uint8_t *signature) {
    uint32_t place = hsm_key_place(key);
    const hsm_key_record *record = &worker->engine->area->shared->keys[place];
    if (worker->verified_index[place] != key) {
        hsm_verifier_free(worker->verifiers[place]);
        worker->verifiers[place] = NULL;
    }
    if (worker->verifiers[place] == NULL) {
        worker->verifiers[place] =
            hsm_verifier_new((hsm_algorithm)record->algorithm, record->public_key, record->public_key_len);
        if (worker->verifiers[place] == NULL) {
            return HSM_OUT_OF_MEMORY;
        }
        worker->verified_index[place] = key;
    }
    return hsm_verifier_check(worker->verifiers[place], worker->asked, message_len, worker->prehashed, signature,
                              HSM_MAX_SIGNATURE);
}

static hsm_status verify(hsm_worker *worker, uint32_t key, size_t message_len, const uint8_t *signature) {
    uint64_t begun = hsm_now_ns();
    hsm_status status = check(worker, key, message_len, signature);
    uint64_t took = hsm_now_ns() - begun;
    worker->verifying_ns += took;
    hsm_histogram_add(&worker->record->verify, took);
    return status;
}

/* Whether it is the turn of this signature to be verified. */
static bool is_chosen(hsm_worker *worker) {
    uint32_t every = worker->engine->verify_every;
    return every != 0 && ++worker->signed_count % every == 0;
}

/* The module gets a copy for each attempt: it may write into it, and what it has signed is compared with the slot's
 * message, which no module sees. */
static hsm_status sign_once(hsm_worker *worker, uint32_t key, size_t message_len, uint8_t *signature,
                            hsm_outcome *outcome) {
    hsm_engine *engine = worker->engine;
    uint32_t place = hsm_key_place(key);
    const hsm_key_record *pinned = &engine->area->shared->keys[place];
    outcome->call = HSM_CALL_NONE;
    outcome->ckr = CKR_OK;
    if (!worker->session_open) {
        hsm_error error;
        hsm_status status = hsm_worker_open(worker, &error);
        if (status != HSM_OK) {
            outcome->call = HSM_CALL_C_OpenSession;
            outcome->ckr = error.ckr;
            return status;
        }
    }
    CK_OBJECT_HANDLE handle;
    hsm_status status = hsm_worker_handle(worker, place, &handle, outcome);
    /* For each attempt: the ladder may have found that another key answers to the name, or the pinned one again. */
    if (atomic_load_explicit(&pinned->state, memory_order_acquire) == HSM_KEY_MISMATCHED) {
        return HSM_KEY_MISMATCH;
    }
    if (status != HSM_OK) {
        return status;
    }
    memcpy(worker->message, worker->asked, message_len);
    status = hsm_sign(engine->p11, worker->session, handle, (hsm_algorithm)pinned->algorithm, worker->message,
                      message_len, worker->prehashed, signature, outcome);
    uint64_t doubt = UINT64_C(1) << place;
    if (status == HSM_OK && ((worker->doubted & doubt) != 0 || is_chosen(worker))) {
        status = verify(worker, key, message_len, signature);
        /* After a wrong signature, verify each key's until a good one comes: the next attempt must not slip through. */
        worker->doubted = status == HSM_OK ? worker->doubted & ~doubt : UINT64_MAX;
        if (status == HSM_SIGNATURE_INVALID) {
            atomic_fetch_add_explicit(&worker->record->wrong, 1, memory_order_relaxed);
        }
    }
    if (status == HSM_OK) {
        return HSM_OK;
    }
    return hsm_quirks_judge(engine->quirks, status, outcome->ckr, (hsm_algorithm)pinned->algorithm, message_len);
}

static bool is_down(const hsm_area *area) {
    return atomic_load_explicit(&area->shared->down, memory_order_relaxed) != 0;
}

/* Whether the request may begin. `*now` moves on if it had to wait. */
static hsm_status admit(hsm_worker *worker, hsm_slot *slot, uint32_t key, uint64_t *now) {
    const hsm_area *area = worker->engine->area;
    hsm_status status = hsm_area_wanted(slot, *now);
    if (status != HSM_OK) {
        return status;
    }
    if (slot->message_len > area->max_message) {
        return HSM_BAD_ARGUMENT;
    }
    const hsm_key_record *record = &area->shared->keys[hsm_key_place(key)];
    uint32_t state = atomic_load(&record->state);
    uint32_t newest = atomic_load_explicit(&record->index, memory_order_relaxed);
    if ((state == HSM_KEY_ACTIVE || state == HSM_KEY_MISMATCHED) && newest == key) { /* the latter: see sign_once */
        worker->prehashed = slot->prehashed != 0;
        if (worker->prehashed && hsm_takes_digest((hsm_algorithm)record->algorithm, slot->message_len) != HSM_OK) {
            return HSM_BAD_ARGUMENT;
        }
        if (!is_down(area)) {
            return HSM_OK;
        }
        if (hsm_area_withdrawn(slot)) { /* while it was put aside */
            return HSM_CANCELLED;
        }
        bool admitted = hsm_admit_to_token(worker, now, slot->deadline_ns);
        if (slot->deadline_ns != 0 && *now >= slot->deadline_ns) {
            return HSM_DEADLINE_EXCEEDED;
        }
        return admitted ? HSM_OK : HSM_TOKEN_LOST;
    }
    if (state == HSM_KEY_ABSENT) {
        return HSM_KEY_NOT_FOUND;
    }
    if (newest != key) { /* another key has its place by now */
        return key < newest ? HSM_KEY_DEACTIVATED : HSM_BAD_ARGUMENT;
    }
    return HSM_KEY_DEACTIVATED;
}

/* Sign, and climb the ladder after each failure. */
static hsm_status sign_or_recover(hsm_worker *worker, hsm_slot *slot, uint32_t key, size_t message_len, uint64_t begun,
                                  hsm_outcome *outcome) {
    hsm_status status;
    /* A caller in a hurry is no proof that the module hangs. */
    uint64_t patience = begun + worker->engine->patience_ns;
    uint64_t deadline = slot->deadline_ns == 0 || slot->deadline_ns > patience ? slot->deadline_ns : patience;
    atomic_store_explicit(&worker->record->call_deadline_ns, deadline, memory_order_relaxed);
    hsm_worker_enter(worker, begun);
    for (bool first = true;; first = false) {
        status = sign_once(worker, key, message_len, slot->signature, outcome);
        if (status == HSM_OK) {
            if (is_down(worker->engine->area)) {
                hsm_token_answered(worker->engine);
            }
            break;
        }
        uint64_t now = hsm_now_ns();
        atomic_store_explicit(&slot->failed, (uint8_t)status, memory_order_relaxed);
        if (slot->deadline_ns != 0 && now >= slot->deadline_ns) {
            status = HSM_DEADLINE_EXCEEDED; /* as the caller knows already */
            break;
        }
        if (first) {
            hsm_ladder_begin(worker, now, (uint32_t)(slot - worker->engine->area->slot_table));
        }
        if (!hsm_ladder_climb(worker, status)) {
            if (worker->ladder.due_ns != 0) {
                break;
            }
            status = hsm_ladder_verdict(worker, status);
            hsm_token_silent(worker, status, hsm_now_ns());
            break;
        }
    }
    if (worker->probing_ns != 0) {
        hsm_probe_end(worker);
    }
    hsm_worker_leave(worker);
    atomic_store_explicit(&worker->record->call_deadline_ns, 0, memory_order_relaxed);
    return status;
}

/* From here on the request is another worker's. */
static bool put_aside(hsm_worker *worker) {
    atomic_store_explicit(&worker->serving, 0, memory_order_release);
    bool done = hsm_put_aside(worker);
    worker->ladder.due_ns = 0;
    return done;
}

/* Serve one request, which was claimed at `begun`. Returns the time of its end. */
static uint64_t serve(hsm_worker *worker, uint32_t index, uint64_t begun) {
    hsm_area *area = worker->engine->area;
    hsm_slot *slot = hsm_area_slot(area, index);
    hsm_outcome outcome = {HSM_CALL_NONE, CKR_OK};
    uint32_t key = slot->key;
    worker->verifying_ns = 0;
    (void)atomic_exchange(&worker->serving, hsm_key_place(key) + 1U); /* before the look at the key, see is_served */
    hsm_status status = admit(worker, slot, key, &begun);
    if (status == HSM_OK && !hsm_area_begin(slot)) {
        status = HSM_CANCELLED;
        if (worker->probing_ns != 0) { /* another one may be the probe */
            hsm_probe_end(worker);
        }
    }
    uint64_t ended = begun;
    if (status == HSM_OK) {
        size_t message_len = slot->message_len;
        if (message_len > HSM_INLINE_MESSAGE) {
            worker->used = area->max_message;
        }
        worker->asked = hsm_area_message(area, index, message_len);
        if (area->digests && worker->prehashed) {
            memcpy(slot->digest, worker->asked, sizeof slot->digest);
        } else if (area->digests) {
            hsm_sha256(worker->asked, message_len, slot->digest);
        }
        status = sign_or_recover(worker, slot, key, message_len, begun, &outcome);
        ended = hsm_now_ns();
        if (status == HSM_OK) {
            atomic_store_explicit(&worker->answered_ns, ended, memory_order_relaxed);
        } else if (worker->ladder.due_ns != 0 && put_aside(worker)) {
            return ended;
        }
    }
    hsm_area_answer(area, worker->index, index,
                    &(hsm_ending){.status = status,
                                  .call = outcome.call,
                                  .ckr = outcome.ckr,
                                  .begun_ns = begun,
                                  .ended_ns = ended,
                                  .verify_ns = worker->verifying_ns});
    atomic_store_explicit(&worker->serving, 0, memory_order_release);
    return ended;
}

/* With so many requests open, a module that is faster than the client waits for it at every turn. */
#define MANY 32U

/* Wait for a request in a way that spares the client the system call, if no other worker does: by polling, or beside
 * many that are open by sleeping while the client brings more. Beside a call that takes longer than this does, a system
 * call is little. */
static bool spin(hsm_worker *worker) {
    hsm_area *area = worker->engine->area;
    uint32_t none = 0;
    if (worker->took_ns >= worker->engine->spin_ns ||
        !atomic_compare_exchange_strong(&area->shared->spinning, &none, 1)) {
        return false;
    }
    uint64_t until = hsm_now_ns() + worker->engine->spin_ns;
    bool found = false;
    if (atomic_load_explicit(&area->shared->in_flight, memory_order_relaxed) >= MANY) {
        hsm_sleep(worker->engine->spin_ns);
        until = 0;
    }
    do {
        for (int i = 0; i < 32 && !found; i++) {
            hsm_relax();
            found = hsm_area_queued(area) != 0;
        }
    } while (!found && hsm_now_ns() < until &&
             atomic_load_explicit(&area->shared->mode, memory_order_relaxed) == HSM_MODE_RUN);
    atomic_store(&area->shared->spinning, 0);
    return found;
}

/* Make a small call in a session that has been idle for long, before the device closes it. */
static void keep_alive(hsm_worker *worker) {
    hsm_engine *engine = worker->engine;
    uint64_t now = hsm_now_ns();
    if (engine->quirks->keepalive_s == 0 || hsm_area_queued(engine->area) != 0 || !worker->session_open ||
        now - worker->last_used_ns < (uint64_t)engine->quirks->keepalive_s * 1000000000U) {
        return;
    }
    CK_BYTE random;
    worker->last_used_ns = now;
    atomic_store_explicit(&worker->record->call_deadline_ns, now + KEEP_ALIVE_TIMEOUT_NS, memory_order_relaxed);
    hsm_worker_enter(worker, now);
    /* While this worker waited at the gate, its session may have been closed and the number given to another one. */
    if (worker->session_open && hsm_status_class(hsm_status_of_ckr(
                                    engine->p11->C_GenerateRandom(worker->session, &random, 1))) == HSM_CLASS_REOPEN) {
        hsm_worker_close(worker); /* the next request opens another */
    }
    hsm_worker_leave(worker);
    atomic_store_explicit(&worker->record->call_deadline_ns, 0, memory_order_relaxed);
}

/* 0: without limit. */
static uint64_t longest_sleep(const hsm_worker *worker) {
    uint64_t sleep = worker->engine->quirks->keepalive_s != 0 ? PARK_NS : 0;
    uint64_t due = hsm_aside_due(worker->engine);
    if (due != 0) {
        uint64_t now = hsm_now_ns();
        due = due > now ? due - now : 1;
        sleep = sleep == 0 || due < sleep ? due : sleep;
    }
    return sleep;
}

/* Wake another worker if requests are left: the wake of this one may have been for several, or for one that it does not
 * serve, being quarantined. */
static void pass_wake_on(hsm_area *area, bool waited) {
    if (waited && hsm_area_queued(area) != 0) {
        hsm_area_unpark(area, 1);
    }
}

/* Wait for a request. Returns false when the engine stops; `waited` says whether time has passed. */
static bool next_request(hsm_worker *worker, uint32_t *index, bool *waited) {
    hsm_area *area = worker->engine->area;
    *waited = false;
    for (;;) {
        uint32_t mode = atomic_load_explicit(&area->shared->mode, memory_order_acquire);
        bool leaves =
            mode == HSM_MODE_STOPPING || atomic_load_explicit(&worker->record->quarantined, memory_order_relaxed) != 0;
        bool aside = atomic_load_explicit(&worker->engine->aside_count, memory_order_relaxed) != 0;
        if (leaves || (mode == HSM_MODE_RUN &&
                       ((aside && hsm_take_aside(worker, hsm_now_ns(), index)) || hsm_area_claim(area, index)))) {
            pass_wake_on(area, *waited);
            if (*waited && aside) {
                hsm_area_unpark(area, 1);
            }
            return !leaves;
        }
        *waited = true;
        if (!spin(worker)) {
            hsm_area_park(area, worker->index, longest_sleep(worker));
            keep_alive(worker);
        }
    }
}

static void run(hsm_worker *worker) {
    hsm_client *client = worker->engine->client;
    hsm_area *area = worker->engine->area;
    uint64_t now = hsm_now_ns();
    uint32_t index;
    bool waited;
    worker->last_used_ns = now;
    while (next_request(worker, &index, &waited)) {
        uint64_t begun = waited ? hsm_now_ns() : now;
        worker->slot = index & (area->slots - 1U); /* the area may be shared with a process that misbehaves */
        now = serve(worker, worker->slot, begun);
        worker->slot = HSM_NONE;
        worker->last_used_ns = now;
        worker->took_ns = now - begun;
        bool urgent = hsm_is_urgent(worker, begun, now);
        hsm_notify(area, client->event_fd, client->timer_fd, urgent, now, worker->record);
    }
}

/* Tell the engine how the start went. Returns whether the worker goes on. */
static bool announce(hsm_worker *worker, hsm_status status, const hsm_error *error) {
    hsm_engine *engine = worker->engine;
    /* A replacement goes on without a session: it opens one with the first request, on the ladder. */
    bool goes_on = status == HSM_OK || worker->replacement;
    worker->announced = true;
    (void)pthread_mutex_lock(&engine->state);
    engine->starting--;
    if (goes_on) {
        engine->running++;
        worker->running = true;
        atomic_store(&worker->record->running, 1);
    } else if (engine->start_error.status == HSM_OK) {
        engine->start_error = *error;
    }
    (void)pthread_cond_broadcast(&engine->changed);
    (void)pthread_mutex_unlock(&engine->state);
    return goes_on;
}

/* The module has ended this thread in a call. Answer its request, and let go of what others would wait for. */
static void give_up(hsm_worker *worker) {
    hsm_engine *engine = worker->engine;
    hsm_error error;
    hsm_status status = hsm_engine_let_go(engine, "C_OpenSession", &error);
    if (worker->probing_ns != 0) {
        hsm_probe_end(worker);
    }
    if (worker->session_open) { /* it is the module's to close */
        hsm_count(HSM_RESOURCE_SESSION, -1);
        worker->session_open = false;
    }
    hsm_worker_leave(worker);
    atomic_store(&worker->record->call_deadline_ns, 0);
    atomic_store(&worker->serving, 0);
    if (worker->slot != HSM_NONE) {
        hsm_area_fail(engine->area, worker->slot, HSM_TOKEN_LOST);
        hsm_notify(engine->area, engine->client->event_fd, engine->client->timer_fd, true, 0, worker->record);
    }
    if (!worker->announced) {
        (void)announce(worker, status, &error);
    }
}

/* The end of the thread, also of one that the module ends. */
static void finish(void *argument) {
    hsm_worker *worker = argument;
    hsm_engine *engine = worker->engine;
    if (!worker->returned) {
        give_up(worker);
    }
    for (size_t i = 0; i < HSM_MAX_KEYS; i++) {
        hsm_verifier_free(worker->verifiers[i]);
        worker->verifiers[i] = NULL;
    }
    hsm_wipe(worker->message, worker->used);
    (void)pthread_mutex_lock(&engine->state);
    if (worker->running) {
        engine->running--;
        worker->running = false;
        atomic_store(&worker->record->running, 0);
        atomic_store(&worker->record->quarantined, 0);
    }
    atomic_store(&worker->thread_state, HSM_THREAD_ENDED);
    (void)pthread_cond_broadcast(&engine->changed);
    (void)pthread_mutex_unlock(&engine->state);
}

static void work(hsm_worker *worker) {
    hsm_engine *engine = worker->engine;
    hsm_error error = {.status = HSM_OK};
    if (engine->quirks->open_pause_ms != 0 && !worker->replacement) {
        hsm_sleep((uint64_t)worker->index * engine->quirks->open_pause_ms * 1000000U);
    }
    hsm_worker_enter(worker, hsm_now_ns());
    hsm_status status = hsm_worker_open(worker, &error);
    hsm_worker_leave(worker);
    atomic_store(&worker->record->call_deadline_ns, 0); /* see hsm_worker_start */
    if (announce(worker, status, &error)) {
        run(worker);
        hsm_worker_enter(worker, hsm_now_ns());
        hsm_worker_close(worker);
        hsm_worker_leave(worker);
    }
    worker->returned = true;
}

void *hsm_worker_main(void *argument) {
    (void)prctl(PR_SET_NAME, "hsm-worker");
    pthread_cleanup_push(finish, argument);
    work(argument);
    pthread_cleanup_pop(1);
    return NULL;
}
