/* What every native test program is made of: checks that say where and what, and a table of tests of which each must
 * leave nothing behind: no native byte, thread or session of ours, and no descriptor at all.
 *
 * A CHECK that fails is printed and the test goes on; a REQUIRE that fails ends the program, for when going on makes no
 * sense. Checks may be used in any thread. A program runs all its tests, or those named on its command line. */
#ifndef HSM_TEST_HARNESS_H
#define HSM_TEST_HARNESS_H

#include <dirent.h>
#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <hsmcore/hsmcore.h>

#define MILLISECOND UINT64_C(1000000)
#define SECOND UINT64_C(1000000000)
/* Longer than anything here takes on a loaded machine: what has not happened by then never will. */
#define PATIENCE (60 * SECOND)
#define COUNT_OF(array) (sizeof(array) / sizeof((array)[0]))

struct test {
    const char *name;
    void (*run)(void);
};
#define TEST(function) {#function, function}

static _Atomic unsigned harness_failures;

__attribute__((format(printf, 3, 4))) static inline void harness_fail(const char *file, int line, const char *format,
                                                                      ...) {
    /* A loop of a million checks may fail a million times; the first few say it all. */
    if (atomic_fetch_add(&harness_failures, 1) >= 20) {
        return;
    }
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    printf("# %s:%d: %s\n", file, line, text);
    (void)fflush(stdout);
}

#define FAIL(...) harness_fail(__FILE__, __LINE__, __VA_ARGS__)

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            FAIL("%s", #condition);                                                                                    \
        }                                                                                                              \
    } while (0)

#define REQUIRE(condition)                                                                                             \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            FAIL("%s", #condition);                                                                                    \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

#define CHECK_INT(actual, relation, expected)                                                                          \
    do {                                                                                                               \
        long long actual_ = (long long)(actual);                                                                       \
        long long expected_ = (long long)(expected);                                                                   \
        if (!(actual_ relation expected_)) {                                                                           \
            FAIL("%s is %lld, which is not %s %lld (%s)", #actual, actual_, #relation, expected_, #expected);          \
        }                                                                                                              \
    } while (0)

#define CHECK_STATUS(actual, expected)                                                                                 \
    do {                                                                                                               \
        hsm_status actual_ = (actual);                                                                                 \
        hsm_status expected_ = (expected);                                                                             \
        if (actual_ != expected_) {                                                                                    \
            FAIL("%s is %s, not %s", #actual, hsm_status_name(actual_), hsm_status_name(expected_));                   \
        }                                                                                                              \
    } while (0)

/* For a call that fills `error`. */
#define REQUIRE_OK(attempt, failure)                                                                                   \
    do {                                                                                                               \
        hsm_status status_ = (attempt);                                                                                \
        if (status_ != HSM_OK) {                                                                                       \
            FAIL("%s is %s: %s %s (0x%llx)", #attempt, hsm_status_name(status_), (failure).call, (failure).detail,     \
                 (unsigned long long)(failure).ckr);                                                                   \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

#define CHECK_TEXT(actual, expected)                                                                                   \
    do {                                                                                                               \
        const char *actual_ = (actual);                                                                                \
        const char *expected_ = (expected);                                                                            \
        if (actual_ == NULL || strcmp(actual_, expected_) != 0) {                                                      \
            FAIL("%s is '%s', not '%s'", #actual, actual_ != NULL ? actual_ : "(null)", expected_);                    \
        }                                                                                                              \
    } while (0)

#define CHECK_BYTES(actual, expected, size)                                                                            \
    do {                                                                                                               \
        if (memcmp((actual), (expected), (size)) != 0) {                                                               \
            FAIL("%s is not %s (%zu bytes)", #actual, #expected, (size_t)(size));                                      \
        }                                                                                                              \
    } while (0)

/* ---- nothing may be left behind ---- */

static inline unsigned harness_descriptors(void) {
    DIR *folder = opendir("/proc/self/fd");
    unsigned count = 0;
    while (folder != NULL && readdir(folder) != NULL) {
        count++;
    }
    (void)closedir(folder);
    return count;
}

/* Against what there was before the test, so that one leak is not held against every test after it. */
static inline void harness_check_leaks(const hsm_leaks *before, unsigned descriptors) {
    hsm_leaks leaks;
    hsm_leaks_read(&leaks);
    CHECK_INT(leaks.allocations, ==, before->allocations);
    CHECK_INT(leaks.threads, ==, before->threads);
    CHECK_INT(leaks.sessions, ==, before->sessions);
    CHECK_INT(leaks.descriptors, ==, before->descriptors);
    CHECK_INT(harness_descriptors(), ==, descriptors);
}

static inline bool harness_wanted(const char *name, int argc, char *const *argv) {
    bool wanted = argc <= 1;
    for (int i = 1; i < argc; i++) {
        wanted = wanted || strcmp(argv[i], name) == 0;
    }
    return wanted;
}

static inline int harness_run(const struct test *tests, size_t count, int argc, char *const *argv) {
    unsigned failed = 0;
    for (size_t i = 0; i < count; i++) {
        if (!harness_wanted(tests[i].name, argc, argv)) {
            continue;
        }
        atomic_store(&harness_failures, 0);
        hsm_leaks before;
        hsm_leaks_read(&before);
        unsigned descriptors = harness_descriptors();
        uint64_t begun = hsm_now_ns();
        tests[i].run();
        uint64_t ended = hsm_now_ns();
        harness_check_leaks(&before, descriptors);
        unsigned failures = atomic_load(&harness_failures);
        failed += failures > 0 ? 1U : 0U;
        printf("%s %zu - %s (%llu ms)\n", failures > 0 ? "not ok" : "ok", i + 1, tests[i].name,
               (unsigned long long)((ended - begun) / MILLISECOND));
        (void)fflush(stdout);
    }
    return failed > 0 ? 1 : 0;
}

#define HARNESS_MAIN(tests)                                                                                            \
    int main(int argc, char **argv) {                                                                                  \
        return harness_run(tests, COUNT_OF(tests), argc, argv);                                                        \
    }

/* ---- waiting without sleeping ---- */

/* Whether `fd` becomes readable within `milliseconds`. */
static inline bool readable(int fd, int milliseconds) {
    struct pollfd what = {.fd = fd, .events = POLLIN};
    return poll(&what, 1, milliseconds) == 1;
}

/* Take the next completion, waiting for the client's wake-up as an event loop does. Ends the program if none comes. */
static inline void await_completion(hsm_client *client, hsm_completion *completion) {
    int fds[2];
    hsm_client_wake_fds(client, &fds[0], &fds[1]);
    while (!hsm_client_next(client, completion)) {
        struct pollfd what[2] = {{.fd = fds[0], .events = POLLIN}, {.fd = fds[1], .events = POLLIN}};
        int ready = poll(what, 2, (int)(PATIENCE / MILLISECOND));
        if (ready == 0) {
            FAIL("no completion came");
            exit(1);
        }
        hsm_client_wake_clear(client);
    }
}

/* True as long as it makes sense to go on waiting for what another thread does. */
static inline bool patient(uint64_t since) {
    return hsm_now_ns() - since < PATIENCE;
}

#endif
