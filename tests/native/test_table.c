/* The request table: held answers, deadlines, cancellation, numbers, replay, verification. */
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "desk.h"

/* ---- held answers ---- */

static uint64_t signed_request(struct desk *d, const char *text, uint64_t timeout_ns) {
    uint64_t number = ask_of(d, text, timeout_ns, true, HSM_OK);
    begin(d, 0, number);
    end(d, 0, text);
    CHECK_INT(next_is(d, number, HSM_OK).claimed, ==, 1);
    return number;
}

static void held_answers_wait_for_their_records(void) {
    struct desk d = desk_begin(4);
    uint64_t numbers[4];
    static const char *const texts[] = {"a", "b", "c", "d"};
    for (uint64_t i = 0; i < 4; i++) {
        numbers[i] = signed_request(&d, texts[i], LONG);
        hsm_requests_hold(d.table, numbers[i], 10 + i, 0);
    }
    CHECK_INT(counts_of(&d).held, ==, 4);
    CHECK_INT(counts_of(&d).slots, ==, 0);
    CHECK_INT(atomic_load(&d.client->area->shared->in_flight), ==, 4); /* without slots, and not over */
    nothing_more(&d);
    hsm_requests_release(d.table, 11);
    CHECK_INT(atomic_load(&d.client->area->shared->in_flight), ==, 2);
    for (uint64_t i = 0; i < 2; i++) {
        hsm_answer answer = answered(&d, numbers[i], HSM_OK);
        CHECK_INT(answer.seq, ==, 10 + i);
        CHECK_INT(answer.slot, ==, HSM_NO_SLOT); /* that is another's by now */
        CHECK(answer.digest == NULL);
        CHECK_BYTES(answer.signature, signature_of(texts[i]), HSM_MAX_SIGNATURE);
    }
    nothing_more(&d);
    CHECK_INT(cancel(&d, numbers[2], 1), ==, 1);
    hsm_requests_fail(d.table, HSM_HELD_ONES, HSM_CLOSED);
    CHECK_INT(answered(&d, numbers[3], HSM_CLOSED).seq, ==, 13);
    uint64_t hit = ask_of(&d, "a", LONG, true, HSM_OK); /* from the cache, with a number */
    CHECK_INT(next_is(&d, hit, HSM_OK).cached, ==, 1);
    hsm_requests_hold(d.table, hit, 14, 0);
    hsm_requests_release(d.table, UINT64_MAX);
    (void)answered(&d, hit, HSM_OK);
    desk_end(&d);
}

static void answers_await_the_end_of_a_round_that_began_after_them(void) {
    struct desk d = desk_begin(4);
    uint64_t numbers[3];
    static const char *const texts[] = {"a", "b", "c"};
    for (uint64_t i = 0; i < 3; i++) {
        numbers[i] = signed_request(&d, texts[i], LONG);
        hsm_requests_hold(d.table, numbers[i], 0, 1 + i);
    }
    CHECK_INT(counts_of(&d).awaiting, ==, 3);
    CHECK_INT(atomic_load(&d.client->area->shared->in_flight), ==, 3);
    hsm_requests_release(d.table, UINT64_MAX); /* no record holds them */
    hsm_requests_fail(d.table, HSM_HELD_ONES, HSM_SYSTEM);
    nothing_more(&d);
    hsm_requests_confirm(d.table, 1);
    CHECK_INT(answered(&d, numbers[0], HSM_OK).round, ==, 1);
    nothing_more(&d);
    CHECK_INT(cancel(&d, numbers[1], 1), ==, 1);
    hsm_requests_fail(d.table, HSM_ALL, HSM_CLOSED);
    (void)answered(&d, numbers[2], HSM_CLOSED);
    uint64_t both = signed_request(&d, "d", LONG); /* first its record, then its round, within its deadline */
    hsm_requests_hold(d.table, both, 7, 0);
    hsm_requests_release(d.table, 7);
    CHECK_INT(next_is(&d, both, HSM_OK).seq, ==, 7);
    hsm_requests_hold(d.table, both, 0, 9);
    CHECK_INT(hsm_requests_sweep(d.table, hsm_now_ns() + 2 * LONG), ==, 0);
    hsm_answer late = answered(&d, both, HSM_DEADLINE_EXCEEDED);
    CHECK_INT(late.seq, ==, 7);
    CHECK_INT(late.round, ==, 9);
    desk_end(&d);
}

