/* Verification on this side, in a thread of its own: what the workers say reaches a waiter after its verdict, once, and
 * as it was verified. A test holds the thread back by hsm_verdicts_pause. */
#include <sched.h>

#include "desk.h"

static struct desk verifying_desk(uint32_t slots, uint32_t every) {
    struct desk d = desk_of(slots, 0, 0);
    hsm_key_info key = {.index = d.key, .algorithm = HSM_ED25519, .public_key_len = 32};
    memcpy(key.public_key, secret + 32, 32);
    CHECK_STATUS(hsm_requests_pin(d.table, &key, 0, every), HSM_OK);
    return d;
}

static void wake(struct desk *d) {
    atomic_store(&d->client->area->shared->notify, HSM_NOTIFY_FIRED);
    hsm_event_set(d->client->event_fd);
}

/* What a worker does with the oldest request: it signs `text`. Returns the slot. */
static uint32_t work(struct desk *d, const char *text) {
    uint32_t index;
    REQUIRE(hsm_area_claim(d->client->area, &index) && hsm_area_begin(hsm_area_slot(d->client->area, index)));
    hsm_slot *slot = hsm_area_slot(d->client->area, index);
    memcpy(slot->signature, signature_of(text), HSM_MAX_SIGNATURE);
    slot->signature_len = HSM_MAX_SIGNATURE;
    slot->status = HSM_OK;
    slot->hsm_ns = 1;
    hsm_area_complete(d->client->area, index);
    wake(d);
    return index;
}

/* Wait for verdicts as an event loop does. */
static void await_verdict(struct desk *d) {
    int fds[2];
    hsm_requests_wake_fds(d->table, &fds[0], &fds[1]);
    CHECK_INT(fds[1], ==, -1);
    if (!readable(fds[0], (int)(PATIENCE / MILLISECOND))) {
        FAIL("no verdict came");
        exit(1);
    }
    hsm_requests_wake_clear(d->table);
}

static void every_nth_signature_is_verified(void) {
    for (unsigned every = 1; every <= 4; every++) {
        struct desk d = verifying_desk(4, every);
        for (unsigned i = 0; i < 12; i++) {
            uint64_t number = ask(&d, "a");
            (void)work(&d, "b");
            await_verdict(&d);
            (void)answered(&d, number, i % every == every - 1 ? HSM_SIGNATURE_INVALID : HSM_OK);
        }
        CHECK_INT(counts_of(&d).wrong, ==, 12 / every);
        desk_end(&d);
    }
}

/* Answers come in the order of their completions, one event for as many as wait. */
static void verdicts_keep_the_order_of_completions(void) {
    enum { SLOTS = 8 };
    struct desk d = verifying_desk(SLOTS, 1);
    static const char *const texts[] = {"a", "b", "c", "d", "e", "f", "g", "h"};
    for (unsigned round = 0; round < 20; round++) { /* the ring goes round */
        uint64_t numbers[SLOTS];
        for (unsigned i = 0; i < SLOTS; i++) {
            numbers[i] = ask(&d, texts[i]);
        }
        hsm_verdicts_pause(d.table->verdicts);
        for (unsigned i = 0; i < SLOTS; i++) {
            (void)work(&d, i == round % SLOTS ? "wrong" : texts[i]);
        }
        nothing_more(&d);
        hsm_verdicts_resume(d.table->verdicts);
        for (unsigned taken = 0; taken < SLOTS;) {
            await_verdict(&d);
            for (; taken < SLOTS && hsm_requests_catch_up(d.table); taken++) {
                hsm_answer answer =
                    answered(&d, numbers[taken], taken == round % SLOTS ? HSM_SIGNATURE_INVALID : HSM_OK);
                if (answer.status == HSM_OK) {
                    CHECK_BYTES(answer.signature, signature_of(texts[taken]), HSM_MAX_SIGNATURE);
                }
            }
        }
        nothing_more(&d);
    }
    CHECK_INT(counts_of(&d).wrong, ==, 20);
    desk_end(&d);
}

