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
    const uint8_t *tables; /* version 0: look-ups in address tables */
    size_t tables_len;
    uint32_t key_count;
    uint32_t instruction_count;
    uint32_t table_count;
    uint32_t written; /* accounts that tables load to be written, */
    uint32_t loaded;  /* and all that they load */
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

typedef enum hsm_role { HSM_ROLE_ANY, HSM_ROLE_FEE_PAYER, HSM_ROLE_AUTHORITY } hsm_role;

/* Rules for transactions. Lists are of addresses, one after the other, in the order of memcmp. */
typedef struct hsm_rules {
    const uint8_t *programs; /* that may be called; NULL: any */
    const uint8_t *tables;   /* that the recipient of a transfer may come from; NULL: any */
    const uint8_t *signers;
    size_t program_count, table_count, signer_count;
    uint8_t counts; /* 1: amounts are wanted */
    hsm_role role;  /* of one of `signers` */
} hsm_rules;

/* The rules in the order in which they are asked. */
typedef enum hsm_refusal {
    HSM_REFUSAL_NONE,
    HSM_REFUSAL_UNSOUND,
    HSM_REFUSAL_PROGRAM, /* `address` is not listed */
    HSM_REFUSAL_ROLE,
    HSM_REFUSAL_NAMED, /* an instruction names the fee payer */
    HSM_REFUSAL_TABLE  /* `address` is not listed */
} hsm_refusal;

typedef struct hsm_judgement {
    const uint8_t *address;
    /* If they are wanted and nothing is refused: what System and Token transfers move, in the smallest unit, at most
     * 2^64-1. What a program does that is called by a program is not seen. */
    uint64_t lamports, tokens; /* tokens: of all mints */
} hsm_judgement;

/* The first rule that refuses a transaction. */
hsm_refusal hsm_rules_judge(const hsm_rules *rules, const hsm_transaction *transaction, hsm_judgement *judgement);

#endif