static void a_held_answer_has_its_deadline(void) {
    struct desk d = desk_begin(4);
    uint64_t held = signed_request(&d, "a", LONG);
    hsm_requests_hold(d.table, held, 1, 0);
    CHECK_INT(hsm_requests_sweep(d.table, hsm_now_ns() + 2 * LONG), ==, 0);
    CHECK_INT(answered(&d, held, HSM_DEADLINE_EXCEEDED).seq, ==, 1);

    /* So has one whose deadline passed while its answer waited to be taken. */
    held = ask_of(&d, "b", LONG, true, HSM_OK);
    uint64_t follower = ask_of(&d, "b", LONG, true, HSM_OK);
    begin(&d, 0, held);
    end(&d, 0, "b");
    (void)answered(&d, held, HSM_OK);
    (void)hsm_requests_sweep(d.table, hsm_now_ns() + 2 * LONG);
    (void)next_is(&d, follower, HSM_OK);
    hsm_requests_hold(d.table, follower, 2, 0);
    CHECK_INT(hsm_requests_sweep_at(d.table), !=, 0);
    (void)hsm_requests_sweep(d.table, hsm_now_ns() + 3 * LONG);
    CHECK_INT(answered(&d, follower, HSM_DEADLINE_EXCEEDED).seq, ==, 2);
    desk_end(&d);
}

/* ---- deadlines and cancellation ---- */

static void an_early_answer_and_then_the_completion(void) {
    struct desk d = desk_begin(4);
    uint64_t number = ask_of(&d, "a", LONG, false, HSM_OK);
    begin(&d, 0, number);
    CHECK_INT(hsm_guest_overran(d.guest, 0), ==, 0);
    CHECK_INT(hsm_requests_sweep(d.table, hsm_now_ns() + 2 * LONG), ==, 1);
    CHECK_INT(counts_of(&d).owed, ==, 0);
    hsm_answer answer = next_is(&d, number, HSM_DEADLINE_EXCEEDED);
    CHECK_INT(answer.claimed, ==, 1);
    CHECK_INT(answer.last, ==, 0);
    hsm_requests_end(d.table, number); /* not yet */
    CHECK_INT(cancel(&d, number, 0), ==, 1);
    CHECK_INT(counts_of(&d).open, ==, 0);
    end(&d, 0, "a");
    answer = unclaimed(&d, number, HSM_OK);
    CHECK_INT(answer.told, ==, 1);
    CHECK_BYTES(answer.signature, signature_of("a"), HSM_MAX_SIGNATURE);
    desk_end(&d);
}

static void cancelling_says_whether_a_worker_has_begun(void) {
    struct desk d = desk_begin(2);
    uint64_t begun = ask(&d, "a");
    uint64_t waits = ask(&d, "b");
    uint64_t queued = ask(&d, "c");
    begin(&d, 0, begun);
    CHECK_INT(cancel(&d, begun, 0), ==, 1);
    CHECK_INT(cancel(&d, waits, 0), ==, 0);
    CHECK_INT(cancel(&d, queued, 1), ==, 0);
    CHECK_INT(cancel(&d, waits, 0), ==, 1); /* it has no waiter any more */
    CHECK_INT(counts_of(&d).open, ==, 0);
    end(&d, 0, "a");
    begin(&d, 0, 0);
    CHECK_INT(unclaimed(&d, begun, HSM_OK).told, ==, 0);
    (void)unclaimed(&d, waits, HSM_CANCELLED);
    desk_end(&d);
}

static void a_number_is_never_used_again(void) {
    struct desk d = desk_of(4, 0, 0);
    uint64_t old = signed_request(&d, "a", LONG);
    hsm_requests_end(d.table, old);
    uint64_t number = ask(&d, "b");
    CHECK_INT((uint32_t)number, ==, (uint32_t)old);
    CHECK_INT(number, !=, old);
    hsm_requests_end(d.table, old);
    hsm_requests_hold(d.table, old, 1, 0);
    CHECK_INT(cancel(&d, old, 0), ==, 1);
    CHECK_INT(cancel(&d, 0, 0), ==, 1);
    CHECK_INT(cancel(&d, UINT64_MAX, 0), ==, 1);
    CHECK_INT(counts_of(&d).open, ==, 1);
    begin(&d, 0, number);
    end(&d, 0, "b");
    (void)answered(&d, number, HSM_OK);
    d.table->all[(uint32_t)number].generation = UINT32_MAX;
    number = signed_request(&d, "c", LONG);
    hsm_requests_end(d.table, number);
    CHECK_INT(d.table->all[(uint32_t)number].generation, ==, 1); /* no number is 0 */
    desk_end(&d);
}

