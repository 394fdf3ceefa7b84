"""A module with openCryptoki 3.23's habit: its C_GetInterfaceList fills the list and leaves the count as it was."""

from __future__ import annotations

from pathlib import Path

from tests.support.wrapper import compile_wrapper

_SOURCE = r"""
static CK_FUNCTION_LIST vendors[2];
static CK_INTERFACE known[3];

/* What a stack holds that was used before: pointers to nowhere. */
__attribute__((constructor, noinline)) static void leave_a_dirty_stack(void) {
    volatile char dirt[65536];
    for (unsigned i = 0; i < sizeof dirt; i++) {
        dirt[i] = 0x41;
    }
}

static void change(void) {
}

CK_RV C_GetInterfaceList(CK_INTERFACE *list, CK_ULONG *count) {
    CK_FUNCTION_LIST *functions;
    if (C_GetFunctionList(&functions) != CKR_OK) {
        return CKR_GENERAL_ERROR;
    }
    if (list == NULL) {
        *count = 3;
        return CKR_OK;
    }
    if (*count < 3) {
        return CKR_BUFFER_TOO_SMALL;
    }
    static char standard[] = "PKCS 11", vendor[] = "Vendor";
    known[0] = (CK_INTERFACE){standard, functions, 0};
    for (int i = 0; i < 2; i++) {
        vendors[i] = *functions;
        known[1 + i] = (CK_INTERFACE){vendor, &vendors[i], 0};
    }
    memcpy(list, known, sizeof known);
    return CKR_OK; /* and *count is what it was */
}

CK_RV C_GetInterface(CK_UTF8CHAR *name, CK_VERSION *version, CK_INTERFACE **interface, CK_FLAGS flags) {
    CK_FUNCTION_LIST *functions;
    (void)name, (void)version, (void)flags;
    static char standard[] = "PKCS 11";
    if (C_GetFunctionList(&functions) != CKR_OK) {
        return CKR_GENERAL_ERROR;
    }
    known[0] = (CK_INTERFACE){standard, functions, 0};
    *interface = &known[0];
    return CKR_OK;
}
"""


def compile_uncounted(target: str, folder: Path) -> Path:
    """Such a module before `target`."""
    return compile_wrapper(_SOURCE, target, folder / "uncounted.so")
