/* The rings and both sides that use them, by operations from the input: first as they should be used, and then with the
 * other side writing anything, into the layout too. Used well, every request completes once and with its own signature;
 * used badly, none completes twice, and no access leaves the memory of its side.
 *
 * The worker is taken in whole, so that its inner steps can be driven in this one thread. */
#include "worker.c" // NOLINT(bugprone-suspicious-include)

#include "input.h"

#define SLOTS 8U
#define MAX_MESSAGE 2000U /* some inline, some not */
#define WORKERS 2U

static struct {
    hsm_client *client;
    hsm_area *area;
    hsm_engine engine;
    hsm_worker worker;
    CK_FUNCTION_LIST p11;
    bool batching;
    bool hostile; /* the other side has lied: answers may be wrong or missing */
    /* What each slot is to the client. */
    enum { FREE, SUBMITTED, TAKEN } state[SLOTS];
    uint32_t tag[SLOTS];
    uint32_t next_tag;
    size_t to_release[4 * SLOTS];
    size_t to_release_count;
    /* Everything that must not change. */
    hsm_shared layout;
    CK_RV answer;
} run_;

/* ---- a module that signs with the first bytes of the message ---- */

static CK_RV fake_SignInit(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key) {
    (void)session;
    (void)mechanism;
    REQUIRE(key == 77);
    return CKR_OK;
}

static CK_RV fake_Sign(CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG length, CK_BYTE *signature,
                       CK_ULONG *signature_len) {
    (void)session;
    REQUIRE(length <= MAX_MESSAGE && *signature_len == HSM_MAX_SIGNATURE);
    memset(signature, 1, HSM_MAX_SIGNATURE);
    uint8_t sum = 0;
    for (CK_ULONG i = 0; i < length; i++) { /* reads all of it */
        sum = (uint8_t)(sum + data[i]);
    }
    signature[1] = sum;
    memcpy(signature + 32, data, length < 4 ? length : 4);
    return run_.answer;
}

static CK_RV fake_OpenSession(CK_SLOT_ID slot, CK_FLAGS flags, void *application, CK_NOTIFY notify,
                              CK_SESSION_HANDLE *session) {
    (void)slot;
    (void)flags;
    (void)application;
    (void)notify;
    *session = 5;
    return CKR_OK;
}

static CK_RV fake_CloseSession(CK_SESSION_HANDLE session) {
    REQUIRE(session == 5);
    return CKR_OK;
}

static void begin_run(void) {
    hsm_client_options options = {.slots = SLOTS, .max_message = MAX_MESSAGE, .max_workers = WORKERS, .coalesce_ns = 0};
    hsm_error error;
    memset(&run_, 0, sizeof run_);
    REQUIRE(hsm_client_new(&options, &run_.client, &error) == HSM_OK);
    run_.area = run_.client->area;
    run_.p11.C_SignInit = fake_SignInit;
    run_.p11.C_Sign = fake_Sign;
    run_.p11.C_OpenSession = fake_OpenSession;
    run_.p11.C_CloseSession = fake_CloseSession;
    run_.engine.client = run_.client;
    run_.engine.area = run_.area;
    run_.engine.p11 = &run_.p11;
    run_.engine.quirks = hsm_quirks_of_name(NULL);
    REQUIRE(pthread_mutex_init(&run_.engine.control, NULL) == 0);
    for (uint32_t key = 0; key < HSM_MAX_KEYS; key++) {
        static const uint32_t states[] = {HSM_KEY_ACTIVE, HSM_KEY_ACTIVE, HSM_KEY_RETIRED, HSM_KEY_MISMATCHED,
                                          HSM_KEY_ABSENT};
        run_.engine.keys[key].handle = 77;
        run_.area->shared->keys[key].index = key;
        run_.area->shared->keys[key].algorithm = key == 1 ? HSM_ECDSA_P256 : HSM_ED25519;
        run_.area->shared->keys[key].state = states[key < 5 ? key : 4];
    }
    run_.worker.engine = &run_.engine;
    run_.worker.record = hsm_area_worker(run_.area, 0);
    run_.worker.message = hsm_alloc(MAX_MESSAGE);
    REQUIRE(run_.worker.message != NULL);
    memcpy(&run_.layout, run_.area->shared, sizeof run_.layout);
}

