/* Texts in a message of any content: what is taken out lies inside it and ends with a NUL; what is put in comes out. */
#include "wire.h"

#include <string.h>

#define MOST 8U

size_t nondet_size(void);
hsm_request_message nondet_message(void);
hsm_wire_text nondet_field(void);

void prove_get(void) {
    hsm_request_message message = nondet_message();
    hsm_wire_text field = nondet_field();
    size_t length;
    const uint8_t *data = hsm_wire_get(&message, &field, &length);
    if (data == NULL) {
        __CPROVER_assert(length == 0, "nothing is nothing");
        return;
    }
    __CPROVER_assert(field.present != 0, "what is absent is not found");
    __CPROVER_assert(data >= message.text && data + length < message.text + HSM_WIRE_TEXT, "it lies inside the text");
    __CPROVER_assert(data[length] == 0, "it ends inside the text");
}

/* Bytes one by one: the solver's own copy of any length is too much for it. */
void *memcpy(void *to, const void *from, size_t size) {
    for (size_t i = 0; i < size; i++) {
        ((uint8_t *)to)[i] = ((const uint8_t *)from)[i];
    }
    return to;
}

void prove_put(void) {
    static hsm_request_message message;
    static const uint8_t data[MOST];
    size_t length = nondet_size();
    uint32_t used = (uint32_t)nondet_size();
    __CPROVER_assume(used <= HSM_WIRE_TEXT);
    /* Short, or too long to fit. */
    __CPROVER_assume(length <= MOST || length >= HSM_WIRE_TEXT - used);
    message.used = used;
    hsm_wire_text field = {0};
    bool fits = hsm_wire_put(&message, &field, data, length);
    __CPROVER_assert(fits == (length < HSM_WIRE_TEXT - used), "it fits if there is room for the NUL");
    if (fits) {
        size_t got;
        __CPROVER_assert(message.used == used + length + 1 && message.used <= HSM_WIRE_TEXT, "the text grows");
        __CPROVER_assert(hsm_wire_get(&message, &field, &got) == message.text + used && got == length, "it comes out");
    }
}
