/* Fault loops: in a life of an engine, of a host and of a journal, the first call fails, in the next life the second,
 * until a life has fewer calls. In each: no crash, no hang, an error with a status or a good answer, nothing left
 * behind, and a fresh life afterwards is a whole one. */
#include <errno.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "engine_fixture.h"
#include "faults.h"
#include "journal.h"

static const uint8_t message[] = "hsmcore test message";

/* ---- signing, in this process and in a host ---- */

struct life {
    hsm_client *client;
    hsm_engine *engine;
    hsm_host *host;
    hsm_key_info key;
};

/* Take back what was submitted. Good, or with an error of its own. */
static bool answered(const struct life *life) {
    hsm_completion done;
    await_completion(life->client, &done);
    bool good = done.status == HSM_OK;
    if (good) {
        hsm_status status = hsm_verify(life->key.algorithm, life->key.public_key, life->key.public_key_len, message,
                                       sizeof message - 1, 0, done.signature, done.signature_len);
        good = status != HSM_OUT_OF_MEMORY; /* this call is one that may fail, too */
        CHECK_STATUS(status, good ? HSM_OK : HSM_OUT_OF_MEMORY);
    }
    hsm_client_release(life->client, done.slot);
    return good;
}

static bool signs(const struct life *life) {
    uint32_t slot;
    uint64_t deadline;
    return hsm_client_submit(life->client, life->key.index, message, sizeof message - 1, 0, &slot, &deadline) ==
               HSM_OK &&
           answered(life);
}

/* A failed call says why. */
static bool is_ok(hsm_status status, const hsm_error *error) {
    if (status != HSM_OK) {
        CHECK_STATUS(error->status, status);
        CHECK(strlen(hsm_status_name(status)) > 0);
    }
    return status == HSM_OK;
}

static bool adds_key(struct life *life, const char *label, hsm_key_info *key) {
    hsm_key_selector selector = {.label = label, .handle = -1};
    hsm_error error = {.status = HSM_OK};
    return is_ok(life->host != NULL ? hsm_host_add_key(life->host, &selector, key, &error)
                                    : hsm_engine_add_key(life->engine, &selector, key, &error),
                 &error);
}

static bool begins(struct life *life) {
    hsm_error error = {.status = HSM_OK};
    memset(life, 0, sizeof *life);
    return is_ok(hsm_client_new(&small_client, &life->client, &error), &error);
}

/* Returns whether all of it was done. */
static bool engine_life(void) {
    struct life life;
    hsm_key_info again;
    hsm_error error = {.status = HSM_OK};
    hsm_engine_options options = noop_options(2);
    bool whole = begins(&life) && is_ok(hsm_engine_start(life.client, &options, &life.engine, &error), &error);
    if (whole) {
        whole = adds_key(&life, "noop-key", &life.key) && signs(&life) && adds_key(&life, "noop-key", &again) &&
                hsm_engine_retire_key(life.engine, again.index) == HSM_OK && signs(&life);
        CHECK_INT(hsm_engine_stop(life.engine, PATIENCE), ==, 0);
    }
    hsm_client_free(life.client);
    return whole;
}

static void (*before_restart)(void);

static bool restarts(struct life *life) {
    hsm_error error = {.status = HSM_OK};
    hsm_host_kill(life->host);
    CHECK(readable(hsm_host_fd(life->host), (int)(PATIENCE / MILLISECOND)));
    uint32_t slot;
    uint64_t deadline;
    bool asked =
        hsm_client_submit(life->client, life->key.index, message, sizeof message - 1, 0, &slot, &deadline) == HSM_OK;
    (void)hsm_client_replay(life->client);
    if (before_restart != NULL) {
        before_restart();
    }
    bool again = false;
    for (int attempt = 0; attempt < 3 && !again; attempt++) { /* as its supervisor does */
        error.status = HSM_OK;
        again = is_ok(hsm_host_restart(life->host, &error), &error);
    }
    CHECK(again);
    return again && asked && answered(life);
}

