/* The request table, by operations from the input, with a worker's side that answers as it likes, twice or never, and
 * overwrites requests. Each waiter gets one answer all the same, none after it has left, each number ends once, and a
 * replay puts back what was overwritten. */
#include "input.h"
#include "table.h"

#define SLOTS 4U
#define ASKED 256U /* requests of one run at most */

static struct {
    hsm_client *client;
    hsm_cache *cache;
    hsm_requests *table;
    struct asked {
        uint64_t number;
        uint8_t message;
        bool waiting, over;
    } asked[ASKED];
    uint32_t count;
    uint64_t seq, ahead;
    bool hostile; /* the other side has lied: answers may be missing */
} run_;

static void begin_run(uint8_t how) {
    hsm_client_options options = {.slots = SLOTS, .max_message = 16, .max_workers = 1, .digests = how & 1U};
    hsm_error error;
    memset(&run_, 0, sizeof run_);
    REQUIRE(hsm_client_new(&options, &run_.client, &error) == HSM_OK);
    REQUIRE(hsm_cache_new(how % 3U, &run_.cache) == HSM_OK);
    REQUIRE(hsm_requests_new(run_.client, run_.cache, &run_.table) == HSM_OK);
    for (uint32_t index = 0; index < 2; index++) {
        hsm_key_info key = {.index = index, .algorithm = HSM_ED25519, .public_key_len = 32};
        REQUIRE(hsm_requests_pin(run_.table, &key, index == 0, 0) == HSM_OK);
        run_.client->area->shared->keys[index].algorithm = HSM_ED25519;
    }
}

static void submit(struct input *input) {
    static uint8_t messages[256];
    uint8_t text = take_u8(input);
    messages[text] = text;
    uint64_t timeout = run_.ahead + (take_u8(input) % 2U == 0 ? UINT64_C(1000000000) : UINT64_C(3600000000000));
    hsm_ask ask = {.message = &messages[text],
                   .message_len = 1,
                   .key = text % 2U,
                   .timeout_ns = timeout,
                   .tag = run_.count,
                   .admitted = 1,
                   .held = text % 4U < 2U};
    hsm_answer answer;
    if (run_.count == ASKED || hsm_requests_submit(run_.table, &ask, &answer) != HSM_OK || answer.request == 0) {
        return;
    }
    for (uint32_t i = 0; i < run_.count; i++) {
        REQUIRE(run_.asked[i].number != answer.request);
    }
    run_.asked[run_.count++] = (struct asked){.number = answer.request, .message = text, .waiting = true};
}

static void work(uint8_t status) {
    uint32_t index;
    if (hsm_area_claim(run_.client->area, &index)) {
        hsm_slot *slot = hsm_area_slot(run_.client->area, index % SLOTS);
        bool begun = hsm_area_begin(slot);
        slot->status = !begun ? HSM_CANCELLED : status % 4U == 0 ? HSM_BUSY : HSM_OK;
        slot->signature_len = slot->status == HSM_OK ? HSM_MAX_SIGNATURE : 0;
        slot->hsm_ns = 1;
        memset(slot->signature, slot->message[0], sizeof slot->signature);
        hsm_area_complete(run_.client->area, index % SLOTS);
    }
}

static bool take_answer(bool hold) {
    hsm_answer answer;
    if (!hsm_requests_next(run_.table, &answer)) {
        return false;
    }
    REQUIRE(answer.tag < run_.count);
    struct asked *asked = &run_.asked[answer.tag];
    REQUIRE(asked->number == answer.request && !asked->over);
    REQUIRE(answer.claimed == asked->waiting);
    REQUIRE(answer.signature_len <= HSM_MAX_SIGNATURE && (answer.status == HSM_OK) == (answer.signature_len != 0));
    REQUIRE(run_.hostile || answer.status != HSM_OK || answer.signature[0] == asked->message);
    asked->waiting = false;
    if (answer.last && answer.status == HSM_OK && answer.claimed && answer.seq == 0 && hold) {
        hsm_requests_hold(run_.table, answer.request, ++run_.seq, 0);
        asked->waiting = true;
    } else if (answer.last) {
        asked->over = true;
        hsm_requests_end(run_.table, answer.request);
    }
    return true;
}

