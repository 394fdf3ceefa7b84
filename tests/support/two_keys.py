"""A module before another one that gives its first key a second name, and refuses marked messages.

The key with CKA_ID 01 is found under CKA_ID 02 as well, with handles of its own, until a message with "destroy" in it
is signed: from then on the second key is gone, in every process that uses this copy. A message with "poison NUMBER" in
it is refused with that CKR, whichever key is to sign it.
"""

from __future__ import annotations

from pathlib import Path

from tests.support.wrapper import compile_wrapper

FIRST, SECOND, THIRD = "01", "02", "03"
"""The key, its second name, and an id that is free for another one."""

_BODY = r"""
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>

#define BEHIND 1000000UL /* what a handle of the second key exceeds the first one's by */

static atomic_int *gone; /* shared by all processes */
static _Thread_local int second;

static CK_RV find_init(CK_SESSION_HANDLE session, CK_ATTRIBUTE_PTR wanted, CK_ULONG count) {
    static CK_BYTE first = 1;
    CK_ATTRIBUTE changed[8];
    second = 0;
    for (CK_ULONG i = 0; i < count && i < 8; i++) {
        changed[i] = wanted[i];
        if (wanted[i].type == CKA_ID && wanted[i].ulValueLen == 1 && *(CK_BYTE *)wanted[i].pValue == 2) {
            changed[i].pValue = &first;
            second = 1;
        }
    }
    return theirs->C_FindObjectsInit(session, count <= 8 ? changed : wanted, count);
}

static CK_RV find(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE_PTR found, CK_ULONG most, CK_ULONG_PTR count) {
    CK_RV rv = theirs->C_FindObjects(session, found, most, count);
    if (rv == CKR_OK && second) {
        *count = atomic_load(gone) ? 0 : *count;
        for (CK_ULONG i = 0; i < *count; i++) {
            found[i] += BEHIND;
        }
    }
    return rv;
}

static CK_RV attributes(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE_PTR asked, CK_ULONG count) {
    if (object < BEHIND) {
        return theirs->C_GetAttributeValue(session, object, asked, count);
    }
    if (atomic_load(gone)) {
        return CKR_OBJECT_HANDLE_INVALID;
    }
    CK_RV rv = theirs->C_GetAttributeValue(session, object - BEHIND, asked, count);
    for (CK_ULONG i = 0; i < count; i++) {
        if (asked[i].type == CKA_ID && asked[i].pValue != NULL && asked[i].ulValueLen == 1) {
            *(CK_BYTE *)asked[i].pValue = 2;
        }
    }
    return rv;
}

static CK_RV sign_init(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key) {
    if (key >= BEHIND && atomic_load(gone)) {
        return CKR_KEY_HANDLE_INVALID;
    }
    return theirs->C_SignInit(session, mechanism, key >= BEHIND ? key - BEHIND : key);
}

static CK_RV sign(CK_SESSION_HANDLE session, CK_BYTE_PTR data, CK_ULONG size, CK_BYTE_PTR out, CK_ULONG_PTR room) {
    const char *poison = memmem(data, size, "poison ", 7);
    CK_RV rv = theirs->C_Sign(session, data, size, out, room);
    if (rv == CKR_OK && out != NULL && memmem(data, size, "destroy", 7) != NULL) {
        atomic_store(gone, 1);
    }
    return rv == CKR_OK && out != NULL && poison != NULL ? strtoul(poison + 7, NULL, 10) : rv;
}

static void change(void) {
    int file = open(STATE, O_RDWR | O_CLOEXEC);
    gone = mmap(NULL, sizeof *gone, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    (void)close(file);
    own.C_FindObjectsInit = find_init;
    own.C_FindObjects = find;
    own.C_GetAttributeValue = attributes;
    own.C_SignInit = sign_init;
    own.C_Sign = sign;
}
"""


class TwoKeys:
    """A copy of that module before `target`, in `folder`."""

    def __init__(self, target: str, folder: Path) -> None:
        self._state = folder / "gone"
        self._state.touch(mode=0o600)
        self.restore()
        self.path = str(
            compile_wrapper("#include <unistd.h>\n" + _BODY, target, folder / "two-keys.so", STATE=f'"{self._state}"')
        )

    def restore(self) -> None:
        """The second key is there again."""
        with self._state.open("r+b") as file:
            file.write(bytes(4))
