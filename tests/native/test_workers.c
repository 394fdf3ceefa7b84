/* Workers and their module when a call hangs: replacement, an engine beside another one, the end; and idle workers. */
#include <sched.h>

#include "session.h"

#include "engine_fixture.h"
#include "intercept.h"

/* Let a worker hang in C_Sign, count its call as overrun, and have it replaced. */
static void hang_one(struct fixture *f) {
    gate_set(true);
    (void)submit_text(f, SIGNED, 0);
    gate_await(1);
    for (uint32_t i = 0; i < f->engine->worker_slots; i++) {
        hsm_worker_record *record = hsm_area_worker(f->client->area, i);
        atomic_store(&record->call_deadline_ns, atomic_load(&record->call_started_ns) != 0 ? 1 : 0);
    }
    uint32_t healthy;
    while (hsm_engine_supervise(f->engine, &healthy) == 0) {
        intercept_pause();
    }
}

static void let_go(struct fixture *f) {
    gate_set(false);
    (void)finish(f, UINT32_MAX);
}

/* ---- replacements ---- */

static void a_replacement_whose_start_hangs_is_not_healthy(void) {
    intercept_begin(HSMC_NOOP_MODULE);
    hsm_engine_options options = noop_options(1);
    options.patience_ns = MILLISECOND;
    struct fixture f = fixture_begin(&small_client, &options, "noop-key");
    atomic_store(&intercept.hold_open, true);
    hang_one(&f);
    intercept_await(&intercept.inside_open, 1);
    uint32_t healthy = 1;
    uint64_t begun = hsm_now_ns();
    while (healthy != 0 && patient(begun)) {
        (void)hsm_engine_supervise(f.engine, &healthy);
        intercept_pause();
    }
    CHECK_INT(healthy, ==, 0);
    intercept_await(&intercept.inside_open, 3); /* the client has room for four */
    atomic_store(&intercept.hold_open, false);
    let_go(&f);
    while (hsm_engine_supervise(f.engine, &healthy) != 0 || healthy != 1) {
        intercept_pause();
    }
    CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_OK);
    fixture_end(&f);
    intercept_end();
}

/* ---- a quarantined worker ---- */

static void await_parked(const struct fixture *f, uint64_t workers) {
    while (atomic_load(&f->client->area->shared->parked[0]) != workers) {
        (void)sched_yield();
    }
}

/* Its call ended a moment before it was found to hang; it sleeps, and is the first to be woken. */
static void a_quarantined_worker_passes_its_wake_on(void) {
    struct fixture f = noop_begin(2);
    await_parked(&f, 3);
    atomic_store(&hsm_area_worker(f.client->area, 0)->quarantined, 1);
    CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_OK);
    fixture_end(&f);
}

static void a_worker_that_sleeps_when_it_is_quarantined_ends_and_is_replaced(void) {
    struct fixture f = noop_begin(1);
    await_parked(&f, 1);
    /* As if the call had just overrun. */
    atomic_store(&hsm_area_worker(f.client->area, 0)->call_deadline_ns, 1);
    uint32_t healthy = 0;
    CHECK_INT(hsm_engine_supervise(f.engine, &healthy), ==, 1);
    while (hsm_engine_supervise(f.engine, &healthy) != 0) {
        intercept_pause();
    }
    CHECK_INT(healthy, ==, 1);
    CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_OK);
    fixture_end(&f);
}

static void a_worker_wipes_its_message_when_it_ends(void) {
    struct fixture f = noop_begin(2);
    CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_OK);
    await_parked(&f, 3);
    uint32_t used = memcmp(f.engine->workers[0].message, SIGNED, strlen(SIGNED)) == 0 ? 0 : 1;
    hsm_worker *worker = &f.engine->workers[used];
    CHECK_BYTES(worker->message, SIGNED, strlen(SIGNED));
    atomic_store(&worker->record->quarantined, 1);
    hsm_area_unpark_all(f.client->area);
    while (atomic_load(&worker->thread_state) != HSM_THREAD_ENDED) {
        (void)sched_yield();
    }
    static const uint8_t wiped[sizeof SIGNED];
    CHECK_BYTES(worker->message, wiped, strlen(SIGNED));
    fixture_end(&f);
}

