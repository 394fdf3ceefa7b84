/* The ladder as a table: for each step the rows in turn, of which the first one counts whose facts hold. */
#include "ladder.h"

#include <stddef.h>

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
