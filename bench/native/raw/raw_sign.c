/* hsmcore-rawsign: the reference for every other rate.
 *
 * A plain PKCS#11 signing loop: one session per thread, C_SignInit and C_Sign into a buffer of the right size, on one
 * message, as fast as the module allows. It does not link the engine. It stays alive between measurements and is driven
 * over its standard input, so that a benchmark can run it in turn with other programs:
 *
 *   stdin   run SECONDS | quit
 *   stdout  one JSON object a line: first {"ready": true, ...}, then one for each run
 *
 * With --rate requests come at random, so many a second, whether or not earlier ones are answered: the next one goes to
 * the thread that is free first, and its latency counts from when it was due.
 *
 * The message is the bytes 0, 1, 2, ... modulo 256. Exit code: 0, 1 (a call failed; standard error says which), 2
 * (bad usage). It ends when its input closes or its parent dies.
 */
#define CRYPTOKI_COMPAT
#include <p11-kit/pkcs11.h>

#include <dlfcn.h>
#include <getopt.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "arrivals.h"

#define SIGNATURE_BYTES 64
#define DIGEST_BYTES 32
#define MAX_THREADS 1024
#define MAX_MESSAGE (1 << 20)
#define NS_PER_S 1000000000.0

/* Log-linear: 128 steps per octave, relative error below 0.8 %, 0 ns .. 2^41 ns. */
#define STEP_BITS 7
#define BUCKETS ((42 - STEP_BITS) << STEP_BITS)

struct algorithm {
    const char *name;
    CK_MECHANISM_TYPE mechanism;
    int digest; /* 1: SHA-256 first, C_Sign gets the digest */
};

static const struct algorithm algorithms[] = {
    {"ed25519", CKM_EDDSA, 0},
    {"ecdsa-p256", CKM_ECDSA, 1},
    {"ecdsa-secp256k1", CKM_ECDSA, 1},
};

struct options {
    const char *module, *token, *label, *pin_env;
    const struct algorithm *algorithm;
    unsigned threads;
    size_t message_bytes;
    double rate; /* 0: each thread as fast as it can */
    int rw;
};

/* What the threads share; written by the main thread before the start barrier only. */
static CK_FUNCTION_LIST_PTR p11;
static const struct algorithm *algorithm;
static CK_OBJECT_HANDLE key;
static unsigned char *message;
static size_t message_len;
static EVP_MD *sha256;
static pthread_barrier_t start_line, finish_line;
static double run_seconds;
static int quitting;
static double rate;

/* Each thread's own; aligned so that no two threads write to one cache line. */
struct signer {
    _Alignas(128) pthread_t thread;
    CK_SESSION_HANDLE session;
    EVP_MD_CTX *digest_ctx;
    uint64_t began, ended, signatures;
    uint64_t busy; /* the sum of the latencies */
    CK_RV rv;
    const char *call;
    unsigned char signature[SIGNATURE_BYTES];
    uint64_t histogram[BUCKETS];
};

static void check(const char *call, CK_RV rv) {
    if (rv == CKR_OK)
        return;
    fprintf(stderr, "hsmcore-rawsign: %s: CKR 0x%lX\n", call, rv);
    exit(1);
}

static void fail(const char *what) {
    fprintf(stderr, "hsmcore-rawsign: %s\n", what);
    exit(1);
}