static void core_dumps_leave_messages_out(void) {
    struct fixture f = noop_begin(1);
    uintptr_t message = (uintptr_t)f.engine->workers[0].message;
    FILE *maps = fopen("/proc/self/smaps", "re");
    REQUIRE(maps != NULL);
    char line[512];
    bool within = false;
    bool undumped = false;
    while (fgets(line, sizeof line, maps) != NULL) {
        unsigned long first;
        unsigned long end;
        if (sscanf(line, "%lx-%lx ", &first, &end) == 2) { // NOLINT(cert-err34-c)
            within = message >= first && message < end;
        }
        undumped = undumped || (within && strncmp(line, "VmFlags:", 8) == 0 && strstr(line, " dd") != NULL);
    }
    (void)fclose(maps);
    CHECK(undumped);
    fixture_end(&f);
}

/* A module's data of a thread, and what takes it away when the thread ends. */
static pthread_key_t of_thread;
static _Atomic bool hold_ends;
static _Atomic unsigned ending;

static void end_of_thread(void *data) {
    (void)data;
    intercept_stay(&hold_ends, &ending);
}

static CK_RV sign_with_data(CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG length, CK_BYTE *signature,
                            CK_ULONG *signature_len) {
    (void)pthread_setspecific(of_thread, session != 0 ? &hold_ends : NULL);
    return intercept.real->C_Sign(session, data, length, signature, signature_len);
}

static void *supervise(void *engine) {
    uint32_t healthy = 0;
    (void)hsm_engine_supervise(engine, &healthy);
    CHECK_INT(healthy, ==, 1);
    return NULL;
}

static void supervising_waits_for_no_thread_that_is_about_to_end(void) {
    REQUIRE(pthread_key_create(&of_thread, end_of_thread) == 0);
    intercept_begin(HSMC_NOOP_MODULE);
    intercept.list.C_Sign = sign_with_data;
    struct fixture f = noop_begin(1);
    CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_OK);
    atomic_store(&hold_ends, true);
    hsm_area_quarantine(f.client->area, 0);
    intercept_await(&ending, 1);
    pthread_t supervisor;
    REQUIRE(pthread_create(&supervisor, NULL, supervise, f.engine) == 0);
    bool waited = !ends_soon(supervisor);
    CHECK(!waited);
    atomic_store(&hold_ends, false);
    if (waited) {
        (void)pthread_join(supervisor, NULL);
    }
    CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_OK);
    fixture_end(&f);
    intercept_end();
    REQUIRE(pthread_key_delete(of_thread) == 0);
}

/* ---- idle workers ---- */

static unsigned long sleeps_of_workers(void) {
    unsigned long sum = 0;
    DIR *folder = opendir("/proc/self/task");
    REQUIRE(folder != NULL);
    for (const struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        char path[64];
        char line[128];
        bool worker = false;
        (void)snprintf(path, sizeof path, "/proc/self/task/%.20s/status", entry->d_name);
        FILE *file = fopen(path, "re");
        while (file != NULL && fgets(line, sizeof line, file) != NULL) {
            unsigned long count;
            worker = worker || strcmp(line, "Name:\thsm-worker\n") == 0;
            if (worker && sscanf(line, "voluntary_ctxt_switches: %lu", &count) == 1) { // NOLINT(cert-err34-c)
                sum += count;
            }
        }
        if (file != NULL) {
            (void)fclose(file);
        }
    }
    (void)closedir(folder);
    return sum;
}

static void idle_workers_sleep(void) {
    struct fixture f = noop_begin(4);
    await_parked(&f, 15);
    uint64_t begun = hsm_now_ns();
    unsigned long before;
    do { /* they may not sleep at once after that */
        before = sleeps_of_workers();
        CHECK_INT(before, >, 0);
        hsm_sleep(1500 * MILLISECOND);
    } while (sleeps_of_workers() != before && patient(begun));
    CHECK(patient(begun));
    CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_OK);
    fixture_end(&f);
}

