/* hsmcore's native core: sign through a PKCS#11 module with one worker thread per session.
 *
 * The way of one signature: hsm_client_submit -> request ring -> worker (C_SignInit, C_Sign) -> completion ring ->
 * one wake for many completions -> hsm_client_next. Requests and completions cross only through fixed-layout rings in
 * one shared-memory area that holds no pointer, so the client and the workers may be in different processes.
 *
 * The law of threads:
 *  1. One worker, one thread, one session. A session never leaves its thread.
 *  2. Only this core calls C_Initialize, once per process and module, with CKF_OS_LOCKING_OK; C_Finalize is called only
 *     when no call is inside the module.
 *  3. No lock is held across a C_* call that a signature waits for.
 *  4. A worker knows nothing of Python and never takes its lock.
 *  5. A call past its deadline is abandoned: its caller is answered, its worker keeps the slot until it returns.
 *  6. After fork the child's handles are dead: a function that would submit, sign or call a module returns HSM_FORKED
 *     or 0 there.
 *
 * Unless a function says otherwise, it may be called from any thread, one at a time per object. Times are nanoseconds
 * of CLOCK_MONOTONIC. Strings are NUL-terminated UTF-8 and copied; the caller keeps ownership of what it passes in.
 */
#ifndef HSMCORE_HSMCORE_H
#define HSMCORE_HSMCORE_H

#include <stddef.h>
#include <stdint.h>

#include <hsmcore/status.h>

#define HSM_MAX_SIGNATURE 64    /* bytes: Ed25519 (RFC 8032) and ECDSA r || s on a 256-bit curve */
#define HSM_MAX_PUBLIC_KEY 65   /* bytes: 0x04 || X || Y (SEC 1 section 2.3.3); Ed25519 uses 32 */
#define HSM_MAX_KEY_ID 64       /* bytes of CKA_ID that are kept */
#define HSM_MAX_LABEL 128       /* bytes of a label, the final NUL included */
#define HSM_MAX_KEYS 64         /* keys per engine at a time; a retired one makes room for another */
#define HSM_MAX_WORKERS 1024    /* sessions per engine: the most that AWS CloudHSM gives one application */
#define HSM_MAX_SLOTS 65536     /* requests in flight per client */
#define HSM_MAX_MESSAGE 1048576 /* bytes: the most that hsm_client_options.max_message may ask for */

/* ---- algorithms ---- */

typedef enum hsm_algorithm {
    HSM_ALGORITHM_NONE,
    HSM_ED25519,         /* pure Ed25519, RFC 8032; CKM_EDDSA without parameters */
    HSM_ECDSA_P256,      /* SHA-256, then CKM_ECDSA on NIST P-256; s is made low */
    HSM_ECDSA_SECP256K1, /* SHA-256, then CKM_ECDSA on secp256k1; s is made low */
    HSM_ALGORITHM_COUNT
} hsm_algorithm;

/* "ed25519", "ecdsa-p256", "ecdsa-secp256k1"; "none" for anything else. Static storage. */
const char *hsm_algorithm_name(hsm_algorithm algorithm);
/* The inverse of hsm_algorithm_name; HSM_ALGORITHM_NONE for an unknown name. */
hsm_algorithm hsm_algorithm_of_name(const char *name);
/* 1 if the same key and message always give the same signature bytes (Ed25519), else 0. */
int hsm_algorithm_is_deterministic(hsm_algorithm algorithm);

/* Verify a signature in software: libsodium for Ed25519 (rejects small-order keys and non-canonical encodings),
 * libcrypto for ECDSA, where a high s is rejected too. `prehashed`: the message is a digest that an ECDSA key has
 * signed as it is. Takes no lock; 40 to 120 microseconds; never calls a module. Returns HSM_OK, HSM_SIGNATURE_INVALID,
 * HSM_OUT_OF_MEMORY, or HSM_BAD_ARGUMENT for a public key that is no point of the curve. */
hsm_status hsm_verify(hsm_algorithm algorithm, const uint8_t *public_key, size_t public_key_len, const uint8_t *message,
                      size_t message_len, int prehashed, const uint8_t *signature, size_t signature_len);
/* Which of the four points R that an ECDSA signature r || s on secp256k1 may stand for is its own (SEC 1 section
 * 4.1.6), so that the signature gives the public key: 1 if R's y is odd, plus 2 if its x is not below the group's
 * order. Verifies the signature: returns HSM_OK, HSM_SIGNATURE_INVALID, HSM_OUT_OF_MEMORY, or HSM_BAD_ARGUMENT for a
 * public key that is no point of the curve. Any thread. */
