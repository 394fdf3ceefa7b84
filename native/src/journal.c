/* The journal's thread: take all lines that wait, write them, flush once, tell the client. The next group
 * gathers at the same time: the slower the disk, the larger the groups. Appending is in journal_line.c. */
#include <hsmcore/journal.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "journal.h"

#define RETRY_NS UINT64_C(500000000)
#define OPEN_FLAGS (O_RDWR | O_APPEND | O_CLOEXEC | O_NOFOLLOW)

/* ---- the file: only the thread's, after the start ---- */

static int sync_folder(const char *path) {
    int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int failure = folder < 0 || fsync(folder) != 0 ? errno : 0;
    if (folder >= 0) {
        (void)close(folder);
    }
    return failure;
}

static int sync_parent(const char *path) {
    char *copy = hsm_strdup(path);
    if (copy == NULL) {
        return ENOMEM;
    }
    char *slash = strrchr(copy, '/');
    if (slash != NULL) {
        slash[slash == copy ? 1 : 0] = '\0';
    }
    int failure = sync_folder(slash != NULL ? copy : ".");
    hsm_free(copy);
    return failure;
}

/* 0 if `path` leads to the open file, which holds `size` bytes, and the archive is there. A folder that was unmounted
 * or moved away takes the written lines along; behind bytes that another program has added or cut off, no line is a
 * record any more. */
static int check_file(const hsm_journal *journal, const char *path, uint64_t size) {
    struct stat ours;
    struct stat there;
    struct stat archive;
    if (fstat(journal->fd, &ours) != 0 || lstat(path, &there) != 0 || stat(journal->archive, &archive) != 0) {
        return errno;
    }
    bool same = ours.st_ino == there.st_ino && ours.st_dev == there.st_dev;
    return same && (uint64_t)ours.st_size == size ? 0 : ESTALE;
}

/* Cut off the part of a group that an earlier try has left. A file that is shorter than that stays as it is. */
static int mend_torn(const hsm_journal *journal) {
    struct stat ours;
    if (fstat(journal->fd, &ours) != 0) {
        return errno;
    }
    if ((uint64_t)ours.st_size < journal->size) {
        return ESTALE;
    }
    return ftruncate(journal->fd, (off_t)journal->size) == 0 ? 0 : errno;
}

/* Rename `from`, unless there is a file called `to`: it would be a segment, and lost. */
static int rename_new(const char *from, const char *to) {
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0) {
        return 0;
    }
    if (errno != EINVAL && errno != ENOSYS) {
        return errno;
    }
    /* A file system that cannot promise it, such as NFS. This log is the folder's only writer. */
    struct stat there;
    if (lstat(to, &there) == 0) {
        return EEXIST;
    }
    return rename(from, to) == 0 ? 0 : errno;
}

/* Move the full segment aside and begin another. Whatever fails, trying again goes on from there. */
static int rotate(hsm_journal *journal) {
    char name[4096 + 64];
    int length = snprintf(name, sizeof name, "%s/%020llu.jsonl", journal->archive, (unsigned long long)journal->first);
    if (length < 0 || (size_t)length >= sizeof name) {
        return ENAMETOOLONG;
    }
    int failure = check_file(journal, journal->moved ? name : journal->path, journal->size);
    if (failure != 0) {
        return failure;
    }
    if (!journal->moved) {
        failure = fsync(journal->fd) == 0 ? rename_new(journal->path, name) : errno;
        if (failure != 0) {
            return failure;
        }
        journal->moved = true;
        journal->unsynced = true;
    }
    int fd = open(journal->path, OPEN_FLAGS | O_CREAT | O_EXCL, 0600);
    if (fd < 0) {
        return errno;
    }
    (void)fchmod(fd, 0600); /* whatever the umask has taken */
    (void)close(journal->fd);
    journal->fd = fd;
    journal->size = 0;
    journal->moved = false;
    journal->first = atomic_load_explicit(&journal->kept, memory_order_relaxed) + 1U;
    return 0;
}

