/* Appending lines. Formatting is by hand: snprintf would cost more than all the rest of a record. */
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "algorithm.h"
#include "journal.h"

#define CHUNK ((size_t)256U << 10)
/* Everything in a record of a signature but its tail and its two texts: names, three numbers, 64 and 128 digits. */
#define SIGN_BYTES 512U

/* Where the next line, of at most `len` bytes, goes; NULL when memory is short. */
static char *room_for(hsm_journal_buffer *buffer, size_t len) {
    hsm_journal_chunk *last = buffer->last;
    if (last != NULL && last->capacity - last->used >= len) {
        return last->data + last->used;
    }
    hsm_journal_chunk **link = last != NULL ? &last->next : &buffer->first;
    if (*link == NULL || (*link)->capacity < len) {
        size_t capacity = len > CHUNK ? len : CHUNK;
        hsm_journal_chunk *chunk = hsm_alloc(sizeof *chunk + capacity);
        if (chunk == NULL) {
            return NULL;
        }
        chunk->capacity = capacity;
        chunk->next = *link;
        *link = chunk;
    }
    buffer->last = *link;
    return buffer->last->data;
}

/* Call with `lock` held, after writing `len` bytes where room_for said. */
static void count_line(hsm_journal *journal, size_t len) {
    hsm_journal_buffer *filling = &journal->filling;
    if (filling->lines == 0) {
        filling->begun_ns = hsm_now_ns();
        atomic_store_explicit(&journal->filling_since_ns, filling->begun_ns, memory_order_relaxed);
    }
    filling->last->used += len;
    filling->used += len;
    filling->lines++;
    journal->next++;
    atomic_fetch_add_explicit(&journal->pending, len, memory_order_relaxed);
}

static inline bool forked(const hsm_journal *journal) {
    return journal->fork_generation != hsm_fork_generation();
}

uint64_t hsm_journal_next(const hsm_journal *journal) {
    return journal->next;
}

uint64_t hsm_journal_waiting(const hsm_journal *journal) {
    return journal->next - 1U - atomic_load_explicit(&journal->taken, memory_order_relaxed);
}

int hsm_journal_put(hsm_journal *journal, const char *line, size_t len) {
    if (forked(journal)) {
        return 0;
    }
    (void)pthread_mutex_lock(&journal->lock);
    char *out = room_for(&journal->filling, len);
    if (out != NULL) {
        memcpy(out, line, len);
        count_line(journal, len);
    }
    (void)pthread_mutex_unlock(&journal->lock);
    return out != NULL ? 1 : 0;
}

static char *put_bytes(char *out, const char *text, size_t len) {
    memcpy(out, text, len);
    return out + len;
}

#define PUT(out, literal) put_bytes(out, literal, sizeof(literal) - 1)

#define TEN(tens) tens "0" tens "1" tens "2" tens "3" tens "4" tens "5" tens "6" tens "7" tens "8" tens "9"

/* Two digits at once: most of a line's cost are the digits of digest, signature and time. */
static char *put_number(char *out, uint64_t number) {
    static const char pairs[] =
        TEN("0") TEN("1") TEN("2") TEN("3") TEN("4") TEN("5") TEN("6") TEN("7") TEN("8") TEN("9");
    char digits[20];
    size_t at = sizeof digits;
    for (; number >= 10; number /= 100) {
        digits[--at] = pairs[number % 100 * 2 + 1];
        digits[--at] = pairs[number % 100 * 2];
    }
    if (number != 0 || at == sizeof digits) {
        digits[--at] = (char)('0' + number);
    }
    return put_bytes(out, digits + at, sizeof digits - at);
}

#ifdef __SSE2__
static __m128i digits_of(__m128i nibbles) {
    __m128i letters = _mm_and_si128(_mm_cmpgt_epi8(nibbles, _mm_set1_epi8(9)), _mm_set1_epi8('a' - '0' - 10));
    return _mm_add_epi8(_mm_add_epi8(nibbles, _mm_set1_epi8('0')), letters);
}

