/* The sessions of the no-op token. A caller is checked by noop_session_of, on any thread and without a lock. */
#ifndef HSMCORE_NOOP_SESSION_H
#define HSMCORE_NOOP_SESSION_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include <p11-kit/pkcs11.h>

#define NOOP_SLOT 0UL
#define NOOP_CHUNK 1024
#define NOOP_CHUNKS 4096

/* A session belongs to one thread at a time, as the standard demands, so only its handle is atomic. The place of a
 * session is used again, its handle is not: the low 32 bits are the place and the rest counts, so that a stale handle
 * stays stale. */
struct noop_session {
    _Atomic CK_SESSION_HANDLE handle; /* 0: closed */
    size_t next_free;
    CK_FLAGS flags;
    CK_OBJECT_HANDLE found[2];
    unsigned found_count, found_next;
    int finding;
};

/* Inside the module: a name that other modules could replace would cost each call an indirection. */
#pragma GCC visibility push(hidden)

extern atomic_bool noop_initialized, noop_logged_in;
extern pthread_mutex_t noop_lock;                             /* initializing, opening and closing only */
extern size_t noop_sessions_open;                             /* under noop_lock */
extern struct noop_session *_Atomic noop_chunks[NOOP_CHUNKS]; /* kept until the process ends: readers take no lock */

void noop_close_all(void); /* under noop_lock */

static inline struct noop_session *noop_session_at(size_t place) {
    if (place >= (size_t)NOOP_CHUNK * NOOP_CHUNKS) {
        return NULL;
    }
    struct noop_session *chunk = atomic_load_explicit(&noop_chunks[place / NOOP_CHUNK], memory_order_acquire);
    return chunk == NULL ? NULL : &chunk[place % NOOP_CHUNK];
}

/* CKR_OK and the session, or what the standard answers for a call without one. */
static inline CK_RV noop_session_of(CK_SESSION_HANDLE handle, struct noop_session **session) {
    if (!atomic_load_explicit(&noop_initialized, memory_order_acquire)) {
        return CKR_CRYPTOKI_NOT_INITIALIZED;
    }
    *session = noop_session_at(handle & UINT32_MAX);
    return handle != 0 && *session != NULL && atomic_load_explicit(&(*session)->handle, memory_order_acquire) == handle
               ? CKR_OK
               : CKR_SESSION_HANDLE_INVALID;
}

static inline CK_RV noop_check_slot(CK_SLOT_ID slot, const void *out) {
    if (!atomic_load_explicit(&noop_initialized, memory_order_acquire)) {
        return CKR_CRYPTOKI_NOT_INITIALIZED;
    }
    if (slot != NOOP_SLOT) {
        return CKR_SLOT_ID_INVALID;
    }
    return out == NULL ? CKR_ARGUMENTS_BAD : CKR_OK;
}

CK_RV noop_OpenSession(CK_SLOT_ID slot, CK_FLAGS flags, void *application, CK_NOTIFY notify, CK_SESSION_HANDLE *handle);
CK_RV noop_CloseSession(CK_SESSION_HANDLE handle);
CK_RV noop_CloseAllSessions(CK_SLOT_ID slot);
CK_RV noop_GetSessionInfo(CK_SESSION_HANDLE handle, CK_SESSION_INFO *info);
CK_RV noop_Login(CK_SESSION_HANDLE handle, CK_USER_TYPE user, CK_BYTE *pin, CK_ULONG pin_len);
CK_RV noop_Logout(CK_SESSION_HANDLE handle);

#pragma GCC visibility pop

#endif
