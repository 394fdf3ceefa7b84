/* Sessions, login, C_FindObjects. */
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "p11.h"

enum { PLACES = 1 << 20, ATTRIBUTES = 256 }; /* PLACES: most sessions; ATTRIBUTES: of one template */

static struct p11_session **sessions; /* by the lower half of a handle; NULL: free */
static unsigned places;
static unsigned first_free; /* no place before it is free */
static uint64_t opened;     /* the upper half of a handle, so that a closed one stays bad */
static bool logged_in[P11_SLOTS];

struct p11_session *p11_session(CK_SESSION_HANDLE handle) {
    size_t place = handle & UINT32_MAX;
    struct p11_session *found = place < places ? sessions[place] : NULL;
    return found != NULL && found->handle == handle ? found : NULL;
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
}

static void close_session(unsigned place) {
    struct p11_session *session = sessions[place];
    end_finding(session);
    for (unsigned i = 0; i < P11_OPERATIONS; i++) {
        p11_operation_end(&session->operations[i]);
    }
    free(session);
    sessions[place] = NULL;
    first_free = place < first_free ? place : first_free;
}

/* Close those of a slot, or all. */
static void close_sessions(const CK_SLOT_ID *slot) {
    for (unsigned place = 0; place < places; place++) {
        if (sessions[place] != NULL && (slot == NULL || sessions[place]->slot == *slot)) {
            close_session(place);
        }
    }
}

void p11_sessions_count(CK_SLOT_ID slot, CK_ULONG *all, CK_ULONG *writing) {
    for (unsigned place = 0; place < places; place++) {
        bool counts = sessions[place] != NULL && sessions[place]->slot == slot;
        *all += counts;
        *writing += counts && (sessions[place]->flags & CKF_RW_SESSION) != 0;
    }
}

void p11_sessions_free(void) {
    close_sessions(NULL);
    free(sessions);
    sessions = NULL;
    places = first_free = 0;
    memset(logged_in, 0, sizeof logged_in);
}

CK_RV p11_C_OpenSession(CK_SLOT_ID slot, CK_FLAGS flags, void *application, CK_NOTIFY notify,
                        CK_SESSION_HANDLE *handle) {
    (void)application, (void)notify;
    if (handle == NULL) {
        return CKR_ARGUMENTS_BAD;
    }
    if ((flags & CKF_SERIAL_SESSION) == 0) {
        return CKR_SESSION_PARALLEL_NOT_SUPPORTED;
    }
    while (first_free < places && sessions[first_free] != NULL) {
        first_free++;
    }
    if (first_free == PLACES) {
        return CKR_SESSION_COUNT;
    }
    struct p11_session *session = calloc(1, sizeof *session);
    if (session == NULL || (first_free == places && !p11_grow((void **)&sessions, places, sizeof *sessions))) {
        free(session);
        return CKR_HOST_MEMORY;
    }
    places += first_free == places;
    *session = (struct p11_session){.handle = ++opened << 32 | first_free, .slot = slot, .flags = flags};
    sessions[first_free] = session;
    *handle = session->handle;
    return CKR_OK;
}

CK_RV p11_C_CloseSession(CK_SESSION_HANDLE session) {
    CK_SLOT_ID slot = p11_session(session)->slot;
    CK_ULONG left = 0;
    CK_ULONG writing = 0;
    close_session(session & UINT32_MAX);
    p11_sessions_count(slot, &left, &writing);
    logged_in[slot] = logged_in[slot] && left > 0;
    return CKR_OK;
}

CK_RV p11_C_CloseAllSessions(CK_SLOT_ID slot) {
    close_sessions(&slot);
    logged_in[slot] = false;
    return CKR_OK;
}

CK_RV p11_C_GetSessionInfo(CK_SESSION_HANDLE session, CK_SESSION_INFO *info) {
    static const CK_STATE states[2][2] = {{CKS_RO_PUBLIC_SESSION, CKS_RO_USER_FUNCTIONS},
                                          {CKS_RW_PUBLIC_SESSION, CKS_RW_USER_FUNCTIONS}};
    const struct p11_session *found = p11_session(session);
    if (info == NULL) {
        return CKR_ARGUMENTS_BAD;
    }
    *info = (CK_SESSION_INFO){.slotID = found->slot, .flags = found->flags};
    info->state = states[(found->flags & CKF_RW_SESSION) != 0][logged_in[found->slot]];
    return CKR_OK;
}

/* The gateway knows the process by its user or its certificate, so a PIN is neither needed nor looked at. */
CK_RV p11_C_Login(CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_BYTE *pin, CK_ULONG pin_len) {
    (void)pin, (void)pin_len;
    bool *in = &logged_in[p11_session(session)->slot];
    if (user != CKU_USER) { /* no key asks for CKU_CONTEXT_SPECIFIC */
        return user == CKU_CONTEXT_SPECIFIC ? CKR_OPERATION_NOT_INITIALIZED : CKR_USER_TYPE_INVALID;
    }
    CK_RV rv = *in ? CKR_USER_ALREADY_LOGGED_IN : CKR_OK;
    *in = true;
    return rv;
}