/* A host that has shown a good signature cannot exchange it, nor call a failure a success, nor answer again. */
static void what_was_verified_is_what_is_handed_out(void) {
    struct desk d = verifying_desk(4, 1);
    uint64_t good = ask(&d, "a");
    hsm_slot *first = hsm_area_slot(d.client->area, work(&d, "a"));
    await_verdict(&d);
    memset(first->signature, 'x', sizeof first->signature);
    hsm_area_complete(d.client->area, (uint32_t)(first - d.client->area->slot_table));
    uint64_t bad = ask(&d, "b");
    uint32_t slot = work(&d, "a");
    await_verdict(&d);
    hsm_slot *second = hsm_area_slot(d.client->area, slot);
    second->status = HSM_OK;
    second->key = d.key + 1;
    memcpy(second->signature, signature_of("b"), HSM_MAX_SIGNATURE);
    hsm_answer answer = answered(&d, good, HSM_OK);
    CHECK_BYTES(answer.signature, signature_of("a"), HSM_MAX_SIGNATURE);
    (void)answered(&d, bad, HSM_SIGNATURE_INVALID);
    nothing_more(&d);
    CHECK_INT(counts_of(&d).wrong, ==, 1);
    desk_end(&d);
}

static void a_deadline_passes_before_the_verdict(void) {
    struct desk d = verifying_desk(4, 1);
    uint64_t number = ask(&d, "a");
    hsm_verdicts_pause(d.table->verdicts);
    (void)work(&d, "a");
    CHECK_INT(hsm_requests_sweep(d.table, hsm_now_ns() + 2 * LONG), ==, 1);
    hsm_answer early = next_is(&d, number, HSM_DEADLINE_EXCEEDED);
    CHECK(early.claimed && !early.last && early.begun);
    CHECK_INT(counts_of(&d).slots, ==, 1); /* nobody else gets it before the verdict */
    nothing_more(&d);
    hsm_verdicts_resume(d.table->verdicts);
    await_verdict(&d);
    CHECK_INT(unclaimed(&d, number, HSM_OK).told, ==, 1);
    nothing_more(&d);
    desk_end(&d);
}

static void a_caller_leaves_before_the_verdict(void) {
    struct desk d = verifying_desk(4, 1);
    uint64_t number = ask(&d, "a");
    hsm_verdicts_pause(d.table->verdicts);
    (void)work(&d, "b");
    CHECK_INT(cancel(&d, number, 0), ==, 1);
    nothing_more(&d);
    hsm_verdicts_resume(d.table->verdicts);
    await_verdict(&d);
    CHECK_INT(unclaimed(&d, number, HSM_SIGNATURE_INVALID).told, ==, 0);
    desk_end(&d);
}

static void settling_waits_for_the_verdicts_of_all_that_has_come(void) {
    struct desk d = verifying_desk(4, 1);
    uint64_t numbers[3] = {ask(&d, "a"), ask(&d, "b"), ask(&d, "c")};
    (void)work(&d, "a");
    (void)work(&d, "wrong");
    hsm_event_clear(d.client->event_fd); /* also one that nobody was woken for */
    hsm_requests_settle(d.table);
    hsm_requests_settle(d.table);
    (void)work(&d, "c");
    (void)answered(&d, numbers[0], HSM_OK);
    (void)answered(&d, numbers[1], HSM_SIGNATURE_INVALID);
    nothing_more(&d); /* what comes later is not verified, hence not handed out */
    hsm_requests_fail(d.table, HSM_ALL, HSM_CLOSED);
    CHECK_INT(next_is(&d, numbers[2], HSM_CLOSED).begun, ==, 1);
    hsm_requests_free(d.table);
    hsm_guest_free(d.guest);
    hsm_client_free(d.client);
}