hsm_status hsm_recovery_id(const uint8_t public_key[HSM_MAX_PUBLIC_KEY], const uint8_t digest[32],
                           const uint8_t signature[HSM_MAX_SIGNATURE], uint8_t *recovery_id);

/* ---- the client: submits requests, collects completions ---- */

typedef struct hsm_client hsm_client;

typedef struct hsm_client_options {
    uint32_t slots;       /* requests in flight at most; rounded up to a power of two; 1 .. HSM_MAX_SLOTS */
    uint32_t max_message; /* bytes of the longest message; 1 .. HSM_MAX_MESSAGE */
    uint32_t max_workers; /* workers that may ever serve this client, replacements included */
    uint32_t digests;     /* 1: workers hash each message (SHA-256), for hsm_completion.digest */
    uint64_t coalesce_ns; /* how old a completion may grow before the client is woken; 0 wakes for each one */
} hsm_client_options;

/* A finished request. `signature` points into the slot and stays valid until hsm_client_release. */
typedef struct hsm_completion {
    uint32_t slot;
    uint32_t key;
    hsm_status status;
    uint64_t ckr;
    uint64_t call; /* the C_* call that failed, for hsm_call_name */
    uint32_t signature_len;
    const uint8_t *signature;
    const uint8_t *digest; /* SHA-256 of the message, 32 bytes in the slot; undefined unless options.digests */
    uint64_t queue_ns;     /* from submit until a worker claimed it */
    uint64_t hsm_ns;       /* inside the module */
} hsm_completion;

/* Make the shared area and its two wake descriptors. The process that calls this owns the client. */
HSM_NODISCARD hsm_status hsm_client_new(const hsm_client_options *options, hsm_client **client, hsm_error *error);
/* Free everything, once an engine that was left behind has ended. The engine must have been stopped. NULL is allowed.
 */
void hsm_client_free(hsm_client *client);
/* Descriptors that become readable when completions wait: an eventfd, and a timerfd should the workers hang. Both are
 * non-blocking and close-on-exec; watch both and call hsm_client_wake_clear on either. */
void hsm_client_wake_fds(const hsm_client *client, int *event_fd, int *timer_fd);
/* Re-arm the wake-up. Call it first, then take completions until hsm_client_next returns 0. */
void hsm_client_wake_clear(hsm_client *client);
/* For a client that is awake anyway: 1 if completions wait and some time has passed since it took the last ones. Then
 * take them until hsm_client_next returns 0: that spares a wake. */
int hsm_client_catch_up(hsm_client *client);

/* Copy `message` into a free slot and hand it to the workers. `key` is an index from hsm_engine_add_key. A request that
 * no worker has begun within `timeout_ns` (0: no limit) costs no module call. Returns HSM_OK, the slot, which names the
 * request until it is released, and its deadline (0: none); HSM_QUEUE_FULL when every slot is in use;
 * HSM_MESSAGE_TOO_LARGE; HSM_FORKED. One thread at a time, the one that also releases slots. Another one may take the
 * completions: hsm_client_wake_clear, hsm_client_catch_up, hsm_client_next. */
hsm_status hsm_client_submit(hsm_client *client, uint32_t key, const uint8_t *message, size_t message_len,
                             uint64_t timeout_ns, uint32_t *slot, uint64_t *deadline_ns);
/* Between these two calls, requests are published in groups and not one by one, so that a batch costs few wakes. Pairs
 * do not nest. */
void hsm_client_batch_begin(hsm_client *client);
void hsm_client_batch_end(hsm_client *client);
/* Take one completion. Returns 1 and fills it, or 0 when none waits. */
int hsm_client_next(hsm_client *client, hsm_completion *completion);
/* Give the slot of a taken completion back. */
void hsm_client_release(hsm_client *client, uint32_t slot);
/* Drop a request that no worker has begun, and return 1: it completes as HSM_CANCELLED. Returns 0 if a worker has begun
 * it: then its current attempt goes on, and if that fails there is no other one. */
