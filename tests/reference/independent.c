/* A second signing loop, to hold the first one (bench/native/raw/raw_sign.c) against. It shares nothing with it but
 * the standard's header: no histogram, no clock reading per signature, no hashing. Each thread opens a session,
 * finds the key and signs one 32-byte digest with CKM_ECDSA, as load generators for PKCS#11 do.
 *
 * independent MODULE TOKEN LABEL THREADS      the PIN in HSM_PIN stdin   run SECONDS stdout  {"ready": true}, then
 * for each run {"signatures": N, "seconds": S}
 *
 * After each run the last signature of every thread is verified with the token's public key. */
#define CRYPTOKI_COMPAT
#include <p11-kit/pkcs11.h>

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

enum { DIGEST = 32, SIGNATURE = 64, STRIDE = 8, MOST = 256 };

struct thread {
    _Alignas(64) pthread_t handle;
    CK_SESSION_HANDLE session;
    CK_OBJECT_HANDLE private_key, public_key;
    unsigned long signatures;
    unsigned char last[SIGNATURE];
};

static CK_FUNCTION_LIST *f;
static struct thread threads[MOST];
static unsigned char digest[DIGEST];
static CK_MECHANISM ecdsa = {CKM_ECDSA, NULL, 0};
static atomic_int running;

static void must(CK_RV rv, const char *what) {
    if (rv != CKR_OK) {
        fprintf(stderr, "independent: %s: CKR 0x%lX\n", what, rv);
        exit(1);
    }
}

static CK_OBJECT_HANDLE find(CK_SESSION_HANDLE session, CK_OBJECT_CLASS class, char *label) {
    CK_ATTRIBUTE wanted[] = {{CKA_CLASS, &class, sizeof class}, {CKA_LABEL, label, strlen(label)}};
    CK_OBJECT_HANDLE found = 0;
    CK_ULONG count = 0;
    must(f->C_FindObjectsInit(session, wanted, 2), "C_FindObjectsInit");
    must(f->C_FindObjects(session, &found, 1, &count), "C_FindObjects");
    must(f->C_FindObjectsFinal(session), "C_FindObjectsFinal");
    must(count == 1 ? CKR_OK : CKR_OBJECT_HANDLE_INVALID, label);
    return found;
}

static CK_SLOT_ID slot_of(const char *label) {
    CK_SLOT_ID slots[MOST];
    CK_ULONG count = MOST;
    must(f->C_GetSlotList(CK_TRUE, slots, &count), "C_GetSlotList");
    for (CK_ULONG i = 0; i < count; i++) {
        CK_TOKEN_INFO info;
        if (f->C_GetTokenInfo(slots[i], &info) == CKR_OK && memcmp(info.label, label, strlen(label)) == 0)
            return slots[i];
    }
    must(CKR_TOKEN_NOT_PRESENT, label);
    return 0;
}

static void *sign(void *argument) {
    struct thread *t = argument;
    t->signatures = 0;
    while (atomic_load_explicit(&running, memory_order_relaxed)) {
        for (int i = 0; i < STRIDE; i++) {
            CK_ULONG size = sizeof t->last;
            must(f->C_SignInit(t->session, &ecdsa, t->private_key), "C_SignInit");
            must(f->C_Sign(t->session, digest, sizeof digest, t->last, &size), "C_Sign");
        }
        t->signatures += STRIDE;
    }
    return NULL;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void run(int count, double seconds) {
    struct timespec pause = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    unsigned long total = 0;
    atomic_store(&running, 1);
    double begun = now();
    for (int i = 0; i < count; i++)
        pthread_create(&threads[i].handle, NULL, sign, &threads[i]);
    nanosleep(&pause, NULL);
    atomic_store(&running, 0);
    for (int i = 0; i < count; i++) {
        pthread_join(threads[i].handle, NULL);
        total += threads[i].signatures;
    }
    double took = now() - begun;
    for (int i = 0; i < count; i++) {
        must(f->C_VerifyInit(threads[i].session, &ecdsa, threads[i].public_key), "C_VerifyInit");
        must(f->C_Verify(threads[i].session, digest, sizeof digest, threads[i].last, SIGNATURE), "C_Verify");
    }
    printf("{\"signatures\": %lu, \"seconds\": %.9f}\n", total, took);
    fflush(stdout);
}

int main(int argc, char **argv) {
    int count = argc == 5 ? atoi(argv[4]) : 0;
    char *pin = getenv("HSM_PIN"), line[64];
    if (count < 1 || count > MOST || pin == NULL)
        return 2;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    void *library = dlopen(argv[1], RTLD_NOW);
    CK_C_GetFunctionList get = library == NULL ? NULL : (CK_C_GetFunctionList)dlsym(library, "C_GetFunctionList");
    must(get == NULL ? CKR_GENERAL_ERROR : get(&f), argv[1]);
    CK_C_INITIALIZE_ARGS locking = {.flags = CKF_OS_LOCKING_OK};
    must(f->C_Initialize(&locking), "C_Initialize");
    CK_SLOT_ID slot = slot_of(argv[2]);
    memset(digest, 0x5A, sizeof digest);
    for (int i = 0; i < count; i++) {
        struct thread *t = &threads[i];
        must(f->C_OpenSession(slot, CKF_SERIAL_SESSION, NULL, NULL, &t->session), "C_OpenSession");
        if (i == 0)
            must(f->C_Login(t->session, CKU_USER, (CK_UTF8CHAR_PTR)pin, strlen(pin)), "C_Login");
        t->private_key = find(t->session, CKO_PRIVATE_KEY, argv[3]);
        t->public_key = find(t->session, CKO_PUBLIC_KEY, argv[3]);
    }
    puts("{\"ready\": true}");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) != NULL) {
        double seconds;
        if (sscanf(line, "run %lf", &seconds) == 1)
            run(count, seconds);
    }
    must(f->C_Finalize(NULL), "C_Finalize");
    return 0;
}
