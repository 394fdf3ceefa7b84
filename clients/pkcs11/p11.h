/* libhsmcore_pkcs11.so: hsmcore as a PKCS #11 token. It speaks hsmcore-wire/1 (docs/WIRE.md) to `hsmcore gateway` and
 * holds no key. In the order to read:
 *   config.c    settings, from pReserved, a file or the environment
 *   keys.c      slots and keys that gateways have told of: objects, their handles and attributes
 *   answers.c   the bodies of a gateway's frames, which are hostile
 *   route.c     which of several gateways is used, and when
 *   stream.c    bytes to one gateway: a Unix socket, or TLS
 *   link.c      requests: one connection for the process, and each caller waits for its own number
 *   session.c   sessions, login, C_FindObjects
 *   sign.c      C_Sign and C_Verify
 *   crypto.c    the system's OpenSSL, and verification by it
 *   module.c    function lists, C_Initialize, slots, fork
 *
 * One lock, p11_lock, guards all state. The function lists of module.c take it for each call; C_* functions here are
 * called with it, and wait and verify without it. A thread that waits for an answer is the one that reads, unless
 * another one does: there is no thread of our own. */
#ifndef HSMCORE_P11_H
#define HSMCORE_P11_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <p11-kit/pkcs11.h>

#define P11_MS INT64_C(1000000) /* times are nanoseconds of CLOCK_MONOTONIC */

enum {
    P11_SIGNATURE = 64,    /* bytes, of each algorithm: EdDSA's, or r and s */
    P11_ADDRESSES = 32,    /* most gateways of a list */
    P11_SLOTS = 1024,      /* most key managers */
    P11_KEYS = 16384,      /* most versions of all keys */
    P11_MESSAGE = 1 << 20, /* most bytes of a message */
    P11_PUBLIC_KEY = 65,   /* most bytes of one: a point without compression */
    P11_PREHASHED = 9      /* the kind of a digest that is signed as it is */
};
enum p11_algorithm { P11_ED25519 = 1, P11_P256, P11_SECP256K1 }; /* as the wire numbers them */

#pragma GCC visibility push(hidden)

extern pthread_mutex_t p11_lock;

static inline int64_t p11_least(int64_t one, int64_t other) {
    return one < other ? one : other;
}

static inline int64_t p11_now(void) {
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 * P11_MS + now.tv_nsec;
}

/* ---- config.c ---- */

struct p11_config {
    char *addresses[P11_ADDRESSES]; /* "unix:/path", "tls:host:port" */
    unsigned count;
    char *tls_cert, *tls_key, *tls_ca; /* PEM files; NULL: none */
    char *tls_name;                    /* in the gateway's certificate, if it is not the address's host */
    char *log;                         /* a file for why a gateway cannot be used, or "stderr"; NULL: nowhere */
    int64_t timeout;
    bool verify; /* each signature before it is handed out */
};
extern struct p11_config p11_config;

