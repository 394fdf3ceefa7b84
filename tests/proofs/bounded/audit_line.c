/* A record of a signature: its fixed part is at most SIGN_BYTES long, and nothing is written beyond what `grow` has made
 * room for. In three steps, since the whole is too much for the solver: a number has at most 20 digits, hex
 * is right, and a line of the longest parts keeps the bound; for that, `longest_number` replaces put_number. Lock, clock
 * and libcrypto's SHA-256 are stubs. */
#include "journal_line.c"

#include <stdlib.h>

uint64_t nondet_u64(void);
size_t nondet_size(void);

enum { TEXT = 3, DIGITS = 20 };

int pthread_mutex_lock(pthread_mutex_t *lock) {
    (void)lock;
    return 0;
}

int pthread_mutex_unlock(pthread_mutex_t *lock) {
    (void)lock;
    return 0;
}

uint64_t hsm_now_ns(void) {
    return 1;
}

void hsm_sha256(const uint8_t *message, size_t message_len, uint8_t digest[HSM_SHA256_SIZE]) {
    (void)message, (void)message_len;
    memset(digest, 0, HSM_SHA256_SIZE);
}

void prove_number(void) {
    char text[DIGITS];
    uint64_t number = nondet_u64();
    size_t length = (size_t)(put_number(text, number) - text);
    __CPROVER_assert(length >= 1 && length <= DIGITS, "it fits");
    __CPROVER_assert(length == 1 || text[0] != '0', "no zero stands in front");
    for (size_t i = 0; i < DIGITS && i < length; i++) {
        __CPROVER_assert(text[i] >= '0' && text[i] <= '9', "it is of digits");
    }
}

void prove_hex(void) {
    static uint8_t data[6]; /* one group of four and a rest */
    char text[sizeof data * 2];
    for (size_t i = 0; i < sizeof data; i++) {
        data[i] = (uint8_t)nondet_u64();
    }
    size_t length = nondet_size();
    __CPROVER_assume(length <= sizeof data);
    __CPROVER_assert(put_hex(text, data, length) == text + length * 2, "two digits a byte");
    size_t any = nondet_size();
    __CPROVER_assume(any < length);
    __CPROVER_assert(text[any * 2] == "0123456789abcdef"[data[any] >> 4], "the first digit");
    __CPROVER_assert(text[any * 2 + 1] == "0123456789abcdef"[data[any] & 15], "the second digit");
}

char *longest_number(char *out, uint64_t number) {
    (void)number;
    memset(out, '9', DIGITS);
    return out + DIGITS;
}

void prove_line(void) {
    static const uint8_t bytes[HSM_MAX_SIGNATURE];
    for (int with = 0; with < 16; with++) {
        /* No more than is asked for: a byte too many is out of bounds. */
        size_t texts = TEXT + ((with & 1) != 0 ? TEXT : 0) + TEXT;
        hsm_journal_chunk *room = malloc(sizeof *room + SIGN_BYTES + texts);
        __CPROVER_assume(room != NULL);
        *room = (hsm_journal_chunk){.capacity = SIGN_BYTES + texts};
        hsm_journal journal = {.filling = {.first = room, .last = room, .lines = 1}};
        hsm_journal_sign sign = {
            .result = "abc",
            .error = (with & 1) != 0 ? "abc" : NULL,
            .message = (with & 2) != 0 ? bytes : NULL,
            .digest = (with & 4) != 0 ? bytes : NULL,
            .signature = (with & 8) != 0 ? bytes : NULL,
            .signature_len = UINT32_MAX, /* is cut to HSM_MAX_SIGNATURE */
            .cached = 0,                 /* "false" is the longer one */
        };
        (void)hsm_journal_put_sign(&journal, &sign, "abc", TEXT);
        __CPROVER_assert(journal.filling.last == room, "there was room");
        __CPROVER_assert(room->used <= SIGN_BYTES + texts, "the fixed part keeps its bound");
        __CPROVER_assert(room->data[room->used - 1] == '\n' && journal.filling.lines == 2, "it is one line");
    }
}
