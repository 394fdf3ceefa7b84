"""A module before another one that disobeys now and then, at random: see ACTIONS. What it does, and how often, a test
says in memory that all processes share; when it did what, it notes there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

from tests.support.wrapper import compile_wrapper

SURVIVED = {
    "end-thread": "pthread_exit in any call",
    "strange-ckr": "a CKR that no standard has, from any call",
    "signals": "block or unblock all signals of the thread",
    "close-own-session": "close the session of the call by itself",
    "write-nothing": "C_Sign says that it has signed, and has not",
    "no-length": "C_Sign says that the signature has no bytes",
    "huge-length": "C_Sign says that the signature has a gigabyte",
    "write-more": "C_Sign writes as much behind the signature as there is room for",
    "rewrite": "C_Sign overwrites the message before it signs",
    "many-objects": "C_FindObjects says that it has found more than were asked for",
    "unreadable": "C_GetAttributeValue refuses an attribute",
    "long-attribute": "C_GetAttributeValue says that the value has a megabyte",
    "changed-attribute": "C_GetAttributeValue shows another value: another key, class, or use",
    "logged-out": "C_GetSessionInfo says that nobody is logged in",
    "null-tables": "C_GetInterfaceList lists interfaces without functions or names",
}
"""What an application survives that has the module in its process."""
LETHAL = {
    "crash": "a wild pointer in any call",
    "exit": "end the process in any call",
    "null-function": "the table has no C_SignInit",
}
CORRUPTING = {
    "write-far": "C_Sign writes a megabyte",
    "scribble": "write random bytes all over the area that is shared with the client",
    "close-descriptor": "close the host's end of its control socket, or the area's descriptor",
    "wake-nobody": "close the descriptors by which the host wakes the client",
}
"""As LETHAL, what ends a process; in a host process it may spoil other requests than its own first."""
ACTIONS = [*SURVIVED, *LETHAL, *CORRUPTING]
MOST = 64

_BODY = r"""
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { CONTROL = 3, AREA, EVENT, TIMER }; /* the descriptors that a host is started with */

static struct {
    uint64_t seed;
    uint32_t actions, per_million;
    _Atomic int32_t left;     /* so many times it still disobeys */
    _Atomic uint32_t struck;
    _Atomic uint64_t calls;
    struct {
        uint64_t when_ns, action;
    } notes[MOST];
} *shared; /* by all processes, and with Python */

static void open_shared(void) {
    if (shared == NULL) {
        int file = open(STATE, O_RDWR | O_CLOEXEC);
        shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        (void)close(file);
    }
}

static uint64_t dice(void) { /* splitmix64 */
    uint64_t x = shared->seed + atomic_fetch_add(&shared->calls, 1) * UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

/* Which of the actions in `possible` is to be done now; -1: none. */
static int chosen(uint32_t possible) {
    possible &= shared->actions;
    if (possible == 0 || dice() % 1000000 >= shared->per_million) {
        return -1;
    }
    int32_t left = atomic_load(&shared->left);
    while (left > 0 && !atomic_compare_exchange_weak(&shared->left, &left, left - 1)) {
    }
    if (left <= 0) {
        return -1;
    }
    int action = (int)(dice() % 32);
    while ((possible >> action & 1) == 0) {
        action = (action + 1) % 32;
    }
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    uint32_t number = atomic_fetch_add(&shared->struck, 1) % MOST;
    shared->notes[number].when_ns = (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
    shared->notes[number].action = (uint64_t)action;
    return action;
}

static void scribble(void) {
    struct stat area;
    for (int i = 0; i < 64 && fstat(AREA, &area) == 0; i++) {
        uint64_t random = dice();
        (void)!pwrite(AREA, &random, 1 + random % 8, (off_t)(dice() % (uint64_t)area.st_size));
    }
}

#define BIT(action) (1U << (action))
#define IN_ANY                                                                                                         \
    (BIT(END_THREAD) | BIT(STRANGE_CKR) | BIT(SIGNALS) | BIT(CRASH) | BIT(EXIT) | BIT(SCRIBBLE) |                      \
     BIT(CLOSE_DESCRIPTOR) | BIT(WAKE_NOBODY))

/* Disobey in a way that any call may, and others that its function names. Returns the one to be done by the function;
 * STRANGE_CKR is to be answered with `*rv`. */
static int disobey(uint32_t own_ways, CK_RV *rv) {
    sigset_t signals;
    int action = chosen(IN_ANY | own_ways);
    if (action == END_THREAD) {
        pthread_exit(NULL);
    } else if (action == STRANGE_CKR) {
        *rv = 0x80000000UL | (dice() & 0x7fffffffUL); /* a vendor's */
    } else if (action == SIGNALS) {
        (void)(dice() % 2 ? sigfillset(&signals) : sigemptyset(&signals));
        (void)pthread_sigmask(SIG_SETMASK, &signals, NULL);
    } else if (action == CRASH) {
        *(volatile char *)1 = 0;
    } else if (action == EXIT) {
        _exit((int)(dice() % 3));
    } else if (action == SCRIBBLE) {
        scribble();
    } else if (action == CLOSE_DESCRIPTOR) {
        (void)close(dice() % 2 ? CONTROL : AREA);
    } else if (action == WAKE_NOBODY) {
        (void)close(EVENT);
        (void)close(TIMER);
    }
    return action;
}

#define CALL(name, parameters, arguments)                                                                              \
    static CK_RV own_##name parameters {                                                                               \
        CK_RV rv;                                                                                                      \
        return disobey(0, &rv) == STRANGE_CKR ? rv : theirs->name arguments;                                           \
    }
#define SESSION_CALL(name, parameters, arguments)                                                                      \
    static CK_RV own_##name parameters {                                                                               \
        CK_RV rv;                                                                                                      \
        int action = disobey(BIT(CLOSE_OWN_SESSION), &rv);                                                             \
        if (action == CLOSE_OWN_SESSION) {                                                                             \
            (void)theirs->C_CloseSession(session);                                                                     \
        }                                                                                                              \
        return action == STRANGE_CKR ? rv : theirs->name arguments;                                                    \
    }

