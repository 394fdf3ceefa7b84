/* Through the engine: one thread submits what is due, takes completions, and sleeps until either has more to do. It
 * plays the event loop's part: cache and single-flight, deadlines, supervision of workers that hang. */
#include "load.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#define BURST 32U                        /* starts between two looks at completions */
#define SWEEP_NS UINT64_C(5000000)       /* how often deadlines are looked at */
#define SUPERVISE_NS UINT64_C(100000000) /* how often workers are looked after, */
#define WATCH_NS UINT64_C(2500000000)    /* for so long after a deadline has passed */
#define GRACE_NS UINT64_C(2000000000)    /* after the last deadline nothing is waited for any longer */
#define SPIN_NS UINT64_C(15000)          /* a sleep shorter than this would cost more than it leaves to others */
#define NONE UINT32_MAX

/* A request that waits for the answer to the same message in another slot. */
typedef struct follower {
    load_request request;
    uint32_t next;
} follower;

typedef struct place {
    load_request request;
    uint64_t deadline;
    uint64_t entry;     /* in the cache, or 0 */
    uint32_t followers; /* index of the first one, or NONE */
    bool used;
    bool answered; /* at its deadline: the answer that is still to come is thrown away */
} place;

static struct {
    hsm_client *client;
    hsm_engine *engine;
    hsm_cache *cache;
    uint32_t key;
    hsm_algorithm algorithm;
    int event_fd, timer_fd;

    load_run *run;
    load_tally *tally;
    place *places;
    follower *followers;
    uint32_t follower_room;
    uint32_t free_follower;
    uint64_t open_requests; /* started and not answered, followers included */
    uint64_t sweep_at, supervise_at, watch_until;
    uint8_t *message;
} ring;

static void open_ring(const load_settings *settings, hsm_key_info *info) {
    hsm_error error = {.status = HSM_OK};
    hsm_client_options client = {.slots = settings->slots,
                                 .max_message = settings->max_message,
                                 .max_workers = settings->workers * 2U <= HSM_MAX_WORKERS ? settings->workers * 2U
                                                                                          : HSM_MAX_WORKERS,
                                 .digests = settings->digests ? 1U : 0U,
                                 .coalesce_ns = settings->coalesce_ns};
    hsm_status status = hsm_client_new(&client, &ring.client, &error);
    if (status == HSM_OK) {
        hsm_engine_options engine = {.module_path = settings->module,
                                     .module_args = settings->module_args,
                                     .quirks = settings->quirks,
                                     .token = {settings->token_label, settings->token_serial, settings->slot_id},
                                     .pin = settings->pin,
                                     .pin_len = settings->pin_len,
                                     .workers = settings->workers,
                                     .spin_ns = settings->spin_ns,
                                     .warm_ns = settings->warm_ns,
                                     .patience_ns = settings->patience_ns,
                                     .verify_every = settings->verify_every};
        status = hsm_engine_start(ring.client, &engine, &ring.engine, &error);
    }
    if (status == HSM_OK) {
        hsm_key_selector wanted = load_key_selector(settings);
        status = hsm_engine_add_key(ring.engine, &wanted, info, &error);
    }
    if (status != HSM_OK) {
        load_fail("%s %s: %s", error.call, hsm_status_name(status), error.detail);
    }
    ring.key = info->index;
    ring.algorithm = info->algorithm;
    if (settings->cache > 0 && hsm_algorithm_is_deterministic(info->algorithm) != 0 &&
        hsm_cache_new(settings->cache, &ring.cache) != HSM_OK) {
        load_fail("out of memory");
    }
    hsm_client_wake_fds(ring.client, &ring.event_fd, &ring.timer_fd);
}

/* ---- followers: a list in each place, and one of those that are free ---- */

static uint32_t new_follower(void) {
    if (ring.free_follower == NONE) {
        uint32_t room = ring.follower_room == 0 ? 1024U : ring.follower_room * 2U;
        follower *grown = realloc(ring.followers, room * sizeof *grown);
        if (grown == NULL) {
            load_fail("out of memory");
        }
        ring.followers = grown;
        for (uint32_t i = ring.follower_room; i < room; i++) {
            ring.followers[i].next = i + 1U < room ? i + 1U : NONE;
        }
        ring.free_follower = ring.follower_room;
        ring.follower_room = room;
    }
    uint32_t index = ring.free_follower;
    ring.free_follower = ring.followers[index].next;
    return index;
}

