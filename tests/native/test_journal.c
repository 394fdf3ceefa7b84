/* The journal against a real file system: groups, rotation, a disk that refuses, a file that is taken away. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "harness.h"
#include "journal.h"

/* In front of the C library's: the journal's calls come here. */
static _Atomic int folder_syncs;
static _Atomic int failing_folder_syncs; /* so many fail with EIO */

int fsync(int fd) {
    int (*real)(int);
    void *symbol = dlsym(RTLD_NEXT, "fsync");
    memcpy(&real, &symbol, sizeof real);
    struct stat status;
    if (fstat(fd, &status) == 0 && S_ISDIR(status.st_mode)) {
        if (atomic_load(&failing_folder_syncs) > 0) {
            atomic_fetch_sub(&failing_folder_syncs, 1);
            errno = EIO;
            return -1;
        }
        atomic_fetch_add(&folder_syncs, 1);
    }
    return real(fd);
}

/* Flushes to a disk that is quick. */
static _Atomic uint64_t flushes;
static _Atomic bool quick;

int fdatasync(int fd) {
    int (*real)(int);
    void *symbol = dlsym(RTLD_NEXT, "fdatasync");
    memcpy(&real, &symbol, sizeof real);
    atomic_fetch_add(&flushes, 1);
    return atomic_load(&quick) ? 0 : real(fd);
}

/* The clock, which stands still where a test says so: then no pause ends by itself. */
static _Atomic bool still;
static struct timespec stopped;

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (atomic_load(&still)) {
        *now = stopped;
        return 0;
    }
    return (int)syscall(SYS_clock_gettime, clock, now);
}

static char folder[64];
static char path[128];
static char archive[128];

static void make_folder(void) {
    (void)snprintf(folder, sizeof folder, "/tmp/hsmcore-journal-XXXXXX");
    REQUIRE(mkdtemp(folder) != NULL);
    (void)snprintf(path, sizeof path, "%s/audit.log", folder);
    (void)snprintf(archive, sizeof archive, "%s/segments", folder);
    REQUIRE(mkdir(archive, 0700) == 0);
}

static void remove_folder(void) {
    char command[256];
    (void)snprintf(command, sizeof command, "rm -rf -- '%s'", folder);
    REQUIRE(system(command) == 0); /* NOLINT(cert-env33-c): a path of our own */
}

static hsm_journal *open_journal(enum hsm_durability durability, uint64_t next, uint64_t rotate_bytes) {
    hsm_journal_options options = {.path = path,
                                   .archive = archive,
                                   .first_seq = 1,
                                   .next_seq = next,
                                   .rotate_bytes = rotate_bytes,
                                   .interval_ns = 20000000,
                                   .durability = durability};
    hsm_journal *journal = NULL;
    hsm_error error = {.status = HSM_OK};
    REQUIRE_OK(hsm_journal_open(&options, &journal, &error), error);
    return journal;
}

static void put(hsm_journal *journal, uint64_t number) {
    char line[64];
    int len = snprintf(line, sizeof line, "{\"seq\":%llu}\n", (unsigned long long)number);
    CHECK_INT(hsm_journal_next(journal), ==, number);
    REQUIRE(hsm_journal_put(journal, line, (size_t)len) == 1);
}

/* Wait until `kept` lines are kept, or writing fails with `failure`. */
static void await(hsm_journal *journal, uint64_t kept, int failure) {
    uint64_t until = hsm_now_ns() + 20 * SECOND;
    struct pollfd ready = {.fd = hsm_journal_fd(journal), .events = POLLIN};
    for (;;) {
        hsm_journal_clear(journal);
        if (hsm_journal_kept(journal) == kept && hsm_journal_failure(journal) == failure) {
            return;
        }
        REQUIRE(hsm_now_ns() < until);
        (void)poll(&ready, 1, 1000);
    }
}

static void put_and_await(hsm_journal *journal, uint64_t number, uint64_t kept, int failure) {
    put(journal, number);
    hsm_journal_flush(journal, 0);
    await(journal, kept, failure);
}

