/* The hot path, step by step in one thread, so that every run executes the same instructions: bench/guard/guard.py
 * counts those between the beginning and the end of `hot_section` under callgrind.
 *
 *   hot_path SECTION SIGNATURES
 *
 * Sections: ring (submit, claim, sign on the no-op module, complete, notify, drain), ring-digest (the same with the
 * digest that a record needs), requests (as ring, through the request table), routes (the pick of one of four members,
 * the first of which ramps up), cache-hit, cache-miss (lookup, fill,
 * eviction), audit-line, policy (a transfer and its two instructions of ComputeBudget, under every rule but the role),
 * policy-raw (a message that is no transaction), gateway-frame (a request and its answer, each written and read).
 */
#include "../../../native/src/worker.c" /* for `serve`, which nothing outside that file may call */

#include <stdio.h>
#include <stdlib.h>

#include <hsmcore/frames.h>
#include <hsmcore/payload.h>
#include <hsmcore/requests.h>
#include <hsmcore/routes.h>

#include "journal.h"

#define MESSAGE_BYTES 200U /* a Solana transfer */
#define BATCH 16U          /* completions behind one wake-up */
#define CACHE 1024U
#define COALESCE_NS UINT64_C(60000000000) /* so long that the clock decides nothing */

static hsm_client *client;
static hsm_engine *engine;
static hsm_worker *worker;
static hsm_key_info key;
static hsm_cache *cache;
static hsm_journal journal;
static hsm_requests *table;
static uint8_t message[MESSAGE_BYTES];

_Noreturn static void fail(const char *what) {
    (void)fprintf(stderr, "hot_path: %s\n", what);
    exit(1);
}

static void require(bool good, const char *what) {
    if (!good) {
        fail(what);
    }
}

/* An engine whose only worker has ended, and a worker that this thread plays. */
static void start(uint32_t digests) {
    hsm_error error;
    hsm_client_options options = {
        .slots = 64, .max_message = 4096, .max_workers = 2, .digests = digests, .coalesce_ns = COALESCE_NS};
    require(hsm_client_new(&options, &client, &error) == HSM_OK, "hsm_client_new");
    hsm_engine_options how = {.module_path = HSMC_NOOP_MODULE,
                              .token = {.label = "noop", .slot_id = -1},
                              .pin = (const uint8_t *)"1234",
                              .pin_len = 4,
                              .workers = 1};
    require(hsm_engine_start(client, &how, &engine, &error) == HSM_OK, "hsm_engine_start");
    hsm_key_selector selector = {.label = "noop-key", .handle = -1};
    require(hsm_engine_add_key(engine, &selector, &key, &error) == HSM_OK, "hsm_engine_add_key");
    atomic_store(&hsm_area_worker(engine->area, 0)->quarantined, 1);
    hsm_area_unpark(engine->area, 1);
    while (atomic_load(&engine->workers[0].thread_state) != HSM_THREAD_ENDED) {
        struct timespec pause = {.tv_nsec = 1000000};
        (void)nanosleep(&pause, NULL);
    }
    hsm_worker_reap(&engine->workers[0]);
    worker = &engine->workers[1];
    worker->engine = engine;
    worker->index = 1;
    worker->record = hsm_area_worker(engine->area, 1);
    worker->message = hsm_alloc(engine->area->max_message);
    require(worker->message != NULL && hsm_worker_open(worker, &error) == HSM_OK, "hsm_worker_open");
}

static void number_message(uint64_t number) {
    memcpy(message, &number, sizeof number);
}

static void serve_all(void) {
    hsm_area *area = engine->area;
    uint64_t now = hsm_now_ns();
    uint32_t index;
    while (hsm_area_claim(area, &index)) {
        now = serve(worker, index, now);
        hsm_notify(area, client->event_fd, client->timer_fd, hsm_area_queued(area) == 0, now, worker->record);
    }
}

static void ring(uint64_t signatures) {
    hsm_completion done;
    for (uint64_t number = 0; number < signatures; number += BATCH) {
        hsm_client_batch_begin(client);
        for (uint64_t i = 0; i < BATCH; i++) {
            uint32_t slot;
            uint64_t deadline;
            number_message(number + i);
            require(hsm_client_submit(client, key.index, message, sizeof message, 0, &slot, &deadline) == HSM_OK,
                    "hsm_client_submit");
        }
        hsm_client_batch_end(client);
        serve_all();
        hsm_client_wake_clear(client);
        uint64_t answered = 0;
        while (hsm_client_next(client, &done) != 0) {
            require(done.status == HSM_OK, "a signature failed");
            hsm_client_release(client, done.slot);
            answered++;
        }
        require(answered == BATCH, "completions are missing");
    }
}