static uint32_t drop_follower(uint32_t index) {
    uint32_t next = ring.followers[index].next;
    ring.followers[index].next = ring.free_follower;
    ring.free_follower = index;
    return next;
}

/* ---- starting ---- */

static void answer(const load_request *request, uint64_t now, hsm_status status, const uint8_t *signature,
                   bool cached) {
    load_tally_answered(ring.tally, request, now, status, signature, cached);
    ring.open_requests--;
}

static void follow(uint32_t slot, const load_request *request) {
    uint32_t index = new_follower();
    ring.followers[index].request = *request;
    ring.followers[index].next = ring.places[slot].followers;
    ring.places[slot].followers = index;
}

/* Start one request. False when every slot is taken: then it has not been started. */
static bool start(load_request *request) {
    const load_settings *settings = ring.run->settings;
    if (hsm_client_free_slots(ring.client) == 0) {
        return false;
    }
    size_t size = load_message(&ring.run->messages, request->number, ring.message);
    uint8_t signature[HSM_MAX_SIGNATURE];
    uint32_t signature_len;
    uint64_t leader;
    uint64_t entry = 0;
    request->started = hsm_now_ns();
    load_tally_started(ring.tally, request);
    ring.open_requests++;
    if (ring.cache != NULL) {
        switch (hsm_cache_lookup(ring.cache, ring.key, ring.algorithm, ring.message, size, signature, &signature_len,
                                 &leader, &entry)) {
        case HSM_CACHE_HIT:
            answer(request, hsm_now_ns(), HSM_OK, signature, true);
            return true;
        case HSM_CACHE_JOINED:
            follow((uint32_t)leader, request);
            return true;
        case HSM_CACHE_NO_MEMORY:
            entry = 0;
            break;
        case HSM_CACHE_MISS:
            break;
        }
    }
    uint32_t slot;
    uint64_t deadline;
    hsm_status status =
        hsm_client_submit(ring.client, ring.key, ring.message, size, settings->timeout_ns, &slot, &deadline);
    if (status != HSM_OK) {
        if (entry != 0) {
            hsm_cache_abandon(ring.cache, entry);
        }
        answer(request, hsm_now_ns(), status, NULL, false);
        return true;
    }
    if (entry != 0) {
        hsm_cache_set_leader(ring.cache, entry, slot);
    }
    ring.places[slot] =
        (place){.request = *request, .deadline = deadline, .entry = entry, .followers = NONE, .used = true};
    return true;
}

/* ---- answering ---- */

static void drain(void) {
    hsm_completion done;
    (void)hsm_client_catch_up(ring.client); /* as the event loop does: this thread is awake */
    while (hsm_client_next(ring.client, &done) != 0) {
        place *at = &ring.places[done.slot];
        uint64_t now = hsm_now_ns();
        if (!at->used) {
            load_tally_twice(ring.tally);
            continue;
        }
        if (!at->answered) {
            answer(&at->request, now, done.status, done.signature, false);
        }
        for (uint32_t i = at->followers; i != NONE; i = drop_follower(i)) {
            answer(&ring.followers[i].request, now, done.status, done.signature, true);
        }
        if (at->entry != 0 && done.status == HSM_OK) {
            hsm_cache_fill(ring.cache, at->entry, done.signature, done.signature_len, 1);
        } else if (at->entry != 0) {
            hsm_cache_abandon(ring.cache, at->entry);
        }
        at->used = false;
        hsm_client_release(ring.client, done.slot);
    }
}

