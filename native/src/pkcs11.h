/* The standard's header in its own spelling, and a number for each C_* call that an error can name. */
#ifndef HSM_PKCS11_H
#define HSM_PKCS11_H

#define CRYPTOKI_COMPAT
#include <p11-kit/pkcs11.h>

/* Numbered so that a call can be named across the shared area, where no pointer may go. */
// clang-format off: several names in a line
#define HSM_CALLS(X) \
    X(C_GetFunctionList) X(C_Initialize) X(C_Finalize) X(C_GetInfo) X(C_GetSlotList) X(C_GetTokenInfo) \
    X(C_GetMechanismInfo) X(C_OpenSession) X(C_CloseSession) X(C_GetSessionInfo) X(C_Login) X(C_Logout) \
    X(C_FindObjectsInit) X(C_FindObjects) X(C_FindObjectsFinal) X(C_GetAttributeValue) X(C_SignInit) X(C_Sign)
// clang-format on

enum hsm_call {
    HSM_CALL_NONE,
#define X(name) HSM_CALL_##name,
    HSM_CALLS(X)
#undef X
        HSM_CALL_COUNT
};

#endif
