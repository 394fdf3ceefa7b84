/* Sessions, login, C_FindObjects. A session is looked up again whenever the lock was given up: it may be closed then. */
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "p11.h"

enum { CHUNK = 64, PLACES = 1 << 20, ATTRIBUTES = 256 }; /* PLACES: most sessions; ATTRIBUTES: of one template */

bool p11_initialized;
pthread_mutex_t p11_lock = PTHREAD_MUTEX_INITIALIZER;
static struct p11_session **chunks; /* of CHUNK sessions each, which never move */
static size_t places;               /* of all chunks */
static size_t first_free;           /* no place before it is free */
static uint64_t opened;             /* the upper half of a handle, so that a closed one stays bad */
static bool logged_in[P11_SLOTS];

CK_RV p11_enter(void) {
    (void)pthread_mutex_lock(&p11_lock);
    return p11_initialized ? CKR_OK : p11_leave(CKR_CRYPTOKI_NOT_INITIALIZED);
}

CK_RV p11_leave(CK_RV rv) {
    (void)pthread_mutex_unlock(&p11_lock);
    return rv;
}

static struct p11_session *at(size_t place) {
    return &chunks[place / CHUNK][place % CHUNK];
}

struct p11_session *p11_session_again(CK_SESSION_HANDLE handle) {
    size_t place = handle & UINT32_MAX;
    return handle != 0 && place < places && at(place)->handle == handle ? at(place) : NULL;
}

CK_RV p11_enter_session(CK_SESSION_HANDLE handle, struct p11_session **session) {
    CK_RV rv = p11_enter();
    if (rv != CKR_OK) {
        return rv;
    }
    *session = p11_session_again(handle);
    return *session == NULL ? p11_leave(CKR_SESSION_HANDLE_INVALID) : CKR_OK;
}

void p11_operation_end(struct p11_operation *operation) {
    free(operation->data);
    *operation = (struct p11_operation){.active = false};
}

static void end_finding(struct p11_session *session) {
    for (CK_ULONG i = 0; i < session->wanted_count; i++) {
        free(session->wanted[i].pValue);
    }
    free(session->wanted);
    session->wanted = NULL;
    session->wanted_count = session->find_next = 0;
    session->finding = false;
}

static bool has_session(CK_SLOT_ID slot) {
    CK_ULONG all = 0;
    CK_ULONG writing = 0;
    p11_sessions_count(slot, &all, &writing);
    return all > 0;
}

static void close_session(struct p11_session *session) {
    end_finding(session);
    for (unsigned i = 0; i < P11_OPERATIONS; i++) {
        p11_operation_end(&session->operations[i]);
    }
    size_t place = session->handle & UINT32_MAX;
    first_free = place < first_free ? place : first_free;
    session->handle = 0;
}

void p11_sessions_count(CK_SLOT_ID slot, CK_ULONG *all, CK_ULONG *writing) {
    for (size_t place = 0; place < places; place++) {
        const struct p11_session *session = at(place);
        *all += session->handle != 0 && session->slot == slot;
        *writing += session->handle != 0 && session->slot == slot && (session->flags & CKF_RW_SESSION) != 0;
    }
}

void p11_sessions_free(void) {
    for (size_t place = 0; place < places; place++) {
        if (at(place)->handle != 0) {
            close_session(at(place));
        }
    }
    for (size_t i = 0; i < places / CHUNK; i++) {
        free(chunks[i]);
    }
    free(chunks);
    chunks = NULL;
    places = first_free = 0;
    memset(logged_in, 0, sizeof logged_in);
}

/* A free place; NULL: there is none. */
static struct p11_session *free_session(void) {
    while (first_free < places && at(first_free)->handle != 0) {
        first_free++;
    }
    if (first_free == places) {
        struct p11_session **more =
            places >= PLACES ? NULL : realloc(chunks, (places / CHUNK + 1) * sizeof(struct p11_session *));
        chunks = more == NULL ? chunks : more;
        struct p11_session *chunk = more == NULL ? NULL : calloc(CHUNK, sizeof(struct p11_session));
        if (chunk == NULL) {
            return NULL;
        }
        chunks[places / CHUNK] = chunk;
        places += CHUNK;
    }
    return at(first_free);
}