int hsm_client_cancel(hsm_client *client, uint32_t slot);
/* Whether a worker has begun the request in a slot. */
int hsm_client_begun(const hsm_client *client, uint32_t slot);
/* Requests that no worker has begun. */
uint32_t hsm_client_queued(const hsm_client *client);
/* Slots that can be submitted to right now. */
uint32_t hsm_client_free_slots(const hsm_client *client);
uint32_t hsm_client_slots(const hsm_client *client);
/* "C_Sign" for hsm_completion.call; "" for 0 or an unknown number. Static storage. */
const char *hsm_call_name(uint64_t call);

/* ---- the engine: the workers that serve a client ---- */

typedef struct hsm_engine hsm_engine;

/* How to find a token: every field that is set must match. */
typedef struct hsm_token_selector {
    const char *label;  /* CK_TOKEN_INFO.label without padding, or NULL */
    const char *serial; /* CK_TOKEN_INFO.serialNumber without padding, or NULL */
    int64_t slot_id;    /* CK_SLOT_ID, or -1 */
} hsm_token_selector;

typedef struct hsm_engine_options {
    const char *module_path;
    const char *module_args; /* CK_C_INITIALIZE_ARGS.pReserved as a string, or NULL */
    const char *quirks;      /* a name from hsm_quirks_name; NULL guesses from the module's own information */
    hsm_token_selector token;
    const uint8_t *pin; /* copied into locked memory and wiped when the engine stops; NULL: do not log in */
    size_t pin_len;
    uint32_t workers;      /* sessions, a worker thread each; 1 .. the client's max_workers; quirks may lower it */
    uint64_t spin_ns;      /* time for which one idle worker at a time polls before it sleeps; 0: none polls */
    uint64_t patience_ns;  /* a call that is shorter does not count as hanging; 0: as the quirks say */
    uint32_t verify_every; /* verify each n-th signature of a worker before it is handed out; 0: none, 1: all */
} hsm_engine_options;

typedef struct hsm_token_info {
    uint64_t slot_id;
    uint64_t flags;        /* CK_TOKEN_INFO.flags */
    uint64_t max_sessions; /* CK_TOKEN_INFO.ulMaxSessionCount; 0: unlimited or unknown */
    char label[HSM_MAX_LABEL];
    char serial[HSM_MAX_LABEL];
    char manufacturer[HSM_MAX_LABEL];
    char model[HSM_MAX_LABEL];
    char library[HSM_MAX_LABEL]; /* the module's description and version */
    char quirks[32];
} hsm_token_info;

/* How to find a private key: every field that is set must match. */
typedef struct hsm_key_selector {
    const char *label; /* CKA_LABEL, or NULL */
    const uint8_t *id; /* CKA_ID, or NULL */
    size_t id_len;
    int64_t handle;            /* CK_OBJECT_HANDLE, or -1 */
    hsm_algorithm algorithm;   /* what the caller expects, or HSM_ALGORITHM_NONE */
    const uint8_t *public_key; /* what the caller expects, or NULL; needed where the token has no public half */
    size_t public_key_len;
} hsm_key_selector;

typedef struct hsm_key_info {
    uint32_t index; /* for hsm_client_submit: its place, modulo HSM_MAX_KEYS; never given to another key */
    hsm_algorithm algorithm;
    uint32_t id_len;
    uint8_t id[HSM_MAX_KEY_ID];
    uint32_t public_key_len; /* 32 (Ed25519) or 65 (0x04 || X || Y) */
    uint8_t public_key[HSM_MAX_PUBLIC_KEY];
    uint32_t apart; /* 1: that is another object's, or the caller's; only a signature shows that it is this key's */
    char label[HSM_MAX_LABEL];
} hsm_key_info;

/* Load the module, find the token, look at its PIN flags, log in once, open a session for each worker and start them.
 * Blocks as long as the module does: call it off an event loop. On failure nothing is left open. One engine serves a
 * client at a time; it must be stopped before the client is freed. */
HSM_NODISCARD hsm_status hsm_engine_start(hsm_client *client, const hsm_engine_options *options, hsm_engine **engine,
                                          hsm_error *error);
/* Stop taking requests, let each worker end its call, close the sessions, finalize the module if this was its last
 * user, wipe the PIN. Requests still queued complete as HSM_CLOSED. Waits at most `timeout_ns`, then returns how many
 * threads are inside the module. They are left behind, and free the engine when the last of them has come out. Call it
 * once. */
