/* hsmcore-cachebench: the cost of one hit in the signature cache, without Python around it.
 *
 * Driven like hsmcore-rawsign: `run SECONDS` or `quit` on standard input, one JSON object a line on standard output. A
 * latency is the mean of one pass over all messages: a clock reading for each lookup would cost a good part of it. */
#include <hsmcore/hsmcore.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#define MESSAGES 512
#define KEY 0
#define NS_PER_S 1000000000.0

static void fail(const char *what) {
    fprintf(stderr, "hsmcore-cachebench: %s\n", what);
    exit(1);
}

static void fill(hsm_cache *cache, unsigned char *messages, size_t size) {
    unsigned char signature[HSM_MAX_SIGNATURE];
    memset(signature, 0x5A, sizeof signature);
    for (size_t i = 0; i < MESSAGES; i++) {
        unsigned char *message = messages + i * size;
        for (size_t b = 0; b < size; b++)
            message[b] = (unsigned char)b;
        memcpy(message, &i, sizeof i < size ? sizeof i : size);
        uint32_t length;
        uint64_t leader, entry;
        if (hsm_cache_lookup(cache, KEY, HSM_ED25519, message, size, signature, &length, &leader, &entry) !=
            HSM_CACHE_MISS)
            fail("a new message was found in the cache");
        hsm_cache_fill(cache, entry, signature, sizeof signature, 1);
    }
}

static void pass(hsm_cache *cache, const unsigned char *messages, size_t size) {
    for (size_t i = 0; i < MESSAGES; i++) {
        unsigned char signature[HSM_MAX_SIGNATURE];
        uint32_t length;
        uint64_t leader, entry;
        if (hsm_cache_lookup(cache, KEY, HSM_ED25519, messages + i * size, size, signature, &length, &leader, &entry) !=
            HSM_CACHE_HIT)
            fail("a message was not found in the cache");
    }
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void run_once(hsm_cache *cache, const unsigned char *messages, size_t size, double seconds) {
    static double mean_ns[1 << 20];
    const size_t room = sizeof mean_ns / sizeof mean_ns[0];
    size_t passes = 0;
    uint64_t began = hsm_now_ns(), last = began, deadline = began + (uint64_t)(seconds * NS_PER_S);
    while (last < deadline && passes < room) {
        pass(cache, messages, size);
        uint64_t now = hsm_now_ns();
        mean_ns[passes++] = (double)(now - last) / MESSAGES;
        last = now;
    }
    double elapsed = (double)(last - began);
    qsort(mean_ns, passes, sizeof mean_ns[0], ascending);
    printf("{\"signatures\": %zu, \"seconds\": %.9f, \"latency_ns\": {\"p50\": %.1f, \"p99\": %.1f, \"p999\": %.1f, "
           "\"mean\": %.1f}}\n",
           passes * MESSAGES, elapsed / NS_PER_S, mean_ns[passes / 2], mean_ns[passes * 99 / 100],
           mean_ns[passes * 999 / 1000], elapsed / (double)(passes * MESSAGES));
    fflush(stdout);
}

int main(int argc, char **argv) {
    pid_t parent = getppid();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        return 1;
    long size = 200;
    if (argc == 3 && strcmp(argv[1], "--message-bytes") == 0)
        size = strtol(argv[2], NULL, 10);
    if ((argc != 1 && argc != 3) || size < 2 || size > HSM_MAX_MESSAGE) {
        fputs("usage: hsmcore-cachebench [--message-bytes N]\nthen on standard input: run SECONDS | quit\n", stderr);
        return 2;
    }
    hsm_cache *cache = NULL;
    unsigned char *messages = malloc(MESSAGES * (size_t)size);
    if (messages == NULL || hsm_cache_new(MESSAGES, &cache) != HSM_OK)
        fail("out of memory");
    fill(cache, messages, (size_t)size);
    puts("{\"ready\": true}");
    fflush(stdout);

    char line[64];
    double seconds;
    while (fgets(line, sizeof line, stdin) != NULL && strcmp(line, "quit\n") != 0) {
        if (sscanf(line, "run %lf", &seconds) != 1 || !(seconds > 0.0) || seconds > 60.0)
            fail("expected: run SECONDS (at most 60) or quit");
        run_once(cache, messages, (size_t)size, seconds);
    }
    hsm_cache_free(cache);
    free(messages);
    return 0;
}
