/* hsmcore-load: an open-loop load generator. When each request starts is planned before the run; a slow answer delays
 * no later start, and latency counts from the planned start, so nothing is left out of the figures while a device
 * stalls.
 *
 * ring.c drives the engine through its rings; raw.c is the reference: PKCS#11 in plain threads, without the engine.
 * main.c has the protocol on standard input and output, settings.c the settings, plan.c the planned starts, messages.c
 * what is signed, tally.c what is counted, base.c what all of them need. Times are nanoseconds of CLOCK_MONOTONIC. */
#ifndef HSM_LOAD_H
#define HSM_LOAD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <hsmcore/hsmcore.h>

#define LOAD_MAX_SEGMENTS 64
#define LOAD_MIX 4096        /* entries of the mix; request n is of kind mix[n % LOAD_MIX] */
#define LOAD_POOL 65536      /* places in the pool where a message may begin */
#define LOAD_MIN_MESSAGE 8   /* bytes: the request's number, which makes every message another one */
#define LOAD_NAP 50000000U   /* ns: the longest sleep without a look whether the run was ended */
#define LOAD_NAMED_ERRORS 64 /* statuses that are told apart */

/* ---- base.c ---- */

/* Print an error and end with exit code 1. */
_Noreturn void load_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Zeroed memory; never NULL. */
void *load_alloc(size_t size);
/* Sleep until `when` or the end of a nap, whichever comes first. */
void load_sleep_until(uint64_t when);

/* ---- settings ---- */

/* A stretch of time in which the rate goes from one value to another in a straight line. */
typedef struct load_segment {
    double seconds;
    double from; /* requests per second */
    double to;
} load_segment;

typedef struct load_settings {
    bool raw;
    char *module;
    char *module_args;
    char *quirks;
    char *token_label;
    char *token_serial;
    int64_t slot_id; /* -1: any */
    char *key_label;
    uint8_t *key_id;
    size_t key_id_len;
    int64_t key_handle; /* -1: any */
    uint8_t *public_key;
    size_t public_key_len;
    hsm_algorithm algorithm; /* what the caller expects, or HSM_ALGORITHM_NONE */
    uint8_t *pin;            /* wiped after the login */
    size_t pin_len;
    uint32_t workers;
    uint32_t slots;
    uint32_t max_message;
    uint32_t verify_every;
    bool digests;
    uint64_t coalesce_ns;
    uint64_t spin_ns;
    uint64_t patience_ns;
    uint64_t timeout_ns; /* of each request; at least 1 */
    uint64_t cache;      /* signatures; 0: no cache, and no request joins another one in flight */
    uint64_t seed;
    uint64_t interval_ns; /* between two reports */
    bool poisson;
    double phase; /* 0..1: where between two starts the first one lies */
    load_segment segments[LOAD_MAX_SEGMENTS];
    size_t segment_count;
    int32_t mix[LOAD_MIX]; /* > 0: bytes of a new message; < 0: the same message as so many requests before */
    char *spool;           /* where signatures are written, or NULL */
} load_settings;

/* Read settings from standard input up to the line "ready". Ends the process with exit code 2 at a line it doesn't
 * know. */
void load_settings_read(load_settings *settings);
void load_settings_free(load_settings *settings);
/* The key to sign with; its texts and bytes stay those of `settings`. */
hsm_key_selector load_key_selector(const load_settings *settings);

/* ---- the plan ---- */

/* Where in its segments a plan is. One thread at a time. */
typedef struct load_plan {
    const load_settings *settings;
    double target; /* expected number of starts up to the next one */
    double before; /* the same at the beginning of the current segment */
    double began;  /* seconds from the start of the run to the current segment */
    size_t segment;
    uint64_t random;
} load_plan;

void load_plan_begin(load_plan *plan, const load_settings *settings);
/* The next planned start in nanoseconds from the start of the run; false when there are no more. */
bool load_plan_next(load_plan *plan, uint64_t *offset_ns);
/* The next number of a SplitMix64 sequence (Steele, Lea, Flood 2014). */
uint64_t load_random(uint64_t *state);

/* ---- messages ---- */

typedef struct load_messages {
    const load_settings *settings;
    uint8_t *pool;
    uint64_t salt;
} load_messages;

void load_messages_begin(load_messages *messages, const load_settings *settings);
void load_messages_end(load_messages *messages);
/* Write message `number` into `out` (settings.max_message bytes); returns its length. Any thread. */
size_t load_message(const load_messages *messages, uint64_t number, uint8_t *out);

/* ---- what is counted ---- */

/* The layout of an HdrHistogram with three significant digits and a lowest value of 1. */
#define LOAD_BUCKETS (33U << 10)
uint32_t load_bucket(uint64_t ns);

typedef struct load_counts {
    uint64_t started, signed_, cached, failed, lost, twice;
    uint64_t errors[LOAD_NAMED_ERRORS];
    uint32_t corrected[LOAD_BUCKETS];
    uint32_t uncorrected[LOAD_BUCKETS];
    uint32_t start[LOAD_BUCKETS];
} load_counts;

/* One thread's counters; the reporter takes them away now and then. */
typedef struct load_tally {
    pthread_mutex_t lock;
    load_counts *live;
    load_counts *spare;
} load_tally;

typedef struct load_request {
    uint64_t number;
    uint64_t planned; /* clock */
    uint64_t started; /* clock */
} load_request;

void load_tally_begin(load_tally *tally);
void load_tally_end(load_tally *tally);
void load_tally_started(load_tally *tally, const load_request *request);
/* Answered at `now`; `signature` (64 bytes) if the status is HSM_OK. */
void load_tally_answered(load_tally *tally, const load_request *request, uint64_t now, hsm_status status,
                         const uint8_t *signature, bool cached);
/* Never answered, or answered once more. */
void load_tally_lost(load_tally *tally);
void load_tally_twice(load_tally *tally);

/* A run: what all threads share. */
typedef struct load_run {
    const load_settings *settings;
    load_messages messages;
    load_plan plan; /* under `plan_lock` where several threads take from it */
    pthread_mutex_t plan_lock;
    uint64_t next_number; /* the same */
    uint64_t begin;       /* clock: the plan's time 0 */
    _Atomic bool stop;    /* the run was ended from outside */
    _Atomic bool done;    /* all is answered or lost */
    load_tally *tallies;  /* one for each thread that answers */
    size_t tally_count;
} load_run;

/* Where signatures go for verification afterwards: records of 80 bytes, number (8), status (4), zero (4), signature. */
void load_spool_open(const char *path);
void load_spool_close(void);

/* Report what was counted since the last time, as one line of JSON; `last` adds "end". The reporter's thread. */
void load_report(load_run *run, bool last);

/* ---- the two ways ---- */

typedef struct load_way {
    /* Log in, find the key and describe it. Ends the process on failure. */
    void (*open)(const load_settings *settings, hsm_key_info *key);
    size_t (*tallies)(const load_settings *settings);
    /* Start and answer everything that is planned; returns when all is answered, lost or ended. */
    void (*run)(load_run *run);
    void (*close)(void);
} load_way;

extern const load_way load_ring;
extern const load_way load_raw;

#endif
