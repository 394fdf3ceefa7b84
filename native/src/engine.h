/* The engine's inside, shared by its files: engine.c (life cycle), keytable.c (keys), worker.c (the loop), recover.c (the
 * ladder). */
#ifndef HSM_ENGINE_H
#define HSM_ENGINE_H

#include <pthread.h>

#include "algorithm.h"
#include "client.h"
#include "module.h"
#include "quirks.h"
#include "sign.h"
#include "verify.h"

/* A key as this process finds it again; what is pinned lies in the area's key table. */
typedef struct hsm_engine_key {
    char *label;
    uint8_t id[HSM_MAX_KEY_ID];
    size_t id_len;
    int64_t fixed_handle; /* chosen by handle, or -1 */
    _Atomic uint64_t handle;
    _Atomic bool gone; /* it was looked for, and is not there */
    uint32_t next;     /* the index that the next key in this place gets; under `control` */
} hsm_engine_key;

/* Where a worker's thread is in its life; only `supervise` and `stop` join it. */
enum hsm_thread_state { HSM_THREAD_NONE, HSM_THREAD_STARTED, HSM_THREAD_ENDED };

/* One request's way up the ladder, from its first failure on. */
typedef struct hsm_ladder {
    uint64_t failed_ns;  /* when it last failed */
    uint64_t since_ns;   /* when it failed before that */
    uint64_t until_ns;   /* when it is given up */
    uint32_t seen;       /* a bit for each class of failure that it met */
    enum hsm_class last; /* of the failure before this one */
    unsigned pauses;
    unsigned wrong;   /* signatures that did not verify */
    uint64_t wait_ns; /* how long it was too soon to mend the token again; 0: it was tried */
    bool last_attempt;
    bool healed;   /* it was tried to heal the token */
    bool renewed;  /* this worker has initialized the module anew */
    bool unhealed; /* the last try to mend the token failed, or it signs nothing though it could be mended */
} hsm_ladder;

typedef struct hsm_worker {
    hsm_engine *engine;
    hsm_worker_record *record;
    uint32_t index;
    pthread_t thread;
    _Atomic uint32_t thread_state;
    bool replacement; /* started for a quarantined one, when nobody waits for its start */
    bool session_open;
    CK_SESSION_HANDLE session;
    uint32_t epoch;                         /* of the handles below */
    CK_OBJECT_HANDLE handles[HSM_MAX_KEYS]; /* 0: look it up */
    hsm_verifier *verifiers[HSM_MAX_KEYS];
    uint32_t verified_index[HSM_MAX_KEYS]; /* whose verifier that is */
    /* The place of the key that it serves a request for, plus one; 0: none. No other key gets the place meanwhile. */
    _Atomic uint32_t serving;
    uint64_t signed_count;
    uint64_t verifying_ns; /* of the request that it serves */
    hsm_ladder ladder;
    uint64_t probing_ns;          /* since when its request is the probe; 0: it is not */
    _Atomic uint64_t answered_ns; /* when it last signed; read by other workers */
    bool suspicious;              /* the last signature that was verified was wrong */
    uint64_t last_used_ns;
    uint8_t *message; /* a private copy: the module never reads memory that the client may write */
} hsm_worker;

struct hsm_engine {
    hsm_client *client;
    hsm_area *area;
    hsm_module *module;
    CK_FUNCTION_LIST *p11;
    const hsm_quirks *quirks;
    hsm_token_info token;        /* as it was at the start */
    hsm_token_info token_now;    /* as it was when last looked for */
    hsm_token_selector selector; /* owned copies */
    CK_SLOT_ID slot;
    uint8_t *pin; /* locked memory, or NULL */
    size_t pin_len;
    uint64_t spin_ns;
    uint64_t patience_ns;
    uint32_t verify_every;
    uint32_t fork_generation;
    bool keep_queued; /* while a host is being started again: requests are not answered if that fails */

    /* Held while the login session is used: adding keys, logging in again, finding keys again. A worker takes it only
     * when its signature has failed already. Use hsm_engine_lock and hsm_engine_unlock. */
    pthread_mutex_t control;
    _Atomic bool closing; /* no login, no mending any more */
    bool login_open;
    CK_SESSION_HANDLE login_session;
    _Atomic uint32_t auth_failure; /* the status with which the login was refused: never log in again. 0: it was not */
    uint64_t last_heal_ns;
    uint64_t last_reinit_ns;

    /* Closed while the module is initialized anew: workers wait outside. A futex. */
    _Atomic uint32_t gate;
    _Atomic uint32_t heal_failures; /* since the last success */
    uint32_t fruitless;             /* re-initializations in a row after which nothing was signed; under `control` */
    _Atomic uint32_t keys_found;    /* when they were last looked for */
    _Atomic uint32_t probe_failures;
    _Atomic uint64_t probe_begun_ns; /* when the request that is the probe was begun; 0: there is none */
    _Atomic uint32_t probes_ended;   /* a futex */

