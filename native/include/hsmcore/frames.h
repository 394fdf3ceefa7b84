/* Frames of hsmcore-wire/1 (docs/WIRE.md): cut from bytes, read where they lie, and the heads of the two that are made
 * most often. Any thread; nothing here allocates, blocks or keeps anything. */
#ifndef HSMCORE_FRAMES_H
#define HSMCORE_FRAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    HSM_FRAME_HEAD = 16,     /* bytes before a body */
    HSM_FRAME_MOST = 1 << 20 /* largest length, which counts what follows it */
};
enum { HSM_FRAME_SIGN = 2, HSM_FRAME_SIGNED = 130 };
enum { HSM_FRAME_POSITION = 1, HSM_FRAME_AGAIN = 2 };
/* In the place of the flags that a type may have: this end does not take it. */
enum { HSM_FRAME_REFUSED = 0xff };
enum { HSM_SIGN_HEAD = HSM_FRAME_HEAD + 17, HSM_SIGNED_HEAD = HSM_FRAME_HEAD + 13 };

typedef struct hsm_frame {
    const uint8_t *body; /* lies in the data */
    uint32_t body_len;
    uint8_t type, flags;
    uint16_t slot;
    uint64_t request;
} hsm_frame;

typedef enum hsm_cut {
    HSM_CUT_FRAME,
    HSM_CUT_MORE,   /* it is not whole */
    HSM_CUT_LENGTH, /* the rest: no frame; `frame` has what is wrong: in body_len the length, else type and flags */
    HSM_CUT_TYPE,
    HSM_CUT_FLAGS
} hsm_cut;

/* Cut the first frame. `flags`: by type, those that it may have. `size` becomes the bytes of the frame; of one that is
 * not whole, how many are needed before another look is worth it. A fault is told as soon as its bytes are there. */
hsm_cut hsm_frame_cut(const uint8_t *data, size_t *size, const uint8_t flags[256], hsm_frame *frame);

typedef struct hsm_frame_sign {
    const uint8_t *message; /* lies in the frame */
    uint32_t message_len, timeout_ms, version;
    uint64_t position;
    uint8_t kind; /* any number */
} hsm_frame_sign;

typedef struct hsm_frame_signed {
    const uint8_t *signature; /* lies in the frame */
    uint32_t signature_len, version;
    uint64_t audit_seq;
    uint8_t level; /* any number */
} hsm_frame_signed;

/* Read a body. Return false if its fields do not fit. */
bool hsm_frame_read_sign(const hsm_frame *frame, hsm_frame_sign *sign);
bool hsm_frame_read_signed(const hsm_frame *frame, hsm_frame_signed *answer);
/* Write what stands before the message, or the signature: HSM_SIGN_HEAD bytes, HSM_SIGNED_HEAD. */
void hsm_frame_write_sign(const hsm_frame *frame, const hsm_frame_sign *sign, uint8_t *head);
void hsm_frame_write_signed(const hsm_frame *frame, const hsm_frame_signed *answer, uint8_t *head);

#endif
