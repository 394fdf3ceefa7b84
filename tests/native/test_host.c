/* The client's side of a host process that does not do what it should: it cannot be started, does not end, reads
 * nothing. The module does nothing. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine_fixture.h"
#include "process.h"
#include "wire.h"

/* In place of libc's, for this program: a duplicate that cannot be made, a pidfd that cannot, and a process that waits
 * in the kernel and is not ended by SIGKILL. */
static _Atomic int duplicates_left = INT32_MAX;
static _Atomic bool no_pidfd;
static _Atomic bool immortal;
static _Atomic unsigned kills;

int fcntl(int fd, int command, ...) {
    va_list arguments;
    va_start(arguments, command);
    long argument = va_arg(arguments, long);
    va_end(arguments);
    if (command == F_DUPFD_CLOEXEC && atomic_fetch_sub(&duplicates_left, 1) <= 0) {
        errno = EMFILE;
        return -1;
    }
    return (int)syscall(SYS_fcntl, fd, command, argument);
}

int hsm_pidfd_open(pid_t pid) {
    if (atomic_load(&no_pidfd)) {
        errno = EMFILE;
        return -1;
    }
    return (int)syscall(SYS_pidfd_open, pid, 0);
}

int hsm_pidfd_signal(int pidfd, int number) {
    atomic_fetch_add(&kills, 1);
    return atomic_load(&immortal) ? 0 : (int)syscall(SYS_pidfd_send_signal, pidfd, number, NULL, 0);
}

static hsm_status start(hsm_client *client, hsm_host **host, hsm_error *error) {
    static const char *const environment[] = {NULL};
    hsm_host_options options = {
        .engine = noop_options(2), .program = HSMC_HOST, .environment = environment, .timeout_ns = 30 * SECOND};
    return start_host(client, &options, host, error);
}

static hsm_host *started(hsm_client *client) {
    hsm_host *host = NULL;
    hsm_error error = {.status = HSM_OK};
    REQUIRE_OK(start(client, &host, &error), error);
    return host;
}

/* It really ends now. */
static void reap(pid_t pid) {
    atomic_store(&immortal, false);
    CHECK_INT(kill(pid, SIGKILL), ==, 0);
    CHECK_INT(waitpid(pid, NULL, 0), ==, pid);
}

static void it_says_what_it_gave_up(void) {
    hsm_client *client = new_client(&small_client);
    hsm_host *host = started(client);
    int32_t abi = -1;
    uint32_t done = hsm_host_hardening(host, &abi);
    uint32_t always = HSM_NO_CORE_DUMPS | HSM_NOT_DUMPABLE | HSM_NO_NEW_PRIVILEGES;
    CHECK_INT(done & always, ==, always);
    CHECK_INT((done & HSM_LANDLOCK) != 0, ==, abi > 0);
    hsm_host_stop(host, PATIENCE);
    hsm_client_free(client);
}

static void it_is_not_started_without_one_of_its_descriptors(void) {
    hsm_client *client = new_client(&small_client);
    for (int missing = 0; missing < HSM_FD_END - HSM_FD_CONTROL + 1; missing++) {
        bool all = missing == HSM_FD_END - HSM_FD_CONTROL;
        hsm_host *host = NULL;
        hsm_error error = {.status = HSM_OK};
        atomic_store(&duplicates_left, all ? INT32_MAX : missing);
        atomic_store(&no_pidfd, all);
        CHECK_STATUS(start(client, &host, &error), HSM_SYSTEM);
        atomic_store(&duplicates_left, INT32_MAX);
        atomic_store(&no_pidfd, false);
        CHECK_INT(waitpid(-1, NULL, WNOHANG), ==, -1); /* nothing is left */
        if (host != NULL) {
            hsm_host_stop(host, PATIENCE);
        }
    }
    hsm_client_free(client);
}

static void *restart(void *argument) {
    hsm_error error = {.status = HSM_OK};
    CHECK_STATUS(hsm_host_restart(argument, &error), HSM_HOST_LOST);
    return NULL;
}

static void one_that_does_not_end_keeps_no_thread(void) {
    hsm_client *client = new_client(&small_client);
    hsm_host *host = started(client);
    pid_t pid = (pid_t)hsm_host_pid(host);
    atomic_store(&kills, 0);
    atomic_store(&immortal, true);
    CHECK_INT(kill(pid, SIGSTOP), ==, 0);
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, restart, host) == 0);
    for (uint64_t since = hsm_now_ns(); atomic_load(&kills) == 0 && patient(since);) {
        hsm_sleep(MILLISECOND);
    }
    hsm_host_kill(host); /* the event loop calls this: it must not wait for the other thread */
    REQUIRE(pthread_join(thread, NULL) == 0);
    CHECK_INT(hsm_host_pid(host), ==, pid);
    hsm_host_stop(host, 10 * MILLISECOND);
    hsm_client_free(client);
    reap(pid);
}

static void one_that_reads_nothing_is_stopped_in_time(void) {
    hsm_client *client = new_client(&small_client);
    hsm_host *host = started(client);
    uint32_t healthy;
    CHECK_INT(kill((pid_t)hsm_host_pid(host), SIGSTOP), ==, 0);
    atomic_store(&hsm_area_worker(client->area, 0)->quarantined, 1); /* there is something to say each time */
    for (int i = 0; i < 1000; i++) {
        CHECK_INT(hsm_host_supervise(host, &healthy), >=, 1);
    }
    hsm_host_stop(host, 10 * MILLISECOND);
    hsm_client_free(client);
}

static const struct test tests[] = {
    TEST(it_says_what_it_gave_up),
    TEST(it_is_not_started_without_one_of_its_descriptors),
    TEST(one_that_does_not_end_keeps_no_thread),
    TEST(one_that_reads_nothing_is_stopped_in_time),
};
HARNESS_MAIN(tests)
