/* Which rung of the recovery ladder comes next, and how long each pause on it is: two tables, and what reads them.
 * Nothing here calls a module, waits, or keeps anything: recover.c has the rungs. tests/native/test_ladder.c walks
 * every row, tests/proofs/bounded/ladder.c proves that each walk ends. */
#ifndef HSM_LADDER_H
#define HSM_LADDER_H

#include <hsmcore/status.h>
#include <stdbool.h>
#include <stdint.h>

/* A failure begins at the step of its class. A walk only goes forward, and ends with one of the last two. */
enum hsm_step {
    HSM_STEP_BUSY,
    HSM_STEP_SESSION,  /* stuck or closed */
    HSM_STEP_KEY,      /* its handle means nothing any more */
    HSM_STEP_MISMATCH, /* another key answers to its name */
    HSM_STEP_WRONG,    /* the signature does not verify, */
    HSM_STEP_SUSPECT,  /* and the keys were looked up again */
    HSM_STEP_DEVICE,
    HSM_STEP_LIBRARY, /* it lost its initialization */
    HSM_STEP_LOGIN,
    HSM_STEP_OTHERS,
    HSM_STEP_MODULE,
    HSM_STEP_PAUSE,
    HSM_STEP_AFTER,
    HSM_STEP_TRY, /* to sign again */
    HSM_STEP_GIVE_UP,
};

/* What a row asks, a bit each; in the order in which they are asked: the last one is a call of the module. */
enum hsm_fact {
    HSM_FACT_AGAIN = 1U << 0,         /* the cheap remedy for this class of failure has not helped before */
    HSM_FACT_OWN = 1U << 1,           /* the failure is of the session, the login or the key */
    HSM_FACT_HEALED = 1U << 2,        /* heal was tried for this request */
    HSM_FACT_REINITIALIZED = 1U << 3, /* so was reinit */
    HSM_FACT_UNHEALED = 1U << 4,      /* the last attempt at either has failed, or has not helped */
    HSM_FACT_REFUSED = 1U << 5,       /* the token refuses the login: there is no other */
    HSM_FACT_BAD = 1U << 6,           /* the token makes no good signatures */
    HSM_FACT_GONE = 1U << 7,          /* the key alone is gone; others were found */
    HSM_FACT_ANSWERS = 1U << 8,       /* a session has signed since the failure before: the module is well */
    HSM_FACT_SILENT = 1U << 9,        /* none has for so long that the token counts as down */
    HSM_FACT_LOST = 1U << 10,         /* the module says that the session or its login is gone */
};
#define HSM_FACTS 11U

enum hsm_rung {
    HSM_RUNG_NONE,
    HSM_RUNG_RETRY,  /* a moment later */
    HSM_RUNG_REOPEN, /* in a new session */
    HSM_RUNG_REOPEN_LATER,
    HSM_RUNG_HEAL,     /* log in again if need be, and find every key again */
    HSM_RUNG_HEAL_NOW, /* the same if it is this rung's turn; HEAL waits for that */
    HSM_RUNG_LOOK,     /* the same at a slower pace: the token is there, and has another key */
    HSM_RUNG_REINIT,   /* C_Finalize and C_Initialize, then heal */
    HSM_RUNG_DOWN,     /* no row has it: the token is probed now and then */
    HSM_RUNGS,
};

/* What a walk needs to know and do; `on` is handed to each. `over`: nobody waits for the request any more, or its time
 * is up; asked before each rung. `take`: whether the rung has helped. */
typedef struct hsm_ladder_calls {
    bool (*over)(void *on);
    bool (*holds)(void *on, enum hsm_fact fact);
    bool (*take)(void *on, enum hsm_rung rung);
} hsm_ladder_calls;

/* Where a failure begins; HSM_STEP_GIVE_UP: nothing mends it. */
enum hsm_step hsm_ladder_first(hsm_status status);
/* Take rungs from this step on. Returns whether another attempt to sign is worth it. */
bool hsm_ladder_walk(enum hsm_step step, const hsm_ladder_calls *calls, void *on);

/* Nanoseconds. */
typedef struct hsm_ladder_limits {
    struct {
        uint64_t first, most; /* the shortest time between two attempts doubles with each one that was in vain */
        bool waits;           /* a request waits for the rung's turn */
    } rungs[HSM_RUNGS];
    uint64_t time;        /* that a request without a deadline has on the ladder */
    uint64_t relief;      /* pause of a worker that puts a request aside while no session signs: the module is busy */
    uint64_t step;        /* the longest step of the wait for a rung's turn */
    uint64_t silence;     /* a token that signs nothing for so long is down: heal and reinit were tried twice */
    uint64_t shares;      /* a token that stays away costs the engines that its reinits stop one part in so many of
                             their time, */
    uint64_t most_shared; /* or more of it, where that would take a longer pause than this */
} hsm_ladder_limits;
extern const hsm_ladder_limits hsm_limits;

/* The shortest time between two attempts at a rung, after so many in a row that were in vain. `stopped_ns`: how long
 * the last one stopped other engines, which sign. */
uint64_t hsm_ladder_pause(enum hsm_rung rung, unsigned vain, uint64_t stopped_ns);

/* A pause before the next attempt: in the worker, and then, if `aside_ns` is not 0, outside the workers. Neither: no
 * attempt is owed. */
typedef struct hsm_ladder_wait {
    uint64_t here_ns, aside_ns; /* both from now on */
    bool is_last;               /* no other pause follows */
} hsm_ladder_wait;

/* The pause number `pauses` of a request that has so much time left. `others_wait` for the worker, or are aside;
 * `others_sign`: other sessions do. */
hsm_ladder_wait hsm_ladder_retry(unsigned pauses, uint64_t left_ns, bool others_wait, bool others_sign);

#endif
