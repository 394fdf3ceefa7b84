/* Through the engine: one thread submits what is due, takes answers, and sleeps until either has more to do. It
 * plays the event loop's part, on the same request table: cache and single-flight, deadlines, supervision of workers
 * that hang. */
#include "load.h"

#include <hsmcore/requests.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#define BURST 32U                        /* starts between two looks at answers */
#define SUPERVISE_NS UINT64_C(100000000) /* how often workers are looked after, */
#define WATCH_NS UINT64_C(2500000000)    /* for so long after a deadline has passed */
#define GRACE_NS UINT64_C(2000000000)    /* after the last deadline nothing is waited for any longer */
#define SPIN_NS UINT64_C(15000)          /* a sleep shorter than this would cost more than it leaves to others */
#define NONE UINT32_MAX

/* An open request; the request table knows it by its index. */
typedef struct place {
    load_request request;
    uint8_t *message; /* allocated with the place */
    bool answered;
    uint32_t next_free;
} place;

static struct {
    hsm_client *client;
    hsm_engine *engine;
    hsm_cache *cache;
    hsm_requests *table;
    uint32_t key;
    int event_fd, timer_fd;

    load_run *run;
    load_tally *tally;
    place *places;
    uint32_t room;
    uint32_t free_place;
    uint64_t open_requests; /* started and not answered */
    uint64_t supervise_at, watch_until;
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
    int cacheable = settings->cache > 0 && hsm_algorithm_is_deterministic(info->algorithm) != 0;
    if ((cacheable && hsm_cache_new(settings->cache, &ring.cache) != HSM_OK) ||
        hsm_requests_new(ring.client, ring.cache, &ring.table) != HSM_OK ||
        hsm_requests_pin(ring.table, info, cacheable, 0) != HSM_OK) {
        load_fail("out of memory");
    }
    hsm_client_wake_fds(ring.client, &ring.event_fd, &ring.timer_fd);
}

/* ---- starting ---- */

static uint32_t new_place(void) {
    if (ring.free_place == NONE) {
        uint32_t room = ring.room == 0 ? 1024U : ring.room * 2U;
        place *grown = realloc(ring.places, room * sizeof *grown);
        if (grown == NULL) {
            load_fail("out of memory");
        }
        ring.places = grown;
        for (uint32_t i = ring.room; i < room; i++) {
            ring.places[i].message = load_alloc(ring.run->settings->max_message);
            ring.places[i].next_free = i + 1U < room ? i + 1U : NONE;
        }
        ring.free_place = ring.room;
        ring.room = room;
    }
    uint32_t index = ring.free_place;
    ring.free_place = ring.places[index].next_free;
    return index;
}

static void free_place(uint32_t index) {
    ring.places[index].next_free = ring.free_place;
    ring.free_place = index;
}

static void begin(const load_request *request) {
    load_tally_started(ring.tally, request);
    ring.open_requests++;
}

static void answer(const load_request *request, hsm_status status, const uint8_t *signature, bool cached) {
    load_tally_answered(ring.tally, request, hsm_now_ns(), status, signature, cached);
    ring.open_requests--;
}

/* Start one request. False when every slot is taken: then it has not been started. */
static bool start(load_request *request) {
    if (hsm_client_free_slots(ring.client) == 0) {
        return false;
    }
    uint32_t index = new_place();
    place *at = &ring.places[index];
    size_t size = load_message(&ring.run->messages, request->number, at->message);
    request->started = hsm_now_ns();
    at->request = *request;
    at->answered = false;
    begin(request);
    hsm_answer found;
    hsm_ask ask = {.message = at->message,
                   .message_len = (uint32_t)size,
                   .key = ring.key,
                   .timeout_ns = ring.run->settings->timeout_ns,
                   .tag = index,
                   .admitted = 1};
    hsm_status status = hsm_requests_submit(ring.table, &ask, &found);
    if (status != HSM_OK || found.request == 0) {
        answer(request, status, status == HSM_OK ? found.signature : NULL, true);
        free_place(index);
    }
    return true;
}

/* ---- answering ---- */

static void drain(void) {
    hsm_answer done;
    (void)hsm_client_catch_up(ring.client); /* as the event loop does: this thread is awake */
    while (hsm_requests_next(ring.table, &done) != 0) {
        place *at = &ring.places[done.tag];
        if (done.claimed != 0 && at->answered) {
            load_tally_twice(ring.tally);
        } else if (done.claimed != 0) {
            at->answered = true;
            answer(&at->request, done.status, done.signature, done.shared != 0);
        }
        if (done.last != 0) {
            hsm_requests_end(ring.table, done.request);
            free_place((uint32_t)done.tag);
        }
    }
}

/* Fail requests past their deadline, and look after the workers for a while afterwards. */
static void sweep(uint64_t now) {
    if (hsm_requests_sweep(ring.table, now) != 0) {
        ring.watch_until = now + WATCH_NS;
    }
    drain();
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
            begin(next);
            answer(next, HSM_DEADLINE_EXCEEDED, NULL, false);
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
    ring.free_place = NONE;
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
        uint64_t sweep_at = hsm_requests_sweep_at(ring.table);
        if ((sweep_at != 0 && now >= sweep_at) || now < ring.watch_until) {
            sweep(now);
        }
        if (!more && give_up == UINT64_MAX) {
            give_up = now + run->settings->timeout_ns + GRACE_NS;
        }
        if (now >= give_up) {
            break;
        }
        bool full = hsm_client_free_slots(ring.client) == 0;
        sweep_at = hsm_requests_sweep_at(ring.table);
        uint64_t until = sweep_at != 0 ? sweep_at : UINT64_MAX;
        wait(more && !full && next.planned < until ? next.planned : until);
    }
    for (; ring.open_requests > 0; ring.open_requests--) {
        load_tally_lost(ring.tally);
    }
    for (uint32_t i = 0; i < ring.room; i++) {
        free(ring.places[i].message);
    }
    free(ring.places);
}

static size_t tallies(const load_settings *settings) {
    (void)settings;
    return 1;
}

static void close_ring(void) {
    hsm_requests_free(ring.table);
    if (hsm_engine_stop(ring.engine, GRACE_NS) == 0) {
        hsm_client_free(ring.client);
    }
    hsm_cache_free(ring.cache);
}

const load_way load_ring = {open_ring, tallies, run_ring, close_ring};