static void end_run(void) {
    hsm_worker_close(&run_.worker);
    hsm_free(run_.worker.message);
    (void)pthread_mutex_destroy(&run_.engine.control);
    hsm_client_free(run_.client);
    hsm_leaks leaks;
    hsm_leaks_read(&leaks);
    REQUIRE(leaks.allocations == 0 && leaks.descriptors == 0 && leaks.sessions == 0);
}

/* ---- the client's steps ---- */

static void submit(struct input *input) {
    static uint8_t message[MAX_MESSAGE + 1];
    uint32_t key = take_u8(input);
    size_t length = 4U + take_u16(input) % (MAX_MESSAGE - 2U); /* one more than allowed at most */
    uint32_t tag = run_.next_tag++;
    memset(message, (int)(tag % 256), sizeof message);
    memcpy(message, &tag, sizeof tag);
    uint32_t slot = UINT32_MAX;
    uint64_t deadline;
    uint32_t free_before = hsm_client_free_slots(run_.client);
    hsm_status status = hsm_client_submit(run_.client, key, message, length, 0, &slot, &deadline);
    if (length > MAX_MESSAGE) {
        REQUIRE(status == HSM_MESSAGE_TOO_LARGE);
    } else if (free_before == 0) {
        REQUIRE(status == HSM_QUEUE_FULL);
    } else {
        REQUIRE(status == HSM_OK && slot < SLOTS);
        REQUIRE(run_.state[slot] == FREE);
        run_.state[slot] = SUBMITTED;
        run_.tag[slot] = tag;
    }
    REQUIRE(hsm_client_free_slots(run_.client) == free_before - (status == HSM_OK ? 1U : 0U));
}

static void take_completion(void) {
    hsm_completion done;
    memset(&done, 0xff, sizeof done);
    if (!hsm_client_next(run_.client, &done)) {
        return;
    }
    REQUIRE(done.slot < SLOTS && done.signature_len <= HSM_MAX_SIGNATURE);
    REQUIRE(done.signature == hsm_area_slot(run_.area, done.slot)->signature);
    REQUIRE(hsm_status_name(done.status)[0] != '\0' && hsm_call_name(done.call) != NULL);
    REQUIRE(run_.state[done.slot] == SUBMITTED); /* whatever the other side says */
    if (!run_.hostile) {
        bool good = done.status == HSM_OK;
        REQUIRE(done.signature_len == (good ? HSM_MAX_SIGNATURE : 0U));
        if (good && done.key == 0) { /* Ed25519 signs the message itself */
            REQUIRE(memcmp(done.signature + 32, &run_.tag[done.slot], 4) == 0);
        }
    }
    run_.state[done.slot] = TAKEN;
    if (run_.to_release_count < sizeof run_.to_release / sizeof run_.to_release[0]) {
        run_.to_release[run_.to_release_count++] = done.slot;
    }
}

static void release(uint8_t which) {
    if (run_.to_release_count > 0) {
        size_t place = which % run_.to_release_count;
        size_t slot = run_.to_release[place];
        run_.to_release[place] = run_.to_release[--run_.to_release_count];
        run_.state[slot] = FREE;
        hsm_client_release(run_.client, (uint32_t)slot);
        REQUIRE(hsm_client_free_slots(run_.client) <= SLOTS);
    }
}

static void batch(void) {
    run_.batching = !run_.batching;
    if (run_.batching) {
        hsm_client_batch_begin(run_.client);
    } else {
        hsm_client_batch_end(run_.client);
        REQUIRE(run_.hostile || run_.client->published == run_.client->tail);
    }
}

static void read_stats(void) {
    hsm_stats stats;
    hsm_client_stats(run_.client, &stats);
    REQUIRE(run_.hostile || stats.queued <= SLOTS);
}

/* ---- the worker's step ---- */

static void work(uint8_t answer) {
    /* Nothing that is retried: the ladder waits between two attempts. */
    static const CK_RV answers[] = {CKR_OK, CKR_OK, CKR_OK, CKR_DATA_INVALID, CKR_KEY_SIZE_RANGE};
    run_.answer = answers[answer % 5];
    uint32_t index;
    if (hsm_area_claim(run_.area, &index)) {
        (void)serve(&run_.worker, index, hsm_now_ns());
        hsm_notify(run_.area, run_.client->event_fd, run_.client->timer_fd, answer % 2 == 0, hsm_now_ns(),
                   run_.worker.record);
    }
}

