/* hsmcore-handover: what it costs at least that two sleeping threads hand something over and back.
 *
 * One sleeps in epoll_wait on an eventfd, as an event loop does, the other on a futex, as a worker without a request
 * does; a round trip wakes each once. Driven like hsmcore-rawsign: `run SECONDS` or `quit` on standard input, one JSON
 * object a line on standard output; a "signature" is a round trip. */
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NS_PER_S 1000000000.0
#define ROOM (1 << 22)

static _Atomic uint32_t token; /* even: with the loop; odd: with the worker */
static atomic_bool quitting;
static int wake_fd, epoll_fd;

static void fail(const char *what) {
    fprintf(stderr, "hsmcore-handover: %s\n", what);
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void *worker_main(void *argument) {
    (void)argument;
    for (uint32_t held = 0;; held += 2) {
        while (atomic_load(&token) == held)
            syscall(SYS_futex, &token, FUTEX_WAIT_PRIVATE, held, NULL, NULL, 0);
        if (atomic_load(&quitting))
            return NULL;
        atomic_store(&token, held + 2);
        if (eventfd_write(wake_fd, 1) != 0)
            fail("eventfd_write");
    }
}

static void hand_to_worker(void) {
    atomic_fetch_add(&token, 1);
    syscall(SYS_futex, &token, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void round_trip(void) {
    struct epoll_event event;
    eventfd_t count;
    hand_to_worker();
    while (epoll_wait(epoll_fd, &event, 1, -1) != 1)
        ;
    if (eventfd_read(wake_fd, &count) != 0)
        fail("eventfd_read");
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void run_once(double *took_ns, double seconds) {
    size_t trips = 0;
    uint64_t began = now_ns(), last = began, deadline = began + (uint64_t)(seconds * NS_PER_S);
    while (last < deadline && trips < ROOM) {
        round_trip();
        uint64_t now = now_ns();
        took_ns[trips++] = (double)(now - last);
        last = now;
    }
    double elapsed = (double)(last - began);
    qsort(took_ns, trips, sizeof took_ns[0], ascending);
    printf("{\"signatures\": %zu, \"seconds\": %.9f, \"latency_ns\": {\"p50\": %.0f, \"p99\": %.0f, \"p999\": %.0f, "
           "\"mean\": %.1f}}\n",
           trips, elapsed / NS_PER_S, took_ns[trips / 2], took_ns[trips * 99 / 100], took_ns[trips * 999 / 1000],
           elapsed / (double)trips);
    fflush(stdout);
}

int main(int argc, char **argv) {
    (void)argv;
    pid_t parent = getppid();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        return 1;
    if (argc != 1) {
        fputs("usage: hsmcore-handover\nthen on standard input: run SECONDS | quit\n", stderr);
        return 2;
    }
    struct epoll_event event = {.events = EPOLLIN};
    pthread_t worker;
    double *took_ns = malloc(ROOM * sizeof *took_ns);
    wake_fd = eventfd(0, EFD_CLOEXEC);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (took_ns == NULL || wake_fd < 0 || epoll_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, wake_fd, &event) != 0 ||
        pthread_create(&worker, NULL, worker_main, NULL) != 0)
        fail("could not start");
    puts("{\"ready\": true}");
    fflush(stdout);

    char line[64];
    double seconds;
    while (fgets(line, sizeof line, stdin) != NULL && strcmp(line, "quit\n") != 0) {
        if (sscanf(line, "run %lf", &seconds) != 1 || !(seconds > 0.0) || seconds > 60.0)
            fail("expected: run SECONDS (at most 60) or quit");
        run_once(took_ns, seconds);
    }
    atomic_store(&quitting, true);
    hand_to_worker();
    pthread_join(worker, NULL);
    free(took_ns);
    return 0;
}