uint32_t hsm_engine_stop(hsm_engine *engine, uint64_t timeout_ns);
void hsm_engine_token(const hsm_engine *engine, hsm_token_info *info);
/* Quarantine each worker whose call has outlasted its request's deadline and the patience: it takes no further request
 * and ends with its call. Start others until as many are healthy as were asked for, within the client's max_workers.
 * Call it after deadlines have passed; it costs a look at each worker. Returns the number of stuck workers, and in
 * `healthy` that of the others; with 0 nothing can be signed. */
uint32_t hsm_engine_supervise(hsm_engine *engine, uint32_t *healthy);
/* Find a private key, read and pin its public key, check type, curve, CKA_SIGN and the token's mechanism, and prove
 * with one verified signature that both halves belong together. Uses the engine's login session, not a worker. */
HSM_NODISCARD hsm_status hsm_engine_add_key(hsm_engine *engine, const hsm_key_selector *selector, hsm_key_info *info,
                                            hsm_error *error);
/* From now on requests for this key complete as HSM_KEY_DEACTIVATED; one inside the module still ends. Another key may
 * get its place once no worker serves such a request. Idempotent. One thread at a time. */
hsm_status hsm_engine_retire_key(hsm_engine *engine, uint32_t index);

/* ---- the host: an engine in a process of its own ---- */

/* The same engine in a child process that shares the client's area: a module that crashes, hangs or leaks takes only
 * that process with it. The functions mirror the engine's, over a socket; all block, and are called one at a time. */
typedef struct hsm_host hsm_host;

typedef struct hsm_host_options {
    hsm_engine_options engine;
    const char *program;            /* path of hsmcore-host */
    const char *const *environment; /* "NAME=value" strings ended by NULL; without secrets */
    uint64_t memory_limit;          /* resident bytes at which the host ends itself; 0: none */
    uint64_t timeout_ns;            /* for each answer of the host, the start included; 0: none */
} hsm_host_options;

/* What hsm_harden gives up. */
enum hsm_hardening {
    HSM_NO_CORE_DUMPS = 1,
    HSM_NOT_DUMPABLE = 2, /* no process of the same user looks into it */
    HSM_NO_NEW_PRIVILEGES = 4,
    HSM_SECCOMP = 8,  /* system calls that no module needs */
    HSM_LANDLOCK = 16 /* other processes' memory and descriptors; of /proc, all but what modules read */
};

/* No core dumps, no debugger, no new privileges; then the two filters: Landlock for files and other processes' memory,
 * seccomp for system calls. For a process of its own, before any thread is started. A step that the kernel lacks is
 * skipped. Returns what took effect, as bits of enum hsm_hardening. `landlock_abi` receives the kernel's version. */
uint32_t hsm_harden(int32_t *landlock_abi);

/* A host without a process yet; hsm_host_stop frees it. */
HSM_NODISCARD hsm_status hsm_host_new(hsm_client *client, const hsm_host_options *options, hsm_host **host,
                                      hsm_error *error);
/* Start its process and in it the engine. On failure the process has ended. Returns HSM_HOST_MISSING if the program
 * cannot be run, HSM_HOST_MISMATCH if it is another version's, HSM_HOST_LOST after hsm_host_kill. */
HSM_NODISCARD hsm_status hsm_host_begin(hsm_host *host, hsm_error *error);
/* A descriptor (a pidfd) that becomes readable when the process has ended. Owned by the host. */
int hsm_host_fd(const hsm_host *host);
int64_t hsm_host_pid(const hsm_host *host);
/* What the process gave up at its start, before it loaded the module: bits of enum hsm_hardening. `landlock_abi`
 * receives the kernel's version of Landlock; 0: it has none. */
uint32_t hsm_host_hardening(const hsm_host *host, int32_t *landlock_abi);
HSM_NODISCARD hsm_status hsm_host_add_key(hsm_host *host, const hsm_key_selector *selector, hsm_key_info *info,
                                          hsm_error *error);
hsm_status hsm_host_retire_key(hsm_host *host, uint32_t index);
/* As hsm_engine_supervise, without waiting for the host; one thread at a time. All workers count as stuck when requests
 * have lain queued beside idle workers for a second: the process is stopped. */
uint32_t hsm_host_supervise(hsm_host *host, uint32_t *healthy);
hsm_status hsm_host_token(hsm_host *host, hsm_token_info *info, hsm_error *error);
/* Kill the process, without waiting for its end, which hsm_host_fd shows. From any thread; afterwards the host can only
 * be stopped or restarted. */