static void requests(uint64_t signatures) {
    static uint8_t messages[BATCH][MESSAGE_BYTES]; /* they stay in place until their requests are over */
    hsm_ask ask = {.message_len = MESSAGE_BYTES, .key = key.index, .timeout_ns = COALESCE_NS};
    hsm_answer answer;
    for (uint64_t number = 0; number < signatures; number += BATCH) {
        hsm_client_batch_begin(client);
        for (uint64_t i = 0; i < BATCH; i++) {
            uint64_t text = number + i;
            memcpy(messages[i], &text, sizeof text);
            ask.message = messages[i];
            require(hsm_requests_submit(table, &ask, &answer) == HSM_OK && answer.request != 0, "hsm_requests_submit");
        }
        hsm_client_batch_end(client);
        serve_all();
        hsm_client_wake_clear(client);
        uint64_t answered = 0;
        while (hsm_requests_next(table, &answer) != 0) {
            require(answer.status == HSM_OK && answer.claimed != 0, "a signature failed");
            hsm_requests_end(table, answer.request);
            answered++;
        }
        require(answered == BATCH, "answers are missing");
    }
}

static void routes(uint64_t signatures) {
    static hsm_route members[] = {
        {.table = &table, .weight = 1}, {&table, 0, 0, 0}, {&table, 0, 0, 0}, {&table, 0, 0, 0}};
    for (uint64_t number = 0; number < signatures; number++) {
        uint32_t expected = number % BATCH == BATCH - 1U ? 0 : 1;
        require(hsm_routes_pick(members, 1, 4, BATCH) == expected, "another member");
    }
}

static void look_up(enum hsm_cache_result expected) {
    uint8_t signature[HSM_MAX_SIGNATURE];
    uint32_t len;
    uint64_t leader;
    uint64_t entry;
    enum hsm_cache_result found =
        hsm_cache_lookup(cache, 0, HSM_ED25519, message, sizeof message, signature, &len, &leader, &entry);
    require(found == expected, "the cache holds something else");
    if (found == HSM_CACHE_MISS) {
        memset(signature, 1, sizeof signature);
        hsm_cache_set_leader(cache, entry, 1);
        hsm_cache_fill(cache, entry, signature, sizeof signature, 1);
    }
}

static void cache_hit(uint64_t signatures) {
    for (uint64_t number = 0; number < signatures; number++) {
        number_message(number % CACHE);
        look_up(HSM_CACHE_HIT);
    }
}

static void cache_miss(uint64_t signatures) {
    static uint64_t next = CACHE;
    for (uint64_t number = 0; number < signatures; number++) {
        number_message(next++);
        look_up(HSM_CACHE_MISS);
    }
}

static void audit_line(uint64_t signatures) {
    static const char tail[] =
        ",\"key_id\":\"0123456789abcdef0123456789abcdef\",\"member\":\"softhsm:sequencer\",\"level\":"
        "\"primary\"}";
    static const uint8_t digest[32] = {1, 2, 3};
    static const uint8_t signature[HSM_MAX_SIGNATURE] = {4, 5, 6};
    hsm_journal_sign sign = {.time_ns = UINT64_C(1764000000000000000),
                             .latency_ns = 123456,
                             .message_len = MESSAGE_BYTES,
                             .digest = digest,
                             .signature = signature,
                             .signature_len = sizeof signature,
                             .result = "ok"};
    for (uint64_t number = 0; number < signatures; number++) {
        require(hsm_journal_put_sign(&journal, &sign, tail, sizeof tail - 1) != 0, "hsm_journal_put_sign");
        journal.filling.used = journal.filling.last->used = 0;
    }
}

static hsm_rules rules;
static uint8_t judged[MESSAGE_BYTES + 16];
static size_t judged_len;

static void put(const void *bytes, size_t count) {
    memcpy(judged + judged_len, bytes, count);
    judged_len += count;
}

static const uint8_t *allow(const char *program) {
    for (size_t i = 0; i < HSM_PROGRAMS; i++) {
        if (strcmp(hsm_programs[i].name, program) == 0) {
            memset(rules.forms[i], 0xff, sizeof rules.forms[i]);
            return hsm_programs[i].address;
        }
    }
    fail("no such program");
}

static void policy(uint64_t signatures) {
    hsm_payload_parts parts;
    hsm_judgement judgement;
    for (uint64_t number = 0; number < signatures; number++) {
        require(hsm_payload_of(judged, judged_len, &parts) == HSM_PAYLOAD_TX_LEGACY, "hsm_payload_of");
        require(hsm_rules_judge(&rules, &parts.transaction, &judgement) == HSM_REFUSAL_NONE, "hsm_rules_judge");
    }
}

static void policy_raw(uint64_t signatures) {
    hsm_payload_parts parts;
    for (uint64_t number = 0; number < signatures; number++) {
        require(hsm_payload_of(judged, MESSAGE_BYTES, &parts) == HSM_PAYLOAD_RAW, "hsm_payload_of");
    }
}

