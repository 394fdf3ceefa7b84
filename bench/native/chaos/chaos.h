/* libhsmcore_chaos: a PKCS #11 module that wraps another one and adds latency, limits and faults (docs/CHAOS.md).
 *
 * The way of one call: dispatch.c (one wrapper per function, generated from functions.def) -> chaos_enter: count,
 * faults, capacity -> the wrapped module -> chaos_leave: latency, give the server back. No lock of ours is held across
 * a call into the wrapped module, nor while a call hangs, sleeps or waits for a server.
 *
 * The files, in reading order:
 *   functions.def, functions.c     every function of PKCS #11: version, scope, name
 *   actions.def                    what a fault may do
 *   entry.c                        C_Initialize, function lists and interfaces
 *   module.c                       starting, stopping, forking
 *   wrapped.c                      the wrapped module
 *   settings.c                     the state that all calls read
 *   dispatch.c, call.c             the generated wrappers; enter and leave
 *   hooks.c, objects.c             the wrappers that look at arguments or results
 *   session.c, slot.c              which session is on which slot, and dead; servers, absent tokens
 *   fault.c, effect.c              which call gets a fault; what the fault does
 *   other_key.c, handles.c         another key in place of the right one; recycled handles
 *   latency.c, schedule.c          distributions; random numbers, hung calls
 *   vendor.c, vendor_info.c        what a vendor's module refuses; what it says of itself
 *   config.c, parse.c, vendor_json.c, json.c   the configuration file
 *   control.c, command.c           the control socket
 *   clock.c, log.c                 time; the log file
 */
#ifndef HSMCORE_CHAOS_H
#define HSMCORE_CHAOS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <p11-kit/pkcs11.h>

#include "functions.h"
#include "vendor.h"

/* ---- faults ---- */

enum chaos_action {
#define CHAOS_ACTION(name, text) ACTION_##name,
#include "actions.def"
#undef CHAOS_ACTION
    CHAOS_ACTIONS
};
extern const char *const chaos_action_names[CHAOS_ACTIONS];

#define CHAOS_FOREVER INT64_MAX

struct chaos_effect {
    enum chaos_action action;
    CK_RV ckr;           /* return */
    int64_t nanoseconds; /* hang, remove-token; CHAOS_FOREVER */
    int code;            /* exit */
};

enum chaos_when { WHEN_NTH, WHEN_EVERY, WHEN_PROBABILITY };

/* A fault lives until C_Finalize, even when cleared: a call may be looking at it. */
struct chaos_fault {
    struct chaos_fault *_Atomic next; /* of the same function */
    struct chaos_fault *all;          /* of all, to free them */
    enum chaos_function function;
    bool any_slot;
    CK_SLOT_ID slot;
    enum chaos_when when;
    uint64_t n;
    double probability;
    uint64_t limit; /* calls that it may strike */
    uint64_t stream;
    atomic_uint_fast64_t seen, struck;
    struct chaos_effect effect;
};

struct chaos_random {
    bool on;
    uint64_t seed;
    double probability;
    bool functions[CHAOS_FUNCTIONS];
    size_t effect_count;
    struct chaos_effect effects[64];
};

/* Can `action` strike `function`? Signature faults need a signature, session faults a session. */
bool chaos_action_fits(enum chaos_action action, enum chaos_function function);

/* ---- settings: latency and capacity, replaced as a whole ---- */

enum chaos_distribution { LATENCY_NONE, LATENCY_CONSTANT, LATENCY_UNIFORM, LATENCY_LOGNORMAL, LATENCY_EXPONENTIAL };

struct chaos_latency {
    enum chaos_distribution kind;
    double a, b;     /* microseconds: value | minimum, maximum | median (b: sigma, no unit) | mean */
    double offset;   /* microseconds added to every draw */
    double cap;      /* microseconds; 0: none */
    double per_byte; /* microseconds per message byte beyond free_bytes (C_Sign) */
    uint64_t free_bytes;
};

