/* The engine's inside, shared by its files. Read engine.c (life cycle), worker.c (the loop), session.c, recover.c (the
 * ladder) with reinit.c, aside.c and down.c, keytable.c (keys), supervise.c (hanging workers), in this order. */
#ifndef HSM_ENGINE_H
#define HSM_ENGINE_H

#include <pthread.h>

#include "algorithm.h"
#include "client.h"
#include "module.h"
#include "quirks.h"
#include "sign.h"
#include "verify.h"

/* Wrong signatures after which a request or a test signature fails, of a token that makes no good ones. */
#define HSM_MAX_WRONG 4U

/* A key as this process finds it again; what is pinned lies in the area's key table. */
typedef struct hsm_engine_key {
    char *label;
    uint8_t id[HSM_MAX_KEY_ID];
    size_t id_len;
    int64_t fixed_handle; /* chosen by handle, or -1 */
    _Atomic uint64_t handle;
    _Atomic bool gone; /* the last search did not find it */
    uint32_t next;     /* index for the next key in this place; under `control` */
} hsm_engine_key;

/* Only supervise.c and the thread that ends the engine join a thread. */
enum hsm_thread_state { HSM_THREAD_NONE, HSM_THREAD_STARTED, HSM_THREAD_ENDED };

/* One request on the ladder, from its first failure on. */
typedef struct hsm_ladder {
    uint32_t slot;         /* which request it is: its slot, */
    uint64_t submitted_ns; /* and when that was filled */
    uint64_t begun_ns;     /* time of the first failure */
    uint64_t failed_ns;    /* time of the last failure */
    uint64_t since_ns;     /* time of the failure before */
    uint64_t until_ns;     /* end of its time on the ladder */
    uint32_t seen;         /* a bit for each class of failure so far */
    enum hsm_class last;   /* of the failure before this one */
    unsigned pauses;
    unsigned wrong;   /* signatures that did not verify */
    unsigned facts;   /* a bit for each enum hsm_fact that the ladder notes by itself */
    uint64_t wait_ns; /* until the rung may be tried again; 0: it was tried */
    uint64_t due_ns;  /* put the request aside, and try again then; 0: do not */
    bool last_attempt;
} hsm_ladder;

typedef struct hsm_worker {
    hsm_engine *engine;
    hsm_worker_record *record;
    uint32_t index;
    pthread_t thread;
    _Atomic uint32_t thread_state;
    bool replacement; /* started for a quarantined one: no thread waits for its start */
    bool announced;   /* the engine knows how its start went */
    bool running;     /* the engine counts it; under `state` */
    bool returned;    /* by itself: the module has not ended its thread */
    uint32_t slot;    /* the request that it serves, or HSM_NONE */
    bool session_open;
    CK_SESSION_HANDLE session;
    uint32_t epoch;                         /* of the handles below */
    CK_OBJECT_HANDLE handles[HSM_MAX_KEYS]; /* 0: look it up */
    hsm_verifier *verifiers[HSM_MAX_KEYS];
    uint32_t verified_index[HSM_MAX_KEYS]; /* of the verifier's key */
    /* The place of the key that it serves a request for, plus one; 0: none. Until then no other key gets the place. */
    _Atomic uint32_t serving;
    uint64_t signed_count;
    uint64_t verifying_ns; /* time spent on verifying, of the request that it serves */
    hsm_ladder ladder;
    uint64_t probing_ns;          /* until when its request is the probe; 0: it is none */
    _Atomic uint64_t answered_ns; /* time of its last signature; other workers read it */
    bool others_first;            /* the next request is none that was put aside */
    uint64_t doubted;             /* a bit for each place whose next signature is verified in any case */
    uint64_t last_used_ns;
    uint64_t took_ns;     /* the last request, its call included */
    const uint8_t *asked; /* the slot's message: no module sees it */
    uint8_t *message;     /* the module's copy: it never sees memory that the client may write, and may write into it */
    bool prehashed;       /* it is a digest */
    size_t used;          /* the most bytes of it that a message has had */
} hsm_worker;

struct hsm_engine {
    hsm_client *client;
    hsm_area *area;
    hsm_module *module;
    hsm_engine *next; /* in the module's list of engines */
    CK_FUNCTION_LIST *p11;
    const hsm_quirks *quirks;
    hsm_token_info token;        /* as it was at the start */
    hsm_token_selector selector; /* owned copies */
    _Atomic CK_SLOT_ID slot;     /* written under `control` */
    _Atomic bool slot_lost;      /* since a reinit; found again by the next heal */
    uint8_t *pin;                /* locked memory, or NULL */
    size_t pin_len;
    uint64_t spin_ns, patience_ns;
    uint32_t verify_every, fork_generation;
    bool keep_queued; /* in a host that replaces another one: if it fails to start, queued requests stay queued */