/* Fail requests past their deadline, followers included. */
static void sweep(uint64_t now) {
    uint64_t timeout = ring.run->settings->timeout_ns;
    bool passed = false;
    uint32_t slots = hsm_client_slots(ring.client);
    ring.sweep_at = now + SWEEP_NS;
    for (uint32_t slot = 0; slot < slots; slot++) {
        place *at = &ring.places[slot];
        if (!at->used) {
            continue;
        }
        if (!at->answered && now >= at->deadline) {
            at->answered = passed = true;
            answer(&at->request, now, HSM_DEADLINE_EXCEEDED, NULL, false);
        }
        for (uint32_t *link = &at->followers; *link != NONE;) {
            follower *here = &ring.followers[*link];
            if (now >= here->request.started + timeout) {
                passed = true;
                answer(&here->request, now, HSM_DEADLINE_EXCEEDED, NULL, false);
                *link = drop_follower(*link);
            } else {
                link = &here->next;
            }
        }
    }
    if (passed) {
        ring.watch_until = now + WATCH_NS;
    }
    if (now < ring.watch_until && now >= ring.supervise_at) {
        uint32_t healthy;
        ring.supervise_at = now + SUPERVISE_NS;
        (void)hsm_engine_supervise(ring.engine, &healthy);
    }
}

static void wait(uint64_t until) {
    uint64_t now = hsm_now_ns();
    if (until <= now + SPIN_NS) {
        return;
    }
    uint64_t pause = until - now < LOAD_NAP ? until - now : LOAD_NAP;
    struct timespec timeout = {.tv_sec = 0, .tv_nsec = (long)pause};
    struct pollfd fds[] = {{.fd = ring.event_fd, .events = POLLIN}, {.fd = ring.timer_fd, .events = POLLIN}};
    if (ppoll(fds, 2, &timeout, NULL) > 0) {
        hsm_client_wake_clear(ring.client);
    }
}

static void start_due(load_run *run, load_request *next, bool *more) {
    hsm_client_batch_begin(ring.client);
    for (uint32_t i = 0; i < BURST && *more; i++) {
        uint64_t now = hsm_now_ns();
        if (next->planned > now) {
            break;
        }
        if (!start(next)) {
            if (now - next->planned < run->settings->timeout_ns) {
                break;
            }
            next->started = now; /* it waited past its deadline for a place in the queue */
            load_tally_started(ring.tally, next);
            ring.open_requests++;
            answer(next, now, HSM_DEADLINE_EXCEEDED, NULL, false);
        }
        uint64_t offset = 0;
        *more = load_plan_next(&run->plan, &offset);
        next->number++;
        next->planned = run->begin + offset;
    }
    hsm_client_batch_end(ring.client);
}

static void run_ring(load_run *run) {
    (void)prctl(PR_SET_TIMERSLACK, 1);
    ring.run = run;
    ring.tally = &run->tallies[0];
    ring.places = load_alloc(hsm_client_slots(ring.client) * sizeof *ring.places);
    ring.message = load_alloc(run->settings->max_message);
    ring.free_follower = NONE;
    load_request next = {.number = 0};
    uint64_t offset = 0;
    bool more = load_plan_next(&run->plan, &offset);
    next.planned = run->begin + offset;
    uint64_t give_up = UINT64_MAX;
    while (more || ring.open_requests > 0) {
        if (atomic_load_explicit(&run->stop, memory_order_relaxed)) {
            more = false;
        }
        start_due(run, &next, &more);
        drain();
        uint64_t now = hsm_now_ns();
        if (now >= ring.sweep_at) {
            sweep(now);
        }
        if (!more && give_up == UINT64_MAX) {
            give_up = now + run->settings->timeout_ns + GRACE_NS;
        }
        if (now >= give_up) {
            break;
        }
        bool full = hsm_client_free_slots(ring.client) == 0;
        uint64_t until = ring.open_requests > 0 ? ring.sweep_at : UINT64_MAX;
        wait(more && !full && next.planned < until ? next.planned : until);
    }
    for (; ring.open_requests > 0; ring.open_requests--) {
        load_tally_lost(ring.tally);
    }
    free(ring.places);
    free(ring.followers);
    free(ring.message);
}

static size_t tallies(const load_settings *settings) {
    (void)settings;
    return 1;
}

static void close_ring(void) {
    if (hsm_engine_stop(ring.engine, GRACE_NS) == 0) {
        hsm_client_free(ring.client);
    }
    hsm_cache_free(ring.cache);
}

const load_way load_ring = {open_ring, tallies, run_ring, close_ring};