/* Processor time that the threads of workers have had. */
static uint64_t time_of_workers(const struct fixture *f) {
    uint64_t sum = 0;
    for (uint32_t i = 0; i < f->engine->worker_count; i++) {
        clockid_t clock;
        struct timespec time;
        REQUIRE(pthread_getcpuclockid(f->engine->workers[i].thread, &clock) == 0 && clock_gettime(clock, &time) == 0);
        sum += (uint64_t)time.tv_sec * SECOND + (uint64_t)time.tv_nsec;
    }
    return sum;
}

/* Polling spares a lone request a system call. Beside calls that take longer it would be most of what a signature
 * costs. */
static void no_worker_polls_between_calls_that_take_longer(void) {
    intercept_begin(HSMC_NOOP_MODULE);
    hsm_engine_options options = noop_options(2);
    options.spin_ns = 500 * MILLISECOND;
    struct fixture f = fixture_begin(&small_client, &options, "noop-key");
    gate_set(true);
    (void)submit_text(&f, SIGNED, PATIENCE);
    (void)submit_text(&f, SIGNED, PATIENCE);
    gate_await(2);
    hsm_sleep(510 * MILLISECOND);
    uint64_t before = time_of_workers(&f);
    gate_set(false);
    await_parked(&f, 3); /* both have ended, and hold their slots until the client takes the answers */
    CHECK_INT(time_of_workers(&f) - before, <, 50 * MILLISECOND);
    CHECK_STATUS(finish(&f, UINT32_MAX).status, HSM_OK);
    CHECK_STATUS(finish(&f, UINT32_MAX).status, HSM_OK);
    fixture_end(&f);
    intercept_end();
}

/* With many requests open, what a fast module waits for is the client: its worker sleeps as long as it would poll, and
 * the client wakes none for what it finds then. */
#define OPEN 40U

static void a_worker_sleeps_while_the_client_brings_more(void) {
    static const hsm_client_options roomy = {.slots = 64, .max_message = 256, .max_workers = 4};
    hsm_engine_options options = noop_options(1);
    options.spin_ns = 400 * MILLISECOND;
    struct fixture f = fixture_begin(&roomy, &options, "noop-key");
    for (size_t i = 0; i < OPEN; i++) { /* answered, and not taken: they are open */
        (void)submit_text(&f, SIGNED, 0);
    }
    while (stats_of(&f).signatures < OPEN) {
        (void)sched_yield();
    }
    hsm_sleep(800 * MILLISECOND); /* the look that began before there were many */
    await_parked(&f, 1);
    (void)submit_text(&f, SIGNED, 0);
    while (stats_of(&f).signatures <= OPEN) {
        (void)sched_yield();
    }
    uint64_t before = time_of_workers(&f);
    await_parked(&f, 1);
    CHECK_INT(time_of_workers(&f) - before, <, 50 * MILLISECOND);
    for (size_t i = 0; i <= OPEN; i++) {
        CHECK_STATUS(finish(&f, UINT32_MAX).status, HSM_OK);
    }
    fixture_end(&f);
}

/* ---- a session that is closed while its worker waits ---- */

static void a_worker_does_not_search_in_a_session_that_was_closed(void) {
    intercept_begin(HSMC_NOOP_MODULE);
    hsm_engine_options options = noop_options(1);
    options.quirks = "aws-cloudhsm";
    struct fixture f = fixture_begin(&small_client, &options, "noop-key");
    hsm_worker *worker = &f.engine->workers[0];
    await_parked(&f, 1);
    hsm_engine_lock(f.engine);
    uint32_t slot = submit_text(&f, SIGNED, PATIENCE);
    while (atomic_load(&worker->record->call_deadline_ns) == 0) {
        (void)sched_yield();
    }
    hsm_sleep(10 * MILLISECOND); /* until it waits for the lock; before that the test shows nothing */
    /* As when the module is initialized again. */
    atomic_store(&f.engine->gate, 1);
    while (atomic_load(&worker->record->call_started_ns) != 0) {
        (void)sched_yield();
    }
    atomic_store(&intercept.dead, worker->session);
    hsm_worker_close(worker);
    atomic_fetch_add(&f.engine->epoch, 1);
    atomic_store(&f.engine->gate, 0);
    hsm_futex_wake(&f.engine->gate, INT32_MAX, true);
    hsm_engine_unlock(f.engine);
    CHECK_STATUS(finish(&f, slot).status, HSM_OK);
    CHECK_INT(atomic_load(&intercept.used_dead), ==, 0); /* the number may be another worker's by now */
    fixture_end(&f);
    intercept_end();
}

