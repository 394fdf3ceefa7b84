/* For payloads and, in clients/pkcs11, for what a gateway says. */
#ifndef HSM_UTF8_H
#define HSM_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Whether it is UTF-8: in the shortest form, without surrogates. */
static inline bool is_utf8(const uint8_t *text, size_t size) {
    static const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
    for (size_t i = 0; i < size; i++) {
        uint8_t lead = text[i];
        if (lead < 0x80) {
            continue;
        }
        if (lead < 0xc2 || lead > 0xf4) {
            return false;
        }
        unsigned more = 1U + (lead >= 0xe0) + (lead >= 0xf0);
        if (size - i <= more) {
            return false;
        }
        uint32_t code = lead & (0x3fU >> more);
        for (unsigned left = more; left > 0; left--) {
            i++;
            if ((text[i] & 0xc0U) != 0x80) {
                return false;
            }
            code = code << 6 | (text[i] & 0x3fU);
        }
        if (code < least[more] || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff)) {
            return false;
        }
    }
    return true;
}

#endif