/* Wait until `lines` are in the file. */
static void await_written(hsm_journal *journal, uint64_t lines) {
    uint64_t until = hsm_now_ns() + PATIENCE;
    struct pollfd ready = {.fd = hsm_journal_fd(journal), .events = POLLIN};
    while (hsm_journal_written(journal) != lines) {
        REQUIRE(hsm_now_ns() < until);
        (void)poll(&ready, 1, 1000);
        hsm_journal_clear(journal);
    }
}

static void await_failure(hsm_journal *journal, int failure) {
    uint64_t until = hsm_now_ns() + PATIENCE;
    struct pollfd ready = {.fd = hsm_journal_fd(journal), .events = POLLIN};
    while (hsm_journal_failure(journal) != failure) {
        REQUIRE(hsm_now_ns() < until);
        (void)poll(&ready, 1, 1000);
        hsm_journal_clear(journal);
    }
}

static uint64_t commits(const hsm_journal_stats *stats) {
    uint64_t sum = 0;
    for (uint32_t bucket = 0; bucket < HSM_HISTOGRAM_BUCKETS; bucket++) {
        sum += stats->commit_ns[bucket];
    }
    return sum;
}

/* Whether the file holds exactly the lines `first` to `last`. */
static bool holds(const char *name, uint64_t first, uint64_t last) {
    FILE *file = fopen(name, "re");
    if (file == NULL) {
        return false;
    }
    char line[1024];
    uint64_t next = first;
    bool good = true;
    while (good && fgets(line, sizeof line, file) != NULL) {
        char expected[64];
        (void)snprintf(expected, sizeof expected, "{\"seq\":%llu", (unsigned long long)next);
        good = strncmp(line, expected, strlen(expected)) == 0 && line[strlen(line) - 1] == '\n';
        next++;
    }
    (void)fclose(file);
    return good && next == last + 1U;
}

static _Atomic bool watching;

static void *watch(void *argument) {
    uint64_t last = 0;
    while (atomic_load(&watching)) {
        hsm_journal_stats stats;
        hsm_journal_stats_read(argument, &stats);
        REQUIRE(stats.commit_sum_ns >= last);
        REQUIRE(stats.oldest_ns < 60 * SECOND);
        last = stats.commit_sum_ns;
        (void)sched_yield();
    }
    return NULL;
}

static const enum hsm_durability durabilities[] = {HSM_DURABLE_FSYNC, HSM_DURABLE_WRITE, HSM_DURABLE_INTERVAL};

static void lines_are_kept_in_their_order(void) {
    for (size_t i = 0; i < COUNT_OF(durabilities); i++) {
        make_folder();
        hsm_journal *journal = open_journal(durabilities[i], 1, UINT64_MAX);
        atomic_store(&watching, true);
        pthread_t thread;
        REQUIRE(pthread_create(&thread, NULL, watch, journal) == 0);
        for (uint64_t n = 1; n <= 5000; n++) {
            put(journal, n);
            if (n % 7 == 0) {
                hsm_journal_flush(journal, 0);
            }
        }
        hsm_journal_flush(journal, 0);
        await(journal, 5000, 0);
        atomic_store(&watching, false);
        (void)pthread_join(thread, NULL);
        CHECK_INT(hsm_journal_close(journal), ==, 0);
        CHECK(holds(path, 1, 5000));
        remove_folder();
    }
}

static void what_was_not_flushed_is_written_at_the_end_and_the_next_one_appends(void) {
    make_folder();
    hsm_journal *journal = open_journal(HSM_DURABLE_FSYNC, 1, UINT64_MAX);
    put(journal, 1);
    put(journal, 2);
    CHECK_INT(hsm_journal_pending(journal), ==, 20);
    CHECK_INT(hsm_journal_close(journal), ==, 0);
    journal = open_journal(HSM_DURABLE_FSYNC, 3, UINT64_MAX);
    CHECK_INT(hsm_journal_kept(journal), ==, 2);
    put(journal, 3);
    CHECK_INT(hsm_journal_close(journal), ==, 0);
    CHECK(holds(path, 1, 3));
    struct stat status;
    REQUIRE(stat(path, &status) == 0);
    CHECK_INT(status.st_mode & 0777, ==, 0600);
    remove_folder();
}