struct chaos_capacity {
    uint64_t servers; /* requests that one slot serves at once; 0: no limit */
    uint64_t queue;   /* requests that may wait; UINT64_MAX: no limit */
    CK_RV overflow;   /* the answer to the next one */
    bool chosen;      /* `functions` was given; else C_Sign and all functions that have a latency take a server */
    bool functions[CHAOS_FUNCTIONS];
};

struct chaos_settings {
    struct chaos_latency latency[CHAOS_FUNCTIONS];
    struct chaos_capacity capacity;
};

/* ---- configuration ---- */

#define CHAOS_PATH 4096

struct chaos_error {
    char text[1024];
};

struct chaos_config {
    char module[CHAOS_PATH], socket[CHAOS_PATH], log[CHAOS_PATH], profile_dir[CHAOS_PATH];
    uint64_t seed;
    struct chaos_settings settings;
    struct chaos_fault *faults; /* linked by `all`, in the order of the file */
    struct chaos_random random;
    struct chaos_vendor vendor;
};

bool chaos_config_load(const char *path, struct chaos_config *config, struct chaos_error *error);
void chaos_config_free(struct chaos_config *config);
/* Puts a profile's latency, capacity and vendor's part over those that are there; NULL: without the vendor's part. On
 * failure the settings are untouched, and `vendor` may hold anything. */
bool chaos_profile_load(const char *dir, const char *name, struct chaos_settings *settings, struct chaos_vendor *vendor,
                        struct chaos_error *error);

/* ---- slots and sessions ---- */

struct chaos_waiter;

struct chaos_slot {
    struct chaos_slot *next;
    CK_SLOT_ID id;
    bool real;                                   /* false for the one that stands for "no slot" */
    atomic_uint_fast64_t calls[CHAOS_FUNCTIONS]; /* all calls */
    atomic_uint_fast64_t turns[CHAOS_FUNCTIONS]; /* those that a fault or a latency may strike: the call number */
    _Atomic int64_t absent_until;                /* CLOCK_MONOTONIC; 0: present */
    atomic_uint_fast64_t removals;
    const struct chaos_user *_Atomic user; /* of the last login, if it is a configured one; else NULL */

    pthread_mutex_t gate; /* the servers */
    uint64_t busy, waiting, busy_max, waiting_max, refused;
    struct chaos_waiter *first, *last;
};

struct chaos_slot *chaos_slot_of(CK_SLOT_ID id); /* made on first sight; never NULL */
struct chaos_slot *chaos_slot_none(void);
struct chaos_slot *chaos_slot_first(void);
bool chaos_slot_absent(struct chaos_slot *slot);
bool chaos_slot_serve(struct chaos_slot *slot, const struct chaos_capacity *capacity, int64_t *start, CK_RV *rv);
void chaos_slot_served(struct chaos_slot *slot, const struct chaos_capacity *capacity, int64_t end);
void chaos_slots_cancel(void); /* wakes all calls that wait for a server, for C_Finalize */
void chaos_slots_return(void); /* brings removed tokens back */
void chaos_slots_reset(bool free_them);

/* `state` counts the calls inside the wrapped module; with SESSION_DEAD set, no more may enter. The call that takes a
 * dead session's count to zero closes it in the wrapped module, so that no session is closed under a call that uses
 * it. */
#define SESSION_DEAD (UINT64_C(1) << 32)
struct chaos_session {
    struct chaos_session *next;
    CK_SESSION_HANDLE handle;
    struct chaos_slot *slot;
    atomic_uint_fast64_t state;
    atomic_bool closed; /* the wrapped module has closed it already */
    bool unlinked;      /* guarded by the bucket's lock, like `pins` */
    unsigned pins;
    /* Of the last C_SignInit; touched only by the session's own calls. */
    CK_MECHANISM_TYPE mechanism;
    bool plain_mechanism; /* without a parameter */
    CK_OBJECT_HANDLE key, given_key;
};

