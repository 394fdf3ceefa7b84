/* Private keys on a token: find one, read its public half, check that it may sign. As slow as the module is. */
#ifndef HSM_KEY_H
#define HSM_KEY_H

#include "base.h"
#include "pkcs11.h"

/* Find the one private key that matches, in `session`, and read its attributes and public key into `info` (all but
 * `index`). `handle` is valid as the module's rules for handles say. */
hsm_status hsm_key_find(CK_FUNCTION_LIST *p11, CK_SESSION_HANDLE session, const hsm_key_selector *selector,
                        CK_OBJECT_HANDLE *handle, hsm_key_info *info, hsm_error *error);
/* Check that the slot offers the mechanism of `algorithm` for signing. */
hsm_status hsm_key_check_mechanism(CK_FUNCTION_LIST *p11, CK_SLOT_ID slot, hsm_algorithm algorithm, hsm_error *error);

#endif
