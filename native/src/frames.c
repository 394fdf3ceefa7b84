#include <hsmcore/frames.h>

enum { LENGTH = 4, REST = HSM_FRAME_HEAD - LENGTH };

/* Numbers are little-endian, and lie at any address. */
static uint64_t number(const uint8_t *data, unsigned size) {
    uint64_t value = 0;
    for (unsigned i = 0; i < size; i++) {
        value |= (uint64_t)data[i] << (8 * i);
    }
    return value;
}

static uint8_t *put(uint8_t *out, uint64_t value, unsigned size) {
    for (unsigned i = 0; i < size; i++) {
        *out++ = (uint8_t)(value >> (8 * i));
    }
    return out;
}

hsm_cut hsm_frame_cut(const uint8_t *data, size_t *size, const uint8_t flags[256], hsm_frame *frame) {
    size_t have = *size;
    if (have < LENGTH) {
        *size = LENGTH;
        return HSM_CUT_MORE;
    }
    uint32_t length = (uint32_t)number(data, 4);
    if (length < REST || length > HSM_FRAME_MOST) {
        frame->body_len = length;
        return HSM_CUT_LENGTH;
    }
    if (have < HSM_FRAME_HEAD) {
        *size = HSM_FRAME_HEAD;
        return HSM_CUT_MORE;
    }
    frame->type = data[4];
    frame->flags = data[5];
    if (flags[frame->type] == HSM_FRAME_REFUSED) {
        return HSM_CUT_TYPE;
    }
    if ((frame->flags & ~flags[frame->type]) != 0) {
        return HSM_CUT_FLAGS;
    }
    *size = LENGTH + (size_t)length;
    if (have < *size) {
        return HSM_CUT_MORE;
    }
    frame->slot = (uint16_t)number(data + 6, 2);
    frame->request = number(data + 8, 8);
    frame->body = data + HSM_FRAME_HEAD;
    frame->body_len = length - REST;
    return HSM_CUT_FRAME;
}

bool hsm_frame_read_sign(const hsm_frame *frame, hsm_frame_sign *sign) {
    const uint8_t *body = frame->body;
    if (frame->body_len < HSM_SIGN_HEAD - HSM_FRAME_HEAD) {
        return false;
    }
    sign->kind = body[0];
    sign->timeout_ms = (uint32_t)number(body + 1, 4);
    sign->position = number(body + 5, 8);
    sign->version = (uint32_t)number(body + 13, 4);
    sign->message = body + 17;
    sign->message_len = frame->body_len - 17;
    return sign->position == 0 || (frame->flags & HSM_FRAME_POSITION) != 0;
}

bool hsm_frame_read_signed(const hsm_frame *frame, hsm_frame_signed *answer) {
    const uint8_t *body = frame->body;
    if (frame->body_len < HSM_SIGNED_HEAD - HSM_FRAME_HEAD) {
        return false;
    }
    answer->version = (uint32_t)number(body, 4);
    answer->level = body[4];
    answer->audit_seq = number(body + 5, 8);
    answer->signature = body + 13;
    answer->signature_len = frame->body_len - 13;
    return true;
}

static uint8_t *put_head(const hsm_frame *frame, uint8_t type, size_t size, uint8_t *out) {
    out = put(out, size - LENGTH, 4);
    out = put(out, type, 1);
    out = put(out, frame->flags, 1);
    out = put(out, frame->slot, 2);
    return put(out, frame->request, 8);
}

void hsm_frame_write_sign(const hsm_frame *frame, const hsm_frame_sign *sign, uint8_t *head) {
    uint8_t *out = put_head(frame, HSM_FRAME_SIGN, HSM_SIGN_HEAD + (size_t)sign->message_len, head);
    out = put(out, sign->kind, 1);
    out = put(out, sign->timeout_ms, 4);
    out = put(out, sign->position, 8);
    (void)put(out, sign->version, 4);
}

void hsm_frame_write_signed(const hsm_frame *frame, const hsm_frame_signed *answer, uint8_t *head) {
    uint8_t *out = put_head(frame, HSM_FRAME_SIGNED, HSM_SIGNED_HEAD + (size_t)answer->signature_len, head);
    out = put(out, answer->version, 4);
    out = put(out, answer->level, 1);
    (void)put(out, answer->audit_seq, 8);
}
