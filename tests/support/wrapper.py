"""Small PKCS#11 modules that stand before another one and change a little of what it does."""

from __future__ import annotations

import subprocess
from pathlib import Path

_PREAMBLE = r"""
#include <dlfcn.h>
#include <string.h>
#include <time.h>
#include <p11-kit/pkcs11.h>

static CK_FUNCTION_LIST *theirs;
static CK_FUNCTION_LIST own;
static void change(void); /* puts functions of its own into `own` */

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list) {
    void *library = dlopen(TARGET, RTLD_NOW | RTLD_LOCAL);
    CK_C_GetFunctionList get = library != NULL ? (CK_C_GetFunctionList)dlsym(library, "C_GetFunctionList") : NULL;
    if (get == NULL || get(&theirs) != CKR_OK) {
        return CKR_GENERAL_ERROR;
    }
    own = *theirs;
    change();
    *list = &own;
    return CKR_OK;
}
"""


def compile_wrapper(body: str, target: str, out: Path, **defines: str) -> Path:
    """Compile `body`, which defines change(), as a module before `target`. Returns `out`."""
    source = out.with_suffix(".c")
    source.write_text(_PREAMBLE + body)
    asked = subprocess.run(["pkg-config", "--cflags", "p11-kit-1"], check=True, capture_output=True, text=True)
    command = ["gcc", "-std=gnu11", "-D_GNU_SOURCE", "-O0", "-shared", "-fPIC", *asked.stdout.split()]
    command += [f"-D{name}={value}" for name, value in defines.items()]
    subprocess.run([*command, f'-DTARGET="{target}"', str(source), "-o", str(out), "-ldl"], check=True)
    return out