CK_RV p11_C_Logout(CK_SESSION_HANDLE session) {
    bool *in = &logged_in[p11_session(session)->slot];
    CK_RV rv = *in ? CKR_OK : CKR_USER_NOT_LOGGED_IN;
    *in = false;
    return rv;
}

CK_RV p11_C_FindObjectsInit(CK_SESSION_HANDLE session, CK_ATTRIBUTE *wanted, CK_ULONG count) {
    bool bad = count > ATTRIBUTES || (wanted == NULL && count > 0);
    for (CK_ULONG i = 0; !bad && i < count; i++) {
        bad = wanted[i].pValue == NULL && wanted[i].ulValueLen != 0;
    }
    if (bad) {
        return CKR_ARGUMENTS_BAD;
    }
    CK_RV rv = p11_link_refresh(); /* without the lock: the session may be closed, or be another thread's, then */
    struct p11_session *found = p11_session(session);
    if (rv != CKR_OK || found == NULL) {
        return rv != CKR_OK ? rv : CKR_SESSION_HANDLE_INVALID;
    }
    if (found->wanted != NULL) {
        return CKR_OPERATION_ACTIVE;
    }
    found->wanted = calloc(count + 1, sizeof *wanted);
    for (CK_ULONG i = 0; found->wanted != NULL && i < count; i++) {
        CK_ATTRIBUTE *copy = &found->wanted[found->wanted_count++];
        *copy = (CK_ATTRIBUTE){wanted[i].type, malloc(wanted[i].ulValueLen + 1), wanted[i].ulValueLen};
        if (copy->pValue == NULL) {
            end_finding(found);
        } else if (copy->ulValueLen > 0) {
            memcpy(copy->pValue, wanted[i].pValue, copy->ulValueLen);
        }
    }
    return found->wanted != NULL ? CKR_OK : CKR_HOST_MEMORY;
}

CK_RV p11_C_FindObjects(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE *object, CK_ULONG most, CK_ULONG *count) {
    struct p11_session *found = p11_session(session);
    if (found->wanted == NULL) {
        return CKR_OPERATION_NOT_INITIALIZED;
    }
    if (count == NULL || (object == NULL && most > 0)) {
        return CKR_ARGUMENTS_BAD;
    }
    *count = p11_match(found->slot, found->wanted, found->wanted_count, object, most, &found->find_next);
    return CKR_OK;
}

CK_RV p11_C_FindObjectsFinal(CK_SESSION_HANDLE session) {
    struct p11_session *found = p11_session(session);
    CK_RV rv = found->wanted != NULL ? CKR_OK : CKR_OPERATION_NOT_INITIALIZED;
    end_finding(found);
    return rv;
}

CK_RV p11_C_GetAttributeValue(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *wanted,
                              CK_ULONG count) {
    bool is_private = false;
    if (wanted == NULL || count == 0 || count > ATTRIBUTES) {
        return CKR_ARGUMENTS_BAD;
    }
    return p11_object(p11_session(session)->slot, object, &is_private) == NULL ? CKR_OBJECT_HANDLE_INVALID
                                                                               : p11_attributes(object, wanted, count);
}

/* The kernel's random numbers: a gateway gives none. */
CK_RV p11_C_GenerateRandom(CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG len) {
    (void)session;
    CK_RV rv = p11_leave(data == NULL && len > 0 ? CKR_ARGUMENTS_BAD : CKR_OK);
    while (rv == CKR_OK && len > 0) {
        ssize_t made = getrandom(data, len, 0);
        rv = made > 0 ? CKR_OK : CKR_FUNCTION_FAILED;
        data += made > 0 ? made : 0;
        len -= made > 0 ? (CK_ULONG)made : 0;
    }
    return rv | P11_LEFT;
}

CK_RV p11_C_SeedRandom(CK_SESSION_HANDLE session, CK_BYTE *seed, CK_ULONG len) {
    (void)session, (void)seed, (void)len;
    return CKR_RANDOM_SEED_NOT_SUPPORTED;
}

CK_RV p11_C_SessionCancel(CK_SESSION_HANDLE session, CK_FLAGS flags) {
    struct p11_session *found = p11_session(session);
    if ((flags & CKF_SIGN) != 0) {
        p11_operation_end(&found->operations[P11_SIGN]);
    }
    if ((flags & CKF_VERIFY) != 0) {
        p11_operation_end(&found->operations[P11_VERIFY]);
    }
    if ((flags & CKF_FIND_OBJECTS) != 0) {
        end_finding(found);
    }
    return CKR_OK;
}
