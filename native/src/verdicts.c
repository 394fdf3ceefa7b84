/* The verifying thread, and the ring of its verdicts: one producer, one consumer. */
#include "verdicts.h"

#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>

typedef struct verdict {
    /* the asking thread's, until the slot is taken */
    const uint8_t *message;
    uint32_t message_len, key;
    bool prehashed;
    /* then the verifying thread's, until it is in the ring */
    hsm_completion done;
    uint8_t signature[HSM_MAX_SIGNATURE];
} verdict;

struct hsm_verdicts {
    hsm_client *client;
    hsm_pinned *pinned;
    uint64_t workers;
    uint32_t fork_generation;
    int event_fd, end_fd;
    bool running; /* until hsm_verdicts_end */
    pthread_t thread;
    verdict *by_slot;
    uint32_t *ring; /* with a place for each slot, so that it is never full */
    /* `inside` is held for one verification; `door` while waiting for it, so that the other one has its turn. */
    pthread_mutex_t door, inside;
    uint64_t since_ns; /* the oldest verdict that the asking thread was not told of; 0: none */
    _Atomic uint64_t wrong;
    _Atomic uint32_t ending;
    HSM_ALIGNED _Atomic uint64_t given;
    HSM_ALIGNED _Atomic uint64_t taken;
    _Atomic uint32_t told; /* 1: the event is set, or about to be */
};

void hsm_verdicts_pause(hsm_verdicts *verdicts) {
    (void)pthread_mutex_lock(&verdicts->door);
    (void)pthread_mutex_lock(&verdicts->inside);
    (void)pthread_mutex_unlock(&verdicts->door);
}

void hsm_verdicts_resume(hsm_verdicts *verdicts) {
    (void)pthread_mutex_unlock(&verdicts->inside);
}

/* ---- the thread's ---- */

/* Take a completion, and verify its signature. Returns false when there is none. */
static bool judge(hsm_verdicts *verdicts) {
    hsm_completion done;
    hsm_verdicts_pause(verdicts);
    bool found = hsm_client_next(verdicts->client, &done) != 0;
    if (found) {
        verdict *at = &verdicts->by_slot[done.slot];
        memcpy(at->signature, done.signature, sizeof at->signature); /* once: what is verified is what is handed out */
        done.signature = at->signature;
        if (done.status == HSM_OK && done.signature_len == HSM_MAX_SIGNATURE) {
            done.status = hsm_pinned_check(verdicts->pinned, at->key, at->message, at->message_len, at->prehashed,
                                           at->signature, done.signature_len);
            hsm_add_relaxed(&verdicts->wrong, done.status == HSM_SIGNATURE_INVALID ? 1 : 0);
        }
        at->done = done;
        uint64_t given = atomic_load_explicit(&verdicts->given, memory_order_relaxed);
        verdicts->ring[given & (verdicts->client->area->slots - 1U)] = done.slot;
        atomic_store_explicit(&verdicts->given, given + 1U, memory_order_release);
    }
    hsm_verdicts_resume(verdicts);
    return found;
}

/* Whether the oldest verdict has waited for the coalescing time. */
static bool is_due(const hsm_verdicts *verdicts) {
    return hsm_now_ns() - verdicts->since_ns >= verdicts->client->area->coalesce_ns;
}

static void tell(hsm_verdicts *verdicts) {
    verdicts->since_ns = 0;
    bool waits = atomic_load(&verdicts->given) != atomic_load_explicit(&verdicts->taken, memory_order_relaxed);
    if (waits && atomic_exchange(&verdicts->told, 1) == 0) {
        hsm_event_set(verdicts->event_fd);
    }
}

/* Until completions come, verdicts are due, or the thread is to end. */
static void await(const hsm_verdicts *verdicts) {
    struct pollfd fds[3] = {{.events = POLLIN}, {.events = POLLIN}, {.fd = verdicts->end_fd, .events = POLLIN}};
    struct timespec left = {0};
    if (verdicts->since_ns != 0) {
        uint64_t passed = hsm_now_ns() - verdicts->since_ns;
        uint64_t pause = verdicts->client->area->coalesce_ns;
        left = hsm_timespec(passed < pause ? pause - passed : 0);
    }
    hsm_client_wake_fds(verdicts->client, &fds[0].fd, &fds[1].fd);
    (void)ppoll(fds, 3, verdicts->since_ns != 0 ? &left : NULL, NULL);
}

