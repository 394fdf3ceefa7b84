/* A program of a Solana chain that takes a message only with the binary proof that a batch has it. It trusts what the
 * Ed25519 program before it in the transaction has verified: that KEY signed the text of a checkpoint. docs/BATCHING.md
 * has the formats. KEY_0 to KEY_3: the key, as four little-endian words; DOMAIN: its domain and a slash, a string. What it
 * refuses it numbers.
 *
 * Instruction 0, of the Ed25519 program: one signature, at 3 in instruction 1; the key and the text are its own.
 * Instruction 1, of this program: u16 length of the proof, proof, message; one account, the instructions sysvar.
 *
 * It has no constants in memory and no function but the entry point, so that its code is all there is to load. */

typedef unsigned char u8;
typedef unsigned long u64;

struct slice {
    const u8 *at;
    u64 size;
};

extern u64 sol_sha256(const struct slice *parts, u64 count, u8 *hash);

#define ALWAYS static inline __attribute__((always_inline))
#define HEAP ((u8 *)0x300000000UL)
#define REQUIRE(condition, number)                                                                                     \
    if (!(condition)) {                                                                                                \
        return number;                                                                                                 \
    }

enum { PLAIN = 0x10, BLINDED = 0x20, SIGNATURE = 64, HASH = 32, KEY_AT = 16, TEXT_AT = 48, PROOF_AT = 2 };

ALWAYS u64 u16_of(const u8 *at) {
    return at[0] | (u64)at[1] << 8;
}

ALWAYS u64 word_of(const u8 *at) {
    u64 word = 0;
    for (int i = 7; i >= 0; i--) {
        word = word << 8 | at[i];
    }
    return word;
}

ALWAYS int is_words(const u8 *at, u64 a, u64 b, u64 c, u64 d) {
    return word_of(at) == a && word_of(at + 8) == b && word_of(at + 16) == c && word_of(at + 24) == d;
}

/* Append characters. */
ALWAYS u8 *put(u8 *to, const char *text, int size) {
    for (int i = 0; i < size; i++) {
        *to++ = (u8)text[i];
    }
    return to;
}

ALWAYS u8 *put_number(u8 *to, u64 number) {
    u64 unit = 1;
    while (number / unit >= 10) {
        unit *= 10;
    }
    for (; unit != 0; unit /= 10) {
        *to++ = (u8)('0' + number / unit % 10);
    }
    *to++ = '\n';
    return to;
}

ALWAYS u8 digit_of(u64 six) {
    return (u8)(six < 26 ? 'A' + six : six < 52 ? 'a' + six - 26 : six < 62 ? '0' + six - 52 : six == 62 ? '+' : '/');
}

/* Append 32 bytes in base64. */
ALWAYS u8 *put_hash(u8 *to, const u8 *hash) {
    for (int i = 0; i < 33; i += 3) {
        u64 three = (u64)hash[i] << 16 | (u64)hash[i + 1] << 8 | (i < 30 ? hash[i + 2] : 0);
        for (int shift = 18; shift >= 0; shift -= 6) {
            *to++ = digit_of(three >> shift & 63);
        }
    }
    to[-1] = '=';
    *to++ = '\n';
    return to;
}

ALWAYS void sha256(u8 *hash, const u8 *a, u64 a_size, const u8 *b, u64 b_size, const u8 *c, u64 c_size) {
    struct slice parts[3] = {{a, a_size}, {b, b_size}, {c, c_size}};
    sol_sha256(parts, 3, hash);
}

/* The node above: `into` and its sibling may overlap nothing. */
ALWAYS void join(u8 *into, const u8 *left, const u8 *right) {
    u8 one = 1;
    sha256(into, &one, 1, left, HASH, right, HASH);
}