static void full_segments_are_moved_aside_under_their_first_number(void) {
    make_folder();
    hsm_journal *journal = open_journal(HSM_DURABLE_WRITE, 1, 100);
    for (uint64_t n = 1; n <= 25; n++) {
        put(journal, n);
        hsm_journal_flush(journal, 0);
        await(journal, n, 0);
    }
    CHECK_INT(hsm_journal_close(journal), ==, 0);
    char name[256];
    (void)snprintf(name, sizeof name, "%s/%020d.jsonl", archive, 1);
    CHECK(holds(name, 1, 9)); /* 9 lines of 10 bytes, and the tenth would have made it 101 */
    (void)snprintf(name, sizeof name, "%s/%020d.jsonl", archive, 10);
    CHECK(holds(name, 10, 18));
    CHECK(holds(path, 19, 25));
    remove_folder();
}

/* Open a journal and write a line to it; the disk has no room for the next one, of which it takes a part. `before`: gets
 * the limit that has to be set again. */
static hsm_journal *open_on_a_full_disk(struct rlimit *before) {
    (void)signal(SIGXFSZ, SIG_IGN);
    hsm_journal *journal = open_journal(HSM_DURABLE_FSYNC, 1, UINT64_MAX);
    put_and_await(journal, 1, 1, 0);
    REQUIRE(getrlimit(RLIMIT_FSIZE, before) == 0);
    struct rlimit small = {.rlim_cur = 15, .rlim_max = before->rlim_max};
    REQUIRE(setrlimit(RLIMIT_FSIZE, &small) == 0);
    put_and_await(journal, 2, 1, EFBIG);
    return journal;
}

static void a_disk_that_refuses_is_reported_and_used_again(void) {
    make_folder();
    struct rlimit before;
    hsm_journal *journal = open_on_a_full_disk(&before);
    put(journal, 3); /* goes to the next group */
    hsm_journal_flush(journal, 0);
    hsm_journal_stats stats;
    hsm_journal_stats_read(journal, &stats);
    CHECK_INT(commits(&stats), ==, 1);
    CHECK_INT(stats.oldest_ns, >, 0);
    uint64_t waited = stats.oldest_ns;
    hsm_journal_stats_read(journal, &stats);
    CHECK_INT(stats.oldest_ns, >, waited); /* the same line's age, although another one came */
    REQUIRE(setrlimit(RLIMIT_FSIZE, &before) == 0);
    await(journal, 3, 0);
    hsm_journal_stats_read(journal, &stats);
    CHECK_INT(commits(&stats), ==, 3);
    CHECK_INT(stats.commit_sum_ns, >, waited);
    CHECK_INT(stats.oldest_ns, ==, 0);
    CHECK_INT(hsm_journal_close(journal), ==, 0);
    CHECK(holds(path, 1, 3)); /* and not the part that was torn */
    remove_folder();
}

static void lines_that_cannot_be_written_at_the_end_are_counted(void) {
    make_folder();
    hsm_journal *journal = open_journal(HSM_DURABLE_FSYNC, 1, UINT64_MAX);
    struct rlimit before;
    REQUIRE(getrlimit(RLIMIT_FSIZE, &before) == 0);
    struct rlimit none = {.rlim_cur = 0, .rlim_max = before.rlim_max};
    REQUIRE(setrlimit(RLIMIT_FSIZE, &none) == 0);
    put_and_await(journal, 1, 0, EFBIG);
    put(journal, 2);
    CHECK_INT(hsm_journal_close(journal), ==, 2);
    REQUIRE(setrlimit(RLIMIT_FSIZE, &before) == 0);
    remove_folder();
}

static void a_folder_that_is_moved_away_is_noticed_and_used_again_when_it_is_back(void) {
    make_folder();
    hsm_journal *journal = open_journal(HSM_DURABLE_FSYNC, 1, UINT64_MAX);
    put_and_await(journal, 1, 1, 0);
    char away[128];
    (void)snprintf(away, sizeof away, "%s-away", folder);
    REQUIRE(rename(folder, away) == 0);
    put_and_await(journal, 2, 1, ENOENT);
    REQUIRE(rename(away, folder) == 0);
    await(journal, 2, 0);
    /* Another file in its place is not ours. */
    char old[160];
    (void)snprintf(old, sizeof old, "%s.old", path);
    REQUIRE(rename(path, old) == 0);
    int other = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    REQUIRE(other >= 0);
    (void)close(other);
    put_and_await(journal, 3, 2, ESTALE);
    REQUIRE(rename(old, path) == 0);
    await(journal, 3, 0);
    CHECK_INT(hsm_journal_close(journal), ==, 0);
    CHECK(holds(path, 1, 3));
    remove_folder();
}

