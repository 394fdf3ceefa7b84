/* The request table: identical requests that share a signature, and the queue for a slot. Each waiter gets one answer,
 * and the one that is its own. The random test is tests/unit/test_model_table.py. */
#include "desk.h"

/* ---- single-flight ---- */

static void followers_share_the_leaders_signature(void) {
    struct desk d = desk_begin(4);
    uint64_t leader = ask(&d, "a");
    uint64_t first = ask(&d, "a");
    uint64_t second = ask(&d, "a");
    uint64_t other = ask(&d, "b");
    CHECK_INT(counts_of(&d).slots, ==, 2);
    CHECK_INT(counts_of(&d).open, ==, 4);
    begin(&d, 0, leader);
    begin(&d, 1, other);
    begin(&d, 2, 0);
    end(&d, 0, "a");
    hsm_answer answer = answered(&d, leader, HSM_OK);
    CHECK_INT(answer.shared + answer.cached, ==, 0);
    CHECK_INT(answer.tag, ==, 'a');
    CHECK(answer.digest == NULL || answer.latency_ns > 0);
    for (uint64_t follower = first; follower != 0; follower = follower == first ? second : 0) {
        answer = answered(&d, follower, HSM_OK);
        CHECK_INT(answer.shared, ==, 1);
        CHECK_INT(answer.latency_ns, ==, 0);
        CHECK_BYTES(answer.signature, signature_of("a"), HSM_MAX_SIGNATURE);
    }
    end(&d, 1, "b");
    CHECK_BYTES(answered(&d, other, HSM_OK).signature, signature_of("b"), HSM_MAX_SIGNATURE);
    hsm_ask again = {.message = (const uint8_t *)"a", .message_len = 1, .key = d.key, .timeout_ns = 1};
    CHECK_STATUS(hsm_requests_submit(d.table, &again, &answer), HSM_OK);
    CHECK_INT(answer.request, ==, 0);
    CHECK_INT(answer.cached, ==, 1);
    CHECK_BYTES(answer.signature, signature_of("a"), HSM_MAX_SIGNATURE);
    desk_end(&d);
}

static void followers_share_the_leaders_failure(void) {
    struct desk d = desk_begin(4);
    uint64_t leader = ask(&d, "a");
    uint64_t follower = ask(&d, "a");
    begin(&d, 0, leader);
    uint32_t slot = hsm_guest_end(d.guest, 0, HSM_TOKEN_LOST, 0x54, NULL);
    CHECK_INT(answered(&d, leader, HSM_TOKEN_LOST).slot, ==, slot);
    hsm_answer answer = answered(&d, follower, HSM_TOKEN_LOST);
    CHECK_INT(answer.ckr, ==, 0x54);
    CHECK_INT(answer.slot, ==, slot);
    CHECK_INT(answer.shared, ==, 1);
    uint64_t again = ask(&d, "a"); /* a failure is not kept */
    hsm_requests_fail(d.table, HSM_ALL, HSM_CLOSED);
    CHECK_INT(next_is(&d, again, HSM_CLOSED).last, ==, 0);
    hsm_guest_refuse(d.guest, HSM_TOKEN_LOST);
    CHECK_INT(unclaimed(&d, again, HSM_TOKEN_LOST).told, ==, 1);
    desk_end(&d);
}

static void a_leader_that_leaves_still_signs_for_its_followers(void) {
    struct desk d = desk_begin(4);
    uint64_t leader = ask(&d, "a");
    uint64_t follower = ask(&d, "a");
    CHECK_INT(cancel(&d, leader, 0), ==, 1);
    CHECK_INT(counts_of(&d).owed, ==, 0);
    uint64_t joins = ask(&d, "a"); /* after the leader's waiter has left */
    begin(&d, 0, leader);
    end(&d, 0, "a");
    CHECK_INT(unclaimed(&d, leader, HSM_OK).told, ==, 0);
    (void)answered(&d, follower, HSM_OK);
    (void)answered(&d, joins, HSM_OK);
    desk_end(&d);
}

static void a_follower_of_a_withdrawn_leader_asks_again(void) {
    struct desk d = desk_begin(1);
    uint64_t leader = ask(&d, "a");
    uint64_t waits = ask(&d, "b");
    CHECK_INT(cancel(&d, leader, 0), ==, 0);
    uint64_t first = ask(&d, "a");
    uint64_t second = ask(&d, "a");
    begin(&d, 0, 0);
    (void)unclaimed(&d, leader, HSM_CANCELLED);
    nothing_more(&d);
    begin(&d, 0, first); /* before all others, in their order */
    end(&d, 0, "a");
    (void)answered(&d, first, HSM_OK);
    CHECK_INT(answered(&d, second, HSM_OK).cached, ==, 1);
    begin(&d, 0, waits);
    end(&d, 0, "b");
    (void)answered(&d, waits, HSM_OK);
    desk_end(&d);
}

