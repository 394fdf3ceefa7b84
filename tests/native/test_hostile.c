/* A live client beside a host process that misbehaves in every way it can (hostile_host.c). Whatever that does, this
 * process does not crash, touches no memory but its own, never stands still, and each request ends at most
 * once. Run it under the address sanitizer as well. */
#include "engine_fixture.h"

#define REQUESTS 48U

/* `ended` counts the answers to each slot's request. Returns how many were taken. */
static uint32_t take_all(hsm_client *client, uint8_t *ended) {
    hsm_completion done;
    uint32_t taken = 0;
    hsm_client_wake_clear(client);
    /* A client that is asked for more for ever is a loop that stands still; there are no more requests than slots. */
    while (taken <= REQUESTS && hsm_client_next(client, &done)) {
        REQUIRE(done.slot < hsm_client_slots(client));
        REQUIRE(done.signature_len <= HSM_MAX_SIGNATURE);
        uint8_t copy[HSM_MAX_SIGNATURE];
        memcpy(copy, done.signature, done.signature_len);
        (void)hsm_status_name(done.status);
        (void)hsm_call_name(done.call);
        (void)hsm_ckr_name(done.ckr);
        ended[done.slot]++;
        taken++;
    }
    return taken;
}

static void live_beside(const char *kind, unsigned seed) {
    char arguments[64];
    (void)snprintf(arguments, sizeof arguments, "%s %u 8", kind, seed);
    const hsm_client_options shape = {
        .slots = 64, .max_message = 4096, .max_workers = 4, .digests = 1, .coalesce_ns = MILLISECOND};
    hsm_host_options options = {.engine = noop_options(2), .program = HSMC_HOSTILE, .timeout_ns = SECOND};
    options.engine.module_args = arguments;
    hsm_client *client = new_client(&shape);
    hsm_error error = {.status = HSM_OK};
    hsm_host *host = NULL;
    REQUIRE_OK(start_host(client, &options, &host, &error), error);
    const hsm_key_selector selector = {.label = "hostile", .handle = -1};
    hsm_key_info key;
    REQUIRE_OK(hsm_host_add_key(host, &selector, &key, &error), error);
    uint8_t ended[64] = {0};
    uint32_t asked = 0;
    uint32_t taken = 0;
    uint64_t end = hsm_now_ns() + SECOND / 2;
    for (uint64_t now = 0; now < end || asked < REQUESTS; now = hsm_now_ns()) {
        uint32_t slot;
        uint64_t deadline;
        uint32_t healthy;
        if (asked < REQUESTS && hsm_client_submit(client, key.index, (const uint8_t *)SIGNED, sizeof SIGNED,
                                                  10 * SECOND, &slot, &deadline) == HSM_OK) {
            asked++;
        }
        taken += take_all(client, ended);
        hsm_stats stats;
        hsm_client_stats(client, &stats);
        (void)hsm_client_queued(client);
        (void)hsm_host_supervise(host, &healthy);
    }
    hsm_token_info token;
    (void)hsm_host_token(host, &token, &error);
    hsm_host_kill(host);
    (void)hsm_client_replay(client);
    taken += take_all(client, ended);
    CHECK_INT(taken, <=, asked);
    for (uint32_t slot = 0; slot < COUNT_OF(ended); slot++) {
        CHECK_INT(ended[slot], <=, 1); /* no slot is given back here, so none has a second request */
    }
    hsm_host_stop(host, SECOND);
    hsm_client_free(client);
}

static void random_bytes_in_the_area(void) {
    for (unsigned seed = 1; seed <= 3; seed++) {
        live_beside("random", seed);
    }
}

static void rubbish_in_the_rings(void) {
    for (unsigned seed = 1; seed <= 3; seed++) {
        live_beside("rings", seed);
    }
}

static void answers_that_nobody_asked_for(void) {
    for (unsigned seed = 1; seed <= 3; seed++) {
        live_beside("answers", seed);
    }
}

static void wakes_without_end(void) {
    live_beside("flood", 1);
}

static void silence(void) {
    live_beside("silence", 1);
}

static void a_socket_that_is_closed(void) {
    live_beside("hang-up", 1);
}

static void descriptors_that_block(void) {
    live_beside("blocking", 1);
}

static void an_end_in_the_middle(void) {
    live_beside("end", 1);
}

/* Each lie is noticed, or harmless; its text has an end. */
static void lies_in_replies(void) {
    enum { NOTICED = 6 };
    static const char *const lies[] = {"id", "key", "error", "short", "version", "operation", "index", "label", "long"};
    for (size_t i = 0; i < COUNT_OF(lies); i++) {
        hsm_host_options options = {.engine = noop_options(2), .program = HSMC_HOSTILE, .timeout_ns = SECOND};
        options.engine.module_args = lies[i];
        hsm_client *client = new_client(&small_client);
        hsm_error error = {.status = HSM_OK};
        hsm_host *host = NULL;
        hsm_status status = start_host(client, &options, &host, &error);
        const hsm_key_selector selector = {.label = "hostile", .handle = -1};
        hsm_key_info key = {.index = 0};
        hsm_token_info token;
        if (status == HSM_OK) {
            status = hsm_host_add_key(host, &selector, &key, &error);
            (void)hsm_host_token(host, &token, NULL);
        }
        if ((status != HSM_OK) != (i < NOTICED)) {
            FAIL("%s: %s", lies[i], hsm_status_name(status));
        }
        CHECK_INT(strnlen(key.label, sizeof key.label), <, sizeof key.label);
        CHECK_INT(strnlen(error.detail, sizeof error.detail), <, sizeof error.detail);
        CHECK_INT(strnlen(error.call, sizeof error.call), <, sizeof error.call);
        hsm_host_stop(host, SECOND);
        hsm_client_free(client);
    }
}

static const struct test tests[] = {
    TEST(random_bytes_in_the_area),
    TEST(rubbish_in_the_rings),
    TEST(answers_that_nobody_asked_for),
    TEST(wakes_without_end),
    TEST(silence),
    TEST(a_socket_that_is_closed),
    TEST(descriptors_that_block),
    TEST(an_end_in_the_middle),
    TEST(lies_in_replies),
};

HARNESS_MAIN(tests)