/* ---- a host that died ---- */

/* What the other side can overwrite is written again from this side: message, key, deadline. */
static void replay_writes_the_requests_again(void) {
    struct desk d = desk_begin(4);
    d.client->area->shared->keys[hsm_key_place(d.key)].algorithm = HSM_ED25519;
    uint64_t begun = ask(&d, "begun");
    uint64_t waits = ask(&d, "waits");
    uint32_t claimed;
    REQUIRE(hsm_area_claim(d.client->area, &claimed) && hsm_area_begin(hsm_area_slot(d.client->area, claimed)));
    for (uint32_t i = 0; i < 4; i++) {
        hsm_slot *slot = hsm_area_slot(d.client->area, i);
        memset(slot->message, 'x', sizeof slot->message);
        slot->message_len = 7;
        slot->key = d.key + 1;
        slot->deadline_ns = 1;
    }
    CHECK_INT(hsm_requests_replay(d.table), ==, 1);
    static const char *const texts[] = {"waits", "begun"};
    const uint64_t numbers[] = {waits, begun};
    for (uint32_t i = 0; i < 2; i++) {
        begin(&d, i, numbers[i]); /* with this key, and before its deadline */
        uint32_t index = d.table->all[(uint32_t)numbers[i]].slot;
        hsm_slot *slot = hsm_area_slot(d.client->area, index);
        CHECK_INT(slot->message_len, ==, 5);
        CHECK_BYTES(slot->message, texts[i], 5);
        end(&d, i, texts[i]);
    }
    (void)answered(&d, waits, HSM_OK);
    (void)answered(&d, begun, HSM_OK);
    desk_end(&d);
}

/* ---- verification ---- */

static unsigned wrong_ones_caught(struct desk *d) {
    unsigned caught = 0;
    for (unsigned i = 0; i < 12; i++) {
        uint64_t number = ask(d, "a");
        begin(d, 0, number);
        end(d, 0, "b");
        hsm_answer answer = {.status = HSM_OK};
        CHECK_INT(hsm_requests_next(d->table, &answer), ==, 1);
        hsm_requests_end(d->table, number);
        CHECK(answer.status == HSM_OK || answer.signature_len == 0);
        caught += answer.status == HSM_SIGNATURE_INVALID ? 1U : 0U;
        hsm_stats stats;
        hsm_client_stats(d->client, &stats);
        CHECK_INT(stats.wrong, ==, caught);
        CHECK_INT(counts_of(d).wrong, ==, 0);
    }
    return caught;
}

static void a_guest_verifies_every_nth_signature_once(void) {
    for (unsigned every = 1; every <= 4; every++) {
        struct desk d = desk_of(4, 0, every);
        CHECK_INT(wrong_ones_caught(&d), ==, 12 / every);
        desk_end(&d);
    }
}

/* A signature is verified with the key that made it, also if that key is retired before the call ends. */
static void a_place_is_not_given_away_during_a_call(void) {
    struct desk d = desk_of(4, 0, 1);
    uint64_t number = ask(&d, "a");
    begin(&d, 0, number);
    hsm_requests_retire(d.table, d.key);
    hsm_key_info key = {.algorithm = HSM_ED25519, .public_key_len = 32};
    memcpy(key.public_key, secret + 32, 32);
    CHECK_STATUS(hsm_guest_add_key(d.guest, &key, 1), HSM_OK);
    CHECK_INT(hsm_key_place(key.index), !=, hsm_key_place(d.key));
    end(&d, 0, "b");
    (void)answered(&d, number, HSM_SIGNATURE_INVALID);
    CHECK_STATUS(hsm_guest_add_key(d.guest, &key, 1), HSM_OK);
    CHECK_INT(key.index, ==, d.key + HSM_MAX_KEYS);
    CHECK_INT(hsm_requests_knows(d.table, d.key), ==, 0);
    CHECK_INT(hsm_requests_knows(d.table, key.index), ==, 1);
    CHECK_INT(hsm_requests_knows(d.table, key.index + HSM_MAX_KEYS), ==, -1);
    CHECK_INT(ask_of(&d, "a", LONG, false, HSM_KEY_DEACTIVATED), ==, 0);
    d.key = HSM_MAX_KEYS - 1;
    CHECK_INT(ask_of(&d, "a", LONG, false, HSM_KEY_NOT_FOUND), ==, 0);
    desk_end(&d);
}