/* What both ends of the gateway do with the bytes of one signature. */
static void gateway_frame(uint64_t signatures) {
    static uint8_t flags[256], asked[HSM_SIGN_HEAD + MESSAGE_BYTES], answered[HSM_SIGNED_HEAD + HSM_MAX_SIGNATURE];
    hsm_frame frame;
    for (uint64_t number = 0; number < signatures; number++) {
        hsm_frame_sign sign = {.message = message, .message_len = sizeof message, .timeout_ms = 1000};
        hsm_frame_signed answer = {.signature = message, .signature_len = HSM_MAX_SIGNATURE, .audit_seq = number};
        size_t size = sizeof asked;
        frame = (hsm_frame){.type = HSM_FRAME_SIGN, .request = number};
        hsm_frame_write_sign(&frame, &sign, asked);
        require(hsm_frame_cut(asked, &size, flags, &frame) == HSM_CUT_FRAME && hsm_frame_read_sign(&frame, &sign) &&
                    sign.message_len == sizeof message,
                "a request");
        size = sizeof answered;
        frame = (hsm_frame){.type = HSM_FRAME_SIGNED, .request = number};
        hsm_frame_write_signed(&frame, &answer, answered);
        require(hsm_frame_cut(answered, &size, flags, &frame) == HSM_CUT_FRAME &&
                    hsm_frame_read_signed(&frame, &answer) && answer.audit_seq == number,
                "its answer");
    }
}

static void prepare_nothing(void) {}

static void prepare_policy(void) {
    static const uint8_t payer[HSM_ADDRESS] = {1}, recipient[HSM_ADDRESS] = {2}, blockhash[32] = {3};
    static const uint8_t instructions[] = {
        3,                                                        /* each: program, accounts, data */
        3, 0, 5, 2, 64, 13, 3, 0,                                 /* SetComputeUnitLimit: 200,000 */
        3, 0, 9, 3, 1,  0,  0, 0, 0, 0, 0,   0,                   /* SetComputeUnitPrice: 1 */
        2, 2, 0, 1, 12, 2,  0, 0, 0, 0, 202, 154, 59, 0, 0, 0, 0, /* Transfer: 1 SOL */
    };
    rules = (hsm_rules){.programs = blockhash, .recipients = recipient, .recipient_count = 1, .max_fee = 5001};
    put("\1\0\2\4", 4);
    put(payer, sizeof payer);
    put(recipient, sizeof recipient);
    put(allow("System"), HSM_ADDRESS);
    put(allow("ComputeBudget"), HSM_ADDRESS);
    put(blockhash, sizeof blockhash);
    put(instructions, sizeof instructions);
}

static void prepare_raw(void) {
    memset(judged, 0x7f, sizeof judged); /* no text: that is read up to the length of a domain */
}

static void prepare_ring(void) {
    start(0);
}

static void prepare_digest(void) {
    start(1);
}

static void prepare_requests(void) {
    start(0);
    require(hsm_requests_new(client, NULL, &table) == HSM_OK, "hsm_requests_new");
    require(hsm_requests_pin(table, &key, 0, 0) == HSM_OK, "hsm_requests_pin");
}

static void prepare_cache(void) {
    require(hsm_cache_new(CACHE, &cache) == HSM_OK, "hsm_cache_new");
    for (uint64_t number = 0; number < CACHE; number++) {
        number_message(number);
        look_up(HSM_CACHE_MISS);
    }
}

static void prepare_journal(void) {
    require(pthread_mutex_init(&journal.lock, NULL) == 0, "pthread_mutex_init");
    journal.next = 1000000; /* numbers of one length */
}

static const struct section {
    const char *name;
    void (*prepare)(void);
    void (*run)(uint64_t signatures);
} sections[] = {
    {"ring", prepare_ring, ring},
    {"ring-digest", prepare_digest, ring},
    {"requests", prepare_requests, requests},
    {"routes", prepare_requests, routes},
    {"cache-hit", prepare_cache, cache_hit},
    {"cache-miss", prepare_cache, cache_miss},
    {"audit-line", prepare_journal, audit_line},
    {"policy", prepare_policy, policy},
    {"policy-raw", prepare_raw, policy_raw},
    {"gateway-frame", prepare_nothing, gateway_frame},
};

__attribute__((noinline)) static void hot_section(const struct section *section, uint64_t signatures) {
    section->run(signatures);
    __asm__ volatile("" ::: "memory"); /* or the call would become a jump, and nothing would mark the end */
}

int main(int argc, char **argv) {
    uint64_t signatures = argc == 3 ? strtoull(argv[2], NULL, 10) : 0;
    require(signatures > 0 && signatures % BATCH == 0, "usage: hot_path SECTION SIGNATURES, a multiple of 16");
    for (size_t i = 0; i < sizeof sections / sizeof sections[0]; i++) {
        if (strcmp(argv[1], sections[i].name) == 0) {
            sections[i].prepare();
            sections[i].run(BATCH); /* what happens only once */
            hot_section(&sections[i], signatures);
            exit(0); /* the worker's thread has ended; nothing is worth putting back */
        }
    }
    fail("no such section");
}