/* A deadline ends a request, not those that have more time. */
static void a_leader_that_expires_leaves_its_followers_their_time(void) {
    struct desk d = desk_begin(4);
    uint64_t leader = ask_of(&d, "a", 1, false, HSM_OK);
    uint64_t follower = ask(&d, "a");
    CHECK_INT(hsm_requests_sweep(d.table, hsm_now_ns() + SECOND), ==, 1);
    CHECK_INT(next_is(&d, leader, HSM_DEADLINE_EXCEEDED).last, ==, 0);
    nothing_more(&d);
    begin(&d, 0, 0); /* the guest ends it, and the follower takes its place */
    CHECK_INT(unclaimed(&d, leader, HSM_DEADLINE_EXCEEDED).told, ==, 1);
    nothing_more(&d);
    begin(&d, 0, follower);
    end(&d, 0, "a");
    CHECK_INT(answered(&d, follower, HSM_OK).shared, ==, 0);
    desk_end(&d);
}

/* A guest drops a request that is late, or whose key is retired: neither it nor its followers were begun. */
static void what_is_dropped_was_not_begun(void) {
    struct desk d = desk_begin(1);
    uint64_t late = ask_of(&d, "a", 1, false, HSM_OK);
    uint64_t follower = ask(&d, "a");
    begin(&d, 0, 0);
    /* The waiter is answered before the completion is taken. */
    (void)hsm_requests_sweep(d.table, hsm_now_ns() + SECOND);
    (void)next_is(&d, late, HSM_DEADLINE_EXCEEDED);
    (void)unclaimed(&d, late, HSM_DEADLINE_EXCEEDED);
    nothing_more(&d);
    CHECK_INT(cancel(&d, follower, 0), ==, 0);
    begin(&d, 0, 0);
    (void)unclaimed(&d, follower, HSM_CANCELLED);
    uint64_t retired = ask(&d, "b");
    hsm_requests_retire(d.table, d.key);
    begin(&d, 0, 0);
    CHECK_INT(answered(&d, retired, HSM_KEY_DEACTIVATED).begun, ==, 0);
    desk_end(&d);
}

/* A host that is lost may have signed for the followers, too. */
static void a_lost_host_may_have_begun_for_followers(void) {
    struct desk d = desk_begin(1);
    uint64_t leader = ask_of(&d, "a", 50 * MILLISECOND, false, HSM_OK);
    uint64_t follower = ask(&d, "a");
    CHECK_INT(hsm_requests_replay(d.table), ==, 0);
    (void)hsm_requests_sweep(d.table, hsm_now_ns() + SECOND);
    CHECK_INT(next_is(&d, leader, HSM_DEADLINE_EXCEEDED).begun, ==, 1);
    CHECK_INT(cancel(&d, follower, 1), ==, 1);
    begin(&d, 0, 0);
    (void)unclaimed(&d, leader, HSM_CANCELLED);
    desk_end(&d);
}

static void a_retired_key_ends_leader_and_follower(void) {
    struct desk d = desk_begin(4);
    uint64_t begun = ask(&d, "a");
    begin(&d, 0, begun);
    uint64_t leader = ask(&d, "b");
    uint64_t follower = ask(&d, "b");
    hsm_requests_retire(d.table, d.key);
    CHECK_INT(ask_of(&d, "c", LONG, false, HSM_KEY_DEACTIVATED), ==, 0);
    end(&d, 0, "a");
    begin(&d, 0, 0);
    (void)answered(&d, begun, HSM_OK); /* signed before */
    (void)answered(&d, leader, HSM_KEY_DEACTIVATED);
    (void)answered(&d, follower, HSM_KEY_DEACTIVATED);
    hsm_cache_stats stats;
    hsm_cache_stats_read(d.cache, &stats);
    CHECK_INT(stats.entries, ==, 0);
    desk_end(&d);
}

static void followers_leave_one_by_one(void) {
    struct desk d = desk_begin(4);
    uint64_t leader = ask(&d, "a");
    uint64_t first = ask(&d, "a");
    uint64_t second = ask_of(&d, "a", 1, false, HSM_OK);
    uint64_t third = ask(&d, "a");
    CHECK_INT(cancel(&d, first, 1), ==, 1); /* the leader's signature will be made */
    CHECK_INT(hsm_requests_sweep(d.table, hsm_now_ns() + SECOND), ==, 1);
    (void)answered(&d, second, HSM_DEADLINE_EXCEEDED);
    begin(&d, 0, leader);
    end(&d, 0, "a");
    (void)answered(&d, leader, HSM_OK);
    (void)answered(&d, third, HSM_OK);
    desk_end(&d);
}