bool chaos_session_known(CK_SESSION_HANDLE handle);
bool chaos_session_add(CK_SESSION_HANDLE handle, struct chaos_slot *slot);
struct chaos_session *chaos_session_pin(CK_SESSION_HANDLE handle); /* NULL: not one of ours */
void chaos_session_unpin(struct chaos_session *session);
bool chaos_session_dead(struct chaos_session *session);
bool chaos_session_begin(struct chaos_session *session);
void chaos_session_end(struct chaos_session *session);
void chaos_session_kill(struct chaos_session *session);
void chaos_session_closed(struct chaos_session *session);
void chaos_session_forget(CK_SESSION_HANDLE handle); /* if it is dead and closed */
void chaos_sessions_kill(struct chaos_slot *slot);
void chaos_sessions_closed(struct chaos_slot *slot);
bool chaos_sessions_any(struct chaos_slot *slot, CK_SESSION_HANDLE *handle);
uint64_t chaos_sessions_open(void);
void chaos_sessions_reset(bool free_them);

/* ---- one call ---- */

struct chaos_call {
    enum chaos_function function;
    CK_SESSION_HANDLE handle;
    CK_SLOT_ID slot_id;
    CK_OBJECT_HANDLE object; /* the key, for a fault that is about it */
    uint64_t size;           /* message bytes, for a latency per byte */
    bool query;              /* asks for a length only: no fault, no latency */

    bool plain; /* forwarded as it is: not initialised, or in the child of a fork */
    CK_RV rv;   /* the answer, if the call is not to be forwarded */
    struct chaos_slot *slot;
    struct chaos_session *session;
    bool inside, served;
    uint64_t number, removals;
    const struct chaos_settings *settings;
    int64_t start, service;     /* nanoseconds; service 0: no latency */
    struct chaos_effect effect; /* what remains to be done with the result, if `altered` */
    bool altered;
};

bool chaos_enter(struct chaos_call *call); /* false: answer call->rv */
CK_RV chaos_leave(struct chaos_call *call, CK_RV rv);

/* fault.c, effect.c */
bool chaos_fault_pick(const struct chaos_call *call, struct chaos_effect *effect);
bool chaos_effect_apply(struct chaos_call *call, const struct chaos_effect *effect); /* false: answer call->rv */
void chaos_alter_signature(const struct chaos_call *call, CK_BYTE *data, CK_ULONG data_len, CK_BYTE *signature,
                           CK_ULONG *signature_len, CK_ULONG room);
CK_RV chaos_gone(const struct chaos_call *call); /* CKR_OK, or what a dead session or an absent token answers */
void chaos_fault_add(struct chaos_fault *fault);
void chaos_fault_count(enum chaos_action action);
void chaos_fault_skip(const struct chaos_call *call, enum chaos_action action, const char *why);
uint64_t chaos_faults_struck(enum chaos_action action);
uint64_t chaos_faults_skipped(void);
void chaos_faults_clear(void);
void chaos_faults_reset(bool free_them);
void chaos_random_set(struct chaos_random *random); /* takes it over */

/* other_key.c: both answer false, and say so in the log, if the token has no other key of that type and makes none. */
bool chaos_other_key_sign(const struct chaos_call *call, CK_BYTE *data, CK_ULONG data_len, CK_BYTE *signature,
                          CK_ULONG *signature_len);
bool chaos_other_key_find(const struct chaos_call *call, CK_OBJECT_HANDLE key, CK_OBJECT_HANDLE *other);

/* handles.c: handles as the client has them, and those of the wrapped module. */
CK_OBJECT_HANDLE chaos_handle(const struct chaos_call *call, CK_OBJECT_HANDLE given);
void chaos_handles_found(const struct chaos_call *call, CK_OBJECT_HANDLE *handles, CK_ULONG count);
void chaos_handle_recycle(const struct chaos_call *call, CK_OBJECT_HANDLE given, CK_OBJECT_HANDLE other);
void chaos_handles_reset(void);

/* vendor.c: CKR_OK, or the refusal, which the log has. */
CK_RV chaos_refused(const struct chaos_call *call);
CK_RV chaos_refused_session(const struct chaos_call *call, CK_FLAGS flags);
CK_RV chaos_refused_template(const struct chaos_call *call, const CK_ATTRIBUTE *rows, CK_ULONG count);
/* `mechanism` as the wrapped module wants it, in `own` if it differs; the templates may be NULL. */
CK_RV chaos_translated(const struct chaos_call *call, CK_MECHANISM **mechanism, CK_MECHANISM *own,
                       const CK_ATTRIBUTE *rows, CK_ULONG count);