/* Make the last rotation's names durable: before that, no line in the new file is. */
static int sync_folders(hsm_journal *journal) {
    int failure = sync_folder(journal->archive);
    failure = failure != 0 ? failure : sync_parent(journal->path);
    journal->unsynced = failure != 0;
    return failure;
}

static int write_lines(const hsm_journal *journal, const hsm_journal_buffer *group) {
    int failure = 0;
    for (const hsm_journal_chunk *chunk = group->first; chunk != NULL && failure == 0; chunk = chunk->next) {
        failure = hsm_write_all(journal->fd, chunk->data, chunk->used);
    }
    if (failure == 0 && journal->durability != HSM_DURABLE_WRITE && fdatasync(journal->fd) != 0) {
        failure = errno;
    }
    return failure;
}

static int write_group(hsm_journal *journal, const hsm_journal_buffer *group) {
    int failure = atomic_load(&journal->condemned) != 0 ? ESTALE : journal->torn ? mend_torn(journal) : 0;
    if (failure != 0) {
        return failure;
    }
    journal->torn = false;
    if (journal->moved || (journal->size > 0 && journal->size + group->used > journal->rotate_bytes)) {
        failure = rotate(journal);
    }
    failure = failure != 0 || !journal->unsynced ? failure : sync_folders(journal);
    failure = failure != 0 ? failure : check_file(journal, journal->path, journal->size);
    if (failure != 0) {
        return failure;
    }
    journal->torn = true;
    failure = write_lines(journal, group);
    /* Once more: the file may have been moved away or changed while it was written to. */
    failure = failure != 0 ? failure : check_file(journal, journal->path, journal->size + group->used);
    if (failure == 0) {
        journal->torn = false;
        journal->size += group->used;
    }
    return failure;
}

/* ---- the thread ---- */

static void note_failure(hsm_journal *journal, int failure) {
    if (atomic_exchange(&journal->failure, failure) != failure) {
        hsm_event_set(journal->event_fd);
    }
}

/* Sleep, unless hsm_journal_wake was called since `turn` was read. */
static void rest(hsm_journal *journal, uint32_t turn, uint64_t ns) {
    hsm_futex_wait(&journal->turn, turn, ns, true);
    atomic_store(&journal->resting, HSM_REST_NONE);
}

/* Wait for lines to write, and for their time. Returns false when there are none and there will be none. */
static bool await_lines(hsm_journal *journal) {
    for (;;) {
        uint32_t turn = atomic_load(&journal->turn);
        bool closing = atomic_load(&journal->closing) != 0;
        uint64_t now = hsm_now_ns();
        bool early = now < journal->next_at_ns;
        /* Before `flushed` is read: a flush that came too late for that finds the thread at rest, and wakes it. */
        atomic_store(&journal->resting, early ? HSM_REST_PAUSE : HSM_REST_IDLE);
        uint32_t flushed = atomic_load(&journal->flushed);
        if (closing || flushed == HSM_FLUSH_URGENT || (flushed != HSM_FLUSH_NONE && !early)) {
            atomic_store(&journal->resting, HSM_REST_NONE);
            return flushed != HSM_FLUSH_NONE;
        }
        rest(journal, turn, early ? journal->next_at_ns - now : 0);
    }
}

/* Wait for `ns`, or until the journal is being closed, or until `most` bytes are pending. */
static void pause_for(hsm_journal *journal, uint64_t ns, uint64_t most) {
    uint64_t until = hsm_now_ns() + ns;
    for (;;) {
        uint32_t turn = atomic_load(&journal->turn);
        uint64_t now = hsm_now_ns();
        if (atomic_load(&journal->closing) != 0 || now >= until || atomic_load(&journal->pending) >= most) {
            return;
        }
        atomic_store(&journal->resting, HSM_REST_PAUSE);
        rest(journal, turn, until - now);
    }
}