/* Read the settings. `reserved`: "name=value name=value", or NULL. Return what is wrong, or NULL. */
const char *p11_config_load(const char *reserved);
void p11_config_free(void);
void p11_log(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- keys.c: kept until C_Finalize, so that handles stay good while gateways come and go ---- */

struct p11_slot {
    char name[256];
    uint8_t name_len;
    int number;    /* in this gateway's frames; -1: it has none */
    unsigned open; /* requests that were sent and are not answered */
};
struct p11_key {
    unsigned slot; /* its place in p11_slots */
    enum p11_algorithm algorithm;
    uint32_t version;
    uint16_t kinds;
    bool listed, current; /* by this gateway */
    uint8_t public_key[P11_PUBLIC_KEY], public_len;
    uint8_t id[255], id_len;
};
extern struct p11_slot *p11_slots;
extern struct p11_key *p11_keys;
extern unsigned p11_slot_count, p11_key_count;

/* Make room for one more than `count`, at twice the size each time that it is used up. */
bool p11_grow(void **list, unsigned count, size_t size);

/* Return a place, after making one if the name or key is new; -1: there are too many, or no memory. */
int p11_slot_put(const uint8_t *name, uint8_t len);
int p11_key_put(const struct p11_key *key, unsigned hint);
int p11_key_find(unsigned slot, const uint8_t *public_key, size_t len, unsigned hint);
void p11_keys_free(void);

/* The key of an object and whether it is the private half; NULL: no such object in this slot now. */
struct p11_key *p11_object(CK_SLOT_ID slot, CK_OBJECT_HANDLE object, bool *is_private);
CK_RV p11_attributes(CK_OBJECT_HANDLE object, CK_ATTRIBUTE *wanted, CK_ULONG count);
/* Objects of a slot that match, from number *next on: write up to `most` handles, return how many. */
CK_ULONG p11_match(CK_SLOT_ID slot, const CK_ATTRIBUTE *wanted, CK_ULONG count, CK_OBJECT_HANDLE *found, CK_ULONG most,
                   CK_ULONG *next);
/* The mechanisms of a slot's keys, or of `only` one key. Return how many; `list` has room for three. */
CK_ULONG p11_mechanisms(CK_SLOT_ID slot, const struct p11_key *only, CK_MECHANISM_TYPE *list);
bool p11_is_mechanism_of(enum p11_algorithm algorithm, CK_MECHANISM_TYPE type);

/* ---- answers.c ---- */

struct p11_welcome {
    uint8_t instance[16];
    uint32_t credits, remember_ms;
};
struct p11_refusal {
    bool retryable, maybe_signed;
    uint32_t retry_after_ms;
    char status[256], kind[256], holder[256], text[256]; /* text: cut */
};
enum p11_learned { P11_LEARNED, P11_MALFORMED, P11_OTHER_VERSION, P11_STRANGE };

/* Read WELCOME, and take over its slots and keys; or those of KEYS. P11_STRANGE: with `elsewhere` (another address told
 * what is known), it has none of the keys that are known. Nothing is taken over unless all is good. */
enum p11_learned p11_read_welcome(const uint8_t *body, size_t len, bool elsewhere, struct p11_welcome *welcome);
enum p11_learned p11_read_keys(const uint8_t *body, size_t len);
bool p11_read_error(const uint8_t *body, size_t len, struct p11_refusal *refusal);
bool p11_read_credit(const uint8_t *body, size_t len, uint32_t *credits);
bool p11_read_goaway(const uint8_t *body, size_t len);
/* What a caller is told of a refusal. */
CK_RV p11_rv_of(const struct p11_refusal *refusal);

/* ---- route.c ---- */

struct p11_route {
    unsigned at;
    unsigned rounds; /* how often all addresses were tried since a gateway was of use */
    bool seeking;    /* a host without the epoch has refused, and no gateway has signed since: one request at a time */
    uint32_t tried;  /* a bit for each address */
    uint32_t silent; /* addresses at which there was no connection when they were last tried */
    uint32_t final;  /* those which another try would find as they were */
    int64_t not_before;
};
extern struct p11_route p11_route;

/* How a connection ended: it was of use and broke; or it was of no use; or the gateway does not want us; or it never
 * will. */
enum p11_ended { P11_BROKE, P11_USELESS, P11_REFUSED, P11_FINAL };

int64_t p11_jittered(int64_t most);
/* Choose where and when to connect next. Return whether no address can be of use. */
bool p11_route_gone(unsigned at, enum p11_ended how, bool was_up, bool was_useful);
/* Go on after NOT_HOLDER, to the holder if its name is in an address. Return whether requests go on. */
bool p11_route_turned_away(const char *holder);
int64_t p11_route_try(void); /* how long a gateway may take for its first word */

/* ---- stream.c: never blocks but for a host's name, which is looked up without p11_lock ---- */

enum p11_progress { P11_DONE, P11_WANTS_READ, P11_WANTS_WRITE, P11_BROKEN };
struct p11_stream {
    int fd; /* -1: there is none */
    struct ssl_st *ssl;
    bool connecting;
    bool final;    /* it would break again */
    char why[160]; /* it broke */
};

void p11_stream_open(struct p11_stream *stream, const char *address);
enum p11_progress p11_stream_connect(struct p11_stream *stream);
/* `size` becomes how many bytes were read or written. A stream that ended is broken. */
enum p11_progress p11_stream_read(struct p11_stream *stream, uint8_t *data, size_t *size);
enum p11_progress p11_stream_write(struct p11_stream *stream, const uint8_t *data, size_t *size);
/* `inherited`: of the parent process, whose peer must not notice. */
void p11_stream_close(struct p11_stream *stream, bool inherited);

/* ---- link.c ---- */

/* Sign with a key, in at most the configured time. The lock is given up, and not taken again. */
CK_RV p11_link_sign(unsigned key, uint8_t kind, const uint8_t *message, size_t len, uint8_t signature[P11_SIGNATURE]);
/* Hear what the gateway has said, and connect if there is no connection. The lock is given up in between. */
CK_RV p11_link_refresh(void);
/* Begin, disconnect, and forget the parent's connection. */
CK_RV p11_link_open(void);
void p11_link_close(void);
void p11_link_after_fork(void);

/* ---- crypto.c ---- */

bool p11_ssl_load(void); /* whether the system has OpenSSL 3 */
/* Any thread, without the lock, after p11_ssl_load. `digest`: the message is one. */
bool p11_verify(const struct p11_key *whose, const uint8_t *message, size_t len, bool digest,
                const uint8_t signature[P11_SIGNATURE]);

/* ---- session.c ---- */

struct p11_operation {
    bool active, parted; /* parted: C_SignUpdate was called */
    CK_MECHANISM_TYPE mechanism;
    unsigned key;
    uint8_t *data; /* of the parts */
    size_t len, room;
};
enum { P11_SIGN, P11_VERIFY, P11_OPERATIONS };
struct p11_session {
    CK_SESSION_HANDLE handle;
    CK_SLOT_ID slot;
    CK_FLAGS flags;
    CK_ATTRIBUTE *wanted; /* C_FindObjectsInit was called */
    CK_ULONG wanted_count, find_next;
    struct p11_operation operations[P11_OPERATIONS];
};

struct p11_session *p11_session(CK_SESSION_HANDLE handle); /* NULL: there is none */
void p11_operation_end(struct p11_operation *operation);
void p11_sessions_count(CK_SLOT_ID slot, CK_ULONG *all, CK_ULONG *writing);
void p11_sessions_free(void);

/* ---- C_*: p11_C_*, called by module.c with the lock, a slot or a session that there is. One that is not defined is not
 * supported. ---- */

#define P11_LEFT ((CK_RV)1 << 62) /* in their results: the lock was given up */
/* Give up the lock, unless it was, and return the result. */
CK_RV p11_leave(CK_RV rv);

#define FUNCTION(version, scope, make, name, parameters, arguments) CK_RV p11_##name parameters __attribute__((weak));
#include "functions.def"
#undef FUNCTION

#pragma GCC visibility pop

#endif
