/* Turns at a token store: who waits for whom, for how long, and who for nobody. */
#include <fcntl.h>
#include <pthread.h>
#include <sys/file.h>
#include <sys/wait.h>

#include "base.h"
#include "harness.h"

/* This program is the file that its turns are taken at. */
static void with_a_store(void) {
    REQUIRE(setenv("SOFTHSM2_CONF", "/proc/self/exe", 1) == 0);
}

static uint64_t now(void) {
    struct timespec time;
    (void)clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * SECOND + (uint64_t)time.tv_nsec;
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
    uint64_t before = now();
    hsm_turn_begin(NULL, "/any/libsofthsm2.so");
    hsm_turn_end();
    *(uint64_t *)waited = now() - before;
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
    CHECK_INT(waited, <, 20 * SECOND);
}

static void other_modules_hold_up_nobody(void) {
    with_a_store();
    CHECK_INT(waited_for(NULL, "/softhsm/libother.so"), <, SECOND / 2);
    CHECK_INT(waited_for("nss", "/any/libsofthsm2.so"), <, SECOND / 2);
    CHECK_INT(waited_for("unheard-of", "/any/libsofthsm2.so"), <, SECOND / 2);
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
    uint64_t waited = 0;
    (void)time_a_turn(&waited);
    CHECK_INT(waited, <, SECOND / 2);
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
    int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    REQUIRE(file >= 0);
    CHECK_INT(flock(file, LOCK_SH | LOCK_NB), ==, -1);
    hsm_turn_end();
    CHECK_INT(flock(file, LOCK_SH | LOCK_NB), ==, 0);
    (void)close(file);
}

static const struct test tests[] = {
    TEST(two_copies_of_a_module_take_turns),
    TEST(one_that_does_not_end_is_waited_for_a_second),
    TEST(other_modules_hold_up_nobody),
    TEST(a_forked_child_does_not_go_on_holding_it),
    TEST(a_store_that_cannot_be_opened_is_the_modules_trouble),
    TEST(without_the_variable_the_modules_file_is_the_store),
};
HARNESS_MAIN(tests)