static void add_to_the_file(const char *text) {
    int other = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    REQUIRE(write(other, text, strlen(text)) == (ssize_t)strlen(text));
    (void)close(other);
}

static long long size_of_the_file(void) {
    struct stat status;
    REQUIRE(stat(path, &status) == 0);
    return (long long)status.st_size;
}

static void nothing_is_written_behind_what_another_program_has_changed(void) {
    make_folder();
    hsm_journal *journal = open_journal(HSM_DURABLE_FSYNC, 1, UINT64_MAX);
    put(journal, 1);
    put_and_await(journal, 2, 2, 0);
    add_to_the_file(" ");
    put_and_await(journal, 3, 2, ESTALE);
    CHECK_INT(size_of_the_file(), ==, 21);
    REQUIRE(truncate(path, 20) == 0);
    await(journal, 3, 0);
    REQUIRE(truncate(path, 20) == 0); /* the last line is cut off */
    put_and_await(journal, 4, 3, ESTALE);
    CHECK_INT(size_of_the_file(), ==, 20);
    add_to_the_file("{\"seq\":3}\n");
    await(journal, 4, 0);
    CHECK_INT(hsm_journal_close(journal), ==, 0);
    CHECK(holds(path, 1, 4));
    remove_folder();
}

/* A disk that refuses leaves a part of a group, which is cut off; where the file was cut further, nothing is. */
static void a_file_that_was_cut_is_not_filled_with_zeros(void) {
    make_folder();
    struct rlimit before;
    hsm_journal *journal = open_on_a_full_disk(&before);
    REQUIRE(truncate(path, 0) == 0);
    await(journal, 1, ESTALE);
    REQUIRE(setrlimit(RLIMIT_FSIZE, &before) == 0);
    CHECK_INT(hsm_journal_close(journal), ==, 1);
    CHECK_INT(size_of_the_file(), ==, 0);
    remove_folder();
}

static void a_condemned_journal_writes_no_more(void) {
    make_folder();
    hsm_journal *journal = open_journal(HSM_DURABLE_FSYNC, 1, UINT64_MAX);
    put_and_await(journal, 1, 1, 0);
    hsm_journal_condemn(journal);
    await(journal, 1, ESTALE);
    put(journal, 2);
    CHECK_INT(hsm_journal_close(journal), ==, 1);
    CHECK(holds(path, 1, 1));
    remove_folder();
}

static void what_the_last_try_writes_is_not_lost(void) {
    for (size_t i = 0; i < COUNT_OF(durabilities); i++) {
        make_folder();
        hsm_journal *journal = open_journal(durabilities[i], 1, UINT64_MAX);
        put(journal, 1);
        hsm_journal_flush(journal, 0);
        await_written(journal, 1);
        char away[160];
        (void)snprintf(away, sizeof away, "%s.away", path);
        REQUIRE(rename(path, away) == 0);
        put(journal, 2);
        hsm_journal_flush(journal, 0);
        await_failure(journal, ENOENT);
        REQUIRE(rename(away, path) == 0);
        put(journal, 3); /* goes to the next group */
        CHECK_INT(hsm_journal_close(journal), ==, 0);
        CHECK(holds(path, 1, 3));
        remove_folder();
    }
}

/* ---- pace ---- */

static hsm_journal *open_on_a_quick_disk(void) {
    make_folder();
    atomic_store(&quick, true);
    atomic_store(&flushes, 0);
    return open_journal(HSM_DURABLE_FSYNC, 1, UINT64_MAX);
}

static void end_on_a_quick_disk(hsm_journal *journal, uint64_t lines) {
    CHECK_INT(hsm_journal_close(journal), ==, 0);
    atomic_store(&quick, false);
    CHECK(holds(path, 1, lines));
    remove_folder();
}

