/* Tokens: find one, look at its PIN flags, log in once. Any thread; these calls may take as long as the module does. */
#ifndef HSM_TOKEN_H
#define HSM_TOKEN_H

#include "base.h"
#include "pkcs11.h"

/* Copy a text field, which the standard pads with blanks and does not terminate, as a string. */
void hsm_copy_padded(char *out, size_t out_size, const CK_UTF8CHAR *field, size_t size);
/* Find the one token that matches; fills all of `info` but `quirks`. */
hsm_status hsm_token_find(CK_FUNCTION_LIST *p11, const hsm_token_selector *selector, hsm_token_info *info,
                          hsm_error *error);
/* C_OpenSession; counted for hsm_leaks. */
hsm_status hsm_session_open(CK_FUNCTION_LIST *p11, CK_SLOT_ID slot, bool read_write, CK_SESSION_HANDLE *session,
                            hsm_error *error);
/* C_CloseSession, whatever it answers. */
void hsm_session_close(CK_FUNCTION_LIST *p11, CK_SESSION_HANDLE session);
/* Log the application in as CKU_USER. Refuses without an attempt when the token says that the PIN is locked or that
 * this would be the final try. `already` is set when another session of this process had logged in. */
hsm_status hsm_token_login(CK_FUNCTION_LIST *p11, CK_SLOT_ID slot, CK_SESSION_HANDLE session, const uint8_t *pin,
                           size_t pin_len, bool *already, hsm_error *error);

#endif