/* ---- the end ---- */

static void stop_does_not_wait_for_c_finalize(void) {
    /* The module's last user is the engine. */
    intercept_begin(HSMC_NOOP_MODULE);
    struct fixture f = noop_begin(1);
    atomic_store(&intercept.hold_finalize, true);
    intercept.module->p11 = &intercept.list;
    hsm_module_release(intercept.module);
    CHECK_INT(hsm_engine_stop(f.engine, 50 * MILLISECOND), ==, 1);
    CHECK_INT(atomic_load(&intercept.inside_finalize), ==, 1);
    atomic_store(&intercept.hold_finalize, false);
    fixture_left(&f);
}

static void *look_for_a_key(void *engine) {
    hsm_key_selector selector = {.label = "noop-key", .handle = -1};
    hsm_key_info info;
    hsm_error error;
    CHECK_STATUS(hsm_engine_add_key(engine, &selector, &info, &error), HSM_OK);
    return NULL;
}

static void stop_does_not_wait_for_a_search_that_hangs(void) {
    intercept_begin(HSMC_NOOP_MODULE);
    struct fixture f = noop_begin(1);
    atomic_store(&intercept.hold_find, true);
    pthread_t adds;
    REQUIRE(pthread_create(&adds, NULL, look_for_a_key, f.engine) == 0);
    intercept_await(&intercept.inside_find, 1);
    CHECK_INT(hsm_engine_stop(f.engine, 10 * MILLISECOND), ==, 1);
    atomic_store(&intercept.hold_find, false);
    (void)pthread_join(adds, NULL);
    fixture_left(&f);
    intercept_end();
}

static void a_client_outlives_the_worker_that_was_left_behind(void) {
    intercept_begin(HSMC_NOOP_MODULE);
    struct fixture f = noop_begin(2);
    gate_set(true);
    (void)submit_text(&f, SIGNED, 0);
    gate_await(1);
    CHECK_INT(hsm_engine_stop(f.engine, 10 * MILLISECOND), ==, 1);
    hsm_leaks left;
    hsm_leaks_read(&left);
    CHECK_INT(left.threads, ==, 3); /* they are counted until they are joined: two workers, and the thread that waits */
    atomic_fetch_add(&f.client->users, 1);
    hsm_client_free(f.client); /* as its owner */
    gate_set(false);
    fixture_left(&f); /* and as the test, which looked at it */
    intercept_end();
}

/* ---- threads that the module ends ---- */

static _Atomic unsigned to_end; /* so many calls end their thread */

static CK_RV sign_and_end(CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG length, CK_BYTE *signature,
                          CK_ULONG *signature_len) {
    if (intercept_take(&to_end)) {
        pthread_exit(NULL);
    }
    return intercept.real->C_Sign(session, data, length, signature, signature_len);
}

static CK_RV log_in_and_end(CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_UTF8CHAR *pin, CK_ULONG length) {
    if (intercept_take(&to_end)) {
        pthread_exit(NULL);
    }
    return intercept_Login(session, user, pin, length);
}

static CK_RV open_and_end(CK_SLOT_ID slot, CK_FLAGS flags, void *application, CK_NOTIFY notify,
                          CK_SESSION_HANDLE *session) {
    if (atomic_load(&intercept.opened) != 0 &&
        intercept_take(&to_end)) { /* a worker's: that of the login comes first */
        pthread_exit(NULL);
    }
    return intercept_OpenSession(slot, flags, application, notify, session);
}

