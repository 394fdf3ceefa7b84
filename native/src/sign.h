/* The only place that calls C_SignInit and C_Sign. */
#ifndef HSM_SIGN_H
#define HSM_SIGN_H

#include "algorithm.h"
#include "pkcs11.h"

/* Where a signature failed. */
typedef struct hsm_outcome {
    enum hsm_call call;
    CK_RV ckr;
} hsm_outcome;

/* Sign `message` in `session`, which the calling thread owns, into `signature`. `prehashed`: the message is a digest
 * that hsm_takes_digest allows. The standard says that a module only reads the message, but takes a pointer through
 * which it may write: afterwards the message may be another one. On any failure the session may hold a started
 * operation. Two module calls; no allocation. */
hsm_status hsm_sign(CK_FUNCTION_LIST *p11, CK_SESSION_HANDLE session, CK_OBJECT_HANDLE key, hsm_algorithm algorithm,
                    uint8_t *message, size_t message_len, bool prehashed, uint8_t signature[HSM_MAX_SIGNATURE],
                    hsm_outcome *outcome);

#endif
