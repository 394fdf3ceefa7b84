/* The request table: a caller's message in, one answer out. It sits on a client, and on a signature cache if there is
 * one, and adds what a client lacks: identical requests that share a signature (single-flight), a queue for requests
 * without a slot, admission control, deadlines, cancellation, and answers held back until their record is durable, or
 * until a round of questions that began after them is over.
 *
 * A request has a number, which stays its own until hsm_requests_end, and at most one waiter. It is answered once: by
 * hsm_requests_next, with `claimed` set. What a request is about, its message, must stay in place until it is over.
 *
 * One thread at a time, the one that submits; nothing here blocks. Each call costs O(1) for each request that it
 * answers or starts, none a scan over all requests, but for hsm_requests_fail and hsm_requests_replay. After a fork the
 * table is dead, as its client is.
 */
#ifndef HSMCORE_REQUESTS_H
#define HSMCORE_REQUESTS_H

#include <hsmcore/hsmcore.h>

#define HSM_NO_SLOT UINT32_MAX

typedef struct hsm_requests hsm_requests;

typedef struct hsm_ask {
    const uint8_t *message; /* the caller's: neither moved nor freed until the request is over */
    uint32_t message_len;   /* 1 .. the client's max_message */
    uint32_t key;           /* an index that hsm_requests_pin knows */
    uint64_t timeout_ns;    /* at least 1 */
    uint64_t tag;           /* the caller's own; it comes back with the answer */
    int admitted;           /* 1: do not ask admission control */
    int prehashed;          /* 1: the message is a SHA-256 digest, which an ECDSA key signs as it is */
    int held;               /* 1: also a signature from the cache gets a number, so that it can be held */
} hsm_ask;

typedef struct hsm_answer {
    uint64_t request;
    uint64_t tag;
    uint64_t deadline_ns; /* of hsm_requests_submit */
    hsm_status status;
    uint64_t ckr;
    uint64_t call;     /* for hsm_call_name */
    hsm_status failed; /* of the last attempt before a deadline; HSM_OK: none failed, for all that is known */
    uint32_t key;
    uint32_t slot;            /* that it had, until the next call; HSM_NO_SLOT: none */
    uint32_t signature_len;   /* 0 unless `status` is HSM_OK */
    const uint8_t *signature; /* until the next call */
    const uint8_t *digest;    /* the digest that a worker signed or made, until the next call; NULL: none */
    uint64_t latency_ns;      /* from submission to the end of the call; 0 if no worker served it */
    uint64_t seq;             /* of its record, if it was held */
    uint64_t round;           /* that it has awaited; 0: none */
    uint8_t claimed;          /* 1: this answers the waiter; 0: the waiter has left or was answered */
    uint8_t told;             /* 1: the waiter was answered earlier, at its deadline */
    uint8_t shared;           /* 1: the signature was made for another request */
    uint8_t cached;           /* 1: the signature comes from the cache */
    uint8_t begun;            /* 0: no worker has begun, or will begin, to sign its message for it; 1: one may have */
    uint8_t last;             /* 1: the request is over: call hsm_requests_end or hsm_requests_hold */
} hsm_answer;

/* `cache` may be NULL; it and the client belong to the caller and outlive the table. */
HSM_NODISCARD hsm_status hsm_requests_new(hsm_client *client, hsm_cache *cache, hsm_requests **table);
/* Answers nothing. NULL is allowed. */
void hsm_requests_free(hsm_requests *table);
/* Know a key. `cacheable`: identical messages may get the same signature. `verify_every`: verify each n-th signature
 * of this key on this side, with the public key given here; 0: none. The first key that is verified starts a thread for
 * that: pin it after hsm_requests_serve, and before hsm_requests_wake_fds or any request. HSM_OUT_OF_MEMORY,
 * HSM_SYSTEM, HSM_FORKED. */
HSM_NODISCARD hsm_status hsm_requests_pin(hsm_requests *table, const hsm_key_info *key, int cacheable,
                                          uint32_t verify_every);
/* Refuse further requests for a key, and keep no signature of it. Idempotent. */
void hsm_requests_retire(hsm_requests *table, uint32_t key);
/* 1: requests for this key are taken. 0: it is retired, or another key has its place. -1: it was never known. */
int hsm_requests_knows(const hsm_requests *table, uint32_t key);
/* Whether identical messages may get the same signature of this key. */
int hsm_requests_cacheable(const hsm_requests *table, uint32_t key);
/* How many requests are served at the same time, for admission control: nothing is refused while fewer are under
 * way. */
void hsm_requests_serve(hsm_requests *table, uint32_t workers);

/* How many requests there is room for: the lower half of a number is below it. Grows the table when none is left, so
 * that the next hsm_requests_submit finds room and numbers its request within it. 0 when memory is short. */