static void a_line_behind_another_waits_for_the_pause(void) {
    hsm_journal *journal = open_on_a_quick_disk();
    uint64_t begun = hsm_now_ns();
    for (uint64_t n = 1; n <= 2; n++) {
        put(journal, n);
        hsm_journal_flush(journal, 0);
        await(journal, n, 0);
    }
    CHECK_INT(hsm_now_ns() - begun, >=, HSM_JOURNAL_PACE_NS);
    end_on_a_quick_disk(journal, 2);
}

static void a_lone_line_an_urgent_one_and_the_end_wait_for_no_pause(void) {
    hsm_journal *journal = open_on_a_quick_disk();
    REQUIRE(clock_gettime(CLOCK_MONOTONIC, &stopped) == 0);
    atomic_store(&still, true);
    put(journal, 1);
    hsm_journal_flush(journal, 0);
    await(journal, 1, 0);
    put(journal, 2);
    hsm_journal_flush(journal, 0);
    hsm_sleep(200000); /* the thread pauses by now */
    CHECK_INT(atomic_load(&flushes), ==, 1);
    hsm_journal_flush(journal, 1);
    await(journal, 2, 0);
    put(journal, 3);
    hsm_journal_flush(journal, 0);
    end_on_a_quick_disk(journal, 3);
    atomic_store(&still, false);
}

static void lines_that_come_close_together_share_a_flush(void) {
    hsm_journal *journal = open_on_a_quick_disk();
    uint64_t begun = hsm_now_ns();
    CHECK_INT(hsm_journal_waiting(journal), ==, 0);
    for (uint64_t n = 1; n <= 300; n++) {
        put(journal, n);
        CHECK_INT(hsm_journal_waiting(journal), >=, 1);
        hsm_journal_flush(journal, 0);
        hsm_sleep(100000);
    }
    await(journal, 300, 0); /* no further flush is asked for: a pause ends by itself */
    uint64_t pauses = (hsm_now_ns() - begun) / HSM_JOURNAL_PACE_NS;
    CHECK_INT(atomic_load(&flushes), <=, pauses + 2);
    CHECK_INT(hsm_journal_waiting(journal), ==, 0);
    end_on_a_quick_disk(journal, 300);
}

/* With nine lines of ten bytes in the file, so that the next one begins another. */
static hsm_journal *open_nearly_full(void) {
    make_folder();
    hsm_journal *journal = open_journal(HSM_DURABLE_FSYNC, 1, 100);
    for (uint64_t n = 1; n <= 9; n++) {
        put(journal, n);
    }
    hsm_journal_flush(journal, 0);
    await(journal, 9, 0);
    return journal;
}

static void close_rotated(hsm_journal *journal) {
    await(journal, 10, 0);
    CHECK_INT(hsm_journal_close(journal), ==, 0);
    char name[256];
    (void)snprintf(name, sizeof name, "%s/%020d.jsonl", archive, 1);
    CHECK(holds(name, 1, 9));
    CHECK(holds(path, 10, 10));
    remove_folder();
}

static void a_line_is_not_kept_before_the_name_of_its_file_is(void) {
    hsm_journal *journal = open_nearly_full();
    atomic_store(&folder_syncs, 0);
    atomic_store(&failing_folder_syncs, 2);
    put_and_await(journal, 10, 9, EIO);
    close_rotated(journal);
    CHECK_INT(atomic_load(&folder_syncs), ==, 2); /* the archive and the log's folder */
}

static void a_rotation_goes_on_where_it_failed(void) {
    hsm_journal *journal = open_nearly_full();
    struct rlimit before;
    REQUIRE(getrlimit(RLIMIT_NOFILE, &before) == 0);
    struct rlimit none = {.rlim_cur = 3, .rlim_max = before.rlim_max};
    REQUIRE(setrlimit(RLIMIT_NOFILE, &none) == 0);
    put_and_await(journal, 10, 9, EMFILE);
    CHECK(access(path, F_OK) != 0); /* renamed, and no other made yet */
    REQUIRE(setrlimit(RLIMIT_NOFILE, &before) == 0);
    close_rotated(journal);
}

