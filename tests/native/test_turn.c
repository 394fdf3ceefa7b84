/* Turns at a token store: who waits for whom, for how long, and who for nobody. */
#include <fcntl.h>
#include <pthread.h>
#include <sys/file.h>
#include <sys/wait.h>

#include "base.h"
#include "engine_fixture.h"
#include "intercept.h"

/* This program is the file that its turns are taken at. */
static void with_a_store(void) {
    REQUIRE(setenv("SOFTHSM2_CONF", "/proc/self/exe", 1) == 0);
}

/* Whether somebody is in a turn. */
static bool is_taken(void) {
    int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    REQUIRE(file >= 0);
    bool taken = flock(file, LOCK_SH | LOCK_NB) != 0;
    (void)close(file);
    return taken;
}

static _Atomic int inside;
static _Atomic int together;

static void *take_turns(void *path) {
    for (int i = 0; i < 50; i++) {
        hsm_turn_begin(NULL, path);
        hsm_turn_begin(NULL, path);
        atomic_fetch_add(&together, atomic_fetch_add(&inside, 1));
        hsm_turn_end();
        hsm_sleep(MILLISECOND / 5);
        atomic_fetch_sub(&inside, 1);
        hsm_turn_end();
    }
    return NULL;
}

static void two_copies_of_a_module_take_turns(void) {
    with_a_store();
    pthread_t threads[2];
    static char paths[2][32] = {"/one/libsofthsm2.so", "/two/libsofthsm2.so"};
    for (int i = 0; i < 2; i++) {
        REQUIRE(pthread_create(&threads[i], NULL, take_turns, paths[i]) == 0);
    }
    for (int i = 0; i < 2; i++) {
        (void)pthread_join(threads[i], NULL);
    }
    CHECK_INT(atomic_load(&together), ==, 0);
}

static void *time_a_turn(void *waited) {
    uint64_t before = hsm_now_ns();
    hsm_turn_begin(NULL, "/any/libsofthsm2.so");
    hsm_turn_end();
    *(uint64_t *)waited = hsm_now_ns() - before;
    return NULL;
}

/* How long another thread waits for a turn while this one is in one for `module`. */
static uint64_t waited_for(const char *quirks, const char *module) {
    uint64_t waited = 0;
    pthread_t thread;
    hsm_turn_begin(quirks, module);
    REQUIRE(pthread_create(&thread, NULL, time_a_turn, &waited) == 0);
    (void)pthread_join(thread, NULL);
    hsm_turn_end();
    return waited;
}

static void one_that_does_not_end_is_waited_for_a_second(void) {
    with_a_store();
    uint64_t waited = waited_for("softhsm", "/any/chaos.so");
    CHECK_INT(waited, >=, SECOND * 9 / 10);
}

static void other_modules_take_no_turn(void) {
    static const char *const modules[][2] = {
        {NULL, "/softhsm/libother.so"}, {"nss", "/any/libsofthsm2.so"}, {"unheard-of", "/any/libsofthsm2.so"}};
    with_a_store();
    for (size_t i = 0; i < COUNT_OF(modules); i++) {
        hsm_turn_begin(modules[i][0], modules[i][1]);
        CHECK(!is_taken());
        hsm_turn_end();
    }
}

static void a_forked_child_does_not_go_on_holding_it(void) {
    with_a_store();
    hsm_turn_begin("softhsm", "/any/chaos.so");
    int ends[2];
    REQUIRE(pipe(ends) == 0);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        char byte;
        (void)close(ends[1]);
        _exit(read(ends[0], &byte, 1) == 0 ? 0 : 1); /* until the parent has tried */
    }
    hsm_turn_end();
    CHECK(!is_taken());
    (void)close(ends[0]);
    (void)close(ends[1]);
    int how;
    REQUIRE(waitpid(child, &how, 0) == child);
    CHECK_INT(how, ==, 0);
}

static void a_store_that_cannot_be_opened_is_the_modules_trouble(void) {
    REQUIRE(setenv("SOFTHSM2_CONF", "/nonexistent/softhsm2.conf", 1) == 0);
    hsm_turn_begin("softhsm", "/any/chaos.so");
    hsm_turn_end();
}

static void without_the_variable_the_modules_file_is_the_store(void) {
    REQUIRE(unsetenv("SOFTHSM2_CONF") == 0);
    hsm_turn_begin("softhsm", "/proc/self/exe");
    CHECK(is_taken());
    hsm_turn_end();
    CHECK(!is_taken());
}

static hsm_engine_options softhsm_options(void) {
    hsm_engine_options options = noop_options(1);
    options.quirks = "softhsm";
    return options;
}

static void an_engine_initializes_its_module_in_a_turn(void) {
    with_a_store();
    int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    REQUIRE(file >= 0 && flock(file, LOCK_EX) == 0);
    hsm_engine_options options = softhsm_options();
    uint64_t begun = hsm_now_ns();
    struct fixture f = fixture_begin(&small_client, &options, "noop-key");
    CHECK_INT(hsm_now_ns() - begun, >=, SECOND * 9 / 10); /* for the turn that does not end */
    (void)close(file);
    CHECK(!is_taken());
    fixture_end(&f);
}

static void so_it_does_after_an_outage_and_logs_in(void) {
    with_a_store();
    intercept_begin(HSMC_NOOP_MODULE);
    hsm_engine_options options = softhsm_options();
    struct fixture f = fixture_begin(&small_client, &options, "noop-key");
    CHECK(!is_taken());
    atomic_store(&intercept.ckr, CKR_CRYPTOKI_NOT_INITIALIZED);
    atomic_store(&intercept.fail_sign, 1);
    atomic_store(&intercept.hold_finalize, true);
    intercept_hold_logins(true);
    uint32_t slot = submit_text(&f, SIGNED, 0);
    while (atomic_load(&intercept.inside_finalize) == 0) {
        intercept_pause();
    }
    CHECK(is_taken());
    atomic_store(&intercept.hold_finalize, false);
    intercept_await_login();
    CHECK(is_taken());
    intercept_hold_logins(false);
    CHECK_STATUS(finish(&f, slot).status, HSM_OK);
    CHECK(!is_taken());
    fixture_end(&f);
    intercept_end();
}

static const struct test tests[] = {
    TEST(an_engine_initializes_its_module_in_a_turn),
    TEST(so_it_does_after_an_outage_and_logs_in),
    TEST(two_copies_of_a_module_take_turns),
    TEST(one_that_does_not_end_is_waited_for_a_second),
    TEST(other_modules_take_no_turn),
    TEST(a_forked_child_does_not_go_on_holding_it),
    TEST(a_store_that_cannot_be_opened_is_the_modules_trouble),
    TEST(without_the_variable_the_modules_file_is_the_store),
};
HARNESS_MAIN(tests)
