/* A request table with a guest, on a client of its own, and what a test says about its requests: one call, one line. */
#ifndef HSM_TEST_DESK_H
#define HSM_TEST_DESK_H

#include <hsmcore/guest.h>
#include <sodium.h>

#include "engine_fixture.h"
#include "table.h"

#define TEXT(text) (const uint8_t *)(text), (uint32_t)strlen(text)
#define LONG (3600 * SECOND)

struct desk {
    hsm_client *client;
    hsm_cache *cache;
    hsm_requests *table;
    hsm_guest *guest;
    uint32_t key;
};

static uint8_t secret[crypto_sign_SECRETKEYBYTES];

static inline struct desk desk_of(uint32_t slots, uint64_t cache, uint32_t verify_every) {
    hsm_client_options options = {.slots = slots, .max_message = 100, .max_workers = 4, .digests = 1};
    struct desk d = {.client = new_client(&options)};
    static const uint8_t seed[crypto_sign_SEEDBYTES] = {1, 2, 3};
    hsm_key_info key = {.algorithm = HSM_ED25519, .public_key_len = 32};
    CHECK_INT(crypto_sign_seed_keypair(key.public_key, secret, seed), ==, 0);
    REQUIRE(cache == 0 || hsm_cache_new(cache, &d.cache) == HSM_OK);
    REQUIRE(hsm_requests_new(d.client, d.cache, &d.table) == HSM_OK);
    REQUIRE(hsm_guest_new(d.table, 4, verify_every, &d.guest) == HSM_OK);
    REQUIRE(hsm_guest_add_key(d.guest, &key, 1) == HSM_OK);
    d.key = key.index;
    return d;
}

static inline struct desk desk_begin(uint32_t slots) {
    return desk_of(slots, 16, 0);
}

static inline hsm_requests_counts counts_of(const struct desk *d) {
    hsm_requests_counts counts;
    hsm_requests_count(d->table, &counts);
    return counts;
}

static inline void desk_end(struct desk *d) {
    hsm_requests_counts counts = counts_of(d);
    CHECK_INT(counts.open, ==, 0);
    CHECK_INT(counts.queued, ==, 0);
    CHECK_INT(counts.slots, ==, 0);
    CHECK_INT(counts.held, ==, 0);
    CHECK_INT(counts.owed, ==, 0);
    CHECK_INT(d->table->free.count, ==, d->table->room);
    CHECK_INT(hsm_requests_sweep_at(d->table), ==, 0);
    if (d->cache != NULL) {
        hsm_cache_stats stats;
        hsm_cache_stats_read(d->cache, &stats);
        CHECK_INT(stats.in_flight, ==, 0);
    }
    hsm_guest_free(d->guest);
    hsm_requests_free(d->table);
    hsm_cache_free(d->cache);
    hsm_client_free(d->client);
}

static inline uint64_t ask_of(struct desk *d, const char *text, uint64_t timeout_ns, bool held, hsm_status expected) {
    hsm_ask ask = {.key = d->key, .timeout_ns = timeout_ns, .tag = (uint64_t)(unsigned char)text[0], .held = held};
    ask.message = (const uint8_t *)text;
    ask.message_len = (uint32_t)strlen(text);
    hsm_answer answer;
    CHECK_STATUS(hsm_requests_submit(d->table, &ask, &answer), expected);
    return answer.request;
}

static inline uint64_t ask(struct desk *d, const char *text) {
    return ask_of(d, text, LONG, false, HSM_OK);
}

/* Begin the next request with this runner; it must be `number`. */
static inline void begin(struct desk *d, uint32_t runner, uint64_t number) {
    uint32_t key = UINT32_MAX;
    CHECK_INT(hsm_guest_begin(d->guest, runner, &key), ==, number);
    CHECK_INT(key, ==, number != 0 ? d->key : UINT32_MAX);
}

static inline const uint8_t *signature_of(const char *text) {
    static uint8_t signature[HSM_MAX_SIGNATURE];
    CHECK_INT(crypto_sign_detached(signature, NULL, TEXT(text), secret), ==, 0);
    return signature;
}

static inline void end(struct desk *d, uint32_t runner, const char *text) {
    (void)hsm_guest_end(d->guest, runner, HSM_OK, 0, signature_of(text));
}

static inline hsm_answer next_is(struct desk *d, uint64_t number, hsm_status status) {
    hsm_answer answer = {.request = 0};
    CHECK_INT(hsm_requests_next(d->table, &answer), ==, 1);
    CHECK_INT(answer.request, ==, number);
    CHECK_STATUS(answer.status, status);
    CHECK_INT(answer.signature_len, ==, status == HSM_OK ? HSM_MAX_SIGNATURE : 0);
    return answer;
}

/* The waiter's answer, after which its request is over. */
static inline hsm_answer answered(struct desk *d, uint64_t number, hsm_status status) {
    hsm_answer answer = next_is(d, number, status);
    CHECK_INT(answer.claimed, ==, 1);
    CHECK_INT(answer.last, ==, 1);
    hsm_requests_end(d->table, number);
    return answer;
}

/* What the workers are done with has no waiter any more. */
static inline hsm_answer unclaimed(struct desk *d, uint64_t number, hsm_status status) {
    hsm_answer answer = next_is(d, number, status);
    CHECK_INT(answer.claimed, ==, 0);
    CHECK_INT(answer.last, ==, 1);
    hsm_requests_end(d->table, number);
    return answer;
}

static inline void nothing_more(struct desk *d) {
    hsm_answer answer;
    CHECK_INT(hsm_requests_next(d->table, &answer), ==, 0);
}

/* Returns whether a signature may be made, and checks that the request is over as expected. */
static inline int cancel(struct desk *d, uint64_t number, int over) {
    int begun = -1;
    CHECK_INT(hsm_requests_cancel(d->table, number, &begun), ==, over);
    return begun;
}

#endif