/* What an unmounted file system looks like: its mount point is an empty folder. */
static void no_segment_begins_where_the_log_was_unmounted(void) {
    hsm_journal *journal = open_nearly_full();
    char away[128];
    (void)snprintf(away, sizeof away, "%s-away", folder);
    REQUIRE(rename(folder, away) == 0);
    REQUIRE(mkdir(folder, 0700) == 0);
    put_and_await(journal, 10, 9, ENOENT);
    CHECK(access(path, F_OK) != 0);
    REQUIRE(rmdir(folder) == 0);
    REQUIRE(rename(away, folder) == 0);
    close_rotated(journal);
}

static void a_missing_archive_is_waited_for(void) {
    hsm_journal *journal = open_nearly_full();
    REQUIRE(rmdir(archive) == 0);
    put_and_await(journal, 10, 9, ENOENT);
    REQUIRE(mkdir(archive, 0700) == 0);
    close_rotated(journal);
}

static void a_segment_is_never_replaced(void) {
    hsm_journal *journal = open_nearly_full();
    char name[256];
    char text[8] = "";
    (void)snprintf(name, sizeof name, "%s/%020d.jsonl", archive, 1);
    int other = open(name, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    REQUIRE(write(other, "theirs", 6) == 6);
    put_and_await(journal, 10, 9, EEXIST);
    REQUIRE(pread(other, text, sizeof text, 0) == 6);
    CHECK_TEXT(text, "theirs");
    (void)close(other);
    REQUIRE(unlink(name) == 0);
    close_rotated(journal);
}

static void many_lines_are_written_whole_and_their_memory_is_given_back(void) {
    make_folder();
    hsm_journal *journal = open_journal(HSM_DURABLE_FSYNC, 1, UINT64_MAX);
    static char line[70000];
    hsm_leaks before;
    hsm_leaks_read(&before);
    uint64_t bytes = 0;
    for (uint64_t n = 1; n <= 1000; n++) {
        int len = snprintf(line, sizeof line, "{\"seq\":%llu,\"is\":\"", (unsigned long long)n);
        size_t size = (size_t)len + (n * 7919U) % 60000U;
        memset(line + len, 'x', size - (size_t)len);
        memcpy(line + size, "\"}\n", 3);
        REQUIRE(hsm_journal_put(journal, line, size + 3) == 1);
        bytes += size + 3;
    }
    CHECK_INT(hsm_journal_pending(journal), ==, bytes);
    hsm_journal_flush(journal, 0);
    await(journal, 1000, 0);
    CHECK_INT(hsm_journal_pending(journal), ==, 0);
    put(journal, 1001); /* the next group's, into the other buffer */
    hsm_journal_flush(journal, 0);
    await(journal, 1001, 0);
    hsm_leaks after;
    hsm_leaks_read(&after);
    CHECK_INT(after.allocations - before.allocations, <=, 2 * (int64_t)(HSM_JOURNAL_GROUP >> 18));
    CHECK_INT(hsm_journal_close(journal), ==, 0);
    struct stat status;
    REQUIRE(stat(path, &status) == 0);
    CHECK_INT(status.st_size, ==, bytes + 13);
    FILE *file = fopen(path, "re");
    uint64_t next = 0;
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        char expected[64];
        (void)snprintf(expected, sizeof expected, "{\"seq\":%llu", (unsigned long long)++next);
        CHECK(strncmp(line, expected, strlen(expected)) == 0);
    }
    CHECK_INT(next, ==, 1001);
    (void)fclose(file);
    remove_folder();
}

static void a_large_group_does_not_wait_for_its_interval(void) {
    make_folder();
    hsm_journal_options options = {.path = path,
                                   .archive = archive,
                                   .first_seq = 1,
                                   .next_seq = 1,
                                   .rotate_bytes = UINT64_MAX,
                                   .interval_ns = 10 * PATIENCE,
                                   .durability = HSM_DURABLE_INTERVAL};
    hsm_journal *journal = NULL;
    hsm_error error = {.status = HSM_OK};
    REQUIRE_OK(hsm_journal_open(&options, &journal, &error), error);
    static char line[65536];
    memset(line, 'x', sizeof line);
    line[sizeof line - 1] = '\n';
    for (size_t n = 0; n < HSM_JOURNAL_GROUP / sizeof line; n++) {
        REQUIRE(hsm_journal_put(journal, line, sizeof line) == 1);
        hsm_journal_flush(journal, 0);
    }
    await_written(journal, HSM_JOURNAL_GROUP / sizeof line);
    CHECK_INT(hsm_journal_close(journal), ==, 0);
    remove_folder();
}