CALL(C_Initialize, (void *args), (args))
CALL(C_GetInfo, (CK_INFO *info), (info))
CALL(C_GetSlotList, (CK_BBOOL present, CK_SLOT_ID *list, CK_ULONG *count), (present, list, count))
CALL(C_GetTokenInfo, (CK_SLOT_ID slot, CK_TOKEN_INFO *info), (slot, info))
CALL(C_GetMechanismInfo, (CK_SLOT_ID slot, CK_MECHANISM_TYPE type, CK_MECHANISM_INFO *info), (slot, type, info))
CALL(C_OpenSession, (CK_SLOT_ID slot, CK_FLAGS flags, void *application, CK_NOTIFY notify, CK_SESSION_HANDLE *session),
     (slot, flags, application, notify, session))
CALL(C_CloseSession, (CK_SESSION_HANDLE session), (session))
SESSION_CALL(C_Login, (CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_BYTE *pin, CK_ULONG size),
             (session, user, pin, size))
SESSION_CALL(C_FindObjectsInit, (CK_SESSION_HANDLE session, CK_ATTRIBUTE *wanted, CK_ULONG count),
             (session, wanted, count))
SESSION_CALL(C_FindObjectsFinal, (CK_SESSION_HANDLE session), (session))
SESSION_CALL(C_SignInit, (CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key),
             (session, mechanism, key))

/* A module that was not finalized could not be initialized in this process any more. */
static CK_RV own_C_Finalize(void *reserved) {
    CK_RV rv = theirs->C_Finalize(reserved);
    (void)disobey(0, &rv);
    return rv;
}

static CK_RV own_C_GetSessionInfo(CK_SESSION_HANDLE session, CK_SESSION_INFO *info) {
    CK_RV rv = theirs->C_GetSessionInfo(session, info);
    if (disobey(BIT(LOGGED_OUT), &rv) == LOGGED_OUT) {
        info->state = CKS_RO_PUBLIC_SESSION;
    }
    return rv;
}

static CK_RV own_C_FindObjects(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE *found, CK_ULONG most, CK_ULONG *count) {
    CK_RV rv = theirs->C_FindObjects(session, found, most, count);
    if (disobey(BIT(MANY_OBJECTS), &rv) == MANY_OBJECTS) {
        *count += 1000;
    }
    return rv;
}

static CK_RV own_C_GetAttributeValue(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE key, CK_ATTRIBUTE *asked,
                                     CK_ULONG count) {
    CK_RV rv = theirs->C_GetAttributeValue(session, key, asked, count);
    switch (disobey(BIT(UNREADABLE) | BIT(LONG_ATTRIBUTE) | BIT(CHANGED_ATTRIBUTE), &rv)) {
    case UNREADABLE:
        asked->ulValueLen = CK_UNAVAILABLE_INFORMATION;
        return dice() % 2 ? CKR_ATTRIBUTE_SENSITIVE : CKR_ATTRIBUTE_TYPE_INVALID;
    case LONG_ATTRIBUTE:
        asked->ulValueLen = 1UL << 20;
        return CKR_OK;
    case CHANGED_ATTRIBUTE:
        /* But for its names: which object a key is, the module alone says. */
        if (rv == CKR_OK && asked->pValue != NULL && asked->ulValueLen > 0 && asked->type != CKA_ID &&
            asked->type != CKA_LABEL) {
            ((CK_BYTE *)asked->pValue)[dice() % asked->ulValueLen] ^= 1U << dice() % 8;
        }
        return rv;
    default:
        return rv;
    }
}