    /* Bumped whenever handles became invalid; workers then look their keys up again. */
    _Atomic uint32_t epoch;
    hsm_engine_key keys[HSM_MAX_KEYS]; /* by place; `label` is NULL where there is none */

    /* The thread that keeps a processor awake, see warm.c; none if `warm_ns` is 0. */
    uint64_t warm_ns;
    pthread_t warmer;
    _Atomic uint32_t warm; /* a futex: 1 while it polls */
    _Atomic uint64_t last_answer_ns;

    /* Start and stop. */
    pthread_mutex_t state;
    pthread_cond_t changed;
    uint32_t starting;
    uint32_t running;
    hsm_error start_error;
    uint32_t worker_count; /* that should be running */
    uint32_t worker_slots; /* places in `workers`, replacements included */
    hsm_worker *workers;
};

/* worker.c: the thread function of a worker; `argument` is its hsm_worker. */
void *hsm_worker_main(void *argument);

/* thread.c: start the worker at this place; join one whose thread has ended or is about to. */
hsm_status hsm_worker_start(hsm_engine *engine, uint32_t index, bool replacement);
void hsm_worker_reap(hsm_worker *worker);

/* wake.c */

/* Whether the client is to be woken at once for a request that was begun and completed at these times; see hsm_notify. */
bool hsm_is_urgent(const hsm_worker *worker, uint64_t begun, uint64_t now);
/* Tell the client that completions wait: at once if `urgent`, else when the oldest of them has waited for the
 * coalescing time. It is the workers that notice that, at their next completion; should they all hang, a timer of the
 * kernel's, set a few times as long, does. Any worker; counts into `record`. */
void hsm_notify(hsm_area *area, int event_fd, int timer_fd, bool urgent, uint64_t now, hsm_worker_record *record);

/* Take the lock `control`, and give it back: then the PIN is wiped if the engine was stopped meanwhile. */
void hsm_engine_lock(hsm_engine *engine);
void hsm_engine_unlock(hsm_engine *engine);
/* Wipe the PIN if the engine is closing and no thread holds `control`; else its holder does when it gives it back. */
void hsm_engine_wipe_pin(hsm_engine *engine);

/* A request failed for the first time at `now`. */
void hsm_ladder_begin(hsm_worker *worker, uint64_t now, uint64_t deadline_ns);
/* One step up the ladder after `status`; called inside the module. Returns true if the signature is worth another
 * attempt. */
bool hsm_recover(hsm_worker *worker, hsm_status status);
/* What a request ends with that could not be recovered from `status`: after a login that was refused, that. */
hsm_status hsm_verdict(const hsm_worker *worker, hsm_status status);
/* Whether a session has signed since then. */
bool hsm_token_answered_since(const hsm_engine *engine, uint64_t since);
/* Whether a session has signed since this worker's request failed before the last time: then the token answers. */
bool hsm_token_answers(const hsm_worker *worker);
/* Whether a request may go to a token that is down: one may now and then, as a probe. May wait, within the request's
 * deadline, for a probe; `*now` is then the time afterwards. */
bool hsm_admit_to_token(hsm_worker *worker, uint64_t *now, uint64_t deadline_ns);
/* The request of this worker was the probe and has ended. */
void hsm_probe_end(hsm_worker *worker);
/* Have the workers that wait for a probe look again. Any thread. */
void hsm_probe_waiters_wake(hsm_engine *engine);
/* Note that a token that was down has answered, or that the ladder ended without an answer. */
void hsm_token_answered(hsm_engine *engine);
void hsm_token_silent(hsm_worker *worker, hsm_status status, uint64_t now);

/* Before the first key: empty the table, or, where a host goes on for another one, see which indices were given. */
void hsm_keys_begin(hsm_engine *engine);
/* As hsm_engine_add_key, under the index that the key had in an engine before this one on the same area. A key that is not
 * found keeps its place: the ladder looks for it when it is asked for. */
hsm_status hsm_engine_add_key_as(hsm_engine *engine, const hsm_key_selector *selector, uint32_t index,
                                 hsm_key_info *info, hsm_error *error);
/* Start and stop the thread of warm.c; note that a worker has answered a request at `now`. */
void hsm_warmer_start(hsm_engine *engine, uint64_t warm_ns);
void hsm_warmer_stop(hsm_engine *engine);
void hsm_warmer_note(hsm_engine *engine, uint64_t now);

/* Log in through the login session, opening it first if need be. Call with `control` held. */
hsm_status hsm_engine_login(hsm_engine *engine, hsm_error *error);
/* The same if the login session was lost, or its login. Call with `control` held. */
hsm_status hsm_engine_ready(hsm_engine *engine, hsm_error *error);
/* Find the key of a place again in `session` and compare it with what is pinned. Call with `control` held. */
hsm_status hsm_engine_refind(hsm_engine *engine, CK_SESSION_HANDLE session, uint32_t place, CK_OBJECT_HANDLE *handle,
                             hsm_error *error);

#endif
