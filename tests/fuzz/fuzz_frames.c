/* Bytes of hsmcore-wire/1: no byte behind them is read, each frame lies inside, what is read is written alike, and what
 * is told of a part is what the whole says. */
#include <hsmcore/frames.h>

#include "input.h"

static void check_frame(const uint8_t *data, const hsm_frame *frame, size_t size) {
    uint8_t head[HSM_SIGN_HEAD];
    hsm_frame_sign sign;
    hsm_frame_signed answer;
    REQUIRE(frame->body == data + HSM_FRAME_HEAD && size == HSM_FRAME_HEAD + (size_t)frame->body_len);
    if (frame->type == HSM_FRAME_SIGN && hsm_frame_read_sign(frame, &sign)) {
        REQUIRE(sign.message + sign.message_len == data + size);
        hsm_frame_write_sign(frame, &sign, head);
        REQUIRE(memcmp(head, data, HSM_SIGN_HEAD) == 0);
    }
    if (frame->type == HSM_FRAME_SIGNED && hsm_frame_read_signed(frame, &answer)) {
        REQUIRE(answer.signature + answer.signature_len == data + size);
        hsm_frame_write_signed(frame, &answer, head);
        REQUIRE(memcmp(head, data, HSM_SIGNED_HEAD) == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input input = {data, size};
    uint8_t flags[256];
    memset(flags, take_u8(&input), sizeof flags);
    uint16_t cut = take_u16(&input);
    size = input.left;
    /* On the heap and as long as it says, so that reading past its end is seen. */
    uint8_t *bytes = malloc(size > 0 ? size : 1);
    REQUIRE(bytes != NULL);
    take(&input, bytes, size);
    hsm_frame frame;
    size_t at = 0;
    hsm_cut found = HSM_CUT_FRAME;
    while (found == HSM_CUT_FRAME) {
        size_t left = size - at;
        size_t taken = left;
        found = hsm_frame_cut(bytes + at, &taken, flags, &frame);
        if (found == HSM_CUT_FRAME) {
            check_frame(bytes + at, &frame, taken);
        } else if (found == HSM_CUT_MORE) {
            REQUIRE(taken > left && taken <= 4 + (size_t)HSM_FRAME_MOST);
        }
        /* A part is not whole, or has the same fault; and one that has what was said to be needed says more. */
        size_t part = left > 0 ? cut % (left + 1) : 0;
        size_t needed = part;
        hsm_cut early = hsm_frame_cut(bytes + at, &needed, flags, &frame);
        REQUIRE(early == found || early == HSM_CUT_MORE);
        REQUIRE(early != HSM_CUT_MORE || needed > part);
        at += found == HSM_CUT_FRAME ? taken : 0;
    }
    free(bytes);
    return 0;
}