static bool host_life(const char *program, const char *const *environment) {
    struct life life;
    hsm_key_info again;
    hsm_error error = {.status = HSM_OK};
    hsm_host_options options = {
        .engine = noop_options(2), .program = program, .environment = environment, .timeout_ns = PATIENCE};
    bool whole = begins(&life) && is_ok(start_host(life.client, &options, &life.host, &error), &error);
    if (whole) {
        whole = adds_key(&life, "noop-key", &life.key) && signs(&life) && adds_key(&life, "noop-key", &again) &&
                hsm_host_retire_key(life.host, again.index) == HSM_OK && restarts(&life) && signs(&life);
        hsm_host_stop(life.host, PATIENCE);
    }
    hsm_client_free(life.client);
    return whole;
}

static bool plain_host_life(void) {
    return host_life(HSMC_HOST, NULL);
}

static const char *loop_name;

/* A life with a fault in call `n`, and one without. Returns whether the fault came. */
static bool two_lives(bool (*life)(void), uint64_t n) {
    hsm_leaks before;
    hsm_leaks_read(&before);
    unsigned descriptors = harness_descriptors();
    unsigned failures = atomic_load(&harness_failures);
    faults_begin(FAULT_FAIL, n);
    bool whole = life();
    const char *call = faults_call();
    bool hit = faults_end();
    CHECK(hit || whole);
    CHECK(life());
    harness_check_leaks(&before, descriptors);
    if (atomic_load(&harness_failures) != failures) {
        FAIL("%s: call %llu, %s", loop_name, (unsigned long long)n, call != NULL ? call : "none");
    }
    return hit;
}

/* Let call 1 fail, then call 2, …, until a life has fewer. */
static void loop(const char *what, bool (*life)(void)) {
    uint64_t n = 1;
    loop_name = what;
    while (two_lives(life, n)) {
        n++;
    }
    printf("# %s: %llu calls\n", what, (unsigned long long)n - 1);
}

static void any_call_in_an_engine_may_fail(void) {
    loop("engine", engine_life);
}

static void any_call_around_a_host_may_fail(void) {
    loop("host", plain_host_life);
}

/* Without the name that was asked for, any token would do, and would be shown the PIN. */
static bool other_token_life(void) {
    struct life life;
    hsm_error error = {.status = HSM_OK};
    hsm_host_options options = {.engine = noop_options(2), .program = HSMC_HOST, .timeout_ns = PATIENCE};
    options.engine.token.label = "another";
    if (begins(&life)) {
        CHECK(start_host(life.client, &options, &life.host, &error) != HSM_OK);
        hsm_host_stop(life.host, PATIENCE);
    }
    hsm_client_free(life.client);
    return true;
}

static void no_fault_leads_to_another_token(void) {
    loop("another token", other_token_life);
}

static char fault_file[64];
static uint64_t fault_n;

/* From now on, the next host process has the fault. */
static void arm_host(void) {
    FILE *file = fopen(fault_file, "we");
    REQUIRE(file != NULL);
    (void)fprintf(file, "%llu", (unsigned long long)fault_n);
    (void)fclose(file);
}

static void loop_in_host(const char *what, bool in_first) {
    char variable[96];
    const char *environment[] = {variable, NULL};
    (void)snprintf(fault_file, sizeof fault_file, "/tmp/hsmcore-faults-%d", (int)getpid());
    (void)snprintf(variable, sizeof variable, "FAULTS_FILE=%s", fault_file);
    bool hit = true;
    for (fault_n = 1; hit; fault_n++) {
        hsm_leaks before;
        hsm_leaks_read(&before);
        unsigned descriptors = harness_descriptors();
        unsigned failures = atomic_load(&harness_failures);
        before_restart = in_first ? NULL : arm_host;
        if (in_first) {
            arm_host();
        }
        bool whole = host_life(HSMC_HOST_WITH_FAULTS, environment);
        hit = access(fault_file, F_OK) != 0;
        (void)unlink(fault_file);
        harness_check_leaks(&before, descriptors);
        CHECK(whole || (hit && in_first)); /* a restart is tried again */
        if (atomic_load(&harness_failures) != failures) {
            FAIL("%s: call %llu", what, (unsigned long long)fault_n);
        }
    }
    before_restart = NULL;
    printf("# %s: %llu calls\n", what, (unsigned long long)fault_n - 2);
}

