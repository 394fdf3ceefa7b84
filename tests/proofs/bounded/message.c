/* What a message is. First the steps, over a message of any content and of any length up to MOST: a step takes what is
 * there, stays inside, and leaves less. So a reader, which is steps in a row, stays inside and ends, whatever the
 * length. Then the readers whole, up to LENGTH bytes, each step replaced by anything that was proved of it. Last the
 * classes, up to MOST: no message satisfies two recognizers, and hsm_payload_of says what they say; what reads
 * transactions and texts is replaced by anything that was proved of it. */
#include "payload.c"
#include "transaction.c"

#include <stdlib.h>

enum { MOST = 1232, LENGTH = 60, TEXT = 8, LINE = 12, NOTE = 64 };

size_t nondet_size(void);
bool nondet_bool(void);
uint32_t nondet_u32(void);
uint8_t nondet_u8(void);

/* A message of any length and content, allocated to the byte. A reader that is further on is one of a shorter message,
 * since none looks back. */
static uint8_t *any_message(size_t most, size_t *size) {
    *size = nondet_size();
    __CPROVER_assume(*size >= 1 && *size <= most);
    uint8_t *message = malloc(*size);
    __CPROVER_assume(message != NULL);
    return message;
}

void prove_compact(void) {
    size_t size;
    const uint8_t *message = any_message(MOST, &size);
    struct hsm_reader reader = {message, size};
    struct hsm_reader before = reader;
    int32_t value = take_compact(&reader);
    size_t used = before.left - reader.left;
    __CPROVER_assert(value >= -1 && value <= UINT16_MAX, "16 bits");
    __CPROVER_assert(used <= before.left && reader.at == before.at + used, "it stays inside");
    if (value >= 0) {
        size_t shortest = 1U + (value >= 0x80) + (value >= 0x4000);
        __CPROVER_assert(used == shortest, "only the shortest form is a number");
        uint32_t bits = 0;
        for (size_t i = 0; i < shortest; i++) {
            bits |= (before.at[i] & 0x7fU) << (7 * i);
        }
        __CPROVER_assert(bits == (uint32_t)value, "it is that number");
    }
}

/* In the place of take_compact: anything that prove_compact allows. */
int32_t any_compact(struct hsm_reader *reader) {
    size_t used = nondet_size();
    uint32_t value = nondet_u32();
    if (used == 0 || used > 3 || used > reader->left || value > UINT16_MAX ||
        (reader->at[0] < 0x80 && (used != 1 || value != reader->at[0]))) {
        return -1;
    }
    (void)hsm_take(reader, used);
    return (int32_t)value;
}

static void prove_step(const uint8_t *header) {
    size_t size;
    const uint8_t *message = any_message(MOST, &size);
    struct hsm_walk walk = {header, {message, size}, nondet_u32()};
    struct hsm_walk before = walk;
    struct hsm_instruction next;
    if (hsm_walk_next(&walk, &next)) {
        __CPROVER_assert(__CPROVER_r_ok(next.accounts, next.account_count), "the accounts lie inside");
        __CPROVER_assert(__CPROVER_r_ok(next.data, next.data_len), "the data lies inside");
        __CPROVER_assert(walk.left == before.left - 1, "one instruction less is left");
        __CPROVER_assert(header != NULL || before.rest.left - walk.rest.left >= 3, "it consumes something");
        __CPROVER_assert(header == NULL || walk.headers == header + 4, "one header less is left");
    }
    __CPROVER_assert(walk.rest.left <= before.rest.left, "nothing comes back");
    __CPROVER_assert(walk.rest.at + walk.rest.left == message + size, "the rest is the message's");
}

void prove_instruction(void) {
    prove_step(NULL);
}

void prove_instruction_v1(void) {
    uint8_t header[4];
    prove_step(header);
}

