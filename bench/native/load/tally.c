/* Counting and reporting. Each thread counts under a lock of its own, which only the reporter takes too, once in an
 * interval and for the exchange of two pointers. */
#include "load.h"

#include <stdlib.h>
#include <string.h>

#define SPOOL_BUFFER (1U << 20)

static FILE *spool;
static pthread_mutex_t spool_lock = PTHREAD_MUTEX_INITIALIZER;

uint32_t load_bucket(uint64_t ns) {
    unsigned bits = 64U - (unsigned)__builtin_clzll(ns | 1U);
    unsigned shift = bits > 11U ? bits - 11U : 0U;
    uint64_t bucket = ((uint64_t)shift << 10) + (ns >> shift);
    return bucket < LOAD_BUCKETS ? (uint32_t)bucket : LOAD_BUCKETS - 1U;
}

void load_tally_begin(load_tally *tally) {
    tally->live = load_alloc(sizeof *tally->live);
    tally->spare = load_alloc(sizeof *tally->spare);
    if (pthread_mutex_init(&tally->lock, NULL) != 0) {
        load_fail("pthread_mutex_init");
    }
}

void load_tally_end(load_tally *tally) {
    (void)pthread_mutex_destroy(&tally->lock);
    free(tally->live);
    free(tally->spare);
}

static uint64_t since(uint64_t now, uint64_t then) {
    return now > then ? now - then : 0;
}

void load_tally_started(load_tally *tally, const load_request *request) {
    (void)pthread_mutex_lock(&tally->lock);
    tally->live->started++;
    tally->live->start[load_bucket(since(request->started, request->planned))]++;
    (void)pthread_mutex_unlock(&tally->lock);
}

static void keep(const load_request *request, hsm_status status, const uint8_t *signature) {
    struct {
        uint64_t number;
        uint32_t status;
        uint32_t zero;
        uint8_t signature[HSM_MAX_SIGNATURE];
    } record = {.number = request->number, .status = (uint32_t)status};
    if (status == HSM_OK) {
        memcpy(record.signature, signature, sizeof record.signature);
    }
    (void)pthread_mutex_lock(&spool_lock);
    size_t written = fwrite(&record, sizeof record, 1, spool);
    (void)pthread_mutex_unlock(&spool_lock);
    if (written != 1) {
        load_fail("the signatures cannot be kept for verification: the disk is full");
    }
}

void load_tally_answered(load_tally *tally, const load_request *request, uint64_t now, hsm_status status,
                         const uint8_t *signature, bool cached) {
    if (spool != NULL) {
        keep(request, status, signature);
    }
    (void)pthread_mutex_lock(&tally->lock);
    load_counts *counts = tally->live;
    if (status == HSM_OK) {
        counts->signed_++;
        counts->cached += cached ? 1U : 0U;
    } else {
        counts->failed++;
        counts->errors[(unsigned)status % LOAD_NAMED_ERRORS]++;
    }
    counts->corrected[load_bucket(since(now, request->planned))]++;
    counts->uncorrected[load_bucket(since(now, request->started))]++;
    (void)pthread_mutex_unlock(&tally->lock);
}

void load_tally_lost(load_tally *tally) {
    (void)pthread_mutex_lock(&tally->lock);
    tally->live->lost++;
    (void)pthread_mutex_unlock(&tally->lock);
}

void load_tally_twice(load_tally *tally) {
    (void)pthread_mutex_lock(&tally->lock);
    tally->live->twice++;
    (void)pthread_mutex_unlock(&tally->lock);
}

void load_spool_open(const char *path) {
    spool = fopen(path, "wbx");
    if (spool == NULL) {
        load_fail("%s cannot be made", path);
    }
    (void)setvbuf(spool, NULL, _IOFBF, SPOOL_BUFFER);
}

void load_spool_close(void) {
    if (spool != NULL && fclose(spool) != 0) {
        load_fail("the signatures cannot be kept for verification: the disk is full");
    }
    spool = NULL;
}

static void add(load_counts *sum, load_counts *part) {
    sum->started += part->started;
    sum->signed_ += part->signed_;
    sum->cached += part->cached;
    sum->failed += part->failed;
    sum->lost += part->lost;
    sum->twice += part->twice;
    for (size_t i = 0; i < LOAD_NAMED_ERRORS; i++) {
        sum->errors[i] += part->errors[i];
    }
    for (size_t i = 0; i < LOAD_BUCKETS; i++) {
        sum->corrected[i] += part->corrected[i];
        sum->uncorrected[i] += part->uncorrected[i];
        sum->start[i] += part->start[i];
    }
}

static void print_buckets(const char *name, const uint32_t *buckets) {
    const char *comma = "";
    (void)printf(", \"%s\": [", name);
    for (size_t i = 0; i < LOAD_BUCKETS; i++) {
        if (buckets[i] != 0) {
            (void)printf("%s%zu,%u", comma, i, buckets[i]);
            comma = ",";
        }
    }
    (void)putchar(']');
}

void load_report(load_run *run, bool last) {
    static load_counts sum;
    memset(&sum, 0, sizeof sum);
    for (size_t i = 0; i < run->tally_count; i++) {
        load_tally *tally = &run->tallies[i];
        (void)pthread_mutex_lock(&tally->lock);
        load_counts *taken = tally->live;
        tally->live = tally->spare;
        (void)pthread_mutex_unlock(&tally->lock);
        add(&sum, taken);
        memset(taken, 0, sizeof *taken);
        tally->spare = taken;
    }
    (void)printf("{\"end\": %s, \"at\": %.6f, \"started\": %llu, \"signed\": %llu, \"cached\": %llu, \"failed\": %llu, "
                 "\"lost\": %llu, \"twice\": %llu, \"errors\": {",
                 last ? "true" : "false", (double)(int64_t)(hsm_now_ns() - run->begin) / 1e9,
                 (unsigned long long)sum.started, (unsigned long long)sum.signed_, (unsigned long long)sum.cached,
                 (unsigned long long)sum.failed, (unsigned long long)sum.lost, (unsigned long long)sum.twice);
    const char *comma = "";
    for (unsigned i = 0; i < LOAD_NAMED_ERRORS; i++) {
        if (sum.errors[i] != 0) {
            (void)printf("%s\"%s\": %llu", comma, hsm_status_name((hsm_status)i), (unsigned long long)sum.errors[i]);
            comma = ", ";
        }
    }
    (void)putchar('}');
    print_buckets("corrected", sum.corrected);
    print_buckets("uncorrected", sum.uncorrected);
    print_buckets("start", sum.start);
    (void)puts("}");
    (void)fflush(stdout);
}
