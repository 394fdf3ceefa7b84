/* The request table when it grows, and when memory is short. */
#include "desk.h"

/* ---- memory that runs out: the linker sends the library's calls here (see CMakeLists.txt) ---- */

static unsigned allocations_left = UINT32_MAX;
void *__real_hsm_alloc(size_t size);
void *__wrap_hsm_alloc(size_t size);

void *__wrap_hsm_alloc(size_t size) {
    if (allocations_left == 0) {
        return NULL;
    }
    allocations_left -= allocations_left == UINT32_MAX ? 0U : 1U;
    return __real_hsm_alloc(size);
}

/* ---- memory ---- */

static void the_table_grows_while_requests_are_open(void) {
    enum { REQUESTS = 2000 };
    struct desk d = desk_begin(8);
    static uint64_t numbers[REQUESTS];
    static char texts[REQUESTS][16];
    for (int i = 0; i < REQUESTS; i++) {
        uint32_t room = hsm_requests_room(d.table);
        (void)snprintf(texts[i], sizeof texts[i], "request %d", i / 4); /* four of each */
        numbers[i] = ask(&d, texts[i]);
        CHECK_INT((uint32_t)numbers[i], <, room);
    }
    CHECK_INT(hsm_requests_room(d.table), ==, 2048);
    CHECK_INT(counts_of(&d).open, ==, REQUESTS);
    for (int i = 0; i < REQUESTS; i += 4) {
        for (int j = i; j < i + 4 && i % 3 == 0; j += 3) { /* the first and the last of some leave */
            (void)cancel(&d, numbers[j], i < 32 && j == i ? 0 : 1);
        }
    }
    uint64_t signatures = 0;
    uint64_t answers = 0;
    for (bool idle = false; !idle;) {
        hsm_answer answer;
        uint32_t key;
        uint64_t number = hsm_guest_begin(d.guest, 0, &key);
        idle = number == 0;
        if (!idle) {
            end(&d, 0, (const char *)d.table->all[(uint32_t)number].message);
            signatures++;
        }
        while (hsm_requests_next(d.table, &answer)) {
            const char *text = (const char *)d.table->all[(uint32_t)answer.request].message;
            CHECK_BYTES(answer.signature, signature_of(text), HSM_MAX_SIGNATURE);
            answers += answer.claimed;
            hsm_requests_end(d.table, answer.request);
            idle = false;
        }
    }
    CHECK_INT(signatures, ==, REQUESTS / 4);
    CHECK_INT(answers, ==, REQUESTS - 2 * 167);
    desk_end(&d);
}

static void memory_that_runs_out_refuses_and_loses_nothing(void) {
    struct desk d = desk_of(4, 0, 0);
    static char texts[256][4];
    for (int i = 0; i < 256; i++) {
        (void)snprintf(texts[i], sizeof texts[i], "%d", i);
        CHECK_INT(ask(&d, texts[i]), !=, 0);
    }
    for (unsigned left = 0; left < 4; left++) { /* requests, links, and the two of the deadlines */
        allocations_left = left;
        CHECK_INT(hsm_requests_room(d.table), ==, 0);
        allocations_left = left;
        CHECK_INT(ask_of(&d, "x", LONG, false, HSM_OUT_OF_MEMORY), ==, 0);
    }
    allocations_left = UINT32_MAX;
    CHECK_INT(counts_of(&d).open, ==, 256);
    CHECK_INT(hsm_requests_room(d.table), ==, 512);
    hsm_requests_fail(d.table, HSM_ALL, HSM_CLOSED);
    hsm_guest_refuse(d.guest, HSM_CLOSED);
    unsigned answers = 0;
    hsm_answer answer;
    while (hsm_requests_next(d.table, &answer)) {
        answers += answer.claimed;
        hsm_requests_end(d.table, answer.request);
    }
    CHECK_INT(answers, ==, 256);
    desk_end(&d);
}

static void a_table_that_cannot_be_made_leaves_nothing(void) {
    hsm_client *client = new_client(&small_client);
    hsm_requests *table = NULL;
    for (unsigned left = 0; left < 6; left++) {
        allocations_left = left;
        CHECK_STATUS(hsm_requests_new(client, NULL, &table), HSM_OUT_OF_MEMORY);
        CHECK(table == NULL);
    }
    allocations_left = 6;
    CHECK_STATUS(hsm_requests_new(client, NULL, &table), HSM_OK);
    hsm_guest *guest = NULL;
    allocations_left = 0;
    CHECK_STATUS(hsm_guest_new(table, 1, 0, &guest), HSM_OUT_OF_MEMORY);
    const hsm_key_info key = {.algorithm = HSM_ED25519, .public_key_len = 32};
    for (unsigned left = 0; left < 4; left++) { /* the verifying thread's three, and the verifier */
        allocations_left = left;
        CHECK_STATUS(hsm_requests_pin(table, &key, 0, 1), HSM_OUT_OF_MEMORY);
        CHECK_INT(hsm_requests_knows(table, 0), ==, -1);
    }
    allocations_left = UINT32_MAX;
    hsm_requests_free(table);
    hsm_client_free(client);
}

/* A request whose cache entry has no memory is signed and not kept. */
static void a_cache_without_memory_costs_only_its_benefit(void) {
    struct desk d = desk_begin(4);
    allocations_left = 0;
    uint64_t first = ask(&d, "a");
    uint64_t second = ask(&d, "a");
    allocations_left = UINT32_MAX;
    begin(&d, 0, first);
    begin(&d, 1, second);
    end(&d, 0, "a");
    end(&d, 1, "a");
    (void)answered(&d, first, HSM_OK);
    (void)answered(&d, second, HSM_OK);
    desk_end(&d);
}

static const struct test tests[] = {
    TEST(the_table_grows_while_requests_are_open),
    TEST(memory_that_runs_out_refuses_and_loses_nothing),
    TEST(a_table_that_cannot_be_made_leaves_nothing),
    TEST(a_cache_without_memory_costs_only_its_benefit),
};
HARNESS_MAIN(tests)