void prove_lookup(void) {
    size_t size;
    const uint8_t *message = any_message(MOST, &size);
    struct hsm_reader reader = {message, size};
    struct hsm_reader before = reader;
    struct hsm_lookup lookup;
    if (hsm_take_lookup(&reader, &lookup)) {
        __CPROVER_assert(__CPROVER_r_ok(lookup.table, HSM_ADDRESS), "the address lies inside");
        __CPROVER_assert(before.left - reader.left >= HSM_ADDRESS + 2 + lookup.written + lookup.read, "as its indexes");
    }
    __CPROVER_assert(reader.left <= before.left && reader.at + reader.left == message + size,
                     "the rest is the message's");
}

/* In the place of the steps: anything that was proved of them. */
bool any_step(struct hsm_walk *walk, struct hsm_instruction *next) {
    size_t used = nondet_size();
    if (walk->left == 0 || used > walk->rest.left || (walk->headers == NULL && used < 3)) {
        return false;
    }
    if (walk->headers != NULL) {
        __CPROVER_assert(__CPROVER_r_ok(walk->headers, 4), "the header lies inside");
        walk->headers += 4;
    }
    walk->left--;
    next->program = nondet_u8();
    next->account_count = nondet_u8();
    next->accounts = hsm_take(&walk->rest, used);
    return true;
}

bool any_lookup(struct hsm_reader *reader, struct hsm_lookup *lookup) {
    size_t used = nondet_size();
    lookup->table = reader->at;
    lookup->written = nondet_size(), lookup->read = nondet_size();
    return used <= reader->left && lookup->written <= used && lookup->read <= used - lookup->written &&
           used - lookup->written - lookup->read >= HSM_ADDRESS + 2 && hsm_take(reader, used) != NULL;
}

uint8_t any_index(const uint8_t *indexes, size_t count) {
    (void)indexes, (void)count;
    return nondet_u8();
}

bool any_keys(const uint8_t *keys, size_t count) {
    __CPROVER_assert(__CPROVER_r_ok(keys, count * HSM_ADDRESS), "the keys lie inside");
    return nondet_bool();
}

/* What is true of every message that a reader accepts. */
static void check_read(const uint8_t *message, size_t size, const struct hsm_reader *reader,
                       const hsm_transaction *read) {
    __CPROVER_assert(reader->left < size && reader->at + reader->left == message + size, "the rest is the message's");
    __CPROVER_assert(__CPROVER_r_ok(read->keys, (size_t)read->key_count * HSM_ADDRESS), "the keys lie inside");
    __CPROVER_assert(__CPROVER_r_ok(read->instructions, read->instructions_len), "and the instructions");
    if (read->sound) {
        __CPROVER_assert(read->signers > 0 && read->signers <= read->key_count, "each signer has a key");
    }
}

void prove_legacy(void) {
    size_t size;
    const uint8_t *message = any_message(LENGTH, &size);
    struct hsm_reader reader = {message, size};
    hsm_transaction read;
    if (hsm_read_legacy(&reader, &read)) {
        check_read(message, size, &reader, &read);
        size_t least = 36U + (message[3] < 0x80 ? (size_t)message[3] * HSM_ADDRESS : 0);
        __CPROVER_assert(size - reader.left > least,
                         "its length is that of a header, its keys and a blockhash at least");
    }
}

void prove_v0(void) {
    size_t size;
    const uint8_t *message = any_message(LENGTH, &size);
    struct hsm_reader reader = {message, size};
    hsm_transaction read;
    if (hsm_read_v0(&reader, &read)) {
        check_read(message, size, &reader, &read);
        __CPROVER_assert(__CPROVER_r_ok(read.tables, read.tables_len), "the tables lie inside");
        __CPROVER_assert(size - reader.left >= 38, "it has a header, a blockhash and counts");
        __CPROVER_assert(read.written <= read.loaded && read.loaded <= read.tables_len, "each index is a byte");
    }
}

void prove_v1(void) {
    size_t size;
    const uint8_t *message = any_message(LENGTH, &size);
    struct hsm_reader reader = {message, size};
    hsm_transaction read;
    if (hsm_read_v1(&reader, &read)) {
        check_read(message, size, &reader, &read);
        __CPROVER_assert(__CPROVER_r_ok(read.headers, (size_t)read.instruction_count * 4), "so do the headers");
        __CPROVER_assert(size - reader.left >= 41, "it has a header, settings, a blockhash and counts");
    }
}

