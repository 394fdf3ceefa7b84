/* Messages: a number that no other request has, and bytes from a pool of random ones, so that a message can be made
 * again from its number when its signature is verified. */
#include "load.h"

#include <stdlib.h>
#include <string.h>

#define STRIDE 64U /* bytes from where one message begins in the pool to where the next one does */

void load_messages_begin(load_messages *messages, const load_settings *settings) {
    size_t size = LOAD_POOL + settings->max_message + 8U;
    messages->settings = settings;
    messages->pool = load_alloc(size);
    uint64_t state = settings->seed;
    messages->salt = load_random(&state);
    for (size_t i = 0; i + 8 <= size; i += 8) {
        uint64_t word = load_random(&state);
        memcpy(messages->pool + i, &word, 8);
    }
}

void load_messages_end(load_messages *messages) {
    free(messages->pool);
}

size_t load_message(const load_messages *messages, uint64_t number, uint8_t *out) {
    int32_t kind = messages->settings->mix[number % LOAD_MIX];
    if (kind < 0 && (uint64_t)-kind <= number) {
        number -= (uint64_t)-kind;
        kind = messages->settings->mix[number % LOAD_MIX]; /* the mix leads to no repeat of a repeat */
    }
    size_t size = kind > LOAD_MIN_MESSAGE ? (size_t)kind : LOAD_MIN_MESSAGE;
    size_t place = (size_t)(number * STRIDE % LOAD_POOL);
    uint64_t head = number ^ messages->salt;
    memcpy(out, &head, LOAD_MIN_MESSAGE);
    memcpy(out + LOAD_MIN_MESSAGE, messages->pool + place, size - LOAD_MIN_MESSAGE);
    return size;
}
