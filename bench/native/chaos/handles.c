/* Object handles that changed their object.
 *
 * A device that recycles handles gives the number of one key to another key, and the first key a new number. So there
 * are two kinds of row: the old number, which now stands for another object, and a new number for the object that lost
 * its own. */
#include <pthread.h>

#include "chaos.h"

#define ROWS 1024
#define NEW_NUMBERS UINT64_C(0x7f000000) /* above the numbers that modules use, within 32 bits */

static pthread_rwlock_t lock = PTHREAD_RWLOCK_INITIALIZER;
static struct row {
    struct chaos_slot *slot;
    CK_OBJECT_HANDLE given, real;
} rows[ROWS];
static atomic_size_t used; /* nearly always 0: then no call takes the lock */

static struct row *row_of_given(const struct chaos_slot *slot, CK_OBJECT_HANDLE given) {
    for (size_t i = 0; i < atomic_load(&used); i++) {
        if (rows[i].slot == slot && rows[i].given == given) {
            return &rows[i];
        }
    }
    return NULL;
}

/* The number by which a client knows `real`, if that is not its own. */
static struct row *row_of_real(const struct chaos_slot *slot, CK_OBJECT_HANDLE real) {
    for (size_t i = 0; i < atomic_load(&used); i++) {
        if (rows[i].slot == slot && rows[i].real == real && rows[i].given >= NEW_NUMBERS) {
            return &rows[i];
        }
    }
    return NULL;
}

/* A module whose handles mean nothing in another session: the session's number stands above the wrapped module's. */
#define TAG_SHIFT 32U
#define TAG_BITS UINT64_C(0x7fffffff)

static CK_OBJECT_HANDLE tag_of(const struct chaos_call *call) {
    return (call->handle & TAG_BITS) << TAG_SHIFT;
}

static CK_OBJECT_HANDLE untagged(const struct chaos_call *call, CK_OBJECT_HANDLE given) {
    if (!chaos_config.vendor.handles_per_session || given == CK_INVALID_HANDLE) {
        return given;
    }
    CK_OBJECT_HANDLE tag = given & ~UINT64_C(0xffffffff);
    return tag == tag_of(call) ? given ^ tag : CK_INVALID_HANDLE;
}

CK_OBJECT_HANDLE chaos_handle(const struct chaos_call *call, CK_OBJECT_HANDLE given) {
    if (call->plain) {
        return given;
    }
    given = untagged(call, given);
    if (atomic_load_explicit(&used, memory_order_acquire) == 0) {
        return given;
    }
    (void)pthread_rwlock_rdlock(&lock);
    const struct row *row = row_of_given(call->slot, given);
    CK_OBJECT_HANDLE real = row != NULL ? row->real : given;
    (void)pthread_rwlock_unlock(&lock);
    return real;
}

void chaos_handles_found(const struct chaos_call *call, CK_OBJECT_HANDLE *handles, CK_ULONG count) {
    if (call->plain) {
        return;
    }
    if (atomic_load_explicit(&used, memory_order_acquire) != 0) {
        (void)pthread_rwlock_rdlock(&lock);
        for (CK_ULONG i = 0; i < count; i++) {
            /* Only an object whose own number was given away needs another one. */
            const struct row *row =
                row_of_given(call->slot, handles[i]) != NULL ? row_of_real(call->slot, handles[i]) : NULL;
            handles[i] = row != NULL ? row->given : handles[i];
        }
        (void)pthread_rwlock_unlock(&lock);
    }
    for (CK_ULONG i = 0; chaos_config.vendor.handles_per_session && i < count; i++) {
        handles[i] |= tag_of(call);
    }
}

void chaos_handle_recycle(const struct chaos_call *call, CK_OBJECT_HANDLE given, CK_OBJECT_HANDLE other) {
    given = untagged(call, given);
    (void)pthread_rwlock_wrlock(&lock);
    struct row *row = row_of_given(call->slot, given);
    CK_OBJECT_HANDLE real = row != NULL ? row->real : given;
    size_t count = atomic_load(&used);
    if (count + 2 > ROWS) {
        chaos_fault_skip(call, ACTION_RECYCLE_HANDLE, "too many handles recycled");
    } else {
        if (row == NULL) {
            row = &rows[count++];
            *row = (struct row){call->slot, given, other};
        } else {
            row->real = other;
        }
        rows[count] = (struct row){call->slot, NEW_NUMBERS + count, real};
        atomic_store(&used, count + 1);
    }
    (void)pthread_rwlock_unlock(&lock);
}

void chaos_handles_reset(void) {
    atomic_store(&used, 0);
    (void)pthread_rwlock_init(&lock, NULL);
}