void hsm_host_kill(hsm_host *host);
/* After the process has ended and hsm_client_replay: start another one with the same options, find the same keys again
 * under the same indices, and compare their public keys. Requests for a key that is not found fail; the restart fails
 * only if none is found. With HSM_OK, `error` says why the last such key was not found, or is left as it was. */
HSM_NODISCARD hsm_status hsm_host_restart(hsm_host *host, hsm_error *error);
/* Before hsm_host_restart: the PIN that the next process logs in with. Copied into locked memory; the one before is
 * wiped. */
HSM_NODISCARD hsm_status hsm_host_use_pin(hsm_host *host, const uint8_t *pin, size_t pin_len, hsm_error *error);
/* Stop the engine and the process, which is killed if it takes longer than `timeout_ns`; free the host. */
void hsm_host_stop(hsm_host *host, uint64_t timeout_ns);

/* ---- what the workers have done ---- */

#define HSM_HISTOGRAM_BUCKETS 640 /* log-linear: 16 steps per octave, 1 ns .. 2^43 ns, relative error < 6.3 % */

typedef struct hsm_stats {
    uint64_t signatures; /* good ones */
    uint64_t failures;   /* completed with any other status */
    uint64_t expired;    /* dropped in the queue because their deadline had passed */
    uint64_t cancelled;
    uint64_t wrong;                       /* signatures that did not verify, and were not handed out */
    uint64_t wakes;                       /* times the client was woken */
    uint64_t recoveries[HSM_CLASS_COUNT]; /* by enum hsm_class: how often that rung was climbed */
    uint64_t failed[HSM_CLASS_COUNT];     /* `failures` by the class of their status */
    uint32_t workers;                     /* running */
    uint32_t busy;                        /* inside the module now */
    uint32_t stuck;                       /* quarantined: their call has overrun */
    uint32_t down;                        /* 1: the token does not answer */
    uint32_t queued;                      /* submitted, not begun */
    uint64_t oldest_queued_ns;            /* age of the oldest request that is not begun; 0: none */
    uint64_t oldest_call_ns;              /* for how long the oldest call is inside the module; 0: none */
    uint64_t hsm_sum_ns;                  /* the sums of the samples below */
    uint64_t queue_sum_ns;
    uint64_t verify_sum_ns;
    uint64_t hsm_ns[HSM_HISTOGRAM_BUCKETS];    /* time from claim to end but for verification, by bucket */
    uint64_t queue_ns[HSM_HISTOGRAM_BUCKETS];  /* time from submit to claim, by bucket */
    uint64_t verify_ns[HSM_HISTOGRAM_BUCKETS]; /* time of one verification, by bucket */
} hsm_stats;

/* A merged copy of all workers' counters; workers go on counting. Any thread. */
void hsm_client_stats(const hsm_client *client, hsm_stats *stats);
/* After the host process has died: take back the requests that it had begun and not answered. Those with a
 * deterministic key are queued again; one that an earlier host had begun, too, is tried alone then, and completes as
 * HSM_HOST_LOST if it was the only one begun as a host died. Those with another key do so immediately. No worker may
 * use the area. The thread that submits. Returns how many were queued again. */
uint32_t hsm_client_replay(hsm_client *client);
/* The bucket that a duration in ns falls into, and the largest duration of a bucket. Any thread. */
uint32_t hsm_histogram_bucket(uint64_t ns);
uint64_t hsm_histogram_upper(uint32_t bucket);

/* ---- the signature cache ---- */

/* LRU from (key, algorithm, whole message) to signature. It is not locked: it belongs to the thread that submits. Two
 * messages are the same only if all their bytes are: a hash collision cannot return another message's signature. The
 * hash is keyed at random (SipHash-2-4), so messages cannot be chosen to collide. */
typedef struct hsm_cache hsm_cache;

typedef struct hsm_cache_stats {
    uint64_t hits;
    uint64_t misses;
    uint64_t joined; /* lookups that found the same request already in flight */
    uint64_t evictions;
    uint64_t entries; /* signatures held, requests in flight not counted */
    uint64_t in_flight;
    uint64_t bytes; /* allocated now */
} hsm_cache_stats;