/* The fork came while another thread appended. */
static void in_a_forked_child_nothing_is_appended_and_nothing_waits(void) {
    make_folder();
    hsm_journal *journal = open_journal(HSM_DURABLE_FSYNC, 1, UINT64_MAX);
    put(journal, 1);
    REQUIRE(pthread_mutex_lock(&journal->lock) == 0);
    (void)fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        (void)alarm(20);
        hsm_journal_sign sign = {.result = "ok"};
        bool refused = hsm_journal_put(journal, "x\n", 2) == 0 && hsm_journal_put_sign(journal, &sign, "}", 1) == 0;
        hsm_journal_flush(journal, 0);
        _exit(refused && hsm_journal_close(journal) == 0 ? 0 : 1);
    }
    REQUIRE(pthread_mutex_unlock(&journal->lock) == 0);
    int status = -1;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK_INT(status, ==, 0);
    put(journal, 2);
    CHECK_INT(hsm_journal_close(journal), ==, 0);
    CHECK(holds(path, 1, 2));
    remove_folder();
}

static void a_record_of_a_signature_says_what_it_should(void) {
    make_folder();
    hsm_journal *journal = open_journal(HSM_DURABLE_FSYNC, 41, UINT64_MAX);
    uint8_t digest[32];
    uint8_t signature[64];
    memset(digest, 0xab, sizeof digest);
    memset(signature, 0x07, sizeof signature);
    hsm_journal_sign sign = {.time_ns = UINT64_MAX,
                             .latency_ns = 12345,
                             .message_len = 200,
                             .digest = digest,
                             .signature = signature,
                             .signature_len = 64,
                             .cached = 1,
                             .result = "ok"};
    static const char tail[] = ",\"key_id\":\"0102\"}";
    CHECK_INT(hsm_journal_put_sign(journal, &sign, tail, sizeof tail - 1), ==, 41);
    hsm_journal_sign refused = {.result = "error", .error = "TOKEN_LOST"};
    CHECK_INT(hsm_journal_put_sign(journal, &refused, tail, sizeof tail - 1), ==, 42);
    CHECK_INT(hsm_journal_close(journal), ==, 0);
    char line[1024];
    FILE *file = fopen(path, "re");
    REQUIRE(file != NULL);
    REQUIRE(fgets(line, sizeof line, file) != NULL);
    CHECK_TEXT(line, "{\"seq\":41,\"time_ns\":18446744073709551615,\"operation\":\"sign\",\"result\":\"ok\","
                     "\"message_sha256\":\"abababababababababababababababababababababababababababababababab\","
                     "\"message_bytes\":200,\"signature\":\""
                     "0707070707070707070707070707070707070707070707070707070707070707"
                     "0707070707070707070707070707070707070707070707070707070707070707\","
                     "\"latency_ns\":12345,\"cached\":true,\"key_id\":\"0102\"}\n");
    REQUIRE(fgets(line, sizeof line, file) != NULL);
    CHECK_TEXT(line, "{\"seq\":42,\"time_ns\":0,\"operation\":\"sign\",\"result\":\"error\",\"error\":\"TOKEN_LOST\","
                     "\"message_bytes\":0,\"latency_ns\":0,\"cached\":false,\"key_id\":\"0102\"}\n");
    (void)fclose(file);
    remove_folder();
}