static CK_RV finalize_and_end(void *reserved) {
    if (intercept_take(&to_end)) {
        pthread_exit(NULL);
    }
    return intercept_Finalize(reserved);
}

static CK_RV finalize_and_then_end(void *reserved) {
    (void)intercept_Finalize(reserved);
    pthread_exit(NULL);
}

static CK_RV close_and_end(CK_SESSION_HANDLE session) {
    CK_RV rv = intercept.real->C_CloseSession(session);
    if (intercept_take(&to_end)) {
        pthread_exit(NULL);
    }
    return rv;
}

static CK_RV find_and_end(CK_SESSION_HANDLE session, CK_ATTRIBUTE *wanted, CK_ULONG count) {
    if (intercept_take(&to_end)) {
        pthread_exit(NULL);
    }
    return intercept_FindObjectsInit(session, wanted, count);
}

/* Wait until the only worker has ended, and replace it. The next one may have another place: the thread before it may
 * not be over. */
static void replace_ended(hsm_engine *engine) {
    for (uint32_t running = 1; running != 0; intercept_pause()) {
        (void)pthread_mutex_lock(&engine->state);
        running = engine->running;
        (void)pthread_mutex_unlock(&engine->state);
    }
    for (uint32_t healthy = 0; healthy == 0;) {
        CHECK_INT(hsm_engine_supervise(engine, &healthy), ==, 0);
        intercept_pause();
    }
}

static void a_worker_that_the_module_ends_is_replaced(void) {
    intercept_begin(HSMC_NOOP_MODULE);
    intercept.list.C_Sign = sign_and_end;
    struct fixture f = noop_begin(1);
    for (int i = 0; i < 3; i++) {
        atomic_store(&to_end, 1);
        CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 60 * SECOND)).status, HSM_TOKEN_LOST);
        for (uint32_t k = 0; k < f.client->area->max_workers; k++) { /* no call hangs */
            CHECK_INT(atomic_load(&hsm_area_worker(f.client->area, k)->call_deadline_ns), ==, 0);
        }
        replace_ended(f.engine);
        CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_OK);
    }
    atomic_store(&to_end, 1);
    CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_TOKEN_LOST);
    fixture_end(&f); /* nothing is inside */
    intercept_end();
}

/* A worker that logs in again holds the engine's lock, which others wait for. */
static void a_thread_that_ends_in_a_login_keeps_no_other_from_it(void) {
    intercept_begin(HSMC_NOOP_MODULE);
    struct fixture f = noop_begin(2);
    intercept.list.C_Login = log_in_and_end;
    atomic_store(&to_end, 1);
    atomic_store(&intercept.ckr, CKR_USER_NOT_LOGGED_IN);
    (void)f.engine->p11->C_CloseSession(f.engine->login_session); /* the login is over */
    atomic_store(&intercept.fail_sign_init, 1);
    CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_TOKEN_LOST);
    CHECK_INT(atomic_load(&to_end), ==, 0);
    CHECK_INT(pthread_mutex_trylock(&f.engine->control), ==, 0);
    hsm_engine_unlock(f.engine);
    CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_OK);
    fixture_end(&f);
    intercept_end();
}

/* A worker that initializes the module again holds the module, and has stopped every engine that uses it. */
static void a_thread_that_ends_in_c_finalize_stops_no_engine_for_good(void) {
    intercept_begin(HSMC_NOOP_MODULE);
    struct fixture f = noop_begin(1);
    struct fixture other = noop_begin(1);
    intercept.list.C_Finalize = finalize_and_end;
    atomic_store(&to_end, 1);
    atomic_store(&intercept.ckr, CKR_CRYPTOKI_NOT_INITIALIZED);
    atomic_store(&intercept.fail_sign_init, 1);
    CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_TOKEN_LOST);
    CHECK_INT(atomic_load(&to_end), ==, 0);
    REQUIRE(atomic_load(&f.engine->gate) == 0 && atomic_load(&other.engine->gate) == 0);
    REQUIRE(hsm_module_claim(intercept.module));
    hsm_module_disclaim(intercept.module);
    CHECK_STATUS(finish(&other, submit_text(&other, SIGNED, 0)).status, HSM_OK);
    replace_ended(f.engine);
    CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_OK);
    fixture_end(&other);
    fixture_end(&f);
    intercept_end();
}