static void put_hex_16(char *out, const uint8_t *data) {
    __m128i bytes = _mm_loadu_si128((const __m128i *)data);
    __m128i high = digits_of(_mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(15)));
    __m128i low = digits_of(_mm_and_si128(bytes, _mm_set1_epi8(15)));
    _mm_storeu_si128((__m128i *)out, _mm_unpacklo_epi8(high, low));
    _mm_storeu_si128((__m128i *)(out + 16), _mm_unpackhi_epi8(high, low));
}
#endif

static char *put_hex(char *out, const uint8_t *data, size_t len) {
    static const char digits[] = "0123456789abcdef";
    size_t i = 0;
#ifdef __SSE2__
    for (; i + 16 <= len; i += 16, out += 32) {
        put_hex_16(out, data + i);
    }
#endif
    for (; i < len; i++) {
        *out++ = digits[data[i] >> 4];
        *out++ = digits[data[i] & 15U];
    }
    return out;
}

uint64_t hsm_journal_put_sign(hsm_journal *journal, const hsm_journal_sign *sign, const char *tail, size_t tail_len) {
    size_t result_len = strlen(sign->result);
    size_t error_len = sign->error != NULL ? strlen(sign->error) : 0;
    uint32_t signature_len = sign->signature_len < HSM_MAX_SIGNATURE ? sign->signature_len : HSM_MAX_SIGNATURE;
    uint64_t seq = 0;
    if (forked(journal)) {
        return 0;
    }
    (void)pthread_mutex_lock(&journal->lock);
    char *begin = room_for(&journal->filling, SIGN_BYTES + result_len + error_len + tail_len);
    if (begin != NULL) {
        char *out = PUT(begin, "{\"seq\":");
        out = put_number(out, journal->next);
        out = PUT(out, ",\"time_ns\":");
        out = put_number(out, sign->time_ns);
        out = PUT(out, ",\"operation\":\"sign\",\"result\":\"");
        out = put_bytes(out, sign->result, result_len);
        out = PUT(out, "\"");
        if (sign->error != NULL) {
            out = PUT(out, ",\"error\":\"");
            out = put_bytes(out, sign->error, error_len);
            out = PUT(out, "\"");
        }
        if (sign->digest != NULL || sign->message != NULL) {
            uint8_t digest[HSM_SHA256_SIZE];
            if (sign->digest == NULL) {
                hsm_sha256(sign->message, (size_t)sign->message_len, digest);
            }
            out = PUT(out, ",\"message_sha256\":\"");
            out = put_hex(out, sign->digest != NULL ? sign->digest : digest, HSM_SHA256_SIZE);
            out = PUT(out, "\"");
        }
        out = PUT(out, ",\"message_bytes\":");
        out = put_number(out, sign->message_len);
        if (sign->signature != NULL) {
            out = PUT(out, ",\"signature\":\"");
            out = put_hex(out, sign->signature, signature_len);
            out = PUT(out, "\"");
        }
        out = PUT(out, ",\"latency_ns\":");
        out = put_number(out, sign->latency_ns);
        out = sign->cached ? PUT(out, ",\"cached\":true") : PUT(out, ",\"cached\":false");
        out = put_bytes(out, tail, tail_len);
        out = PUT(out, "\n");
        seq = journal->next;
        count_line(journal, (size_t)(out - begin));
    }
    (void)pthread_mutex_unlock(&journal->lock);
    return seq;
}

void hsm_journal_flush(hsm_journal *journal, int urgent) {
    if (forked(journal) || atomic_load(&journal->filling_since_ns) == 0) {
        return;
    }
    if (journal->durability == HSM_DURABLE_INTERVAL) {
        urgent = atomic_load(&journal->pending) >= HSM_JOURNAL_GROUP;
    }
    uint32_t wish = urgent ? HSM_FLUSH_URGENT : HSM_FLUSH_PACED;
    /* As long as the thread has not taken an earlier flush, it will find these lines too. */
    if (atomic_load(&journal->flushed) < wish) {
        atomic_store(&journal->flushed, wish);
        if (atomic_load(&journal->resting) >= (urgent ? HSM_REST_PAUSE : HSM_REST_IDLE)) {
            hsm_journal_wake(journal);
        }
    }
}