static void any_call_inside_a_host_may_fail(void) {
    loop_in_host("inside a host", true);
    loop_in_host("inside a host that is restarted", false);
}

/* ---- the journal ---- */

enum { LINES = 25 };

static char folder[64];
static char path[128];
static char archive[128];

static void remove_folder(void) {
    char command[256];
    (void)snprintf(command, sizeof command, "rm -rf -- '%s'", folder);
    REQUIRE(system(command) == 0); /* NOLINT(cert-env33-c): a path of our own */
}

/* Count the lines in a file, which must be `next` and those after it. */
static uint64_t count_lines(const char *name, uint64_t next) {
    FILE *file = fopen(name, "re");
    char line[64];
    char expected[64];
    uint64_t count = 0;
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        (void)snprintf(expected, sizeof expected, "{\"seq\":%llu}\n", (unsigned long long)(next + count));
        CHECK_TEXT(line, expected);
        count++;
    }
    if (file != NULL) {
        (void)fclose(file);
    }
    return count;
}

static uint64_t lines_on_disk(void) {
    uint64_t count = 0;
    for (uint64_t before = UINT64_MAX; before != count;) {
        char name[256];
        before = count;
        (void)snprintf(name, sizeof name, "%s/%020llu.jsonl", archive, (unsigned long long)count + 1);
        count += count_lines(name, count + 1);
    }
    return count + count_lines(path, count + 1);
}

/* Held by whoever looks after a call that hangs. */
static pthread_mutex_t watched = PTHREAD_MUTEX_INITIALIZER;

/* Wait until `number` is written. A write that hangs meanwhile keeps nobody else waiting. */
static void await_line(hsm_journal *journal, uint64_t number, uint64_t *put) {
    struct pollfd ready = {.fd = hsm_journal_fd(journal), .events = POLLIN};
    uint64_t begun = hsm_now_ns();
    (void)pthread_mutex_lock(&watched);
    while (hsm_journal_written(journal) < number && patient(begun)) {
        if (faults_hung()) {
            char line[64];
            int len = snprintf(line, sizeof line, "{\"seq\":%llu}\n", (unsigned long long)++*put);
            CHECK_INT(hsm_journal_put(journal, line, (size_t)len), ==, 1);
            hsm_journal_flush(journal, 0);
            CHECK_INT(hsm_journal_written(journal), <, number);
            CHECK_INT(hsm_journal_pending(journal), >, 0);
            CHECK_INT(hsm_journal_oldest_ns(journal), >, 0);
            CHECK_INT(hsm_journal_failure(journal), ==, 0);
            faults_release();
        }
        (void)poll(&ready, 1, 5);
        hsm_journal_clear(journal);
    }
    (void)pthread_mutex_unlock(&watched);
    CHECK_INT(hsm_journal_written(journal), >=, number);
}

static enum hsm_durability durability;