/* The user with that PIN, or NULL. */
const struct chaos_user *chaos_user_of(const CK_BYTE *pin, CK_ULONG length);

/* vendor_info.c */
const struct chaos_slot_info *chaos_slot_info_of(CK_SLOT_ID slot); /* NULL: as it is */
void chaos_show_slot(const struct chaos_slot_info *shown, CK_SLOT_INFO *info);

/* clock.c: nanoseconds of CLOCK_MONOTONIC */
int64_t chaos_now(void);

/* latency.c, schedule.c */
int64_t chaos_latency_draw(const struct chaos_latency *latency, uint64_t random, uint64_t size);
void chaos_sleep_until(int64_t deadline); /* cut short by C_Finalize */
uint64_t chaos_draw(uint64_t seed, uint64_t stream, uint64_t number);
double chaos_unit(uint64_t random);   /* [0, 1) */
bool chaos_hang(int64_t nanoseconds); /* false: C_Finalize ended it */
uint64_t chaos_release(void);         /* ends all hangs; how many */
uint64_t chaos_hung(void);
void chaos_hang_reset(void);

/* wrapped.c */
/* A pointer for each function, never NULL: one that the wrapped module lacks answers CKR_FUNCTION_NOT_SUPPORTED. */
#define CHAOS_INTERFACES 32
struct chaos_wrapped {
    CK_C_GetInterfaceList list_interfaces; /* NULL: a module of 2.40 */
    CK_C_GetInterface get_interface;       /* the same */
#define FUNCTION(version, scope, make, name, parameters, arguments) CK_##name name;
#include "functions.def"
#undef FUNCTION
};
extern struct chaos_wrapped chaos_wrapped;
bool chaos_wrapped_load(const char *path, CK_VERSION *version, struct chaos_error *error);
bool chaos_wrapped_loaded(void);
/* Its interfaces, at most CHAOS_INTERFACES of them. Only where `list_interfaces` is not NULL. */
CK_RV chaos_wrapped_interfaces(CK_INTERFACE list[CHAOS_INTERFACES], CK_ULONG *count);

/* dispatch.c, hooks.c, objects.c, vendor_info.c, module.c, entry.c: our own functions */
#define FUNCTION(version, scope, make, name, parameters, arguments) CK_RV chaos_##name parameters;
#include "functions.def"
#undef FUNCTION

/* settings.c */
enum chaos_state { CHAOS_DOWN, CHAOS_UP, CHAOS_ENDING };
extern _Atomic int chaos_state;
extern atomic_uint_fast64_t chaos_inside; /* calls between enter and leave */
extern const struct chaos_settings *_Atomic chaos_settings;
extern struct chaos_config chaos_config; /* seed and profile_dir; the rest is handed on at C_Initialize */
bool chaos_settings_replace(const struct chaos_settings *settings);
void chaos_settings_reset(bool free_them);

/* module.c */
/* C_Initialize, and as much of it as the environment allows before it; `version` receives that of the wrapped
 * module. */
CK_RV chaos_initialize(void *init_args, CK_VERSION *version);
bool chaos_preload(CK_VERSION *version); /* loads the module that the environment names, if it can */

/* control.c, command.c */
bool chaos_control_start(const char *path, struct chaos_error *error);
void chaos_control_stop(void);
void chaos_control_forget(void);       /* in the child of a fork: the parent's thread and file */
char *chaos_command(const char *line); /* the answer, one line; caller frees; NULL: no memory */

/* log.c: the log file, if there is one; `chaos_complain` writes to stderr too. */
bool chaos_log_open(const char *path, struct chaos_error *error);
void chaos_log_close(void);
__attribute__((format(printf, 1, 2))) void chaos_log(const char *format, ...);
__attribute__((format(printf, 1, 2))) void chaos_complain(const char *format, ...);

#endif