static void cancel(uint8_t which) {
    struct asked *asked = &run_.asked[which % ASKED];
    int begun;
    if (hsm_requests_cancel(run_.table, asked->number, &begun)) {
        REQUIRE(asked->waiting);
        asked->over = true;
    }
    asked->waiting = false;
}

static void replay(void) {
    hsm_area *area = run_.client->area;
    (void)hsm_requests_replay(run_.table);
    for (uint32_t i = 0; i < SLOTS; i++) {
        if (run_.table->places[i].owner != HSM_NONE) {
            const hsm_request *request = &run_.table->all[run_.table->places[i].owner];
            const hsm_slot *slot = hsm_area_slot(area, i);
            REQUIRE(slot->message[0] == request->message[0] && slot->message_len == 1);
            REQUIRE(slot->key == request->answer.key && slot->prehashed == request->prehashed &&
                    slot->deadline_ns == request->deadline_ns);
        }
    }
}

static void lie(struct input *input) {
    run_.hostile = true;
    uint8_t what = take_u8(input);
    uint32_t value = take_u32(input);
    hsm_area *area = run_.client->area;
    switch (what % 4) {
    case 0:
        hsm_area_complete(area, value % 8U != 0 ? value % SLOTS : value);
        break;
    case 1:
        atomic_store(&area->requests[what / 4 % SLOTS], value);
        break;
    case 2:
        atomic_store(&area->shared->request_head, atomic_load(&area->shared->request_head) + value % 8U - 4U);
        break;
    default: /* one whole request and its answer, but for the message beside it */
        memset(hsm_area_slot(area, what / 4 % SLOTS), (int)value, offsetof(hsm_slot, message) + 1U);
    }
}

static void step(struct input *input) {
    static const enum hsm_which which[] = {HSM_QUEUED_ONES, HSM_HELD_ONES, HSM_ALL};
    uint8_t operation = take_u8(input);
    uint8_t more = operation / 16;
    switch (operation % 16) {
    default:
        submit(input);
        break;
    case 5:
    case 6:
        work(more);
        break;
    case 7:
    case 8:
        (void)take_answer(more % 2U == 0);
        break;
    case 9:
        cancel(take_u8(input));
        break;
    case 10:
        run_.ahead += (uint64_t)more << 29U;
        (void)hsm_requests_sweep(run_.table, hsm_now_ns() + run_.ahead);
        break;
    case 11:
        hsm_requests_release(run_.table, run_.seq - (more < run_.seq ? more : 0));
        break;
    case 12:
        hsm_requests_fail(run_.table, which[more % 3U], HSM_TOKEN_LOST);
        break;
    case 13:
        hsm_cache_clear(run_.cache);
        break;
    case 14:
        replay();
        break;
    case 15:
        lie(input);
    }
}

static void end_run(void) {
    for (uint32_t i = 0; i < ASKED + SLOTS; i++) { /* without lies, this ends all of them */
        work(1);
        while (take_answer(false)) {
        }
        hsm_requests_release(run_.table, run_.seq);
    }
    hsm_requests_fail(run_.table, HSM_ALL, HSM_CLOSED);
    while (take_answer(false)) {
    }
    hsm_requests_counts counts;
    hsm_requests_count(run_.table, &counts);
    REQUIRE(counts.open == 0 && counts.queued == 0 && counts.held == 0 && counts.owed == 0);
    REQUIRE(run_.hostile || counts.slots == 0);
    for (uint32_t i = 0; i < run_.count; i++) {
        REQUIRE(!run_.asked[i].waiting && (run_.hostile || run_.asked[i].over));
    }
    hsm_requests_free(run_.table);
    hsm_cache_free(run_.cache);
    hsm_client_free(run_.client);
    hsm_leaks leaks;
    hsm_leaks_read(&leaks);
    REQUIRE(leaks.allocations == 0 && leaks.descriptors == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input input = {data, size};
    begin_run(take_u8(&input));
    while (input.left > 0) {
        step(&input);
    }
    end_run();
    return 0;
}