/* ---- the other side's lies ---- */

static void lie(struct input *input) {
    run_.hostile = true;
    uint8_t what = take_u8(input);
    uint8_t where = take_u8(input);
    uint32_t value = take_u32(input);
    hsm_slot *slot = hsm_area_slot(run_.area, where % SLOTS);
    hsm_worker_record *record = hsm_area_worker(run_.area, where % WORKERS);
    switch (what % 15) {
    case 0:
        hsm_area_complete(run_.area, value);
        break;
    case 1:
        atomic_store(&(run_.area)->completions[where % SLOTS], value);
        break;
    case 2:
        atomic_store(&(run_.area)->requests[where % SLOTS], value);
        break;
    case 3:
        slot->status = value;
        break;
    case 4:
        slot->signature_len = value;
        break;
    case 5:
        slot->call = (uint16_t)value;
        slot->prehashed = (uint8_t)value;
        slot->ckr = (uint64_t)value << 32U;
        break;
    case 6:
        slot->message_len = value;
        break;
    case 7:
        slot->key = value;
        break;
    case 8:
        slot->deadline_ns = value;
        slot->submitted_ns = UINT64_MAX - value;
        break;
    case 9:
        /* Not so far ahead that the worker would serve for ever. */
        atomic_store(&run_.area->shared->request_tail, atomic_load(&run_.area->shared->request_tail) + value % 16);
        break;
    case 10:
        atomic_store(&run_.area->shared->completion_tail, value);
        break;
    case 11:
        atomic_store(&run_.area->shared->parked[where % HSM_PARKED_WORDS], (uint64_t)value << 32U | value);
        break;
    case 12:
        atomic_store(&run_.area->shared->mode, value);
        atomic_store(&run_.area->shared->down, value);
        atomic_store(&run_.area->shared->probe_at_ns, value);
        atomic_store(&run_.area->shared->notify, value);
        atomic_store(&run_.area->shared->spinning, value);
        break;
    case 13:
        /* Nobody looks at the layout again, so what it says does not matter. */
        run_.area->shared->options.slots = value;
        run_.area->shared->options.max_message = value;
        run_.area->shared->options.max_workers = value;
        run_.area->shared->size = value;
        run_.area->shared->options.coalesce_ns = value;
        break;
    default:
        atomic_store(&record->running, value);
        atomic_store(&record->call_started_ns, value);
        atomic_store(&record->hsm.counts[where], value);
        atomic_store(&record->park, value);
        break;
    }
}

static void step(struct input *input) {
    uint8_t operation = take_u8(input);
    switch (operation % 16) {
    case 0:
    case 1:
    case 2:
    case 3:
        submit(input);
        break;
    case 4:
    case 5:
    case 6:
        work(operation / 16);
        break;
    case 7:
    case 8:
        take_completion();
        break;
    case 9:
    case 10:
        release(operation / 16);
        break;
    case 11:
        hsm_client_cancel(run_.client, take_u32(input) % (2 * SLOTS));
        break;
    case 12:
        batch();
        break;
    case 13:
        hsm_client_wake_clear(run_.client);
        break;
    case 14:
        read_stats();
        break;
    default:
        lie(input);
        break;
    }
}

/* Without lies, draining gives every slot back. */
static void drain(void) {
    if (run_.batching) {
        batch();
    }
    for (uint32_t i = 0; i < SLOTS; i++) {
        work(0);
    }
    for (uint32_t i = 0; i < SLOTS; i++) {
        take_completion();
    }
    while (run_.to_release_count > 0) {
        release(0);
    }
    REQUIRE(run_.hostile || hsm_client_free_slots(run_.client) == SLOTS);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input input = {data, size};
    begin_run();
    while (input.left > 0) {
        step(&input);
        /* The pinned keys stay what they were, whatever the other side has written beside them. */
        REQUIRE(memcmp(run_.layout.keys, run_.area->shared->keys, sizeof run_.layout.keys) == 0);
    }
    drain();
    end_run();
    return 0;
}
