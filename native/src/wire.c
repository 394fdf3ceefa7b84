/* Strings in messages between client and host. */
#include "wire.h"

#include <string.h>

bool hsm_wire_put(hsm_request_message *message, hsm_wire_text *field, const void *data, size_t length) {
    if (data == NULL) {
        return true;
    }
    /* One byte more than the data, so that every string ends inside the message. */
    if (length >= HSM_WIRE_TEXT - message->used) {
        return false;
    }
    memcpy(message->text + message->used, data, length);
    message->text[message->used + length] = 0;
    *field = (hsm_wire_text){.present = 1, .offset = message->used, .length = (uint32_t)length};
    message->used += (uint32_t)length + 1U;
    return true;
}

bool hsm_wire_put_string(hsm_request_message *message, hsm_wire_text *field, const char *string) {
    return hsm_wire_put(message, field, string, string == NULL ? 0 : strlen(string));
}

const uint8_t *hsm_wire_get(const hsm_request_message *message, const hsm_wire_text *field, size_t *length) {
    *length = 0;
    if (field->present == 0 || field->offset >= HSM_WIRE_TEXT || field->length >= HSM_WIRE_TEXT - field->offset ||
        message->text[field->offset + field->length] != 0) {
        return NULL;
    }
    *length = field->length;
    return message->text + field->offset;
}

const char *hsm_wire_get_string(const hsm_request_message *message, const hsm_wire_text *field) {
    size_t length;
    return (const char *)hsm_wire_get(message, field, &length);
}