static void a_request_whose_verdict_waits_is_not_signed_again(void) {
    struct desk d = verifying_desk(4, 1);
    d.client->area->shared->keys[hsm_key_place(d.key)].algorithm = HSM_ED25519;
    uint64_t number = ask(&d, "a");
    (void)work(&d, "a");
    await_verdict(&d);
    uint64_t lost = ask(&d, "b");
    uint32_t claimed;
    REQUIRE(hsm_area_claim(d.client->area, &claimed) && hsm_area_begin(hsm_area_slot(d.client->area, claimed)));
    CHECK_INT(hsm_requests_replay(d.table), ==, 1);
    (void)answered(&d, number, HSM_OK);
    (void)work(&d, "b");
    await_verdict(&d);
    (void)answered(&d, lost, HSM_OK);
    desk_end(&d);
}

static void a_signature_whose_key_has_lost_its_place_is_not_handed_out(void) {
    struct desk d = verifying_desk(4, 1);
    uint64_t number = ask(&d, "a");
    hsm_requests_retire(d.table, d.key);
    hsm_key_info key = {.index = d.key + HSM_MAX_KEYS, .algorithm = HSM_ED25519, .public_key_len = 32};
    memcpy(key.public_key, secret + 32, 32);
    CHECK_STATUS(hsm_requests_pin(d.table, &key, 0, 1), HSM_OK);
    (void)work(&d, "a");
    await_verdict(&d);
    (void)answered(&d, number, HSM_KEY_DEACTIVATED);
    desk_end(&d);
}

/* ---- wakes ---- */

static void *work_for(void *argument) {
    struct desk *d = argument;
    for (int i = 0; i < 3000; i++) {
        uint64_t begun = hsm_now_ns();
        while (hsm_area_queued(d->client->area) == 0 && patient(begun)) {
            (void)sched_yield();
        }
        (void)work(d, "a");
    }
    return NULL;
}

/* A wake that is lost would show as a verdict that never comes. */
static void no_verdict_waits_for_a_sleeping_loop(void) {
    struct desk d = verifying_desk(4, 1);
    pthread_t worker;
    REQUIRE(pthread_create(&worker, NULL, work_for, &d) == 0);
    for (int i = 0; i < 1000; i++) {
        uint64_t numbers[3] = {ask(&d, "a"), ask(&d, "a"), ask(&d, "a")};
        for (int taken = 0; taken < 3;) {
            await_verdict(&d);
            for (; hsm_requests_catch_up(d.table) && taken < 3; taken++) {
                (void)answered(&d, numbers[taken], HSM_OK);
            }
        }
    }
    (void)pthread_join(worker, NULL);
    desk_end(&d);
}

static uint64_t processor_ns(void) {
    struct timespec used;
    REQUIRE(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used) == 0);
    return (uint64_t)used.tv_sec * SECOND + (uint64_t)used.tv_nsec;
}

static void a_thread_without_work_takes_no_processor(void) {
    struct desk d = verifying_desk(4, 1);
    uint64_t before = processor_ns();
    hsm_sleep(300 * MILLISECOND);
    CHECK_INT(processor_ns() - before, <, 30 * MILLISECOND);
    desk_end(&d);
}

static const struct test tests[] = {
    TEST(a_thread_without_work_takes_no_processor),
    TEST(every_nth_signature_is_verified),
    TEST(verdicts_keep_the_order_of_completions),
    TEST(what_was_verified_is_what_is_handed_out),
    TEST(a_deadline_passes_before_the_verdict),
    TEST(a_caller_leaves_before_the_verdict),
    TEST(settling_waits_for_the_verdicts_of_all_that_has_come),
    TEST(a_request_whose_verdict_waits_is_not_signed_again),
    TEST(a_signature_whose_key_has_lost_its_place_is_not_handed_out),
    TEST(no_verdict_waits_for_a_sleeping_loop),
};
HARNESS_MAIN(tests)
