/* The fuzzer's bytes, taken one field after the other; past their end all fields are nought. */
#ifndef HSM_FUZZ_INPUT_H
#define HSM_FUZZ_INPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define REQUIRE(condition)                                                                                             \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            (void)fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                      \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

struct input {
    const uint8_t *data;
    size_t left;
};

static inline void take(struct input *input, void *out, size_t size) {
    size_t have = size < input->left ? size : input->left;
    memset(out, 0, size);
    if (have > 0) {
        memcpy(out, input->data, have);
        input->data += have;
        input->left -= have;
    }
}

static inline uint8_t take_u8(struct input *input) {
    uint8_t value;
    take(input, &value, sizeof value);
    return value;
}

static inline uint16_t take_u16(struct input *input) {
    uint16_t value;
    take(input, &value, sizeof value);
    return value;
}

static inline uint32_t take_u32(struct input *input) {
    uint32_t value;
    take(input, &value, sizeof value);
    return value;
}

static inline uint64_t take_u64(struct input *input) {
    uint64_t value;
    take(input, &value, sizeof value);
    return value;
}

#endif
