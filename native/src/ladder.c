/* The ladder as a table: for each step the rows in turn, of which the first one counts whose facts hold. And how long
 * its pauses are. */
#include "ladder.h"

#include <stddef.h>

#define MS UINT64_C(1000000)
#define FACT(name) (unsigned)HSM_FACT_##name

struct row {
    unsigned char step;
    unsigned short with, without; /* facts that hold, and that do not */
    unsigned char rung;
    unsigned char helped, failed; /* the next step; a later one */
};

static const struct row rows[] = {
#define ROW(step, with, without, rung, helped, failed)                                                                 \
    {HSM_STEP_##step, with, without, HSM_RUNG_##rung, HSM_STEP_##helped, HSM_STEP_##failed},
    /* clang-format off: a row is one line */
    ROW(BUSY, 0, 0, RETRY, TRY, GIVE_UP) ROW(SESSION, 0, FACT(AGAIN), REOPEN, TRY, GIVE_UP)
        ROW(SESSION, FACT(LOST), 0, REOPEN_LATER, TRY, GIVE_UP) ROW(SESSION, 0, 0, REOPEN, LOGIN, GIVE_UP)
            ROW(KEY, FACT(GONE) | FACT(HEALED), 0, NONE, GIVE_UP, GIVE_UP)
                ROW(KEY, FACT(GONE), 0, HEAL_NOW, TRY, GIVE_UP) ROW(KEY, 0, 0, NONE, LOGIN, GIVE_UP)
                    ROW(MISMATCH, 0, FACT(HEALED), LOOK, TRY, GIVE_UP) ROW(MISMATCH, 0, 0, NONE, GIVE_UP, GIVE_UP)
    /* The handle may be another key's by now. */
    ROW(WRONG, 0, 0, HEAL_NOW, SUSPECT, SUSPECT) ROW(SUSPECT, FACT(ANSWERS), 0, RETRY, TRY, GIVE_UP)
        ROW(SUSPECT, FACT(BAD), 0, NONE, GIVE_UP, GIVE_UP) ROW(SUSPECT, 0, 0, NONE, TRY, GIVE_UP)
            ROW(DEVICE, 0, FACT(AGAIN), REOPEN, TRY, GIVE_UP) ROW(DEVICE, 0, 0, REOPEN, OTHERS, GIVE_UP)
                ROW(LIBRARY, 0, 0, REOPEN, MODULE, GIVE_UP)
    /* Where healing has not helped this request before, take the next rung, and then heal again, if need be. */
    ROW(LOGIN, 0, FACT(HEALED), HEAL, TRY, OTHERS) ROW(LOGIN, FACT(LOST), 0, HEAL, TRY, OTHERS)
        ROW(LOGIN, 0, 0, NONE, OTHERS, GIVE_UP)
    /* While other sessions sign, a moment may do. */
    ROW(OTHERS, FACT(ANSWERS), 0, RETRY, AFTER, GIVE_UP) ROW(OTHERS, 0, 0, NONE, MODULE, GIVE_UP)
        ROW(MODULE, 0, FACT(REINITIALIZED), REINIT, AFTER, PAUSE) ROW(MODULE, 0, 0, NONE, PAUSE, GIVE_UP)
    /* Reinit may meet a fault itself: then a moment, until the token counts as down. */
    ROW(PAUSE, FACT(REFUSED), 0, NONE, GIVE_UP, GIVE_UP) ROW(PAUSE, FACT(SILENT), 0, NONE, GIVE_UP, GIVE_UP)
        ROW(PAUSE, 0, 0, RETRY, AFTER, GIVE_UP) ROW(AFTER, FACT(OWN) | FACT(UNHEALED), 0, HEAL, TRY, TRY)
            ROW(AFTER, 0, 0, NONE, TRY, GIVE_UP)
/* clang-format on */
#undef ROW
};

static bool fits(const struct row *row, const hsm_ladder_calls *calls, void *on) {
    for (unsigned bit = 0; bit < HSM_FACTS; bit++) {
        unsigned fact = 1U << bit;
        if (((row->with | row->without) & fact) != 0 &&
            calls->holds(on, (enum hsm_fact)fact) != ((row->with & fact) != 0)) {
            return false;
        }
    }
    return true;
}

enum hsm_step hsm_ladder_first(hsm_status status) {
    static const unsigned char steps[HSM_CLASS_COUNT] = {
        [HSM_CLASS_OK] = HSM_STEP_GIVE_UP,
        [HSM_CLASS_RETRY] = HSM_STEP_BUSY,
        [HSM_CLASS_RESET] = HSM_STEP_SESSION,
        [HSM_CLASS_REOPEN] = HSM_STEP_SESSION,
        [HSM_CLASS_RELOGIN] = HSM_STEP_LOGIN,
        [HSM_CLASS_REFIND] = HSM_STEP_KEY,
        [HSM_CLASS_MEMBER_DOWN] = HSM_STEP_DEVICE,
        [HSM_CLASS_REINIT] = HSM_STEP_LIBRARY,
        [HSM_CLASS_AUTH_FATAL] = HSM_STEP_GIVE_UP,
        [HSM_CLASS_REQUEST_FATAL] = HSM_STEP_GIVE_UP,
        [HSM_CLASS_PROCESS_FATAL] = HSM_STEP_GIVE_UP,
    };
    if (status == HSM_KEY_MISMATCH) {
        return HSM_STEP_MISMATCH;
    }
    return status == HSM_SIGNATURE_INVALID ? HSM_STEP_WRONG : (enum hsm_step)steps[hsm_status_class(status)];
}

bool hsm_ladder_walk(enum hsm_step step, const hsm_ladder_calls *calls, void *on) {
    const struct row *end = rows + sizeof rows / sizeof rows[0];
    for (const struct row *row = rows; row < end && step < HSM_STEP_TRY; row++) {
        if (row->step != step || !fits(row, calls, on)) {
            continue;
        }
        if (calls->over(on)) {
            break;
        }
        step = (enum hsm_step)(row->rung == HSM_RUNG_NONE || calls->take(on, (enum hsm_rung)row->rung) ? row->helped
                                                                                                       : row->failed);
    }
    return step == HSM_STEP_TRY && !calls->over(on);
}

const hsm_ladder_limits hsm_limits = {
    .rungs =
        {
            [HSM_RUNG_RETRY] = {1 * MS, 128 * MS, false},
            [HSM_RUNG_REOPEN_LATER] = {1 * MS, 1 * MS, false},
            [HSM_RUNG_HEAL] = {20 * MS, 1000 * MS, true},
            [HSM_RUNG_HEAL_NOW] = {20 * MS, 1000 * MS, false},
            [HSM_RUNG_LOOK] = {1000 * MS, 1000 * MS, false},
            [HSM_RUNG_REINIT] = {20 * MS, 1000 * MS, true},
            [HSM_RUNG_DOWN] = {20 * MS, 1000 * MS, true},
        },
    .time = 500 * MS,
    .relief = 16 * MS,
    .step = 20 * MS,
    .silence = 40 * MS,
    .shares = 32,
    .most_shared = 16000 * MS,
};

uint64_t hsm_ladder_pause(enum hsm_rung rung, unsigned vain, uint64_t stopped_ns) {
    uint64_t most = hsm_limits.rungs[rung].most;
    uint64_t shared = stopped_ns * hsm_limits.shares;
    shared = shared < hsm_limits.most_shared ? shared : hsm_limits.most_shared;
    most = most > shared ? most : shared;
    uint64_t pause = hsm_limits.rungs[rung].first << (vain < 10 ? vain : 10);
    return pause < most ? pause : most;
}

hsm_ladder_wait hsm_ladder_retry(unsigned pauses, uint64_t left_ns, bool others_wait, bool others_sign) {
    uint64_t pause = hsm_ladder_pause(HSM_RUNG_RETRY, pauses, 0);
    uint64_t half = left_ns / 2;
    bool is_long = pause == hsm_limits.rungs[HSM_RUNG_RETRY].most;
    if (is_long && pause <= half) {
        return (hsm_ladder_wait){.here_ns = others_sign ? 0 : hsm_limits.relief, .aside_ns = pause};
    }
    /* With less time it is not put aside any more: its error is to reach its caller, and its worker the others. */
    if (is_long && others_wait) {
        return (hsm_ladder_wait){.is_last = true};
    }
    if (others_wait && others_sign) {
        pause = hsm_limits.rungs[HSM_RUNG_RETRY].first;
    }
    return (hsm_ladder_wait){.here_ns = pause < half ? pause : half, .is_last = pause > half};
}