/* ---- texts ---- */

void prove_text(void) {
    size_t size;
    const uint8_t *message = any_message(TEXT, &size);
    bool utf8 = is_utf8(message, size);
    if (is_printable(message, size)) {
        __CPROVER_assert(utf8, "ASCII is UTF-8");
    }
    size_t any = nondet_size();
    __CPROVER_assume(any < size);
    if (utf8) {
        __CPROVER_assert(message[any] < 0xf5 && message[any] != 0xc0 && message[any] != 0xc1, "a byte that UTF-8 has");
        __CPROVER_assert(any > 0 || (message[any] & 0xc0U) != 0x80, "no character begins in its middle");
    }
}

/* ---- notes ---- */

static struct {
    bool legacy, v0, v1, text, off_chain_1, note, own;
    size_t used, line[3];
    unsigned number;
} chosen;

/* The library's: CBMC has none. */
void *memchr(const void *bytes, int byte, size_t size) {
    const uint8_t *at = bytes;
    for (size_t i = 0; i < size; i++) {
        if (at[i] == (uint8_t)byte) {
            return (void *)(at + i);
        }
    }
    return NULL;
}

void prove_note_line(void) {
    size_t size;
    const uint8_t *message = any_message(LINE, &size);
    struct hsm_reader reader = {message, size};
    size_t least = nondet_bool() ? 1 : 3;
    bool digits = nondet_bool();
    if (take_line(&reader, digits ? DIGITS : NULL, least)) {
        size_t used = size - reader.left;
        __CPROVER_assert(used > least && used <= size && message[used - 1] == '\n', "it is a line");
        size_t any = nondet_size();
        __CPROVER_assume(any < used - 1);
        __CPROVER_assert(message[any] >= ' ', "without control characters");
        __CPROVER_assert(!digits || (message[any] >= '0' && message[any] <= '9'), "of these characters");
    }
    __CPROVER_assert(reader.left <= size && reader.at + reader.left == message + size, "the rest is the message's");
}

/* In the place of take_line: anything that prove_note_line allows; the same for the same message. */
bool any_line(struct hsm_reader *rest, const char *characters, size_t least) {
    size_t used = chosen.line[chosen.number++ % 3];
    return used > least && used <= rest->left && (characters != NULL || rest->at[0] >= ' ') &&
           hsm_take(rest, used) != NULL;
}

/* What tells it from other classes: it begins as text, and is long, or has its prefix. */
static bool may_be_note(const uint8_t *message, size_t size) {
    return size > 0 && message[0] >= ' ' && (size >= 49 || BEGINS(message, size, COSIGNATURE));
}

void prove_note(void) {
    size_t size;
    const uint8_t *message = any_message(NOTE, &size);
    chosen.line[0] = nondet_size(), chosen.line[1] = nondet_size(), chosen.line[2] = nondet_size();
    chosen.number = 0;
    if (note_of(message, size) != HSM_PAYLOAD_RAW) {
        __CPROVER_assert(may_be_note(message, size), "it begins as text");
    }
}

/* In the place of note_of: anything that was proved of it. */
hsm_payload any_note(const uint8_t *message, size_t size) {
    if (!chosen.note || !may_be_note(message, size)) {
        return HSM_PAYLOAD_RAW;
    }
    return chosen.own ? HSM_PAYLOAD_BATCH_ROOT : HSM_PAYLOAD_UNKNOWN;
}

/* ---- the classes ---- */

static bool choose(struct hsm_reader *reader, bool accepted, size_t least) {
    if (!accepted || chosen.used > reader->left || chosen.used < least) {
        return false;
    }
    return hsm_take(reader, chosen.used) != NULL;
}