    /* Guards the login session: adding keys, logging in again, finding keys again. A worker takes it off the hot path
     * only: after a failed signature, or to find a key in a session of its own. Use hsm_engine_lock and
     * hsm_engine_unlock. */
    pthread_mutex_t control;
    _Atomic bool closing; /* no login, heal or reinit any more */
    bool login_open;
    CK_SESSION_HANDLE login_session;
    _Atomic uint32_t auth_failure; /* status of a refused login, after which there is no other; 0: none was refused */
    uint64_t last_heal_ns, last_reinit_ns;

    /* 1 while the module is initialized again: workers wait outside. A futex. */
    _Atomic uint32_t gate;
    _Atomic uint32_t heal_failures; /* since the last success */
    bool stops_others;              /* the last reinit stopped engines that signed; under `control` */
    uint64_t stopped_ns;            /* for how long; 0: it stopped none; under `control` */
    uint32_t fruitless;             /* reinits since the last signature; under `control` */
    _Atomic uint32_t keys_found;    /* by the last search */
    _Atomic uint32_t probe_failures;
    _Atomic uint64_t probe_until_ns; /* end of the current probe's time; 0: there is none */
    _Atomic uint32_t probes_ended;   /* a futex */

    /* Bumped whenever handles became invalid; workers then look their keys up again. */
    _Atomic uint32_t epoch;
    _Atomic uint64_t apart;            /* a bit for each place whose key may be another one than a search says */
    hsm_engine_key keys[HSM_MAX_KEYS]; /* by place; `label` is NULL where there is none */

    /* A ring with a place for each slot: the requests that were put aside, in the order in which that was. */
    pthread_mutex_t aside_lock;
    hsm_ladder *aside;
    uint32_t aside_first;
    _Atomic uint32_t aside_count;

    /* Start and stop. */
    pthread_mutex_t state;
    pthread_cond_t changed;
    uint32_t starting, running;
    uint32_t visitors; /* other threads inside: hsm_visit */
    bool ended;        /* nothing of it is left in the module */
    bool left_behind;  /* hsm_engine_stop did not wait for that: the thread that ends it frees it */
    hsm_error start_error;
    uint32_t worker_count; /* that should be running */
    uint32_t worker_slots; /* places in `workers`, replacements included */
    hsm_worker *workers;
};

/* thread.c: do `work`, which calls the module, in a thread of its own, and wait for it: the module may end that thread
 * (HSM_TOKEN_LOST), and the caller's is the application's. So does hsm_engine_stop;
 * HSM_CLOSED after that has begun. */
hsm_status hsm_visit(hsm_engine *engine, hsm_status (*work)(void *argument, hsm_error *error), void *argument,
                     hsm_error *error);

/* worker.c: the thread function of a worker; `argument` is its hsm_worker. */
void *hsm_worker_main(void *argument);

/* thread.c: start the worker at this place; join one that has ended or is about to. */
hsm_status hsm_worker_start(hsm_engine *engine, uint32_t index, bool replacement);
void hsm_worker_reap(hsm_worker *worker);

/* ---- wake.c ---- */

/* Tell the client that completions wait: at once if `urgent`, else when the oldest of them has waited for the
 * coalescing time. The workers notice that at their next completion; should all of them hang, a timer of the kernel's,
 * set a few times as long, wakes the client. Any worker; counts into `record`. */
void hsm_notify(hsm_area *area, int event_fd, int timer_fd, bool urgent, uint64_t now, hsm_worker_record *record);
/* Whether a request that was begun and completed at these times is urgent. */
bool hsm_is_urgent(const hsm_worker *worker, uint64_t begun, uint64_t now);

/* ---- login.c ---- */

/* Take the lock `control`. */
void hsm_engine_lock(hsm_engine *engine);
/* Release it, and wipe the PIN if the engine was stopped while it was held. */
void hsm_engine_unlock(hsm_engine *engine);
/* The module has ended this thread in a call: release the lock and the turn, if the thread holds them. Returns
 * HSM_TOKEN_LOST. */
hsm_status hsm_engine_let_go(hsm_engine *engine, const char *call, hsm_error *error);
/* Wipe the PIN if the engine is closing and no thread holds `control`; else the holder does when it releases the
 * lock. */
void hsm_engine_wipe_pin(hsm_engine *engine);
/* All below need `control`. Log in through the login session, opening it first if need be. */
hsm_status hsm_engine_login(hsm_engine *engine, hsm_error *error);
/* The same, if the login session or its login was lost; find the token first if the module was initialized again. */
hsm_status hsm_engine_ready(hsm_engine *engine, hsm_error *error);
/* Close the login session, if there is one. */
void hsm_engine_close_login(hsm_engine *engine);
/* Whether the user is logged in, as a session sees it; true for an engine without a PIN. */
CK_RV hsm_engine_session_state(const hsm_engine *engine, CK_SESSION_HANDLE session, bool *logged_in);
/* The status of a search for a private key: NOT_LOGGED_IN if it is not there, or not there any more, and the session is
 * not logged in. Without a login all private keys are hidden. */