/* A start in which a function of the module ends its thread. */
static void start_and_fail(void) {
    atomic_store(&to_end, 1);
    hsm_client *client = new_client(&small_client);
    hsm_engine_options options = noop_options(2);
    hsm_engine *engine = NULL;
    hsm_error error;
    CHECK_STATUS(hsm_engine_start(client, &options, &engine, &error), HSM_TOKEN_LOST);
    CHECK_INT(atomic_load(&to_end), ==, 0);
    hsm_client_free(client);
}

static void a_start_whose_worker_the_module_ends_fails(void) {
    intercept_begin(HSMC_NOOP_MODULE);
    intercept.list.C_OpenSession = open_and_end;
    start_and_fail();
    intercept_end();
}

static void a_start_that_the_module_ends_fails(void) {
    intercept_begin(HSMC_NOOP_MODULE);
    intercept.list.C_Login = log_in_and_end;
    start_and_fail();
    struct fixture f = noop_begin(1);
    CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_OK);
    fixture_end(&f);
    intercept_end();
}

static void a_search_for_a_key_that_the_module_ends_fails_and_keeps_nothing(void) {
    intercept_begin(HSMC_NOOP_MODULE);
    struct fixture f = noop_begin(1);
    intercept.list.C_FindObjectsInit = find_and_end;
    atomic_store(&to_end, 1);
    const hsm_key_selector selector = {.label = "noop-key", .handle = -1};
    hsm_key_info key;
    hsm_error error;
    CHECK_STATUS(hsm_engine_add_key(f.engine, &selector, &key, &error), HSM_TOKEN_LOST);
    CHECK_INT(atomic_load(&to_end), ==, 0);
    (void)add_key(f.engine, "noop-key");
    fixture_end(&f);
    intercept_end();
}

static void a_stop_that_the_module_ends_goes_on(void) {
    intercept_begin(HSMC_NOOP_MODULE);
    struct fixture f = noop_begin(1);
    intercept.list.C_CloseSession = close_and_end;
    intercept.list.C_Finalize = finalize_and_then_end;
    hsm_module_release(intercept.module); /* the engine's is the last use of it: it finalizes it */
    atomic_store(&to_end, 2);             /* the worker's thread, then the one that ends the engine */
    fixture_end(&f);
    CHECK_INT(atomic_load(&to_end), ==, 0);
    CHECK(hsm_module_functions(HSMC_NOOP_MODULE) == NULL);
}

static const struct test tests[] = {
    TEST(a_replacement_whose_start_hangs_is_not_healthy),
    TEST(a_quarantined_worker_passes_its_wake_on),
    TEST(a_worker_that_sleeps_when_it_is_quarantined_ends_and_is_replaced),
    TEST(a_worker_wipes_its_message_when_it_ends),
    TEST(core_dumps_leave_messages_out),
    TEST(supervising_waits_for_no_thread_that_is_about_to_end),
    TEST(idle_workers_sleep),
    TEST(no_worker_polls_between_calls_that_take_longer),
    TEST(a_worker_sleeps_while_the_client_brings_more),
    TEST(a_worker_does_not_search_in_a_session_that_was_closed),
    TEST(stop_does_not_wait_for_c_finalize),
    TEST(stop_does_not_wait_for_a_search_that_hangs),
    TEST(a_client_outlives_the_worker_that_was_left_behind),
    TEST(a_worker_that_the_module_ends_is_replaced),
    TEST(a_thread_that_ends_in_a_login_keeps_no_other_from_it),
    TEST(a_thread_that_ends_in_c_finalize_stops_no_engine_for_good),
    TEST(a_start_whose_worker_the_module_ends_fails),
    TEST(a_start_that_the_module_ends_fails),
    TEST(a_search_for_a_key_that_the_module_ends_fails_and_keeps_nothing),
    TEST(a_stop_that_the_module_ends_goes_on),
};
HARNESS_MAIN(tests)
