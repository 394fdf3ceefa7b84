/* The ladder's table: its form, and every walk: with each answer to each fact, and of each rung. And its pauses. */
#include "harness.h"

#include "ladder.c" /* its rows */

/* One walk. Its answers are the bits of `answers`, in the order in which they are asked for. */
struct walk {
    uint32_t answers;
    unsigned asked;
    unsigned known, holding; /* the facts that were asked before: a walk hears the same answer again */
    unsigned over_after;     /* the rung after which nobody waits any more */
    unsigned rungs;
    enum hsm_rung taken[8];
    bool is_over, took_when_over;
};

static bool answer(struct walk *walk) {
    return (walk->answers >> walk->asked++ & 1U) != 0;
}

static bool over(void *on) {
    const struct walk *walk = on;
    return walk->is_over;
}

/* What a rung changes is forgotten below. */
static bool holds(void *on, enum hsm_fact fact) {
    struct walk *walk = on;
    if ((walk->known & (unsigned)fact) == 0) {
        walk->known |= (unsigned)fact;
        walk->holding |= answer(walk) ? (unsigned)fact : 0;
    }
    return (walk->holding & (unsigned)fact) != 0;
}

static bool take(void *on, enum hsm_rung rung) {
    struct walk *walk = on;
    walk->took_when_over |= walk->is_over;
    REQUIRE(walk->rungs < COUNT_OF(walk->taken));
    walk->taken[walk->rungs++] = rung;
    walk->is_over = walk->rungs >= walk->over_after;
    unsigned changed = HSM_FACT_UNHEALED | HSM_FACT_ANSWERS | HSM_FACT_SILENT | HSM_FACT_LOST | HSM_FACT_REFUSED;
    walk->known &= ~changed;
    walk->holding &= ~changed;
    if (rung == HSM_RUNG_HEAL || rung == HSM_RUNG_HEAL_NOW || rung == HSM_RUNG_LOOK || rung == HSM_RUNG_REINIT) {
        walk->known |= HSM_FACT_HEALED;
        walk->holding |= HSM_FACT_HEALED;
    }
    return answer(walk);
}

static bool has_taken(const struct walk *walk, enum hsm_rung rung) {
    for (unsigned i = 0; i < walk->rungs; i++) {
        if (walk->taken[i] == rung) {
            return true;
        }
    }
    return false;
}

static void check(hsm_status status, const struct walk *walk, bool again, unsigned asked) {
    enum hsm_class class_ = hsm_status_class(status);
    CHECK(!walk->took_when_over);
    CHECK(asked < 32);
    if (class_ >= HSM_CLASS_AUTH_FATAL) {
        CHECK(walk->rungs == 0 && !again);
    }
    bool reinitialized = has_taken(walk, HSM_RUNG_REINIT);
    if ((walk->known & walk->holding & HSM_FACT_REINITIALIZED) != 0) {
        CHECK(!reinitialized); /* once for each request */
    }
    if (status == HSM_KEY_MISMATCH || status == HSM_SIGNATURE_INVALID || class_ == HSM_CLASS_RETRY) {
        CHECK(!reinitialized); /* the token is there: other requests go on */
    }
    if (reinitialized && class_ != HSM_CLASS_REINIT && (walk->known & HSM_FACT_AGAIN) != 0) {
        CHECK((walk->holding & HSM_FACT_AGAIN) != 0); /* cheaper rungs came first */
    }
    for (unsigned i = 1; i < walk->rungs; i++) {
        CHECK(walk->taken[i] != walk->taken[i - 1]); /* no rung twice at once */
    }
    if (walk->rungs == 0) {
        /* Another attempt with nothing done is one that the count of wrong signatures ends. */
        CHECK(!again || status == HSM_SIGNATURE_INVALID);
    }
}

/* All walks of a status: each answer is asked for, and what the walk asks on with it. */
static unsigned walk_all(hsm_status status, unsigned over_after, bool *tries, bool *gives_up) {
    static const hsm_ladder_calls calls = {.over = over, .holds = holds, .take = take};
    unsigned walks = 0;
    uint32_t answers = 0;
    for (;;) {
        struct walk one = {.answers = answers, .over_after = over_after, .is_over = over_after == 0};
        bool again = hsm_ladder_walk(hsm_ladder_first(status), &calls, &one);
        check(status, &one, again, one.asked);
        CHECK(!again || !one.is_over);
        *tries = *tries || again;
        *gives_up = *gives_up || !again;
        walks++;
        /* The next walk differs in the last answer that was not yes: a tree of yes and no is walked whole. */
        uint32_t bit = one.asked == 0 ? 0 : UINT32_C(1) << (one.asked - 1U);
        while (bit != 0 && (answers & bit) != 0) {
            answers &= ~bit;
            bit >>= 1;
        }
        if (bit == 0) {
            return walks;
        }
        answers |= bit;
    }
}

static void every_walk_ends_and_takes_the_cheaper_rungs_first(void) {
    unsigned walks = 0;
    for (hsm_status status = HSM_BUSY; status <= HSM_SYSTEM; status++) {
        bool tries = false;
        bool gives_up = false;
        for (unsigned over_after = 0; over_after < 8; over_after++) {
            walks += walk_all(status, over_after, &tries, &gives_up);
        }
        CHECK(gives_up);
        CHECK(tries == (hsm_status_class(status) < HSM_CLASS_AUTH_FATAL));
    }
    CHECK(walks > 1000);
}

