/* The two objects of the no-op token. */
#ifndef HSMCORE_NOOP_OBJECTS_H
#define HSMCORE_NOOP_OBJECTS_H

#include <p11-kit/pkcs11.h>

#define NOOP_PUBLIC_KEY 1UL
#define NOOP_PRIVATE_KEY 2UL

#pragma GCC visibility push(hidden)

void noop_set_public_key(const CK_BYTE key[32]); /* before the first session is opened */

CK_RV noop_FindObjectsInit(CK_SESSION_HANDLE handle, CK_ATTRIBUTE *template, CK_ULONG count);
CK_RV noop_FindObjects(CK_SESSION_HANDLE handle, CK_OBJECT_HANDLE *objects, CK_ULONG max, CK_ULONG *count);
CK_RV noop_FindObjectsFinal(CK_SESSION_HANDLE handle);
CK_RV noop_GetAttributeValue(CK_SESSION_HANDLE handle, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *template, CK_ULONG count);

#pragma GCC visibility pop

#endif
