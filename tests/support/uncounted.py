"""A module with openCryptoki 3.23's habit: its C_GetInterfaceList fills the list and leaves the count as it was."""

from __future__ import annotations

import subprocess
from pathlib import Path

_SOURCE = r"""
#include <dlfcn.h>
#include <string.h>
#include <p11-kit/pkcs11.h>

static CK_FUNCTION_LIST *theirs;
static CK_FUNCTION_LIST own;
static CK_FUNCTION_LIST vendors[2];
static CK_INTERFACE known[3];

/* What a stack holds that was used before: pointers to nowhere. */
__attribute__((constructor, noinline)) static void leave_a_dirty_stack(void) {
    volatile char dirt[65536];
    for (unsigned i = 0; i < sizeof dirt; i++) {
        dirt[i] = 0x41;
    }
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list) {
    void *library = dlopen(TARGET, RTLD_NOW | RTLD_LOCAL);
    CK_C_GetFunctionList get = library != NULL ? (CK_C_GetFunctionList)dlsym(library, "C_GetFunctionList") : NULL;
    if (get == NULL || get(&theirs) != CKR_OK) {
        return CKR_GENERAL_ERROR;
    }
    own = *theirs;
    *list = &own;
    return CKR_OK;
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
    source, out = folder / "uncounted.c", folder / "uncounted.so"
    source.write_text(_SOURCE)
    asked = subprocess.run(["pkg-config", "--cflags", "p11-kit-1"], check=True, capture_output=True, text=True)
    command = ["gcc", "-std=gnu11", "-D_GNU_SOURCE", "-O0", "-shared", "-fPIC", *asked.stdout.split()]
    subprocess.run([*command, f'-DTARGET="{target}"', str(source), "-o", str(out), "-ldl"], check=True)
    return out