static CK_RV own_C_Sign(CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG size, CK_BYTE *out, CK_ULONG *room) {
    static const uint32_t ways =
        BIT(WRITE_NOTHING) | BIT(NO_LENGTH) | BIT(HUGE_LENGTH) | BIT(WRITE_MORE) | BIT(REWRITE) | BIT(WRITE_FAR);
    CK_RV rv = CKR_OK;
    int action = disobey(ways, &rv);
    if (action == STRANGE_CKR || action == WRITE_NOTHING) {
        return rv;
    }
    if (action == REWRITE) {
        memset(data, 'x', size);
    }
    rv = theirs->C_Sign(session, data, size, out, room);
    if (rv == CKR_OK && action == NO_LENGTH) {
        *room = 0;
    } else if (rv == CKR_OK && action == HUGE_LENGTH) {
        *room = 1UL << 30;
    } else if (action == WRITE_MORE) {
        memset(out + 64, 0x5a, 192);
    } else if (action == WRITE_FAR) {
        memset(out, 0x5a, 1UL << 20);
    }
    return rv;
}

/* Before C_GetFunctionList: hsmcore takes the newest of these that is any good, else that list. */
CK_RV C_GetInterfaceList(CK_INTERFACE *list, CK_ULONG *count) {
    static char name[] = "PKCS 11";
    open_shared();
    if (chosen(BIT(NULL_TABLES)) != NULL_TABLES) {
        return CKR_FUNCTION_NOT_SUPPORTED;
    }
    for (CK_ULONG i = 0; list != NULL && i < *count && i < 3; i++) {
        list[i] = (CK_INTERFACE){i == 1 ? NULL : name, NULL, 0};
    }
    *count = list == NULL ? 3 : *count; /* as one that leaves the count as it was */
    return CKR_OK;
}

static void change(void) {
    open_shared();
    own.C_Initialize = own_C_Initialize;
    own.C_Finalize = own_C_Finalize;
    own.C_GetInfo = own_C_GetInfo;
    own.C_GetSlotList = own_C_GetSlotList;
    own.C_GetTokenInfo = own_C_GetTokenInfo;
    own.C_GetMechanismInfo = own_C_GetMechanismInfo;
    own.C_OpenSession = own_C_OpenSession;
    own.C_CloseSession = own_C_CloseSession;
    own.C_GetSessionInfo = own_C_GetSessionInfo;
    own.C_Login = own_C_Login;
    own.C_FindObjectsInit = own_C_FindObjectsInit;
    own.C_FindObjects = own_C_FindObjects;
    own.C_FindObjectsFinal = own_C_FindObjectsFinal;
    own.C_GetAttributeValue = own_C_GetAttributeValue;
    own.C_SignInit = chosen(BIT(NULL_FUNCTION)) == NULL_FUNCTION ? NULL : own_C_SignInit;
    own.C_Sign = own_C_Sign;
}
"""
_HEAD = "QIIiIQ"
_NOTE = "QQ"


class Disobedient:
    """A copy of that module before `target`, in `folder`. It obeys until `write`."""

    def __init__(self, target: str, folder: Path) -> None:
        self._state = folder / "disobeys"
        self._state.write_bytes(bytes(struct.calcsize(_HEAD) + MOST * struct.calcsize(_NOTE)))
        names = ", ".join(action.upper().replace("-", "_") for action in ACTIONS)
        body = f"#include <stdint.h>\nenum {{ {names} }};\n{_BODY}"
        self.path = str(
            compile_wrapper(body, target, folder / "disobedient.so", STATE=f'"{self._state}"', MOST=str(MOST))
        )

    def write(self, seed: int, actions: Iterable[str], per_million: int, most: int) -> None:
        """Disobey so often from now on, in these ways, at most so many times. Forget what was."""
        bits = sum(1 << ACTIONS.index(action) for action in actions)
        with self._state.open("r+b") as file:
            file.write(struct.pack(_HEAD, seed, bits, per_million, most, 0, 0))

    def obey(self) -> None:
        """Disobey no more."""
        with self._state.open("r+b") as file:
            file.seek(struct.calcsize("QII"))
            file.write(bytes(4))

    def struck(self) -> list[tuple[float, str]]:
        """What it did, and when: monotonic, in seconds."""
        data = self._state.read_bytes()
        head = struct.calcsize(_HEAD)
        count = struct.unpack_from(_HEAD, data)[4]
        notes = list(struct.iter_unpack(_NOTE, data[head:]))
        return [(when / 1e9, ACTIONS[action]) for when, action in notes[: min(count, MOST)]]
