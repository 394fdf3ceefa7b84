/* Which session is on which slot, and which is dead.
 *
 * Handles are passed through as the wrapped module gives them. A bucket's lock is held for a few instructions; sessions
 * of different threads rarely share a bucket, so it is rarely waited for. */
#include <pthread.h>
#include <stdlib.h>

#include "chaos.h"

#define BUCKETS 1024

static struct bucket {
    pthread_mutex_t lock;
    struct chaos_session *first;
    char apart[16]; /* a cache line each */
} buckets[BUCKETS];

static struct bucket *bucket_of(CK_SESSION_HANDLE handle) {
    return &buckets[(handle ^ (handle >> 10)) % BUCKETS];
}

static void unlink_locked(struct bucket *bucket, struct chaos_session *session) {
    struct chaos_session **link = &bucket->first;
    while (*link != session) {
        link = &(*link)->next;
    }
    *link = session->next;
    session->unlinked = true;
    if (session->pins == 0) {
        free(session);
    }
}

static struct chaos_session *look_up(const struct bucket *bucket, CK_SESSION_HANDLE handle) {
    struct chaos_session *session = bucket->first;
    while (session != NULL && session->handle != handle) {
        session = session->next;
    }
    return session;
}

bool chaos_session_known(CK_SESSION_HANDLE handle) {
    struct bucket *bucket = bucket_of(handle);
    (void)pthread_mutex_lock(&bucket->lock);
    bool known = look_up(bucket, handle) != NULL;
    (void)pthread_mutex_unlock(&bucket->lock);
    return known;
}

bool chaos_session_add(CK_SESSION_HANDLE handle, struct chaos_slot *slot) {
    struct chaos_session *session = calloc(1, sizeof *session);
    if (session == NULL) {
        return false;
    }
    session->handle = handle;
    session->slot = slot;
    session->mechanism = CK_UNAVAILABLE_INFORMATION;
    struct bucket *bucket = bucket_of(handle);
    (void)pthread_mutex_lock(&bucket->lock);
    struct chaos_session *old = look_up(bucket, handle);
    if (old != NULL) { /* a dead one, of a module that insists on the number */
        unlink_locked(bucket, old);
    }
    session->next = bucket->first;
    bucket->first = session;
    (void)pthread_mutex_unlock(&bucket->lock);
    return true;
}

struct chaos_session *chaos_session_pin(CK_SESSION_HANDLE handle) {
    struct bucket *bucket = bucket_of(handle);
    (void)pthread_mutex_lock(&bucket->lock);
    struct chaos_session *session = look_up(bucket, handle);
    if (session != NULL) {
        session->pins++;
    }
    (void)pthread_mutex_unlock(&bucket->lock);
    return session;
}

void chaos_session_unpin(struct chaos_session *session) {
    struct bucket *bucket = bucket_of(session->handle);
    (void)pthread_mutex_lock(&bucket->lock);
    bool last = --session->pins == 0 && session->unlinked;
    (void)pthread_mutex_unlock(&bucket->lock);
    if (last) {
        free(session);
    }
}

/* ---- alive, dead, closed ---- */

bool chaos_session_dead(struct chaos_session *session) {
    return (atomic_load(&session->state) & SESSION_DEAD) != 0;
}

/* Enters the wrapped module with this session, unless it is dead. */
bool chaos_session_begin(struct chaos_session *session) {
    uint64_t state = atomic_load_explicit(&session->state, memory_order_relaxed);
    do {
        if ((state & SESSION_DEAD) != 0) {
            return false;
        }
    } while (!atomic_compare_exchange_weak(&session->state, &state, state + 1));
    return true;
}

static void close_wrapped(struct chaos_session *session) {
    if (!atomic_exchange(&session->closed, true)) {
        (void)chaos_wrapped.C_CloseSession(session->handle);
    }
}

void chaos_session_end(struct chaos_session *session) {
    if (atomic_fetch_sub(&session->state, 1) == (SESSION_DEAD | 1)) {
        close_wrapped(session);
    }
}