enum hsm_cache_result {
    HSM_CACHE_HIT,    /* the signature was copied out */
    HSM_CACHE_JOINED, /* the same request is in flight under `leader`: wait for that one */
    HSM_CACHE_MISS,   /* the caller now leads: submit, then hsm_cache_fill or hsm_cache_abandon with `entry_id` */
    HSM_CACHE_NO_MEMORY
};

/* `capacity` signatures at most; 0 holds none but still joins requests in flight. */
HSM_NODISCARD hsm_status hsm_cache_new(uint64_t capacity, hsm_cache **cache);
/* Wipes and frees every entry. NULL is allowed. */
void hsm_cache_free(hsm_cache *cache);
/* On HIT `signature` (HSM_MAX_SIGNATURE bytes) and `signature_len` are filled. On JOINED `leader` is what the leader
 * stored with hsm_cache_set_leader. On MISS `entry_id` names the new in-flight entry. */
enum hsm_cache_result hsm_cache_lookup(hsm_cache *cache, uint32_t key, hsm_algorithm algorithm, const uint8_t *message,
                                       size_t message_len, uint8_t *signature, uint32_t *signature_len,
                                       uint64_t *leader, uint64_t *entry_id);
void hsm_cache_set_leader(hsm_cache *cache, uint64_t entry_id, uint64_t leader);
/* End an in-flight entry: keep its signature, evicting the least recently used one if full; or forget it. */
void hsm_cache_fill(hsm_cache *cache, uint64_t entry_id, const uint8_t *signature, uint32_t signature_len, int keep);
void hsm_cache_abandon(hsm_cache *cache, uint64_t entry_id);
/* Wipe and drop every signature; requests in flight are no longer joined and are not kept when they end. NULL is
 * allowed. */
void hsm_cache_clear(hsm_cache *cache);
/* All 0 for NULL. */
void hsm_cache_stats_read(const hsm_cache *cache, hsm_cache_stats *stats);

/* ---- the module, shared with the control plane ---- */

/* Hold a module loaded and initialized without an engine (the control plane creates tokens and keys through it).
 * Refcounted per process by resolved path; the first holder calls C_Initialize with CKF_OS_LOCKING_OK, the last one
 * C_Finalize. The library itself stays mapped: several modules crash when they are unloaded. Any thread. */
typedef struct hsm_module hsm_module;
HSM_NODISCARD hsm_status hsm_module_acquire(const char *path, const char *args, hsm_module **module, hsm_error *error);
void hsm_module_release(hsm_module *module);
/* Bracket every series of calls that are not an engine's: between the two the module is not initialized again. Blocks
 * while it is. Returns how often that has happened; sessions and handles from before a change are dead. */
uint64_t hsm_module_enter(hsm_module *module);
void hsm_module_exit(hsm_module *module);
/* The CK_FUNCTION_LIST by which a module was initialized, or NULL if this process holds none of that path. Other code
 * must use the same one: p11-kit gives each caller a list, and a state, of its own. Any thread. */
void *hsm_module_functions(const char *path);
/* Where logins disturb the readers of a token store in other processes (SoftHSM): from begin to end no other thread
 * that has begun, in any process of this machine, is between the two. For C_Initialize, C_GetTokenInfo, C_Login,
 * C_InitToken and C_InitPIN; an engine does it by itself. `quirks` is a name of hsm_quirks_name, or NULL to go by the
 * path. Waits for a second at most, then goes on. Of modules of other kinds both return at once. One thread calls both;
 * they nest. */
void hsm_turn_begin(const char *quirks, const char *module_path);
void hsm_turn_end(void);
/* End all that this thread has begun. */
void hsm_turn_drop(void);
/* "softhsm", "nss", "yubihsm", "aws-cloudhsm", "tpm2", "generic"; NULL past the end. Static storage. */
const char *hsm_quirks_name(size_t index);

/* 0 in the process that loaded the library, more in forked descendants. Async-signal-safe. */
uint32_t hsm_fork_generation(void);
/* Native bytes, threads and descriptors that this library holds now; all 0 when everything was closed. Any thread. */
typedef struct hsm_leaks {
    int64_t allocations;
    int64_t threads;
    int64_t sessions;
    int64_t descriptors;
} hsm_leaks;
void hsm_leaks_read(hsm_leaks *leaks);
/* CLOCK_MONOTONIC in nanoseconds. */
uint64_t hsm_now_ns(void);
/* Overwrite memory in a way that the compiler cannot leave out. */
void hsm_wipe(void *memory, size_t size);

#endif
