/* A walk over the ladder's table, whatever its facts are and however they change, and whatever comes of its rungs. */
#include "ladder.h"

_Bool nondet_bool(void);
unsigned nondet_unsigned(void);

static _Bool is_over;
static unsigned rungs, reinits;

/* Callers leave at any time; what is asked takes some. */
static bool over(void *on) {
    (void)on;
    is_over = is_over || nondet_bool();
    return is_over;
}

static bool holds(void *on, enum hsm_fact fact) {
    (void)on;
    __CPROVER_assert(fact != 0 && ((unsigned)fact & ((unsigned)fact - 1U)) == 0, "one fact is asked for");
    is_over = is_over || nondet_bool();
    return nondet_bool();
}

static bool take(void *on, enum hsm_rung rung) {
    (void)on;
    __CPROVER_assert(!is_over, "no rung forgets that nobody waits any more");
    __CPROVER_assert(rung > HSM_RUNG_NONE && rung <= HSM_RUNG_REINIT, "it is a rung");
    is_over = nondet_bool();
    reinits += rung == HSM_RUNG_REINIT ? 1U : 0U;
    rungs++;
    return nondet_bool();
}

void prove_walk(void) {
    const hsm_ladder_calls calls = {.over = over, .holds = holds, .take = take};
    enum hsm_step step = (enum hsm_step)nondet_unsigned();
    __CPROVER_assume(step <= HSM_STEP_GIVE_UP);
    bool again = hsm_ladder_walk(step, &calls, 0);
    __CPROVER_assert(!again || !is_over, "no attempt is made for nobody");
    __CPROVER_assert(rungs <= 5 && reinits <= 1, "a failure costs a few rungs, the dearest of them once");
}
