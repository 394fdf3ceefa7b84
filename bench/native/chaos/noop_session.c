/* Opening, closing and logging in: the calls about sessions of the no-op module. */
#include "noop_session.h"

#include <stdlib.h>

#define NOWHERE SIZE_MAX

atomic_bool noop_initialized, noop_logged_in;
pthread_mutex_t noop_lock = PTHREAD_MUTEX_INITIALIZER;
size_t noop_sessions_open;
struct noop_session *_Atomic noop_chunks[NOOP_CHUNKS];

static size_t places_used, first_free = NOWHERE;
static CK_SESSION_HANDLE opened; /* ever */

static void close_locked(size_t place) {
    struct noop_session *session = noop_session_at(place);
    atomic_store(&session->handle, 0);
    session->next_free = first_free;
    first_free = place;
    if (--noop_sessions_open == 0) {
        atomic_store(&noop_logged_in, 0);
    }
}

void noop_close_all(void) {
    for (size_t place = 0; place < places_used; place++) {
        if (atomic_load(&noop_session_at(place)->handle) != 0) {
            close_locked(place);
        }
    }
}

CK_RV noop_OpenSession(CK_SLOT_ID slot, CK_FLAGS flags, void *application, CK_NOTIFY notify,
                       CK_SESSION_HANDLE *handle) {
    (void)application;
    (void)notify;
    CK_RV rv = noop_check_slot(slot, handle);
    if (rv != CKR_OK) {
        return rv;
    }
    if ((flags & CKF_SERIAL_SESSION) == 0) {
        return CKR_SESSION_PARALLEL_NOT_SUPPORTED;
    }
    (void)pthread_mutex_lock(&noop_lock);
    size_t place = first_free != NOWHERE ? first_free : places_used;
    if (place / NOOP_CHUNK >= NOOP_CHUNKS) {
        rv = CKR_SESSION_COUNT;
    } else if (noop_session_at(place) == NULL) {
        struct noop_session *chunk = calloc(NOOP_CHUNK, sizeof *chunk);
        rv = chunk == NULL ? CKR_HOST_MEMORY : CKR_OK;
        atomic_store_explicit(&noop_chunks[place / NOOP_CHUNK], chunk, memory_order_release);
    }
    if (rv == CKR_OK) {
        struct noop_session *session = noop_session_at(place);
        if (place == first_free) {
            first_free = session->next_free;
        } else {
            places_used++;
        }
        session->flags = flags;
        session->finding = 0;
        *handle = (++opened << 32) | place;
        atomic_store_explicit(&session->handle, *handle, memory_order_release);
        noop_sessions_open++;
    }
    (void)pthread_mutex_unlock(&noop_lock);
    return rv;
}

CK_RV noop_CloseSession(CK_SESSION_HANDLE handle) {
    struct noop_session *session;
    (void)pthread_mutex_lock(&noop_lock);
    CK_RV rv = noop_session_of(handle, &session);
    if (rv == CKR_OK) {
        close_locked(handle & UINT32_MAX);
    }
    (void)pthread_mutex_unlock(&noop_lock);
    return rv;
}

CK_RV noop_CloseAllSessions(CK_SLOT_ID slot) {
    CK_RV rv = noop_check_slot(slot, &noop_lock);
    if (rv == CKR_OK) {
        (void)pthread_mutex_lock(&noop_lock);
        noop_close_all();
        (void)pthread_mutex_unlock(&noop_lock);
    }
    return rv;
}

CK_RV noop_GetSessionInfo(CK_SESSION_HANDLE handle, CK_SESSION_INFO *info) {
    struct noop_session *session;
    CK_RV rv = noop_session_of(handle, &session);
    if (rv == CKR_OK && info == NULL) {
        return CKR_ARGUMENTS_BAD;
    }
    if (rv == CKR_OK) {
        CK_STATE public = (session->flags & CKF_RW_SESSION) != 0 ? CKS_RW_PUBLIC_SESSION : CKS_RO_PUBLIC_SESSION;
        *info = (CK_SESSION_INFO){.slotID = NOOP_SLOT, .state = public, .flags = session->flags};
        if (atomic_load(&noop_logged_in)) {
            info->state++; /* CKS_R*_USER_FUNCTIONS */
        }
    }
    return rv;
}

CK_RV noop_Login(CK_SESSION_HANDLE handle, CK_USER_TYPE user, CK_BYTE *pin, CK_ULONG pin_len) {
    struct noop_session *session;
    CK_RV rv = noop_session_of(handle, &session);
    if (rv != CKR_OK) {
        return rv;
    }
    if (pin == NULL && pin_len != 0) {
        return CKR_ARGUMENTS_BAD;
    }
    if (user != CKU_USER) {
        return CKR_USER_TYPE_INVALID;
    }
    return atomic_exchange(&noop_logged_in, 1) ? CKR_USER_ALREADY_LOGGED_IN : CKR_OK;
}

CK_RV noop_Logout(CK_SESSION_HANDLE handle) {
    struct noop_session *session;
    CK_RV rv = noop_session_of(handle, &session);
    if (rv != CKR_OK) {
        return rv;
    }
    return atomic_exchange(&noop_logged_in, 0) ? CKR_OK : CKR_USER_NOT_LOGGED_IN;
}