uint32_t hsm_requests_room(hsm_requests *table);
/* Whether admission control refuses `count` more requests: then the last of them would miss its deadline. */
int hsm_requests_refuses(hsm_requests *table, uint64_t count, uint64_t timeout_ns);
/* Take one request. With HSM_OK, `answer->request` is its number; or 0 when the cache had its signature, which is in
 * `answer` until the next call. Beside it and its deadline, `answer->cached` is set: 1 if it was a hit. Otherwise
 * HSM_QUEUE_FULL (admission control refuses it), HSM_KEY_DEACTIVATED, HSM_KEY_NOT_FOUND, HSM_MESSAGE_TOO_LARGE,
 * HSM_ALGORITHM_UNSUPPORTED (a key that signs no digest), HSM_BAD_ARGUMENT (a digest of not 32 bytes),
 * HSM_OUT_OF_MEMORY, HSM_FORKED. Put many between hsm_client_batch_begin and hsm_client_batch_end. */
hsm_status hsm_requests_submit(hsm_requests *table, const hsm_ask *ask, hsm_answer *answer);
/* As hsm_client_wake_fds, hsm_client_wake_clear and hsm_client_catch_up, for answers: those of the client where nothing
 * is verified on this side. `timer_fd` receives -1 where there is none. */
void hsm_requests_wake_fds(const hsm_requests *table, int *event_fd, int *timer_fd);
void hsm_requests_wake_clear(hsm_requests *table);
int hsm_requests_catch_up(hsm_requests *table);
/* Before the last answers are taken, after the workers have ended: wait until each signature that has come is verified,
 * and end the thread that does it. Idempotent. */
void hsm_requests_settle(hsm_requests *table);
/* Take one answer, after hsm_requests_wake_clear. Returns 0 when there is none now. */
int hsm_requests_next(hsm_requests *table, hsm_answer *answer);
/* A request whose last answer was taken is over: its number may be given to another. */
void hsm_requests_end(hsm_requests *table, uint64_t request);
/* Instead: keep a request that was just answered with HSM_OK until record `seq` is durable, or until round `round` is
 * over: whichever of the two is not 0, each in ascending order. It is answered again then, or at its deadline. */
void hsm_requests_hold(hsm_requests *table, uint64_t request, uint64_t seq, uint64_t round);
/* The records up to `seq` are durable. */
void hsm_requests_release(hsm_requests *table, uint64_t seq);
/* The rounds up to `round` are over. */
void hsm_requests_confirm(hsm_requests *table, uint64_t round);
/* The waiter has left. Returns 1 if the request is over, with nothing more to take of it; `begun` receives 0 if no
 * signature of it was or will be made, 1 if one may be. */
int hsm_requests_cancel(hsm_requests *table, uint64_t request, int *begun);
/* Answer the waiters whose deadline has passed. Returns for how many requests with the workers it has, those without a
 * waiter included. */
uint32_t hsm_requests_sweep(hsm_requests *table, uint64_t now);
/* When hsm_requests_sweep has something to do, at the earliest; 0: never. */
uint64_t hsm_requests_sweep_at(const hsm_requests *table);

/* The key of a request that is not over, by its number. */
uint32_t hsm_requests_key(const hsm_requests *table, uint64_t request);

/* Whom hsm_requests_fail answers: those without a slot, those that are held, all but these, every waiter. */
enum hsm_which { HSM_QUEUED_ONES, HSM_HELD_ONES, HSM_UNSIGNED_ONES, HSM_ALL };
void hsm_requests_fail(hsm_requests *table, enum hsm_which which, hsm_status status);
/* As hsm_client_replay, with each message, key and deadline written again from this side. */
uint32_t hsm_requests_replay(hsm_requests *table);

/* Whether workers are about to be out of requests while answers are held whose callers may have more: fewer requests
 * than `waiting`, the records that no flush has begun for, are left beside one for each worker. One half of these is
 * signed while the other half's records are flushed. */
int hsm_requests_starving(const hsm_requests *table, uint64_t waiting);

typedef struct hsm_requests_counts {
    uint32_t open;     /* waiters without an answer */
    uint32_t queued;   /* requests without a slot, those that follow another not counted */
    uint32_t slots;    /* in use */
    uint32_t held;     /* answers that wait for their record */
    uint32_t awaiting; /* answers that await a round */
    uint32_t owed;     /* slots whose waiter has no answer */
    uint64_t wrong;    /* signatures that did not verify on this side, and were not handed out */
    uint64_t each_ns;  /* admission control's measurement: from one answer to the next; 0: none */
} hsm_requests_counts;
void hsm_requests_count(const hsm_requests *table, hsm_requests_counts *counts);
/* Of these, `slots` and `queued` together. */
uint64_t hsm_requests_load(const hsm_requests *table);

#endif