CK_RV p11_OpenSession(CK_SLOT_ID slot, CK_FLAGS flags, void *application, CK_NOTIFY notify, CK_SESSION_HANDLE *handle) {
    (void)application, (void)notify;
    CK_RV rv = p11_enter();
    if (rv != CKR_OK) {
        return rv;
    }
    if (handle == NULL) {
        return p11_leave(CKR_ARGUMENTS_BAD);
    }
    if (slot >= p11_slot_count) {
        return p11_leave(CKR_SLOT_ID_INVALID);
    }
    if ((flags & CKF_SERIAL_SESSION) == 0) {
        return p11_leave(CKR_SESSION_PARALLEL_NOT_SUPPORTED);
    }
    struct p11_session *session = free_session();
    if (session == NULL) {
        return p11_leave(CKR_SESSION_COUNT);
    }
    *session = (struct p11_session){.handle = ++opened << 32 | first_free, .slot = slot, .flags = flags};
    *handle = session->handle;
    return p11_leave(CKR_OK);
}

CK_RV p11_CloseSession(CK_SESSION_HANDLE handle) {
    P11_ENTER(handle)
    CK_SLOT_ID slot = session->slot;
    close_session(session);
    logged_in[slot] = logged_in[slot] && has_session(slot);
    return p11_leave(CKR_OK);
}

CK_RV p11_CloseAllSessions(CK_SLOT_ID slot) {
    CK_RV rv = p11_enter();
    if (rv != CKR_OK) {
        return rv;
    }
    if (slot >= p11_slot_count) {
        return p11_leave(CKR_SLOT_ID_INVALID);
    }
    for (size_t place = 0; place < places; place++) {
        if (at(place)->handle != 0 && at(place)->slot == slot) {
            close_session(at(place));
        }
    }
    logged_in[slot] = false;
    return p11_leave(CKR_OK);
}

CK_RV p11_GetSessionInfo(CK_SESSION_HANDLE handle, CK_SESSION_INFO *info) {
    P11_ENTER(handle)
    if (info == NULL) {
        return p11_leave(CKR_ARGUMENTS_BAD);
    }
    static const CK_STATE states[2][2] = {{CKS_RO_PUBLIC_SESSION, CKS_RO_USER_FUNCTIONS},
                                          {CKS_RW_PUBLIC_SESSION, CKS_RW_USER_FUNCTIONS}};
    *info = (CK_SESSION_INFO){.slotID = session->slot, .flags = session->flags};
    info->state = states[(session->flags & CKF_RW_SESSION) != 0][logged_in[session->slot]];
    return p11_leave(CKR_OK);
}

/* The gateway knows the process by its user or its certificate, so a PIN is neither needed nor looked at. */
CK_RV p11_Login(CK_SESSION_HANDLE handle, CK_USER_TYPE user, CK_BYTE *pin, CK_ULONG pin_len) {
    (void)pin, (void)pin_len;
    P11_ENTER(handle)
    if (user == CKU_CONTEXT_SPECIFIC) {
        return p11_leave(CKR_OPERATION_NOT_INITIALIZED); /* no key asks for it */
    }
    if (user != CKU_USER) {
        return p11_leave(CKR_USER_TYPE_INVALID);
    }
    if (logged_in[session->slot]) {
        return p11_leave(CKR_USER_ALREADY_LOGGED_IN);
    }
    logged_in[session->slot] = true;
    return p11_leave(CKR_OK);
}

CK_RV p11_Logout(CK_SESSION_HANDLE handle) {
    P11_ENTER(handle)
    if (!logged_in[session->slot]) {
        return p11_leave(CKR_USER_NOT_LOGGED_IN);
    }
    logged_in[session->slot] = false;
    return p11_leave(CKR_OK);
}