static bool journal_life(void) {
    (void)snprintf(folder, sizeof folder, "/tmp/hsmcore-faults-XXXXXX");
    REQUIRE(mkdtemp(folder) != NULL);
    (void)snprintf(path, sizeof path, "%s/audit.log", folder);
    (void)snprintf(archive, sizeof archive, "%s/segments", folder);
    REQUIRE(mkdir(archive, 0700) == 0);
    hsm_journal_options options = {.path = path,
                                   .archive = archive,
                                   .first_seq = 1,
                                   .next_seq = 1,
                                   .rotate_bytes = 120,
                                   .interval_ns = MILLISECOND,
                                   .durability = durability};
    hsm_journal *journal = NULL;
    hsm_error error = {.status = HSM_OK};
    bool whole = is_ok(hsm_journal_open(&options, &journal, &error), &error);
    if (whole) {
        uint64_t put = 0;
        while (put < LINES) {
            char line[64];
            int len = snprintf(line, sizeof line, "{\"seq\":%llu}\n", (unsigned long long)put + 1);
            if (hsm_journal_put(journal, line, (size_t)len) == 0) {
                whole = false; /* short of memory: the caller knows, and the number is still free */
                continue;
            }
            put++;
            if (put % 5 == 0) {
                hsm_journal_flush(journal, 0);
                await_line(journal, put, &put);
            }
        }
        CHECK_INT(hsm_journal_close(journal), ==, 0); /* the last lines are written here */
        CHECK_INT(lines_on_disk(), ==, put);
    }
    remove_folder();
    return whole;
}

/* As `loop`, with many lives at once, each in a child: nearly all of a life with a fault is the pause before the next
 * try. */
static void loop_apart(const char *what, bool (*life)(void)) {
    enum { AT_ONCE = 16, FAILED = 1, MISSED = 2 };
    bool hit = true;
    uint64_t n = 0;
    loop_name = what;
    (void)fflush(stdout);
    while (hit) {
        pid_t children[AT_ONCE];
        for (size_t i = 0; i < AT_ONCE; i++) {
            n++;
            children[i] = fork();
            REQUIRE(children[i] >= 0);
            if (children[i] == 0) {
                atomic_store(&harness_failures, 0);
                hit = two_lives(life, n);
                (void)fflush(stdout);
                _exit(atomic_load(&harness_failures) > 0 ? FAILED : hit ? 0 : MISSED);
            }
        }
        for (size_t i = 0; i < AT_ONCE; i++) {
            int status = 0;
            REQUIRE(waitpid(children[i], &status, 0) == children[i]);
            CHECK(WIFEXITED(status) && WEXITSTATUS(status) != FAILED);
            hit = hit && WIFEXITED(status) && WEXITSTATUS(status) == 0;
        }
    }
    printf("# %s: fewer than %llu calls\n", what, (unsigned long long)n);
}

static void any_call_of_a_journal_may_fail(void) {
    static const char *const names[] = {"journal, fsync", "journal, write", "journal, interval"};
    for (durability = HSM_DURABLE_FSYNC; durability <= HSM_DURABLE_INTERVAL; durability++) {
        loop_apart(names[durability], journal_life);
    }
}

static _Atomic bool watching;

/* Let go what hangs while nobody waits for a line: opening and closing wait for the disk, as they say. */
static void *let_go(void *unused) {
    (void)unused;
    while (atomic_load(&watching)) {
        const struct timespec pause = {.tv_nsec = 50000000};
        (void)nanosleep(&pause, NULL);
        (void)pthread_mutex_lock(&watched);
        faults_release();
        (void)pthread_mutex_unlock(&watched);
    }
    return NULL;
}

static void any_write_of_a_journal_may_hang(void) {
    pthread_t thread;
    atomic_store(&watching, true);
    REQUIRE(pthread_create(&thread, NULL, let_go, NULL) == 0);
    for (durability = HSM_DURABLE_FSYNC; durability <= HSM_DURABLE_INTERVAL; durability++) {
        uint64_t n = 1;
        do {
            faults_begin(FAULT_HANG, n++);
            CHECK(journal_life());
        } while (faults_end());
        printf("# %d: %llu calls that block\n", (int)durability, (unsigned long long)n - 2);
    }
    atomic_store(&watching, false);
    REQUIRE(pthread_join(thread, NULL) == 0);
}

static const struct test tests[] = {
    TEST(any_call_in_an_engine_may_fail),  TEST(any_call_around_a_host_may_fail), TEST(no_fault_leads_to_another_token),
    TEST(any_call_inside_a_host_may_fail), TEST(any_call_of_a_journal_may_fail),  TEST(any_write_of_a_journal_may_hang),
};
HARNESS_MAIN(tests)
