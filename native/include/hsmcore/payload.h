/* What a message is, decided from its bytes alone, and what the rules for transactions say of it. Any thread; nothing
 * here allocates, blocks or keeps anything. The time is linear in the message's length, but for a sorted look-up of
 * each program. */
#ifndef HSMCORE_PAYLOAD_H
#define HSMCORE_PAYLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HSM_ADDRESS 32 /* bytes of a public key */
#define HSM_MOST_DOMAIN 64

/* Each message is of exactly one class. */
typedef enum hsm_payload {
    HSM_PAYLOAD_RAW,      /* none of the others */
    HSM_PAYLOAD_DIGEST32, /* 32 bytes that do not begin like an off-chain message or a payload of hsmcore's own */
    /* Solana's messages: each length in bounds, no byte left over. */
    HSM_PAYLOAD_TX_LEGACY,
    HSM_PAYLOAD_TX_V0,
    HSM_PAYLOAD_TX_V1,     /* SIMD-0385 */
    HSM_PAYLOAD_OFF_CHAIN, /* Solana's off-chain message, version 0 (with or without signers) or 1 (sRFC 38) */
    /* Ordered payloads: 0xff "hsmcore", kind (1, 2), version 1, length of the domain, domain (UTF-8), position (8
     * bytes, big-endian), digest (32 bytes). */
    HSM_PAYLOAD_BLOCK,
    HSM_PAYLOAD_STATE_ROOT,
    HSM_PAYLOAD_BATCH_ROOT, /* begins like the checkpoint of a batch of messages: docs/BATCHING.md has its lines */
    HSM_PAYLOAD_KEY_SET,    /* begins like a signed set of keys: docs/KEYSET.md has its lines */
    HSM_PAYLOAD_INTERNAL,   /* what hsmcore itself has signed: probes, drills, backups, tests of a key */
    HSM_PAYLOAD_UNKNOWN,    /* never to be signed: begins like a class above, or as a log's checkpoint, and is none */
    HSM_PAYLOAD_COUNT
} hsm_payload;

/* A transaction's parts, which lie in the message. */
typedef struct hsm_transaction {
    const uint8_t *keys;         /* static account keys, the signers' first */
    const uint8_t *headers;      /* of the instructions of version 1; NULL: they stand before each instruction */
    const uint8_t *instructions; /* what is left from here on: */
    size_t instructions_len;
    uint64_t fee; /* version 1: the priority fee in lamports */
    uint32_t key_count;
    uint32_t instruction_count;
    uint32_t loaded; /* version 0: accounts that address tables load */
    uint8_t signers;
    uint8_t sound; /* 1: it passes the runtime's sanitization */
} hsm_transaction;

typedef struct hsm_ordered {
    const uint8_t *domain; /* lies in the message */
    size_t domain_len;
    uint64_t position;
} hsm_ordered;

typedef union hsm_payload_parts {
    hsm_transaction transaction; /* set for the three classes of transactions */
    hsm_ordered ordered;         /* set for the two classes of ordered payloads */
} hsm_payload_parts;

hsm_payload hsm_payload_of(const uint8_t *message, size_t size, hsm_payload_parts *parts);

/* An instruction of a program that hsmcore can read. */
typedef struct hsm_instruction_form {
    const char *name;
    uint64_t tag; /* the bytes that its data begins with, the lowest first */
    uint8_t size; /* their number; 0: it has no data */
    /* Places of accounts, counted from 1; 0: there is none. */
    uint8_t recipient; /* that receives */
    uint8_t source;    /* that `amount` leaves, or all that it has */
    uint8_t amount;    /* where 8 bytes of the data, the lowest first, say how much that is; 0: nowhere */
    uint8_t harmless;  /* the last of those that, but for the source, lose nothing; the recipient is another one */
} hsm_instruction_form;

enum { HSM_PROGRAMS = 17, HSM_MOST_FORMS = 128, HSM_MOST_OWNED = 16 };
enum {
    HSM_BUILTIN = 1,  /* its instructions have fewer compute units by default */
    HSM_VERIFIER = 2, /* the first byte of its data is a number of signatures that are paid for */
    HSM_BUDGET = 4    /* its instructions set the price */
};

typedef struct hsm_program {
    const char *name; /* of two programs, where an older one has another address */
    const hsm_instruction_form *forms;
    size_t form_count; /* 0: its instructions are not told apart */
    uint8_t tag_size;  /* bytes of the usual tag */
    uint8_t kind;      /* HSM_BUILTIN and so on */
    uint8_t address[HSM_ADDRESS];
} hsm_program;

extern const hsm_program hsm_programs[HSM_PROGRAMS];

typedef enum hsm_role { HSM_ROLE_ANY, HSM_ROLE_FEE_PAYER, HSM_ROLE_AUTHORITY } hsm_role;

/* Rules for transactions. Lists are of addresses, one after the other, in the order of memcmp. */
typedef struct hsm_rules {
    const uint8_t *programs;   /* with `forms`, what may be called; NULL: anything */
    const uint8_t *recipients; /* that may receive by an instruction with a recipient; NULL: any */
    const uint8_t *owned;      /* HSM_MOST_OWNED at most, which may only lose what an amount says */
    const uint8_t *signers;
    size_t program_count, recipient_count, owned_count, signer_count;
    uint64_t forms[HSM_PROGRAMS][HSM_MOST_FORMS / 64]; /* a bit for each of hsm_programs' forms that is allowed */
    uint64_t max_fee;                                  /* lamports; 0: any */
    hsm_role role;                                     /* of one of `signers` */
} hsm_rules;

/* The rules in the order in which they are asked. */
typedef enum hsm_refusal {
    HSM_REFUSAL_NONE,
    HSM_REFUSAL_UNSOUND,
    HSM_REFUSAL_PROGRAM,   /* an instruction is not allowed: `address`; where it is known `program`, `tag` and `form` */
    HSM_REFUSAL_RECIPIENT, /* that of `form` is not listed; `address` NULL: a table hides it, or it is missing */
    HSM_REFUSAL_OWNED,     /* an instruction names `account`, and says no amount; NULL: a table hides it */
    HSM_REFUSAL_FEE,       /* `fee` is above max_fee */
    HSM_REFUSAL_ROLE,
    HSM_REFUSAL_NAMED /* an instruction names the fee payer */
} hsm_refusal;

typedef struct hsm_judgement {
    const uint8_t *address;
    const uint8_t *account;
    const hsm_program *program;
    const hsm_instruction_form *form;
    uint64_t tag; /* as many bytes of the data as the program's tags have, or as there are */
    /* Lamports, at most: 5,000 for each signature, also for those that a program verifies, the price of the compute
     * units that are asked for, and version 1's fee. A sum that does not fit is 2^64-1. */
    uint64_t fee;
    bool moves; /* an instruction says what leaves one of `owned` */
    /* Where nothing is refused, what leaves each of `owned`, as many as there are: lamports, or of a token account the
     * smallest units of its tokens. A sum that does not fit is 2^64-1. */
    uint64_t leaves[HSM_MOST_OWNED];
} hsm_judgement;

/* The first rule that refuses a transaction. What a program does that is called by a program is not seen. */
hsm_refusal hsm_rules_judge(const hsm_rules *rules, const hsm_transaction *transaction, hsm_judgement *judgement);

#endif