CK_RV p11_FindObjectsInit(CK_SESSION_HANDLE handle, CK_ATTRIBUTE *wanted, CK_ULONG count) {
    P11_ENTER(handle)
    if (session->finding) {
        return p11_leave(CKR_OPERATION_ACTIVE);
    }
    if (count > ATTRIBUTES) {
        return p11_leave(CKR_ARGUMENTS_BAD);
    }
    for (CK_ULONG i = 0; i < count; i++) {
        if (wanted == NULL || (wanted[i].pValue == NULL && wanted[i].ulValueLen != 0)) {
            return p11_leave(CKR_ARGUMENTS_BAD);
        }
    }
    rv = p11_link_refresh();
    session = p11_session_again(handle);
    if (rv != CKR_OK || session == NULL) {
        return p11_leave(rv != CKR_OK ? rv : CKR_SESSION_HANDLE_INVALID);
    }
    if (session->finding) { /* another thread was quicker */
        return p11_leave(CKR_OPERATION_ACTIVE);
    }
    session->wanted = calloc(count + 1, sizeof *wanted);
    for (CK_ULONG i = 0; session->wanted != NULL && i < count; i++) {
        CK_ATTRIBUTE *copy = &session->wanted[i];
        *copy = (CK_ATTRIBUTE){wanted[i].type, malloc(wanted[i].ulValueLen + 1), wanted[i].ulValueLen};
        session->wanted_count++;
        if (copy->pValue == NULL) {
            end_finding(session);
            break;
        }
        if (copy->ulValueLen > 0) {
            memcpy(copy->pValue, wanted[i].pValue, copy->ulValueLen);
        }
    }
    session->finding = session->wanted != NULL;
    return p11_leave(session->finding ? CKR_OK : CKR_HOST_MEMORY);
}

CK_RV p11_FindObjects(CK_SESSION_HANDLE handle, CK_OBJECT_HANDLE *found, CK_ULONG most, CK_ULONG *count) {
    P11_ENTER(handle)
    if (!session->finding) {
        return p11_leave(CKR_OPERATION_NOT_INITIALIZED);
    }
    if (count == NULL || (found == NULL && most > 0)) {
        return p11_leave(CKR_ARGUMENTS_BAD);
    }
    *count = p11_match(session->slot, session->wanted, session->wanted_count, found, most, &session->find_next);
    return p11_leave(CKR_OK);
}

CK_RV p11_FindObjectsFinal(CK_SESSION_HANDLE handle) {
    P11_ENTER(handle)
    rv = session->finding ? CKR_OK : CKR_OPERATION_NOT_INITIALIZED;
    end_finding(session);
    return p11_leave(rv);
}

CK_RV p11_GetAttributeValue(CK_SESSION_HANDLE handle, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *wanted, CK_ULONG count) {
    bool is_private = false;
    P11_ENTER(handle)
    if (wanted == NULL || count == 0 || count > ATTRIBUTES) {
        return p11_leave(CKR_ARGUMENTS_BAD);
    }
    if (p11_object(session->slot, object, &is_private) == NULL) {
        return p11_leave(CKR_OBJECT_HANDLE_INVALID);
    }
    return p11_leave(p11_attributes(object, wanted, count));
}

/* The kernel's random numbers: a gateway gives none. */
CK_RV p11_GenerateRandom(CK_SESSION_HANDLE handle, CK_BYTE *data, CK_ULONG len) {
    P11_ENTER(handle)
    rv = p11_leave(data == NULL && len > 0 ? CKR_ARGUMENTS_BAD : CKR_OK);
    if (rv != CKR_OK) {
        return rv;
    }
    while (len > 0) {
        ssize_t made = getrandom(data, len, 0);
        if (made <= 0) {
            return CKR_FUNCTION_FAILED;
        }
        data += made;
        len -= (CK_ULONG)made;
    }
    return CKR_OK;
}

CK_RV p11_SeedRandom(CK_SESSION_HANDLE handle, CK_BYTE *seed, CK_ULONG len) {
    (void)seed, (void)len;
    P11_ENTER(handle)
    return p11_leave(CKR_RANDOM_SEED_NOT_SUPPORTED);
}

CK_RV p11_SessionCancel(CK_SESSION_HANDLE handle, CK_FLAGS flags) {
    static const CK_FLAGS of[P11_OPERATIONS] = {CKF_SIGN, CKF_VERIFY};
    P11_ENTER(handle)
    for (unsigned i = 0; i < P11_OPERATIONS; i++) {
        if ((flags & of[i]) != 0) {
            p11_operation_end(&session->operations[i]);
        }
    }
    if ((flags & CKF_FIND_OBJECTS) != 0) {
        end_finding(session);
    }
    return p11_leave(CKR_OK);
}