/* Whether some facts lead to this row, and not to an earlier one of its step. */
static bool is_to_be_had(size_t index) {
    for (unsigned facts = 0; facts < 1U << HSM_FACTS; facts++) {
        size_t first = 0;
        while (rows[first].step != rows[index].step || (rows[first].with & ~facts) != 0 ||
               (rows[first].without & facts) != 0) {
            first++;
        }
        if (first == index) {
            return true;
        }
    }
    return false;
}

static void each_row_is_reached_and_leads_on(void) {
    bool reached[HSM_STEP_GIVE_UP + 1] = {false};
    for (hsm_status status = HSM_BUSY; status <= HSM_SYSTEM; status++) {
        reached[hsm_ladder_first(status)] = true;
    }
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        const struct row *row = &rows[i];
        CHECK(reached[row->step]); /* a row leads to later steps only, so the earlier ones are known here */
        CHECK(row->helped > row->step && row->failed > row->step);
        reached[row->helped] = true;
        reached[row->failed] = true;
        bool is_last = i + 1 == COUNT_OF(rows) || rows[i + 1].step != row->step;
        CHECK(is_last || rows[i + 1].step >= row->step);
        CHECK(is_last == (row->with == 0 && row->without == 0)); /* so there is always one, and none behind it */
        CHECK(is_to_be_had(i));
    }
    CHECK(reached[HSM_STEP_TRY] && reached[HSM_STEP_GIVE_UP]);
}

static void a_rung_s_pause_doubles_up_to_the_longest(void) {
    for (enum hsm_rung rung = HSM_RUNG_RETRY; rung < HSM_RUNGS; rung++) {
        uint64_t first = hsm_limits.rungs[rung].first;
        uint64_t most = hsm_limits.rungs[rung].most;
        CHECK(first <= most);
        CHECK(hsm_ladder_pause(rung, 0, 0) == first);
        for (unsigned vain = 1; vain < 100; vain++) {
            uint64_t before = hsm_ladder_pause(rung, vain - 1, 0);
            CHECK(hsm_ladder_pause(rung, vain, 0) == (2 * before < most ? 2 * before : most));
        }
    }
}

/* Waiting for longer would only keep requests from the members beside it. */
static void a_token_is_down_as_soon_as_a_second_reinit_has_failed(void) {
    CHECK(hsm_limits.silence == hsm_ladder_pause(HSM_RUNG_REINIT, 1, 0));
    CHECK(hsm_limits.silence == hsm_ladder_pause(HSM_RUNG_HEAL, 1, 0));
}

/* The shorter a reinit is, the sooner the next one comes; engines that sign lose a small part of their time to them. */
static void reinits_cost_engines_that_sign_a_small_share(void) {
    const uint64_t longest = hsm_limits.most_shared / hsm_limits.shares;
    for (uint64_t stopped = MS / 10; stopped <= longest; stopped += MS / 10) {
        uint64_t pause = hsm_ladder_pause(HSM_RUNG_REINIT, 100, stopped);
        CHECK(stopped * hsm_limits.shares <= pause);
        CHECK(pause <= 2000 * MS || stopped > 62 * MS);
        CHECK(hsm_ladder_pause(HSM_RUNG_REINIT, 0, stopped) == hsm_limits.rungs[HSM_RUNG_REINIT].first);
    }
    CHECK(hsm_ladder_pause(HSM_RUNG_REINIT, 100, 100 * longest) == hsm_limits.most_shared);
}

static void check_retry(unsigned pauses, uint64_t left, bool others_wait, bool others_sign) {
    const uint64_t first = hsm_limits.rungs[HSM_RUNG_RETRY].first;
    const uint64_t most = hsm_limits.rungs[HSM_RUNG_RETRY].most;
    hsm_ladder_wait wait = hsm_ladder_retry(pauses, left, others_wait, others_sign);
    bool is_long = hsm_ladder_pause(HSM_RUNG_RETRY, pauses, 0) == most;
    CHECK(wait.aside_ns <= left / 2); /* so there is time for an attempt after it */
    CHECK(wait.here_ns <= left / 2);
    CHECK((wait.aside_ns != 0) == (is_long && left / 2 >= most));
    if (wait.aside_ns != 0) {
        CHECK(!wait.is_last);
        CHECK(others_sign ? wait.here_ns == 0 : wait.here_ns < wait.aside_ns);
    } else if (others_wait) {
        CHECK(wait.here_ns <= (is_long ? 0 : most / 2)); /* no worker sleeps for long while others wait for it */
        CHECK(!others_sign || wait.here_ns <= first);
    }
    if (wait.aside_ns == 0 && wait.here_ns == 0) {
        CHECK(left < 2 || (is_long && others_wait));
    }
    CHECK(wait.is_last || wait.here_ns >= first || wait.aside_ns != 0);
}

static void a_long_pause_is_spent_outside_the_workers(void) {
    for (unsigned pauses = 1; pauses < 20; pauses++) {
        for (uint64_t left = 1; left < 60000 * MS; left += left / 3 + 1) {
            for (unsigned others = 0; others < 4; others++) {
                check_retry(pauses, left, (others & 1U) != 0, (others & 2U) != 0);
            }
        }
    }
}

static const struct test tests[] = {
    TEST(a_rung_s_pause_doubles_up_to_the_longest),
    TEST(a_token_is_down_as_soon_as_a_second_reinit_has_failed),
    TEST(reinits_cost_engines_that_sign_a_small_share),
    TEST(a_long_pause_is_spent_outside_the_workers),
    TEST(each_row_is_reached_and_leads_on),
    TEST(every_walk_ends_and_takes_the_cheaper_rungs_first),
};
HARNESS_MAIN(tests)