static void the_last_to_leave_withdraws_the_request(void) {
    struct desk d = desk_begin(4);
    uint64_t leader = ask(&d, "a");
    uint64_t first = ask(&d, "a");
    uint64_t second = ask(&d, "a");
    CHECK_INT(cancel(&d, leader, 0), ==, 1);
    CHECK_INT(cancel(&d, first, 1), ==, 1);
    CHECK_INT(cancel(&d, second, 1), ==, 0);
    begin(&d, 0, 0);
    (void)unclaimed(&d, leader, HSM_CANCELLED);

    leader = ask_of(&d, "b", 1, false, HSM_OK);
    first = ask_of(&d, "b", SECOND, false, HSM_OK);
    CHECK_INT(hsm_requests_sweep(d.table, hsm_now_ns() + SECOND / 2), ==, 1);
    (void)next_is(&d, leader, HSM_DEADLINE_EXCEEDED);
    CHECK_INT(hsm_requests_sweep(d.table, hsm_now_ns() + 2 * SECOND), ==, 1);
    (void)answered(&d, first, HSM_DEADLINE_EXCEEDED);
    begin(&d, 0, 0);
    (void)unclaimed(&d, leader, HSM_CANCELLED);
    desk_end(&d);
}

/* ---- the queue ---- */

static void requests_without_a_slot_wait_in_order(void) {
    struct desk d = desk_of(2, 0, 0);
    char texts[20][2];
    uint64_t numbers[20];
    for (uint64_t i = 0; i < 20; i++) {
        texts[i][0] = (char)('a' + i);
        texts[i][1] = 0;
        numbers[i] = ask(&d, texts[i]);
    }
    CHECK_INT(counts_of(&d).queued, ==, 18);
    CHECK_INT(cancel(&d, numbers[5], 1), ==, 0);
    for (uint32_t i = 0; i < 20; i++) {
        if (i != 5) {
            begin(&d, 0, numbers[i]);
            end(&d, 0, texts[i]);
            CHECK_INT(answered(&d, numbers[i], HSM_OK).tag, ==, texts[i][0]);
            nothing_more(&d);
        }
    }
    desk_end(&d);
}

static void a_queued_request_finds_its_signature_in_the_cache(void) {
    struct desk d = desk_begin(1);
    uint64_t leader = ask(&d, "a");
    uint64_t other = ask(&d, "b");
    uint64_t same = ask(&d, "b");
    begin(&d, 0, leader);
    end(&d, 0, "a");
    (void)answered(&d, leader, HSM_OK);
    nothing_more(&d);
    begin(&d, 0, other);
    end(&d, 0, "b");
    (void)answered(&d, other, HSM_OK);
    hsm_answer answer = answered(&d, same, HSM_OK);
    CHECK_INT(answer.cached, ==, 1);
    CHECK_INT(answer.slot, ==, HSM_NO_SLOT);
    CHECK_BYTES(answer.signature, signature_of("b"), HSM_MAX_SIGNATURE);
    desk_end(&d);
}

static void the_queue_fails_alone(void) {
    struct desk d = desk_begin(1);
    uint64_t inside = ask(&d, "a");
    uint64_t queued = ask(&d, "b");
    uint64_t late = ask_of(&d, "c", 1, false, HSM_OK);
    CHECK_INT(hsm_requests_sweep(d.table, hsm_now_ns() + SECOND), ==, 0);
    (void)answered(&d, late, HSM_DEADLINE_EXCEEDED);
    hsm_requests_fail(d.table, HSM_QUEUED_ONES, HSM_TOKEN_LOST);
    CHECK_INT(answered(&d, queued, HSM_TOKEN_LOST).slot, ==, HSM_NO_SLOT);
    begin(&d, 0, inside);
    end(&d, 0, "a");
    (void)answered(&d, inside, HSM_OK);
    desk_end(&d);
}

static void a_message_without_room_in_a_slot_is_refused(void) {
    struct desk d = desk_begin(1);
    char text[102];
    memset(text, 'x', 101);
    text[101] = 0;
    CHECK_INT(ask_of(&d, text, LONG, false, HSM_MESSAGE_TOO_LARGE), ==, 0);
    nothing_more(&d); /* had it been queued, this would never return */
    desk_end(&d);
}

static const struct test tests[] = {
    TEST(followers_share_the_leaders_signature),
    TEST(followers_share_the_leaders_failure),
    TEST(a_leader_that_leaves_still_signs_for_its_followers),
    TEST(a_follower_of_a_withdrawn_leader_asks_again),
    TEST(a_leader_that_expires_leaves_its_followers_their_time),
    TEST(what_is_dropped_was_not_begun),
    TEST(a_lost_host_may_have_begun_for_followers),
    TEST(a_retired_key_ends_leader_and_follower),
    TEST(followers_leave_one_by_one),
    TEST(the_last_to_leave_withdraws_the_request),
    TEST(requests_without_a_slot_wait_in_order),
    TEST(a_queued_request_finds_its_signature_in_the_cache),
    TEST(the_queue_fails_alone),
    TEST(a_message_without_room_in_a_slot_is_refused),
};
HARNESS_MAIN(tests)