/* The caller has it pinned. */
void chaos_session_kill(struct chaos_session *session) {
    if (atomic_fetch_or(&session->state, SESSION_DEAD) == 0) {
        close_wrapped(session);
    }
}

/* The wrapped module has closed it at the client's wish: its number means nothing to us any more. */
void chaos_session_closed(struct chaos_session *session) {
    struct bucket *bucket = bucket_of(session->handle);
    atomic_store(&session->closed, true);
    (void)pthread_mutex_lock(&bucket->lock);
    if (!session->unlinked) {
        unlink_locked(bucket, session);
    }
    (void)pthread_mutex_unlock(&bucket->lock);
}

void chaos_session_forget(CK_SESSION_HANDLE handle) {
    struct bucket *bucket = bucket_of(handle);
    (void)pthread_mutex_lock(&bucket->lock);
    struct chaos_session *session = look_up(bucket, handle);
    if (session != NULL && chaos_session_dead(session) && atomic_load(&session->closed)) {
        unlink_locked(bucket, session);
    }
    (void)pthread_mutex_unlock(&bucket->lock);
}

/* One bucket at a time and one session at a time, because closing must not happen under the lock. */
void chaos_sessions_kill(struct chaos_slot *slot) {
    for (struct bucket *bucket = buckets; bucket < buckets + BUCKETS; bucket++) {
        for (;;) {
            (void)pthread_mutex_lock(&bucket->lock);
            struct chaos_session *session = bucket->first;
            while (session != NULL && (session->slot != slot || chaos_session_dead(session))) {
                session = session->next;
            }
            if (session != NULL) {
                session->pins++;
            }
            (void)pthread_mutex_unlock(&bucket->lock);
            if (session == NULL) {
                break;
            }
            chaos_session_kill(session);
            chaos_session_unpin(session);
        }
    }
}

void chaos_sessions_closed(struct chaos_slot *slot) {
    for (struct bucket *bucket = buckets; bucket < buckets + BUCKETS; bucket++) {
        (void)pthread_mutex_lock(&bucket->lock);
        for (struct chaos_session *session = bucket->first, *next; session != NULL; session = next) {
            next = session->next;
            if (session->slot == slot) {
                atomic_store(&session->closed, true);
                unlink_locked(bucket, session);
            }
        }
        (void)pthread_mutex_unlock(&bucket->lock);
    }
}

/* Any live session of the slot. The handle may be gone by the time it is used. */
bool chaos_sessions_any(struct chaos_slot *slot, CK_SESSION_HANDLE *handle) {
    bool found = false;
    for (struct bucket *bucket = buckets; bucket < buckets + BUCKETS && !found; bucket++) {
        (void)pthread_mutex_lock(&bucket->lock);
        for (struct chaos_session *session = bucket->first; session != NULL && !found; session = session->next) {
            if (session->slot == slot && !chaos_session_dead(session)) {
                *handle = session->handle;
                found = true;
            }
        }
        (void)pthread_mutex_unlock(&bucket->lock);
    }
    return found;
}

uint64_t chaos_sessions_open(void) {
    uint64_t count = 0;
    for (struct bucket *bucket = buckets; bucket < buckets + BUCKETS; bucket++) {
        (void)pthread_mutex_lock(&bucket->lock);
        for (struct chaos_session *session = bucket->first; session != NULL; session = session->next) {
            count += !chaos_session_dead(session);
        }
        (void)pthread_mutex_unlock(&bucket->lock);
    }
    return count;
}

/* With `free_them` false the memory is left alone: a call may still be in there. */
void chaos_sessions_reset(bool free_them) {
    for (struct bucket *bucket = buckets; bucket < buckets + BUCKETS; bucket++) {
        struct chaos_session *session = bucket->first;
        while (free_them && session != NULL) {
            struct chaos_session *next = session->next;
            free(session);
            session = next;
        }
        bucket->first = NULL;
        (void)pthread_mutex_init(&bucket->lock, NULL);
    }
}