static void take_group(hsm_journal *journal, hsm_journal_buffer *group) {
    (void)pthread_mutex_lock(&journal->lock);
    hsm_journal_buffer empty = *group;
    *group = journal->filling;
    journal->filling = empty;
    atomic_store_explicit(&journal->writing_since_ns, group->lines > 0 ? group->begun_ns : 0, memory_order_relaxed);
    atomic_store_explicit(&journal->filling_since_ns, 0, memory_order_relaxed);
    atomic_store_explicit(&journal->taken, journal->next - 1U, memory_order_relaxed);
    atomic_store(&journal->flushed, HSM_FLUSH_NONE);
    (void)pthread_mutex_unlock(&journal->lock);
}

/* Forget the lines, and keep memory for at most `keep` bytes. */
static void empty(hsm_journal_buffer *buffer, size_t keep) {
    hsm_journal_chunk **link = &buffer->first;
    while (*link != NULL) {
        hsm_journal_chunk *chunk = *link;
        chunk->used = 0;
        if (chunk->capacity <= keep) {
            keep -= chunk->capacity;
            link = &chunk->next;
        } else {
            *link = chunk->next;
            hsm_free(chunk);
        }
    }
    buffer->last = NULL;
    buffer->used = 0;
    buffer->lines = 0;
}

/* Write a group, again and again while that fails. After closing has begun, a failed try is the last one. */
static int write_until_closing(hsm_journal *journal, const hsm_journal_buffer *group) {
    bool last_try = false;
    int failure;
    while ((failure = write_group(journal, group)) != 0) {
        note_failure(journal, failure);
        if (last_try) {
            break;
        }
        pause_for(journal, RETRY_NS, UINT64_MAX);
        last_try = atomic_load(&journal->closing) != 0;
    }
    return failure;
}

static void *run(void *argument) {
    hsm_journal *journal = argument;
    hsm_journal_buffer group = {.first = NULL};
    (void)prctl(PR_SET_NAME, "hsm-journal");
    while (await_lines(journal)) {
        if (journal->durability == HSM_DURABLE_INTERVAL) {
            pause_for(journal, journal->interval_ns, HSM_JOURNAL_GROUP); /* more lines come into the group */
        }
        take_group(journal, &group);
        if (group.lines == 0) {
            continue;
        }
        if (write_until_closing(journal, &group) != 0) {
            break;
        }
        uint64_t ended = hsm_now_ns();
        journal->next_at_ns = ended + (journal->durability == HSM_DURABLE_INTERVAL ? 0 : HSM_JOURNAL_PACE_NS);
        hsm_histogram_add(&journal->commits, ended - group.begun_ns);
        atomic_store_explicit(&journal->writing_since_ns, 0, memory_order_relaxed);
        atomic_fetch_add_explicit(&journal->kept, group.lines, memory_order_release);
        atomic_fetch_sub_explicit(&journal->pending, group.used, memory_order_relaxed);
        empty(&group, HSM_JOURNAL_GROUP);
        atomic_store(&journal->failure, 0);
        hsm_event_set(journal->event_fd);
    }
    journal->lost = group.lines;
    empty(&group, 0);
    return NULL;
}

/* ---- opening and closing ---- */

static void release(hsm_journal *journal) {
    hsm_close(&journal->fd);
    hsm_close(&journal->event_fd);
    (void)pthread_mutex_destroy(&journal->lock);
    empty(&journal->filling, 0);
    hsm_free(journal->path);
    hsm_free(journal->archive);
    hsm_free(journal);
}

