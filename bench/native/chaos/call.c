/* The way into the wrapped module and out of it, the same for all calls. */
#include <pthread.h>

#include "chaos.h"

/* Streams of random numbers: faults use their own number, and the functions' are below these. */
#define STREAM_LATENCY UINT64_C(1000)

/* The standard's answers (section 5.6): a session that the token took with it is DEVICE_REMOVED until the token is
 * back. */
CK_RV chaos_gone(const struct chaos_call *call) {
    bool absent = chaos_slot_absent(call->slot);
    if (call->session != NULL && chaos_session_dead(call->session)) {
        return absent ? CKR_DEVICE_REMOVED : CKR_SESSION_HANDLE_INVALID;
    }
    if (absent && chaos_function_scopes[call->function] == SCOPE_SLOT && call->function != CHAOS_C_GetSlotInfo) {
        return CKR_TOKEN_NOT_PRESENT;
    }
    return CKR_OK;
}

static bool takes_server(const struct chaos_call *call) {
    const struct chaos_capacity *capacity = &call->settings->capacity;
    if (capacity->servers == 0 || call->query || !call->slot->real) {
        return false;
    }
    if (capacity->chosen) {
        return capacity->functions[call->function];
    }
    return call->function == CHAOS_C_Sign || call->settings->latency[call->function].kind != LATENCY_NONE;
}

/* `end`: when the device had finished. A wrapped module that took longer than the latency is the device. */
static void give_server_back(struct chaos_call *call, int64_t end) {
    if (call->served) {
        /* Today's settings, which may have another number of servers; none after a C_Finalize that did not wait. */
        const struct chaos_settings *settings = atomic_load_explicit(&chaos_settings, memory_order_acquire);
        chaos_slot_served(call->slot, settings != NULL ? &settings->capacity : &call->settings->capacity, end);
        call->served = false;
    }
}

static bool end_call(struct chaos_call *call) {
    if (call->session != NULL) {
        chaos_session_unpin(call->session);
    }
    (void)atomic_fetch_sub(&chaos_inside, 1);
    return false;
}

/* In this order: what the vendor's module always refuses, faults, the wait for a server, the wrapped module. A fault
 * takes effect before the device could know of the call. */
static bool prepare(struct chaos_call *call) {
    call->rv = chaos_refused(call);
    if (call->rv != CKR_OK) {
        return false;
    }
    if (!call->query) {
        struct chaos_effect effect;
        call->number = atomic_fetch_add_explicit(&call->slot->turns[call->function], 1, memory_order_relaxed) + 1;
        if (chaos_fault_pick(call, &effect) && !chaos_effect_apply(call, &effect)) {
            return false;
        }
    }
    call->rv = chaos_gone(call);
    if (call->rv != CKR_OK) {
        return false;
    }
    const struct chaos_latency *latency = &call->settings->latency[call->function];
    if (latency->kind != LATENCY_NONE && !call->query) {
        uint64_t random = chaos_draw(chaos_config.seed, STREAM_LATENCY + (uint64_t)call->function, call->number);
        call->service = chaos_latency_draw(latency, random, call->size);
        call->start = chaos_now();
    }
    if (takes_server(call)) {
        call->served = chaos_slot_serve(call->slot, &call->settings->capacity, &call->start, &call->rv);
        if (!call->served) {
            return false;
        }
    }
    if (call->session != NULL) {
        call->inside = chaos_session_begin(call->session);
        if (!call->inside) {
            call->rv = chaos_gone(call);
            give_server_back(call, chaos_now());
            return false;
        }
    }
    return true;
}

/* The standard ends a signing operation with C_Sign at any result but CKR_BUFFER_TOO_SMALL (section 5.13). The wrapped
 * module never saw the call, so it gets one whose result is thrown away. */
static void end_operation(struct chaos_call *call) {
    static CK_BYTE data[1];
    CK_BYTE scratch[4096];
    CK_ULONG length = sizeof scratch;
    bool signs = call->function == CHAOS_C_Sign || call->function == CHAOS_C_SignFinal;
    if (!signs || call->query || call->session == NULL || call->rv == CKR_BUFFER_TOO_SMALL ||
        atomic_load(&chaos_state) != CHAOS_UP || !chaos_session_begin(call->session)) {
        return;
    }
    if (call->function == CHAOS_C_Sign) {
        (void)chaos_wrapped.C_Sign(call->handle, data, sizeof data, scratch, &length);
    } else {
        (void)chaos_wrapped.C_SignFinal(call->handle, scratch, &length);
    }
    chaos_session_end(call->session);
}

bool chaos_enter(struct chaos_call *call) {
    if (atomic_load_explicit(&chaos_state, memory_order_acquire) == CHAOS_DOWN) {
        call->plain = true;
        call->rv = CKR_CRYPTOKI_NOT_INITIALIZED;
        return chaos_wrapped_loaded();
    }
    (void)atomic_fetch_add(&chaos_inside, 1);
    if (atomic_load(&chaos_state) != CHAOS_UP) {
        call->rv = CKR_CRYPTOKI_NOT_INITIALIZED;
        return end_call(call);
    }
    call->settings = atomic_load_explicit(&chaos_settings, memory_order_acquire);
    switch (chaos_function_scopes[call->function]) {
    case SCOPE_SESSION:
        call->session = chaos_session_pin(call->handle);
        call->slot = call->session != NULL ? call->session->slot : chaos_slot_none();
        break;
    case SCOPE_SLOT:
        call->slot = chaos_slot_of(call->slot_id);
        break;
    case SCOPE_MODULE:
        call->slot = chaos_slot_none();
        break;
    }
    call->removals = atomic_load(&call->slot->removals);
    (void)atomic_fetch_add_explicit(&call->slot->calls[call->function], 1, memory_order_relaxed);
    if (prepare(call)) {
        return true;
    }
    end_operation(call);
    return end_call(call);
}

CK_RV chaos_leave(struct chaos_call *call, CK_RV rv) {
    if (call->plain) {
        return rv;
    }
    if (call->inside) {
        chaos_session_end(call->session);
    }
    int64_t end = call->start + call->service;
    if (call->service > 0) {
        chaos_sleep_until(end);
        /* The device was still at work on it when its session or token went. */
        if (call->session != NULL && chaos_session_dead(call->session)) {
            rv = chaos_gone(call);
        }
    }
    give_server_back(call, end > call->start ? end : chaos_now());
    (void)end_call(call);
    return rv;
}