static void digits_are_those_of_printf(void) {
    static const uint64_t numbers[] = {0, 7, 10, 99, 100, 909, 1000, 123456, UINT64_MAX};
    make_folder();
    hsm_journal *journal = open_journal(HSM_DURABLE_WRITE, 1, UINT64_MAX);
    uint8_t bytes[256];
    for (unsigned i = 0; i < sizeof bytes; i++) {
        bytes[i] = (uint8_t)i;
    }
    for (size_t n = 0; n < COUNT_OF(numbers); n++) {
        hsm_journal_sign sign = {.time_ns = numbers[n], .latency_ns = n, .result = "ok", .digest = bytes + n * 28};
        sign.signature = bytes + n * 24;
        sign.signature_len = (uint32_t)(64 - n); /* not only whole words */
        REQUIRE(hsm_journal_put_sign(journal, &sign, "}", 1) == n + 1);
    }
    CHECK_INT(hsm_journal_close(journal), ==, 0);
    FILE *file = fopen(path, "re");
    REQUIRE(file != NULL);
    for (size_t n = 0; n < COUNT_OF(numbers); n++) {
        char line[1024];
        char expected[1024];
        char digest[65];
        char signature[129];
        for (size_t i = 0; i < 64; i++) {
            (void)snprintf(digest + i % 32 * 2, 3, "%02x", bytes[n * 28 + i % 32]);
            (void)snprintf(signature + i * 2, 3, "%02x", bytes[n * 24 + i]);
        }
        (void)snprintf(expected, sizeof expected,
                       "{\"seq\":%zu,\"time_ns\":%llu,\"operation\":\"sign\",\"result\":\"ok\","
                       "\"message_sha256\":\"%s\",\"message_bytes\":0,\"signature\":\"%.*s\",\"latency_ns\":%zu,"
                       "\"cached\":false}\n",
                       n + 1, (unsigned long long)numbers[n], digest, (int)(128 - 2 * n), signature, n);
        REQUIRE(fgets(line, sizeof line, file) != NULL);
        CHECK_TEXT(line, expected);
    }
    (void)fclose(file);
    remove_folder();
}

static void what_cannot_be_opened_is_refused(void) {
    make_folder();
    hsm_journal *journal = (hsm_journal *)&journal;
    hsm_error error = {.status = HSM_OK};
    hsm_journal_options options = {.path = "/nowhere/at/all", .archive = archive, .next_seq = 1, .first_seq = 1};
    CHECK_STATUS(hsm_journal_open(&options, &journal, &error), HSM_SYSTEM);
    CHECK(journal == NULL);
    CHECK(error.detail[0] != '\0');
    options.path = path;
    options.next_seq = 0;
    CHECK_STATUS(hsm_journal_open(&options, &journal, &error), HSM_BAD_ARGUMENT);
    CHECK_INT(hsm_journal_close(NULL), ==, 0);
    REQUIRE(symlink("/tmp/hsmcore-elsewhere", path) == 0);
    options.next_seq = 1;
    CHECK_STATUS(hsm_journal_open(&options, &journal, &error), HSM_SYSTEM); /* not through a link */
    remove_folder();
}

static const struct test tests[] = {
    TEST(lines_are_kept_in_their_order),
    TEST(what_was_not_flushed_is_written_at_the_end_and_the_next_one_appends),
    TEST(full_segments_are_moved_aside_under_their_first_number),
    TEST(a_disk_that_refuses_is_reported_and_used_again),
    TEST(lines_that_cannot_be_written_at_the_end_are_counted),
    TEST(a_folder_that_is_moved_away_is_noticed_and_used_again_when_it_is_back),
    TEST(nothing_is_written_behind_what_another_program_has_changed),
    TEST(a_file_that_was_cut_is_not_filled_with_zeros),
    TEST(a_condemned_journal_writes_no_more),
    TEST(what_the_last_try_writes_is_not_lost),
    TEST(a_line_behind_another_waits_for_the_pause),
    TEST(a_lone_line_an_urgent_one_and_the_end_wait_for_no_pause),
    TEST(lines_that_come_close_together_share_a_flush),
    TEST(a_line_is_not_kept_before_the_name_of_its_file_is),
    TEST(a_rotation_goes_on_where_it_failed),
    TEST(no_segment_begins_where_the_log_was_unmounted),
    TEST(a_missing_archive_is_waited_for),
    TEST(a_segment_is_never_replaced),
    TEST(many_lines_are_written_whole_and_their_memory_is_given_back),
    TEST(a_large_group_does_not_wait_for_its_interval),
    TEST(in_a_forked_child_nothing_is_appended_and_nothing_waits),
    TEST(a_record_of_a_signature_says_what_it_should),
    TEST(digits_are_those_of_printf),
    TEST(what_cannot_be_opened_is_refused),
};
HARNESS_MAIN(tests)
