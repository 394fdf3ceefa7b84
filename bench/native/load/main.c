/* hsmcore-load, driven over its standard input and output:
 *
 *   stdin   lines "name value" (see settings.c), then "ready"
 *   stdout  {"ready": true, "algorithm": ..., "public_key": ..., "key_id": ...}
 *   stdin   "go NANOSECONDS" (of CLOCK_MONOTONIC), the plan's time 0; or "plan", which only prints the planned starts
 *   stdout  a line of counts and of histogram buckets in each interval; the last one says "end": true
 *
 * Anything else on standard input, its end included, ends the run; started requests are still answered. The process,
 * and with it the module, stays until its input ends. Exit code: 0, 1 (it could not run; standard error says why), 2
 * (impossible settings). */
#include "load.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

static void print_hex(const char *name, const uint8_t *bytes, size_t len) {
    (void)printf(", \"%s\": \"", name);
    for (size_t i = 0; i < len; i++) {
        (void)printf("%02x", bytes[i]);
    }
    (void)putchar('"');
}

static void print_plan(const load_settings *settings) {
    load_plan plan;
    load_messages messages;
    uint8_t *message = load_alloc(settings->max_message);
    uint64_t offset;
    load_plan_begin(&plan, settings);
    load_messages_begin(&messages, settings);
    for (uint64_t number = 0; load_plan_next(&plan, &offset); number++) {
        size_t size = load_message(&messages, number, message);
        (void)printf("%llu ", (unsigned long long)offset);
        for (size_t i = 0; i < size; i++) {
            (void)printf("%02x", message[i]);
        }
        (void)putchar('\n');
    }
    load_messages_end(&messages);
    free(message);
}

static void *reporter_main(void *argument) {
    load_run *run = argument;
    uint64_t at = run->begin + run->settings->interval_ns;
    while (!atomic_load(&run->done)) {
        uint64_t now = hsm_now_ns();
        uint64_t pause = at > now ? at - now : 0;
        struct timespec timeout = {.tv_nsec = (long)(pause < LOAD_NAP ? pause : LOAD_NAP)};
        struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
        bool stopped = atomic_load(&run->stop);
        if (ppoll(&input, stopped ? 0 : 1, &timeout, NULL) > 0) {
            atomic_store(&run->stop, true);
        }
        if (hsm_now_ns() >= at && !atomic_load(&run->done)) {
            load_report(run, false);
            at += run->settings->interval_ns;
        }
    }
    return NULL;
}

static void run_plan(load_run *run, const load_way *way) {
    pthread_t reporter;
    run->tally_count = way->tallies(run->settings);
    run->tallies = load_alloc(run->tally_count * sizeof *run->tallies);
    for (size_t i = 0; i < run->tally_count; i++) {
        load_tally_begin(&run->tallies[i]);
    }
    load_plan_begin(&run->plan, run->settings);
    load_messages_begin(&run->messages, run->settings);
    if (pthread_create(&reporter, NULL, reporter_main, run) != 0) {
        load_fail("no thread can be started");
    }
    way->run(run);
    atomic_store(&run->done, true);
    (void)pthread_join(reporter, NULL);
    load_spool_close();
    load_report(run, true);
    load_messages_end(&run->messages);
    for (size_t i = 0; i < run->tally_count; i++) {
        load_tally_end(&run->tallies[i]);
    }
    free(run->tallies);
}

static bool is_go(const char *line, uint64_t *begin) {
    char *end;
    if (strncmp(line, "go ", 3) != 0) {
        return false;
    }
    *begin = strtoull(line + 3, &end, 10);
    return *end == '\n';
}

int main(void) {
    pid_t parent = getppid();
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) {
        return 1;
    }
    (void)prctl(PR_SET_DUMPABLE, 0); /* the PIN passes through this process */
    load_settings settings;
    load_settings_read(&settings);
    const load_way *way = settings.raw ? &load_raw : &load_ring;
    char *line = NULL;
    size_t room = 0;
    uint64_t begin = 0;
    bool opened = false;
    bool planned = settings.module[0] == '\0';
    if (!planned) {
        hsm_key_info key;
        way->open(&settings, &key);
        if (settings.pin != NULL) {
            hsm_wipe(settings.pin, settings.pin_len);
        }
        opened = true;
        (void)printf("{\"ready\": true, \"algorithm\": \"%s\"", hsm_algorithm_name(key.algorithm));
        print_hex("public_key", key.public_key, key.public_key_len);
        print_hex("key_id", key.id, key.id_len);
        (void)puts("}");
        (void)fflush(stdout);
    }
    if (planned) {
        print_plan(&settings);
    } else if (getline(&line, &room, stdin) > 0 && is_go(line, &begin)) {
        if (settings.spool != NULL) {
            load_spool_open(settings.spool);
        }
        static load_run run;
        run.settings = &settings;
        run.begin = begin;
        (void)pthread_mutex_init(&run.plan_lock, NULL);
        run_plan(&run, way);
        (void)pthread_mutex_destroy(&run.plan_lock);
        while (getline(&line, &room, stdin) > 0) {
        }
    }
    if (opened) {
        way->close();
    }
    free(line);
    load_settings_free(&settings);
    return 0;
}