static void workers_starve_when_the_held_answers_leave_one_idle_or_half_the_requests_wait(void) {
    struct desk d = desk_of(4, 0, 0);
    hsm_requests_serve(d.table, 2);
    static const char *const texts[] = {"a", "b", "c", "d"};
    uint64_t numbers[COUNT_OF(texts)];
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        numbers[i] = ask_of(&d, texts[i], LONG, true, HSM_OK);
    }
    CHECK(!hsm_requests_starving(d.table, 100)); /* it is not for these answers that records wait */
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        begin(&d, 0, numbers[i]);
        end(&d, 0, texts[i]);
        (void)next_is(&d, numbers[i], HSM_OK);
        hsm_requests_hold(d.table, numbers[i], i + 1, 0);
        uint64_t left = COUNT_OF(texts) - 1 - i;
        CHECK_INT(hsm_requests_starving(d.table, 0), ==, left < 2); /* one for each of the two workers */
        CHECK_INT(hsm_requests_starving(d.table, 1), ==, left < 3);
        CHECK_INT(hsm_requests_starving(d.table, left), ==, 1);
    }
    hsm_requests_release(d.table, UINT64_MAX);
    CHECK(!hsm_requests_starving(d.table, 100)); /* nothing is held */
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        (void)answered(&d, numbers[i], HSM_OK);
    }
    desk_end(&d);
}

/* ---- moves that no request makes ---- */

/* Whether a child process that makes this move stops there, or, in a build for use, gives an error and no signature. */
static bool is_refused(struct desk *d, uint32_t index, enum hsm_request_state from, enum hsm_request_state to) {
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        hsm_request *request = &d->table->all[index];
        const struct rlimit none = {0, 0};
        (void)setrlimit(RLIMIT_CORE, &none);
        REQUIRE(freopen("/dev/null", "w", stderr) != NULL); /* for what assert says */
        request->answer.status = HSM_OK;
        request->answer.signature_len = HSM_MAX_SIGNATURE;
        request->state = (uint8_t)from;
        hsm_request_becomes(request, to);
        _exit(request->answer.status == HSM_SYSTEM && request->answer.signature_len == 0 ? 3 : 0);
    }
    int ended;
    REQUIRE(waitpid(child, &ended, 0) == child);
    return (WIFSIGNALED(ended) && WTERMSIG(ended) == SIGABRT) || (WIFEXITED(ended) && WEXITSTATUS(ended) == 3);
}

static void a_move_that_no_request_makes_hands_nothing_out(void) {
    static const enum hsm_request_state moves[][2] = {
        {HSM_REQUEST_FREE, HSM_REQUEST_READY},     {HSM_REQUEST_QUEUED, HSM_REQUEST_HELD},
        {HSM_REQUEST_FOLLOWING, HSM_REQUEST_SENT}, {HSM_REQUEST_SENT, HSM_REQUEST_HELD},
        {HSM_REQUEST_READY, HSM_REQUEST_READY},    {HSM_REQUEST_GIVEN, HSM_REQUEST_GIVEN},
        {HSM_REQUEST_HELD, HSM_REQUEST_FREE},
    };
    struct desk d = desk_begin(4);
    for (size_t i = 0; i < COUNT_OF(moves); i++) {
        CHECK(is_refused(&d, 0, moves[i][0], moves[i][1]));
    }
    CHECK(!is_refused(&d, 0, HSM_REQUEST_HELD, HSM_REQUEST_READY));
    desk_end(&d);
}

static const struct test tests[] = {
    TEST(a_move_that_no_request_makes_hands_nothing_out),
    TEST(workers_starve_when_the_held_answers_leave_one_idle_or_half_the_requests_wait),
    TEST(held_answers_wait_for_their_records),
    TEST(answers_await_the_end_of_a_round_that_began_after_them),
    TEST(a_held_answer_has_its_deadline),
    TEST(an_early_answer_and_then_the_completion),
    TEST(cancelling_says_whether_a_worker_has_begun),
    TEST(a_number_is_never_used_again),
    TEST(replay_writes_the_requests_again),
    TEST(a_guest_verifies_every_nth_signature_once),
    TEST(a_place_is_not_given_away_during_a_call),
};
HARNESS_MAIN(tests)