static hsm_status open_files(hsm_journal *journal, hsm_error *error) {
    struct stat status;
    journal->fd = hsm_counted(open(journal->path, OPEN_FLAGS | O_CREAT, 0600));
    if (journal->fd < 0) {
        return hsm_fail_errno(error, "open", journal->path);
    }
    journal->event_fd = hsm_counted(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
    if (journal->event_fd < 0) {
        return hsm_fail_errno(error, "eventfd", "journal");
    }
    if (fstat(journal->fd, &status) != 0) {
        return hsm_fail_errno(error, "fstat", journal->path);
    }
    journal->size = (uint64_t)status.st_size;
    errno = sync_parent(journal->path);
    return errno == 0 ? HSM_OK : hsm_fail_errno(error, "fsync", journal->path);
}

hsm_status hsm_journal_open(const hsm_journal_options *options, hsm_journal **journal_out, hsm_error *error) {
    *journal_out = NULL;
    hsm_journal *journal = hsm_alloc(sizeof *journal);
    if (journal == NULL) {
        return hsm_fail(error, HSM_OUT_OF_MEMORY, "", "no memory");
    }
    journal->fd = journal->event_fd = -1;
    (void)pthread_mutex_init(&journal->lock, NULL);
    journal->path = hsm_strdup(options->path);
    journal->archive = hsm_strdup(options->archive);
    journal->durability = options->durability;
    journal->interval_ns = options->interval_ns;
    journal->rotate_bytes = options->rotate_bytes;
    journal->first = options->first_seq;
    journal->next = options->next_seq;
    journal->fork_generation = hsm_fork_generation();
    atomic_init(&journal->taken, options->next_seq - 1U);
    atomic_init(&journal->kept, options->next_seq - 1U);
    hsm_status status = HSM_OK;
    if (journal->path == NULL || journal->archive == NULL) {
        status = hsm_fail(error, HSM_OUT_OF_MEMORY, "", "no memory");
    } else if (options->next_seq == 0) {
        status = hsm_fail(error, HSM_BAD_ARGUMENT, "", "lines are numbered from 1");
    } else {
        status = open_files(journal, error);
    }
    if (status == HSM_OK) {
        errno = hsm_thread_start(&journal->thread, run, journal);
        status = errno == 0 ? HSM_OK : hsm_fail_errno(error, "pthread_create", "journal");
    }
    if (status != HSM_OK) {
        release(journal);
        return status;
    }
    *journal_out = journal;
    return HSM_OK;
}

uint64_t hsm_journal_close(hsm_journal *journal) {
    if (journal == NULL || journal->fork_generation != hsm_fork_generation()) {
        return 0;
    }
    hsm_journal_flush(journal, 0);
    atomic_store(&journal->closing, 1);
    hsm_journal_wake(journal);
    hsm_thread_join(journal->thread);
    uint64_t lost = journal->lost + journal->filling.lines;
    release(journal);
    return lost;
}

int hsm_journal_fd(const hsm_journal *journal) {
    return journal->event_fd;
}

void hsm_journal_clear(hsm_journal *journal) {
    hsm_event_clear(journal->event_fd);
}

uint64_t hsm_journal_kept(const hsm_journal *journal) {
    return journal->durability == HSM_DURABLE_INTERVAL ? journal->next - 1U : hsm_journal_written(journal);
}

uint64_t hsm_journal_written(const hsm_journal *journal) {
    return atomic_load_explicit(&journal->kept, memory_order_acquire);
}

int hsm_journal_failure(const hsm_journal *journal) {
    return atomic_load(&journal->condemned) != 0 ? ESTALE : atomic_load(&journal->failure);
}

void hsm_journal_condemn(hsm_journal *journal) {
    atomic_store(&journal->condemned, 1);
    hsm_event_set(journal->event_fd);
}

uint64_t hsm_journal_pending(const hsm_journal *journal) {
    return atomic_load_explicit(&journal->pending, memory_order_relaxed);
}

uint64_t hsm_journal_oldest_ns(const hsm_journal *journal) {
    uint64_t since = atomic_load_explicit(&journal->writing_since_ns, memory_order_relaxed);
    if (since == 0) {
        since = atomic_load_explicit(&journal->filling_since_ns, memory_order_relaxed);
    }
    uint64_t now = since != 0 ? hsm_now_ns() : 0;
    return since < now ? now - since : 0;
}

void hsm_journal_stats_read(const hsm_journal *journal, hsm_journal_stats *stats) {
    memset(stats, 0, sizeof *stats);
    hsm_histogram_merge(&journal->commits, stats->commit_ns, &stats->commit_sum_ns);
    stats->oldest_ns = hsm_journal_oldest_ns(journal);
}