static void *allocate(size_t size) {
    void *memory = aligned_alloc(128, (size + 127) & ~(size_t)127);
    if (memory == NULL)
        fail("out of memory");
    memset(memory, 0, size);
    return memory;
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- histogram ---- */

static size_t bucket_of(uint64_t ns) {
    if (ns >> (STEP_BITS + 1) == 0)
        return (size_t)ns;
    unsigned shift = 63u - (unsigned)__builtin_clzll(ns) - STEP_BITS;
    size_t bucket = ((size_t)shift << STEP_BITS) + (size_t)(ns >> shift);
    return bucket < BUCKETS ? bucket : BUCKETS - 1;
}

static double bucket_lower(size_t bucket) {
    if (bucket < ((size_t)2 << STEP_BITS))
        return (double)bucket;
    size_t shift = (bucket >> STEP_BITS) - 1;
    return (double)((uint64_t)(bucket - (shift << STEP_BITS)) << shift);
}

/* The value below which `share` of all lie, placed inside its bucket in proportion to its rank. */
static double percentile(const uint64_t *histogram, uint64_t total, double share) {
    double rank = share * (double)total, before = 0.0;
    for (size_t i = 0; i < BUCKETS; i++) {
        double here = (double)histogram[i];
        if (here > 0.0 && before + here >= rank) {
            double low = bucket_lower(i);
            return low + (bucket_lower(i + 1) - low) * (rank - before) / here;
        }
        before += here;
    }
    return 0.0;
}

/* ---- the loop that is measured ---- */

static int sign_once(struct signer *s) {
    CK_MECHANISM mechanism = {algorithm->mechanism, NULL, 0};
    unsigned char digest[DIGEST_BYTES];
    unsigned char *input = message;
    size_t input_len = message_len;
    CK_ULONG signature_len = sizeof s->signature;

    if (algorithm->digest) {
        if (!EVP_DigestInit_ex2(s->digest_ctx, sha256, NULL) ||
            !EVP_DigestUpdate(s->digest_ctx, message, message_len) ||
            !EVP_DigestFinal_ex(s->digest_ctx, digest, NULL)) {
            s->call = "EVP_Digest";
            s->rv = CKR_FUNCTION_FAILED;
            return 0;
        }
        input = digest;
        input_len = sizeof digest;
    }
    s->call = "C_SignInit";
    s->rv = p11->C_SignInit(s->session, &mechanism, key);
    if (s->rv != CKR_OK)
        return 0;
    s->call = "C_Sign";
    s->rv = p11->C_Sign(s->session, input, (CK_ULONG)input_len, s->signature, &signature_len);
    if (s->rv == CKR_OK && signature_len != SIGNATURE_BYTES)
        s->rv = CKR_SIGNATURE_LEN_RANGE;
    return s->rv == CKR_OK;
}

static void *signer_main(void *argument) {
    struct signer *s = argument;
    for (;;) {
        pthread_barrier_wait(&start_line);
        if (quitting)
            return NULL;
        s->began = s->ended = now_ns();
        uint64_t deadline = s->began + (uint64_t)(run_seconds * NS_PER_S);
        uint64_t due = s->ended;
        while (rate > 0.0 || s->ended < deadline) {
            if (rate > 0.0) { /* what was due in time is signed, however late */
                due = arrivals_take();
                if (due >= deadline)
                    break;
                arrivals_await(due);
            }
            if (!sign_once(s))
                break;
            uint64_t t = now_ns(); /* without a rate the end of one call is the start of the next */
            s->histogram[bucket_of(t - due)]++;
            s->signatures++;
            s->busy += t - due;
            s->ended = due = t;
        }
        pthread_barrier_wait(&finish_line);
    }
}

/* ---- setting up and taking down ---- */

static void load_module(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        fail(dlerror());
    CK_C_GetFunctionList get_list;
    void *symbol = dlsym(library, "C_GetFunctionList");
    if (symbol == NULL)
        fail("the module has no C_GetFunctionList");
    memcpy(&get_list, &symbol, sizeof get_list); /* ISO C has no cast from object to function pointer */
    check("C_GetFunctionList", get_list(&p11));
    CK_C_INITIALIZE_ARGS args = {.flags = CKF_OS_LOCKING_OK};
    check("C_Initialize", p11->C_Initialize(&args));
}

static CK_SLOT_ID find_token(const char *label) {
    CK_ULONG count = 0;
    check("C_GetSlotList", p11->C_GetSlotList(CK_TRUE, NULL, &count));
    CK_SLOT_ID *slots = allocate((count + 1) * sizeof *slots);
    check("C_GetSlotList", p11->C_GetSlotList(CK_TRUE, slots, &count));
    unsigned char padded[32];
    memset(padded, ' ', sizeof padded);
    if (strlen(label) > sizeof padded)
        fail("a token label has 32 bytes at most");
    memcpy(padded, label, strlen(label));
    CK_ULONG i = 0;
    CK_TOKEN_INFO info;
    while (i < count &&
           (p11->C_GetTokenInfo(slots[i], &info) != CKR_OK || memcmp(info.label, padded, sizeof padded) != 0))
        i++;
    if (i == count)
        fail("no token with this label");
    CK_SLOT_ID slot = slots[i];
    free(slots);
    return slot;
}

static void log_in(CK_SESSION_HANDLE session, const char *pin_env) {
    char *pin = getenv(pin_env);
    if (pin == NULL)
        fail("the environment variable that --pin-env names is not set");
    CK_RV rv = p11->C_Login(session, CKU_USER, (CK_UTF8CHAR_PTR)pin, (CK_ULONG)strlen(pin));
    explicit_bzero(pin, strlen(pin));
    check("C_Login", rv);
}

static CK_OBJECT_HANDLE find_key(CK_SESSION_HANDLE session, const char *label) {
    CK_OBJECT_CLASS class = CKO_PRIVATE_KEY;
    CK_ATTRIBUTE template[] = {
        {CKA_CLASS, &class, sizeof class},
        {CKA_LABEL, (void *)(uintptr_t)label, (CK_ULONG)strlen(label)},
    };
    CK_OBJECT_HANDLE found[2];
    CK_ULONG count = 0;
    check("C_FindObjectsInit", p11->C_FindObjectsInit(session, template, 2));
    check("C_FindObjects", p11->C_FindObjects(session, found, 2, &count));
    check("C_FindObjectsFinal", p11->C_FindObjectsFinal(session));
    if (count != 1)
        fail(count == 0 ? "no private key with this label" : "several private keys with this label");
    return found[0];
}

static void start_signers(struct signer *signers, const struct options *o) {
    CK_SLOT_ID slot = find_token(o->token);
    CK_FLAGS flags = CKF_SERIAL_SESSION | (o->rw ? CKF_RW_SESSION : 0u);
    for (unsigned i = 0; i < o->threads; i++) {
        check("C_OpenSession", p11->C_OpenSession(slot, flags, NULL, NULL, &signers[i].session));
        signers[i].digest_ctx = EVP_MD_CTX_new();
        if (signers[i].digest_ctx == NULL)
            fail("out of memory");
    }
    log_in(signers[0].session, o->pin_env);
    key = find_key(signers[0].session, o->label);
    sign_once(&signers[0]);
    check(signers[0].call, signers[0].rv);
    unsigned parties = o->threads + 1;
    if (pthread_barrier_init(&start_line, NULL, parties) || pthread_barrier_init(&finish_line, NULL, parties))
        fail("pthread_barrier_init");
    for (unsigned i = 0; i < o->threads; i++)
        if (pthread_create(&signers[i].thread, NULL, signer_main, &signers[i]))
            fail("pthread_create");
}

static void stop_signers(struct signer *signers, unsigned threads) {
    quitting = 1;
    pthread_barrier_wait(&start_line);
    for (unsigned i = 0; i < threads; i++) {
        pthread_join(signers[i].thread, NULL);
        EVP_MD_CTX_free(signers[i].digest_ctx);
    }
    check("C_Finalize", p11->C_Finalize(NULL)); /* closes the sessions and logs out; the library stays mapped */
}

/* ---- one command ---- */

static void run_once(struct signer *signers, unsigned threads, double seconds) {
    for (unsigned i = 0; i < threads; i++) {
        memset(signers[i].histogram, 0, sizeof signers[i].histogram);
        signers[i].signatures = signers[i].busy = 0;
    }
    run_seconds = seconds;
    if (rate > 0.0)
        arrivals_begin(rate, now_ns());
    pthread_barrier_wait(&start_line);
    pthread_barrier_wait(&finish_line);

    static uint64_t histogram[BUCKETS + 1];
    memset(histogram, 0, sizeof histogram);
    uint64_t total = 0, first = UINT64_MAX, last = 0;
    double busy = 0.0;
    for (unsigned i = 0; i < threads; i++) {
        const struct signer *s = &signers[i];
        check(s->call, s->rv);
        for (size_t b = 0; b < BUCKETS; b++)
            histogram[b] += s->histogram[b];
        total += s->signatures;
        busy += (double)s->busy;
        first = s->began < first ? s->began : first;
        last = s->ended > last ? s->ended : last;
    }
    printf("{\"signatures\": %llu, \"seconds\": %.9f, \"latency_ns\": {\"p50\": %.0f, \"p99\": %.0f, \"p999\": %.0f, "
           "\"mean\": %.1f}}\n",
           (unsigned long long)total, (double)(last - first) / NS_PER_S, percentile(histogram, total, 0.5),
           percentile(histogram, total, 0.99), percentile(histogram, total, 0.999), total ? busy / (double)total : 0.0);
    fflush(stdout);
}

static unsigned long number(const char *text, unsigned long low, unsigned long high) {
    char *end;
    unsigned long value = strtoul(text, &end, 10);
    if (*text == '\0' || *text == '-' || *end != '\0' || value < low || value > high) {
        fprintf(stderr, "hsmcore-rawsign: %s is not a number from %lu to %lu\n", text, low, high);
        exit(2);
    }
    return value;
}

static void usage(void) {
    fputs("usage: hsmcore-rawsign --module PATH --token LABEL --label KEY [--pin-env NAME] [--threads N]\n"
          "         [--message-bytes N] [--algorithm ed25519|ecdsa-p256|ecdsa-secp256k1] [--rate PER_SECOND] [--rw]\n"
          "then on standard input: run SECONDS | quit\n",
          stderr);
    exit(2);
}

static struct options parse(int argc, char **argv) {
    enum { MODULE, TOKEN, LABEL, PIN_ENV, THREADS, MESSAGE_BYTES, ALGORITHM, RATE, RW };
    static const struct option names[] = {
        {"module", required_argument, NULL, MODULE},
        {"token", required_argument, NULL, TOKEN},
        {"label", required_argument, NULL, LABEL},
        {"pin-env", required_argument, NULL, PIN_ENV},
        {"threads", required_argument, NULL, THREADS},
        {"message-bytes", required_argument, NULL, MESSAGE_BYTES},
        {"algorithm", required_argument, NULL, ALGORITHM},
        {"rate", required_argument, NULL, RATE},
        {"rw", no_argument, NULL, RW},
        {NULL, 0, NULL, 0},
    };
    const char *text[] = {[PIN_ENV] = "HSM_PIN", [MESSAGE_BYTES] = "200", [ALGORITHM] = "ed25519", [RW] = NULL};
    int c;
    while ((c = getopt_long(argc, argv, "", names, NULL)) != -1) {
        if (c == '?')
            usage();
        text[c] = c == RW ? "yes" : optarg;
    }
    struct options o = {text[MODULE], text[TOKEN], text[LABEL], text[PIN_ENV], NULL, 0, 0, 0.0, text[RW] != NULL};
    for (size_t i = 0; i < sizeof algorithms / sizeof algorithms[0]; i++)
        if (strcmp(algorithms[i].name, text[ALGORITHM]) == 0)
            o.algorithm = &algorithms[i];
    if (!o.module || !o.token || !o.label || !o.algorithm || optind != argc)
        usage();
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    o.threads = text[THREADS] ? (unsigned)number(text[THREADS], 1, MAX_THREADS) : (unsigned)cores;
    o.message_bytes = number(text[MESSAGE_BYTES], 1, MAX_MESSAGE);
    if (text[RATE] != NULL) {
        char *end;
        o.rate = strtod(text[RATE], &end);
        if (*end != '\0' || !(o.rate >= 1.0 && o.rate <= 1e6)) {
            fprintf(stderr, "hsmcore-rawsign: %s is not a number from 1 to 1,000,000\n", text[RATE]);
            exit(2);
        }
    }
    return o;
}

/* A blank-padded field of the module, without what JSON would have to escape. */
static void print_field(const CK_UTF8CHAR *field, size_t size) {
    while (size > 0 && field[size - 1] == ' ')
        size--;
    for (size_t i = 0; i < size; i++)
        putchar(field[i] < ' ' || field[i] > '~' || field[i] == '"' || field[i] == '\\' ? '?' : field[i]);
}

static void print_module(void) {
    CK_INFO info;
    memset(&info, 0, sizeof info);
    check("C_GetInfo", p11->C_GetInfo(&info));
    print_field(info.manufacturerID, sizeof info.manufacturerID);
    fputs(": ", stdout);
    print_field(info.libraryDescription, sizeof info.libraryDescription);
    printf(" %u.%u", info.libraryVersion.major, info.libraryVersion.minor);
}

int main(int argc, char **argv) {
    pid_t parent = getppid();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        return 1;
    struct options o = parse(argc, argv);
    algorithm = o.algorithm;
    rate = o.rate;
    message_len = o.message_bytes;
    message = allocate(message_len);
    for (size_t i = 0; i < message_len; i++)
        message[i] = (unsigned char)i;
    sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
    if (sha256 == NULL)
        fail("libcrypto has no SHA-256");
    load_module(o.module);
    struct signer *signers = allocate(o.threads * sizeof *signers);
    start_signers(signers, &o);
    fputs("{\"ready\": true, \"module\": \"", stdout);
    print_module();
    fputs("\", \"signature\": \"", stdout);
    for (size_t i = 0; i < SIGNATURE_BYTES; i++)
        printf("%02x", signers[0].signature[i]);
    puts("\"}");
    fflush(stdout);

    char line[64];
    double seconds;
    while (fgets(line, sizeof line, stdin) != NULL && strcmp(line, "quit\n") != 0) {
        if (sscanf(line, "run %lf", &seconds) != 1 || !(seconds > 0.0) || seconds > 3600.0)
            fail("expected: run SECONDS (at most 3600) or quit");
        run_once(signers, o.threads, seconds);
    }
    stop_signers(signers, o.threads);
    free(signers);
    free(message);
    EVP_MD_free(sha256);
    return 0;
}