u64 entrypoint(const u8 *input) {
    /* The account, of which the loader writes: marks, key, owner, lamports, size and data. */
    REQUIRE(word_of(input) == 1 && input[8] == 0xff, 1)
    REQUIRE(is_words(input + 16, SYSVAR_0, SYSVAR_1, SYSVAR_2, SYSVAR_3), 2)
    u64 size = word_of(input + 88);
    const u8 *sysvar = input + 96;
    const u8 *own = sysvar + size + 10240;
    own += -(u64)own & 7;
    own += 8; /* the rent epoch */
    u64 own_size = word_of(own);
    own += 8;

    /* What the Ed25519 program was given, and that this is the second instruction. */
    REQUIRE(u16_of(sysvar) >= 2 && u16_of(sysvar + size - 2) == 1, 3)
    const u8 *first = sysvar + u16_of(sysvar + 2);
    REQUIRE(u16_of(first) == 0 && is_words(first + 2, ED25519_0, ED25519_1, ED25519_2, ED25519_3), 4)
    const u8 *verified = first + 36;
    u64 text_size = u16_of(verified + 12);
    REQUIRE(u16_of(first + 34) == TEXT_AT + text_size && u16_of(verified) == 1, 5)
    REQUIRE(u16_of(verified + 2) == PROOF_AT + 1 && u16_of(verified + 4) == 1, 6)
    REQUIRE(u16_of(verified + 6) == KEY_AT && u16_of(verified + 8) == 0xffff, 7)
    REQUIRE(u16_of(verified + 10) == TEXT_AT && u16_of(verified + 14) == 0xffff, 8)
    REQUIRE(is_words(verified + KEY_AT, KEY_0, KEY_1, KEY_2, KEY_3), 9)

    /* The proof. */
    REQUIRE(own_size > PROOF_AT, 10)
    u64 proof_size = u16_of(own);
    const u8 *at = own + PROOF_AT, *end = at + proof_size;
    const u8 *message = end;
    REQUIRE(proof_size > 1 + SIGNATURE && PROOF_AT + proof_size <= own_size, 11)
    u64 message_size = own_size - PROOF_AT - proof_size;
    u8 form = at[0] & 0xf0;
    REQUIRE(form == PLAIN || form == BLINDED, 12)
    u8 head[10];
    head[0] = 0; /* a leaf */
    head[1] = at[0] & 15;
    at += 1 + SIGNATURE;
    u64 numbers[5];
    for (int i = 0; i < 5; i++) {
        u64 number = 0, shift = 0, digit;
        do {
            REQUIRE(at < end && shift < 63, 13)
            digit = *at++;
            number |= (digit & 0x7f) << shift;
            shift += 7;
        } while (digit >= 0x80);
        REQUIRE(digit != 0 || shift == 7, 13)
        numbers[i] = number;
    }
    u64 epoch = numbers[0], count = numbers[1], begin = numbers[2], place = numbers[3], time = numbers[4];
    REQUIRE(place < count, 14)
    const u8 *blinder = at;
    u64 blinder_size = form == BLINDED ? HASH : 0;
    REQUIRE((u64)(end - at) >= blinder_size, 15)
    at += blinder_size;

    /* From the message to the root. */
    u8 digest[HASH], node[2 * HASH];
    sha256(digest, message, message_size, message, 0, message, 0);
    for (int i = 0; i < 8; i++) {
        head[2 + i] = (u8)((begin + place) >> (56 - 8 * i));
    }
    sha256(node, head, sizeof head, digest, HASH, blinder, blinder_size);
    u64 last = count - 1;
    for (; at < end; at += HASH) {
        REQUIRE(end - at >= HASH && last != 0, 16)
        if ((place & 1) != 0 || place == last) {
            join(node + HASH, at, node);
            while ((place & 1) == 0 && place != 0) {
                place >>= 1;
                last >>= 1;
            }
        } else {
            join(node + HASH, node, at);
        }
        for (int i = 0; i < HASH; i++) {
            node[i] = node[HASH + i];
        }
        place >>= 1;
        last >>= 1;
    }
    REQUIRE(last == 0, 17)

    /* Its checkpoint is what was signed. */
    u8 *to = put(HEAP, DOMAIN, sizeof DOMAIN - 1);
    to = put_number(to, epoch);
    to = put_number(to, count);
    to = put_hash(to, node);
    to = put(to, "hsmcore/batch-root/v1 ", 22);
    to = put_number(to, begin);
    to = put(to, "time ", 5);
    to = put_number(to, time);
    REQUIRE((u64)(to - HEAP) == text_size, 18)
    for (u64 i = 0; i < text_size; i++) {
        REQUIRE(HEAP[i] == verified[TEXT_AT + i], 19)
    }
    return 0;
}
