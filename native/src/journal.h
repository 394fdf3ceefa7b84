/* The journal's inside, shared by journal.c (the thread) and journal_line.c (appending). */
#ifndef HSM_JOURNAL_H
#define HSM_JOURNAL_H

#include <pthread.h>

#include <hsmcore/journal.h>

#include "base.h"
#include "hist.h"

/* Whole lines. */
typedef struct hsm_journal_chunk {
    struct hsm_journal_chunk *next;
    size_t used, capacity;
    char data[];
} hsm_journal_chunk;

/* Lines in their order, in chunks: however many there are, appending one copies no other. */
typedef struct hsm_journal_buffer {
    hsm_journal_chunk *first;
    hsm_journal_chunk *last; /* the next line goes here; the chunks after it are empty. NULL: no line yet */
    size_t used;
    uint64_t lines;
    uint64_t begun_ns; /* when the first of them came */
} hsm_journal_buffer;

/* A group of this size is written before its interval is over, and a buffer keeps no more memory than this once it is
 * empty. */
#define HSM_JOURNAL_GROUP ((size_t)8U << 20)

enum hsm_flush { HSM_FLUSH_NONE, HSM_FLUSH_PACED, HSM_FLUSH_URGENT };

/* The thread runs; it sleeps until a time at which it looks at `flushed` again; it sleeps for good. */
enum hsm_rest { HSM_REST_NONE, HSM_REST_PAUSE, HSM_REST_IDLE };

struct hsm_journal {
    char *path, *archive;
    enum hsm_durability durability;
    uint64_t interval_ns, rotate_bytes;
    int event_fd;
    pthread_t thread;
    uint32_t fork_generation;

    /* the appending thread's */
    uint64_t next;

    pthread_mutex_t lock; /* `filling`, held for a copy or an exchange of buffers */
    hsm_journal_buffer filling;
    _Atomic uint32_t flushed; /* enum hsm_flush: the thread is to take what is in `filling` */
    _Atomic uint32_t resting; /* enum hsm_rest: what it takes to wake the thread */
    _Atomic uint32_t turn;    /* a futex */
    _Atomic uint32_t closing;
    _Atomic uint64_t pending; /* bytes appended and not written */

    _Atomic uint64_t taken; /* the last line that the thread has taken */
    _Atomic uint64_t kept;
    _Atomic int failure;
    _Atomic uint32_t condemned;        /* see hsm_journal_condemn */
    _Atomic uint64_t filling_since_ns; /* the oldest line in `filling`; 0: none */
    _Atomic uint64_t writing_since_ns; /* the oldest line of the group that is being written; 0: none */
    hsm_histogram commits;             /* from a group's first line until the group is kept */

    /* the journal's thread's */
    int fd;
    uint64_t next_at_ns; /* when a paced flush may begin */
    uint64_t size;       /* of what is written whole */
    uint64_t first;      /* number of the first line in the segment */
    bool torn;           /* a part of a group may stand behind `size` */
    bool moved;          /* the open file is the full segment, under its archived name; the next one is not made yet */
    bool unsynced;       /* the folders' entries for the last rotation may not be on the disk */
    uint64_t lost;
};

/* Have the thread look again at what it waits for. Any thread. */
static inline void hsm_journal_wake(hsm_journal *journal) {
    atomic_fetch_add(&journal->turn, 1);
    hsm_futex_wake(&journal->turn, 1, true);
}

#endif
