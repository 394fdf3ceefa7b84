/* Frames of hsmcore-wire/1, cut at every byte; what is read is what was written. */
#include <hsmcore/frames.h>

#include "harness.h"

static const uint8_t none[256];

static size_t written(uint8_t *out, size_t message_len) {
    hsm_frame frame = {.flags = HSM_FRAME_POSITION, .slot = 0x1234, .request = 0x1122334455667788};
    hsm_frame_sign sign = {.kind = 7, .timeout_ms = 0xa1b2c3d4, .position = 0xfedcba9876543210, .version = 0x01020304};
    sign.message_len = (uint32_t)message_len;
    hsm_frame_write_sign(&frame, &sign, out);
    memset(out + HSM_SIGN_HEAD, 0x5a, message_len);
    return HSM_SIGN_HEAD + message_len;
}

static void what_is_written_is_read(void) {
    uint8_t data[HSM_SIGN_HEAD + 9];
    uint8_t flags[256] = {0};
    flags[HSM_FRAME_SIGN] = HSM_FRAME_POSITION;
    size_t size = written(data, 9);
    hsm_frame frame;
    hsm_frame_sign sign;
    REQUIRE(hsm_frame_cut(data, &size, flags, &frame) == HSM_CUT_FRAME && hsm_frame_read_sign(&frame, &sign));
    CHECK_INT(size, ==, sizeof data);
    CHECK_INT(frame.slot, ==, 0x1234);
    CHECK(frame.request == 0x1122334455667788 && sign.position == 0xfedcba9876543210);
    CHECK(sign.kind == 7 && sign.timeout_ms == 0xa1b2c3d4 && sign.version == 0x01020304);
    CHECK(sign.message == data + HSM_SIGN_HEAD && sign.message_len == 9);
    frame.flags = 0; /* a position without its flag */
    CHECK(!hsm_frame_read_sign(&frame, &sign));
    hsm_frame_signed answer = {.version = 9, .level = 2, .audit_seq = UINT64_MAX, .signature_len = 9};
    hsm_frame_write_signed(&frame, &answer, data);
    size = HSM_SIGNED_HEAD + 9;
    REQUIRE(hsm_frame_cut(data, &size, none, &frame) == HSM_CUT_FRAME);
    memset(&answer, 0, sizeof answer);
    CHECK(frame.type == HSM_FRAME_SIGNED && hsm_frame_read_signed(&frame, &answer));
    CHECK(answer.version == 9 && answer.level == 2 && answer.audit_seq == UINT64_MAX && answer.signature_len == 9);
}

static void a_frame_that_is_not_whole_says_what_it_needs(void) {
    uint8_t whole[HSM_SIGN_HEAD + 9];
    uint8_t flags[256] = {0};
    flags[HSM_FRAME_SIGN] = HSM_FRAME_POSITION;
    size_t all = written(whole, 9);
    for (size_t have = 0; have < all; have++) {
        uint8_t *data = malloc(have + 1); /* so that reading behind what is there is seen */
        REQUIRE(data != NULL);
        memcpy(data, whole, have);
        hsm_frame frame;
        size_t size = have;
        CHECK_INT(hsm_frame_cut(data, &size, flags, &frame), ==, HSM_CUT_MORE);
        CHECK_INT(size, ==, have < 4 ? 4 : have < HSM_FRAME_HEAD ? HSM_FRAME_HEAD : all);
        free(data);
    }
}

static void a_fault_is_told_as_soon_as_it_is_there(void) {
    uint8_t data[HSM_FRAME_HEAD] = {11};
    uint8_t flags[256] = {0};
    hsm_frame frame;
    size_t size = 4;
    CHECK_INT(hsm_frame_cut(data, &size, flags, &frame), ==, HSM_CUT_LENGTH);
    data[0] = 1, data[2] = 0x10; /* the largest length, and one */
    CHECK_INT(hsm_frame_cut(data, &size, flags, &frame), ==, HSM_CUT_LENGTH);
    CHECK_INT(frame.body_len, ==, HSM_FRAME_MOST + 1);
    data[0] = 0, data[4] = 77, size = sizeof data;
    flags[77] = HSM_FRAME_REFUSED;
    CHECK_INT(hsm_frame_cut(data, &size, flags, &frame), ==, HSM_CUT_TYPE);
    flags[77] = 2, data[5] = 3;
    CHECK_INT(hsm_frame_cut(data, &size, flags, &frame), ==, HSM_CUT_FLAGS);
    data[5] = 2;
    CHECK_INT(hsm_frame_cut(data, &size, flags, &frame), ==, HSM_CUT_MORE);
    CHECK_INT(size, ==, 4 + HSM_FRAME_MOST);
}

static void fields_that_do_not_fit_are_none(void) {
    uint8_t body[17] = {0};
    hsm_frame frame = {.body = body, .body_len = 17};
    hsm_frame_sign sign;
    hsm_frame_signed answer;
    CHECK(hsm_frame_read_sign(&frame, &sign) && sign.message_len == 0);
    frame.body_len = 16;
    CHECK(!hsm_frame_read_sign(&frame, &sign));
    frame.body_len = 12;
    CHECK(!hsm_frame_read_signed(&frame, &answer));
}

static const struct test tests[] = {
    TEST(what_is_written_is_read),
    TEST(a_frame_that_is_not_whole_says_what_it_needs),
    TEST(a_fault_is_told_as_soon_as_it_is_there),
    TEST(fields_that_do_not_fit_are_none),
};
HARNESS_MAIN(tests)