hsm_status hsm_engine_unless_hidden(const hsm_engine *engine, CK_SESSION_HANDLE session, hsm_status status,
                                    bool *logged_in);
/* Note whether a search alone proves the key of a place: not where its public key is another object's. */
void hsm_engine_note_apart(hsm_engine *engine, uint32_t place, bool apart);
/* Find the key of a place again in `session` and compare it with the pinned one. Only a public key that was read and
 * differs is another one (HSM_KEY_MISMATCH), until the pinned one is found again; where none was read, the search has
 * failed (HSM_KEY_HANDLE_STALE). */
hsm_status hsm_engine_refind(hsm_engine *engine, CK_SESSION_HANDLE session, uint32_t place, CK_OBJECT_HANDLE *handle,
                             hsm_error *error);

/* Log in again if need be and find every key again. A key whose search fails has no handle afterwards; if no key is
 * found, that failure is returned. */
hsm_status hsm_engine_heal(hsm_engine *engine, hsm_error *error);

/* ---- recover.c ---- */

/* The request in the slot `index` failed for the first time at `now`, or for the first time since it was put aside. */
void hsm_ladder_begin(hsm_worker *worker, uint64_t now, uint32_t index);
/* One step up the ladder after `status`; called inside the module. Returns whether another attempt is worth it now; if
 * not, it may be worth one later, at the ladder's `due_ns`. */
bool hsm_ladder_climb(hsm_worker *worker, hsm_status status);
/* The final status of a request that failed with `status`: the refusal of the login, if that is the cause;
 * HSM_CANCELLED, if its caller has left. */
hsm_status hsm_ladder_verdict(const hsm_worker *worker, hsm_status status);

/* ---- reinit.c ---- */

/* An engine's hold of its module; every call of an engine lies between the two. Both wait while the module is
 * initialized again. Join with `control` held until the workers run. Release it with hsm_module_release after leaving.
 */
void hsm_engine_join(hsm_engine *engine);
void hsm_engine_leave(hsm_engine *engine);
/* Initialize the module again, for all engines that use it, and heal this one; the others must heal then, and their
 * workers come to know of it with their next request. HSM_BUSY at once or after a moment, with nothing done, if a user
 * is inside, comes or goes, or another engine logs in or looks for keys; HSM_TOKEN_LOST if a worker's call does not
 * end. Call with `control` held; `own`: the worker that calls, which counts as inside, or NULL. */
hsm_status hsm_engine_reinitialize(hsm_engine *engine, const hsm_worker *own, hsm_error *error);

/* ---- aside.c ---- */

/* Put this worker's request, which is on its ladder, aside. Returns false if there is no room. */
bool hsm_put_aside(hsm_worker *worker);
/* Take back the request that was put aside first, if its time has come and it is its turn. */
bool hsm_take_aside(hsm_worker *worker, uint64_t now, uint32_t *slot);
/* When the time of that request comes; 0: there is none. */
uint64_t hsm_aside_due(hsm_engine *engine);

/* ---- down.c ---- */

/* Whether any session has signed since then. */
bool hsm_token_answered_since(const hsm_engine *engine, uint64_t since);
/* Whether any session has signed since the failure before this worker's last one: then the token answers. */
bool hsm_token_answers(const hsm_worker *worker);
/* Whether no session has signed for so long, while this worker was on the ladder, that the token counts as down. */
bool hsm_token_is_silent(const hsm_worker *worker, uint64_t now);
/* Whether a request may go to a token that is down: as a probe, now and then. May wait for a probe, within the
 * request's deadline; `*now` is then the time afterwards. */
bool hsm_admit_to_token(hsm_worker *worker, uint64_t *now, uint64_t deadline_ns);
/* This worker's request was the probe and has ended. */
void hsm_probe_end(hsm_worker *worker);
/* Make the workers that wait for a probe look again. Any thread. */
void hsm_probe_waiters_wake(hsm_engine *engine);
/* A token that was down has answered; the ladder ended without an answer. */
void hsm_token_answered(hsm_engine *engine);
void hsm_token_silent(hsm_worker *worker, hsm_status status, uint64_t now);

/* ---- keytable.c ---- */

/* Before the first key: empty the table; in a host that replaces another one, read which indices were given. */
void hsm_keys_begin(hsm_engine *engine);
/* As hsm_engine_add_key, under the index that the key had in an earlier engine on the same area. A key that is not
 * found keeps its place: the ladder looks for it at the next request. */
hsm_status hsm_engine_add_key_as(hsm_engine *engine, const hsm_key_selector *selector, uint32_t index,
                                 hsm_key_info *info, hsm_error *error);

#endif
