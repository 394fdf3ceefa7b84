/* An engine with its client and one key, for tests that are about what it does. */
#ifndef HSM_TEST_ENGINE_FIXTURE_H
#define HSM_TEST_ENGINE_FIXTURE_H

#include "client.h"
#include "harness.h"

/* The no-op module really signs what begins like this and is short. */
#define SIGNED "hsmcore test message"

struct fixture {
    hsm_client *client;
    hsm_engine *engine;
    hsm_key_info key;
};

static const hsm_client_options small_client = {
    .slots = 64, .max_message = 4096, .max_workers = 4, .coalesce_ns = MILLISECOND};

static inline hsm_engine_options noop_options(uint32_t workers) {
    return (hsm_engine_options){.module_path = HSMC_NOOP_MODULE,
                                .token = {.label = "noop", .slot_id = -1},
                                .pin = (const uint8_t *)"1234",
                                .pin_len = 4,
                                .workers = workers};
}

static inline hsm_client *new_client(const hsm_client_options *options) {
    hsm_client *client = NULL;
    hsm_error error = {.status = HSM_OK};
    REQUIRE_OK(hsm_client_new(options, &client, &error), error);
    return client;
}

/* On failure nothing is left. */
static inline hsm_status start_host(hsm_client *client, const hsm_host_options *options, hsm_host **host,
                                    hsm_error *error) {
    hsm_status status = hsm_host_new(client, options, host, error);
    HSM_THEN(status, hsm_host_begin(*host, error));
    if (status != HSM_OK) {
        hsm_host_stop(*host, 0);
        *host = NULL;
    }
    return status;
}

static inline hsm_key_info add_key(hsm_engine *engine, const char *label) {
    hsm_key_selector selector = {.label = label, .handle = -1};
    hsm_key_info info;
    hsm_error error = {.status = HSM_OK};
    REQUIRE_OK(hsm_engine_add_key(engine, &selector, &info, &error), error);
    return info;
}

static inline struct fixture fixture_begin(const hsm_client_options *client, const hsm_engine_options *engine,
                                           const char *key_label) {
    struct fixture out;
    memset(&out, 0, sizeof out);
    out.client = new_client(client);
    hsm_error error = {.status = HSM_OK};
    REQUIRE_OK(hsm_engine_start(out.client, engine, &out.engine, &error), error);
    if (key_label != NULL) {
        out.key = add_key(out.engine, key_label);
    }
    return out;
}

static inline void fixture_end(struct fixture *fixture) {
    CHECK_INT(hsm_engine_stop(fixture->engine, PATIENCE), ==, 0);
    hsm_client_free(fixture->client);
}

/* After hsm_engine_stop has left an engine behind, whose call has returned by now: it goes by itself, and the client
 * with it. What is left then, the harness finds. */
static inline void fixture_left(struct fixture *fixture) {
    hsm_leaks left;
    uint64_t until = hsm_now_ns() + PATIENCE;
    hsm_client_free(fixture->client);
    do {
        hsm_sleep(MILLISECOND / 10);
        hsm_leaks_read(&left);
    } while (left.threads != 0 && hsm_now_ns() < until);
}

static inline uint32_t submit_text(struct fixture *fixture, const char *text, uint64_t timeout_ns) {
    uint32_t slot = UINT32_MAX;
    uint64_t deadline;
    CHECK_STATUS(hsm_client_submit(fixture->client, fixture->key.index, (const uint8_t *)text, strlen(text), timeout_ns,
                                   &slot, &deadline),
                 HSM_OK);
    return slot;
}

/* Take one completion, expect it to be of `slot` (or of any, for UINT32_MAX), and give the slot back. The signature
 * that the result points to stays readable until the slot is used again. */
static inline hsm_completion finish(struct fixture *fixture, uint32_t slot) {
    hsm_completion done;
    await_completion(fixture->client, &done);
    if (slot != UINT32_MAX) {
        CHECK_INT(done.slot, ==, slot);
    }
    hsm_client_release(fixture->client, done.slot);
    return done;
}

/* On the no-op module, with its key. */
static inline struct fixture noop_begin(uint32_t workers) {
    hsm_engine_options options = noop_options(workers);
    return fixture_begin(&small_client, &options, "noop-key");
}

static inline hsm_stats stats_of(const struct fixture *fixture) {
    hsm_stats stats;
    hsm_client_stats(fixture->client, &stats);
    return stats;
}

#endif
