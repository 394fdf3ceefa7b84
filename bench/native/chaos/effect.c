/* What a fault does to a call: before it reaches the wrapped module, or to its signature. */
#include <stdlib.h>
#include <unistd.h>

#include "chaos.h"

static void note(const struct chaos_call *call, const struct chaos_effect *effect) {
    chaos_fault_count(effect->action);
    unsigned long long number = (unsigned long long)call->number;
    const char *function = chaos_function_names[call->function];
    const char *action = chaos_action_names[effect->action];
    if (effect->action == ACTION_RETURN) {
        chaos_log("%s call %llu slot %lu: %s 0x%lx", function, number, call->slot->id, action, effect->ckr);
    } else {
        chaos_log("%s call %llu slot %lu: %s", function, number, call->slot->id, action);
    }
}

/* As when a token loses power: the login is gone, then every session, and no call is answered. */
static void remove_token(struct chaos_slot *slot, int64_t nanoseconds) {
    int64_t now = chaos_now();
    atomic_store(&slot->absent_until, nanoseconds > CHAOS_FOREVER - now ? CHAOS_FOREVER : now + nanoseconds);
    (void)atomic_fetch_add(&slot->removals, 1);
    CK_SESSION_HANDLE session;
    if (chaos_sessions_any(slot, &session)) {
        (void)chaos_wrapped.C_Logout(session);
    }
    chaos_sessions_kill(slot);
}

static void log_out(const struct chaos_call *call) {
    CK_SESSION_HANDLE session = call->handle;
    if (call->session == NULL && !chaos_sessions_any(call->slot, &session)) {
        chaos_fault_skip(call, ACTION_LOGOUT, "the slot has no session");
        return;
    }
    (void)chaos_wrapped.C_Logout(session);
}

static void recycle(const struct chaos_call *call) {
    CK_OBJECT_HANDLE given = call->function == CHAOS_C_Sign ? call->session->given_key : call->object;
    CK_OBJECT_HANDLE other;
    if (given == CK_INVALID_HANDLE) {
        chaos_fault_skip(call, ACTION_RECYCLE_HANDLE, "no key was used on this session");
    } else if (chaos_other_key_find(call, chaos_handle(call, given), &other)) {
        chaos_handle_recycle(call, given, other);
    }
}

/* A real write to memory that is not there. The address comes from a variable that the compiler must read, or it would
 * put a trap instruction in its place. */
__attribute__((no_sanitize("undefined", "address"))) static void crash(void) {
    static volatile uintptr_t nowhere = 16;
    *(volatile int *)nowhere = 1;
    abort();
}

bool chaos_effect_apply(struct chaos_call *call, const struct chaos_effect *effect) {
    bool of_session = chaos_function_scopes[call->function] == SCOPE_SESSION;
    bool needs_slot = effect->action == ACTION_KILL_SESSION || effect->action == ACTION_KILL_ALL_SESSIONS ||
                      effect->action == ACTION_LOGOUT || effect->action == ACTION_REMOVE_TOKEN ||
                      effect->action == ACTION_RECYCLE_HANDLE;
    if (needs_slot && (!call->slot->real || (of_session && call->session == NULL))) {
        chaos_fault_skip(call, effect->action, "the call has no valid session or slot");
        return true;
    }
    note(call, effect);
    switch (effect->action) {
    case ACTION_RETURN:
        call->rv = effect->ckr;
        return false;
    case ACTION_HANG:
        call->rv = CKR_CRYPTOKI_NOT_INITIALIZED; /* the answer if C_Finalize ends the hang */
        return chaos_hang(effect->nanoseconds);
    case ACTION_KILL_SESSION:
        chaos_session_kill(call->session);
        return true;
    case ACTION_KILL_ALL_SESSIONS:
        chaos_sessions_kill(call->slot);
        return true;
    case ACTION_LOGOUT:
        log_out(call);
        return true;
    case ACTION_REMOVE_TOKEN:
        remove_token(call->slot, effect->nanoseconds);
        return true;
    case ACTION_RECYCLE_HANDLE:
        if (call->function != CHAOS_C_FindObjects) {
            recycle(call);
            return true;
        }
        break; /* the handles are not known yet */
    case ACTION_CRASH:
        crash();
        break;
    case ACTION_EXIT:
        _exit(effect->code); /* exit handlers of a client that holds locks could hang instead */
    default:
        break;
    }
    call->effect = *effect;
    call->altered = true;
    return true;
}

/* `room`: the length of the caller's buffer. Nothing is written beyond it. */
void chaos_alter_signature(const struct chaos_call *call, CK_BYTE *data, CK_ULONG data_len, CK_BYTE *signature,
                           CK_ULONG *signature_len, CK_ULONG room) {
    uint64_t random = chaos_draw(chaos_config.seed, (uint64_t)call->effect.action, call->number);
    CK_ULONG length = *signature_len;
    switch (call->effect.action) {
    case ACTION_WRONG_SIGNATURE:
        if (length > 0) {
            signature[random % length] ^= (CK_BYTE)(1U << ((random >> 32) % 8));
        }
        break;
    case ACTION_OTHER_KEY_SIGNATURE:
        *signature_len = room;
        if (!chaos_other_key_sign(call, data, data_len, signature, signature_len)) {
            *signature_len = length;
        }
        break;
    case ACTION_LONG_SIGNATURE:
        *signature_len = room + 16;
        break;
    case ACTION_SHORT_SIGNATURE:
        *signature_len = length / 2;
        break;
    default:
        break;
    }
}