bool any_legacy(struct hsm_reader *reader, hsm_transaction *transaction) {
    (void)transaction;
    return reader->left > 36 &&
           choose(reader, chosen.legacy, 37 + (reader->at[3] < 0x80 ? (size_t)reader->at[3] * HSM_ADDRESS : 0));
}

bool any_v0(struct hsm_reader *reader, hsm_transaction *transaction) {
    (void)transaction;
    return choose(reader, chosen.v0, 38);
}

bool any_v1(struct hsm_reader *reader, hsm_transaction *transaction) {
    (void)transaction;
    return choose(reader, chosen.v1, 41);
}

bool any_text(const uint8_t *text, size_t size) {
    (void)text, (void)size;
    return chosen.text;
}

bool any_off_chain_1(struct hsm_reader body) {
    (void)body;
    return chosen.off_chain_1;
}

void prove_classes(void) {
    size_t size;
    const uint8_t *message = any_message(MOST, &size);
    chosen.legacy = nondet_bool(), chosen.v0 = nondet_bool(), chosen.v1 = nondet_bool();
    chosen.note = nondet_bool(), chosen.own = nondet_bool();
    chosen.text = nondet_bool(), chosen.off_chain_1 = nondet_bool(), chosen.used = nondet_size();
    hsm_payload_parts parts;
    hsm_payload class = hsm_payload_of(message, size, &parts);
    size_t left;
    bool begins_legacy = begins_with_legacy(message, size, &parts.transaction, &left);
    hsm_payload note = size != DIGEST && message[0] < 0x80 ? note_of(message, size) : HSM_PAYLOAD_RAW;
    /* Which no packet has room for, if it is of that class by its text: HSM_ADDRESS signatures or more. */
    __CPROVER_assert(note == HSM_PAYLOAD_RAW || message[0] >= HSM_ADDRESS, "a note is no transaction");
    begins_legacy = begins_legacy && note == HSM_PAYLOAD_RAW;
    bool legacy = begins_legacy && left == 0;
    bool v0 = is_v0(message, size, &parts.transaction);
    bool v1 = is_v1(message, size, &parts.transaction);
    bool off_chain = is_off_chain(message, size);
    bool internal = is_internal(message, size);
    bool digest = is_digest(message, size);
    bool ordered = is_ordered(message, size, &parts.ordered);
    bool batch = note == HSM_PAYLOAD_BATCH_ROOT;
    bool key_set = is_key_set(message, size);
    int count = legacy + v0 + v1 + off_chain + internal + digest + ordered + batch + key_set;
    __CPROVER_assert(count <= 1, "no message satisfies two");
    __CPROVER_assert((class == HSM_PAYLOAD_TX_LEGACY) == legacy, "legacy");
    __CPROVER_assert((class == HSM_PAYLOAD_TX_V0) == v0, "version 0");
    __CPROVER_assert((class == HSM_PAYLOAD_TX_V1) == v1, "version 1");
    __CPROVER_assert((class == HSM_PAYLOAD_OFF_CHAIN) == off_chain, "off-chain");
    __CPROVER_assert((class == HSM_PAYLOAD_INTERNAL) == internal, "internal");
    __CPROVER_assert((class == HSM_PAYLOAD_DIGEST32) == digest, "digest");
    __CPROVER_assert((class >= HSM_PAYLOAD_BLOCK && class <= HSM_PAYLOAD_STATE_ROOT) == ordered, "ordered");
    __CPROVER_assert((class == HSM_PAYLOAD_BATCH_ROOT) == batch, "the root of a batch");
    __CPROVER_assert((class == HSM_PAYLOAD_KEY_SET) == key_set, "a set of keys");
    bool marked = is_reserved(message, size) || (message[0] >= 0x80 && message[0] != 0xff) || begins_legacy ||
                  note == HSM_PAYLOAD_UNKNOWN;
    __CPROVER_assert((class == HSM_PAYLOAD_UNKNOWN) == (marked && count == 0), "unknown");
    __CPROVER_assert((class == HSM_PAYLOAD_RAW) == (!marked && count == 0), "raw");
}