static void *run(void *argument) {
    hsm_verdicts *verdicts = argument;
    bool ends = false;
    (void)prctl(PR_SET_NAME, "hsm-verifier");
    while (!ends) {
        await(verdicts);
        ends = atomic_load(&verdicts->ending) != 0;
        hsm_verdicts_pause(verdicts);
        hsm_client_wake_clear(verdicts->client);
        hsm_verdicts_resume(verdicts);
        while (judge(verdicts)) {
            if (verdicts->since_ns == 0) {
                verdicts->since_ns = hsm_now_ns();
            } else if (is_due(verdicts)) {
                tell(verdicts);
            }
        }
        /* As with workers: to wait for more of them pays while no worker is about to run out of work. */
        if (verdicts->since_ns != 0 &&
            (ends || hsm_area_queued(verdicts->client->area) < verdicts->workers || is_due(verdicts))) {
            tell(verdicts);
        }
    }
    return NULL;
}

/* ---- the asking thread's ---- */

void hsm_verdicts_expect(hsm_verdicts *verdicts, uint32_t slot, uint32_t key, const uint8_t *message,
                         uint32_t message_len, bool prehashed) {
    verdict *at = &verdicts->by_slot[slot];
    at->message = message;
    at->message_len = message_len;
    at->key = key;
    at->prehashed = prehashed;
}

bool hsm_verdicts_next(hsm_verdicts *verdicts, hsm_completion *done) {
    uint64_t taken = atomic_load_explicit(&verdicts->taken, memory_order_relaxed);
    if (atomic_load_explicit(&verdicts->given, memory_order_acquire) == taken) {
        return false;
    }
    *done = verdicts->by_slot[verdicts->ring[taken & (verdicts->client->area->slots - 1U)]].done;
    atomic_store_explicit(&verdicts->taken, taken + 1U, memory_order_relaxed);
    return true;
}

int hsm_verdicts_fd(const hsm_verdicts *verdicts) {
    return verdicts->event_fd;
}

void hsm_verdicts_wake_clear(hsm_verdicts *verdicts) {
    hsm_event_clear(verdicts->event_fd);
    (void)atomic_exchange(&verdicts->told, 0); /* a verdict of which this thread is not told is seen after this */
}

bool hsm_verdicts_wait(const hsm_verdicts *verdicts) {
    return atomic_load_explicit(&verdicts->given, memory_order_relaxed) !=
           atomic_load_explicit(&verdicts->taken, memory_order_relaxed);
}

uint64_t hsm_verdicts_wrong(const hsm_verdicts *verdicts) {
    return atomic_load_explicit(&verdicts->wrong, memory_order_relaxed);
}

/* ---- start and end ---- */

hsm_status hsm_verdicts_new(hsm_client *client, hsm_pinned *pinned, uint64_t workers, hsm_verdicts **out) {
    *out = NULL;
    hsm_verdicts *verdicts = hsm_alloc(sizeof *verdicts);
    if (verdicts == NULL) {
        return HSM_OUT_OF_MEMORY;
    }
    uint32_t slots = client->area->slots;
    verdicts->client = client;
    verdicts->pinned = pinned;
    verdicts->workers = workers;
    verdicts->fork_generation = hsm_fork_generation();
    (void)pthread_mutex_init(&verdicts->door, NULL);
    (void)pthread_mutex_init(&verdicts->inside, NULL);
    verdicts->event_fd = hsm_counted(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    verdicts->end_fd = hsm_counted(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    verdicts->by_slot = hsm_alloc(slots * sizeof *verdicts->by_slot);
    verdicts->ring = hsm_alloc(slots * sizeof *verdicts->ring);
    hsm_status status = verdicts->by_slot == NULL || verdicts->ring == NULL ? HSM_OUT_OF_MEMORY : HSM_OK;
    if (status == HSM_OK && verdicts->event_fd >= 0 && verdicts->end_fd >= 0) {
        verdicts->running = hsm_thread_start(&verdicts->thread, run, verdicts) == 0;
    }
    if (!verdicts->running) {
        hsm_verdicts_free(verdicts);
        return status != HSM_OK ? status : HSM_SYSTEM;
    }
    *out = verdicts;
    return HSM_OK;
}

void hsm_verdicts_end(hsm_verdicts *verdicts) {
    if (verdicts->running && verdicts->fork_generation == hsm_fork_generation()) {
        verdicts->running = false;
        atomic_store(&verdicts->ending, 1);
        hsm_event_set(verdicts->end_fd);
        hsm_thread_join(verdicts->thread);
    }
}

void hsm_verdicts_free(hsm_verdicts *verdicts) {
    if (verdicts == NULL) {
        return;
    }
    hsm_verdicts_end(verdicts);
    if (verdicts->fork_generation == hsm_fork_generation()) { /* else they are the parent's */
        hsm_close(&verdicts->event_fd);
        hsm_close(&verdicts->end_fd);
        (void)pthread_mutex_destroy(&verdicts->door);
        (void)pthread_mutex_destroy(&verdicts->inside);
    }
    hsm_free(verdicts->by_slot);
    hsm_free(verdicts->ring);
    hsm_free(verdicts);
}
