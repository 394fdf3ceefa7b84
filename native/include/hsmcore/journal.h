/* The journal: lines of an audit log on their way to the disk. The caller's thread appends and never waits; one thread
 * of the journal's own writes groups of lines, flushes each group to the disk, and says up to which line all is kept.
 *
 * Lines are JSON, one record each, numbered without gaps. Nothing here knows what an audit record means; docs/AUDIT.md
 * does. */
#ifndef HSMCORE_JOURNAL_H
#define HSMCORE_JOURNAL_H

#include <stddef.h>
#include <stdint.h>

#include <hsmcore/hsmcore.h>

typedef struct hsm_journal hsm_journal;

/* From one group to the next, where none is urgent. A flush costs as much processor time as a signature in software;
 * while the workers have requests enough, answers that come later cost nothing: their callers would only queue. */
#define HSM_JOURNAL_PACE_NS UINT64_C(4000000)

/* When a line counts as kept: on stable storage (fdatasync), with the kernel (write), or as soon as it was appended, in
 * which case it is on stable storage `interval_ns` later. */
enum hsm_durability { HSM_DURABLE_FSYNC, HSM_DURABLE_WRITE, HSM_DURABLE_INTERVAL };

typedef struct hsm_journal_options {
    const char *path;      /* the current segment; appended to, made (0600) if it is not there */
    const char *archive;   /* folder that full segments are moved to, as <20-digit number of the first line>.jsonl */
    uint64_t first_seq;    /* of the first line in the current segment */
    uint64_t next_seq;     /* of the next line; at least 1 */
    uint64_t rotate_bytes; /* a group that would make the segment larger begins another one */
    uint64_t interval_ns;  /* for HSM_DURABLE_INTERVAL; a large group is written earlier */
    enum hsm_durability durability;
} hsm_journal_options;

/* Open the segment and start the thread. */
HSM_NODISCARD hsm_status hsm_journal_open(const hsm_journal_options *options, hsm_journal **journal, hsm_error *error);
/* Write what is left, unless that fails now, and end the thread. Returns the number of lines that were not written.
 * Blocks for as long as the disk does. NULL is allowed. In a forked child it does nothing. */
uint64_t hsm_journal_close(hsm_journal *journal);
/* A descriptor (non-blocking, close-on-exec) that becomes readable when more lines are kept, or when writing has begun
 * to fail or to succeed again; owned by the journal. hsm_journal_clear re-arms it: call it first, then look. */
int hsm_journal_fd(const hsm_journal *journal);
void hsm_journal_clear(hsm_journal *journal);
/* The last line that is kept as `durability` says. */
uint64_t hsm_journal_kept(const hsm_journal *journal);
/* The last line that is in the file: the same but for HSM_DURABLE_INTERVAL. */
uint64_t hsm_journal_written(const hsm_journal *journal);
/* 0 while writing succeeds; else why it does not, an errno: ESTALE when the file is no longer the one that was opened,
 * or has another size than the journal has given it. The journal tries again by itself twice a second, and keeps the
 * lines until then. */
int hsm_journal_failure(const hsm_journal *journal);
/* Lines in the file were changed: write none behind them, and fail with ESTALE until the end. Any thread, until
 * hsm_journal_close. */
void hsm_journal_condemn(hsm_journal *journal);

/* Age, in nanoseconds, of the oldest line that is not in the file; 0: none. Any thread, until hsm_journal_close. */
uint64_t hsm_journal_oldest_ns(const hsm_journal *journal);

/* How long keeping takes. Ages and times in nanoseconds, buckets as in hsm_stats. */
typedef struct hsm_journal_stats {
    uint64_t oldest_ns; /* see hsm_journal_oldest_ns */
    uint64_t commit_sum_ns;
    uint64_t commit_ns[HSM_HISTOGRAM_BUCKETS]; /* from a group's first line until the group is in the file */
} hsm_journal_stats;

/* Any thread, until hsm_journal_close. */
void hsm_journal_stats_read(const hsm_journal *journal, hsm_journal_stats *stats);

/* ---- appending: one thread, the same that calls hsm_journal_flush ---- */

/* The number that the next line will have. */
uint64_t hsm_journal_next(const hsm_journal *journal);
/* Append a line, newline included, that bears the next number. Returns 0 when memory is short or in a forked child. */
int hsm_journal_put(hsm_journal *journal, const char *line, size_t len);

/* What a record of one signature says beside what its template does. */
typedef struct hsm_journal_sign {
    uint64_t time_ns; /* CLOCK_REALTIME */
    uint64_t latency_ns;
    uint64_t message_len;
    const uint8_t *digest;    /* SHA-256 of the message, or NULL: */
    const uint8_t *message;   /* the message itself, to be hashed here, or NULL */
    const uint8_t *signature; /* or NULL */
    uint32_t signature_len;   /* at most 64 */
    int cached;
    const char *result; /* "ok", "error", …: printable, without quotes */
    const char *error;  /* a status name, or NULL */
} hsm_journal_sign;

/* Append the record of one signature. `tail` is the rest of the JSON object, from a comma to the closing brace: what
 * does not change from one signature to the next. Returns its number, or 0 as hsm_journal_put does. Takes well under 1
 * µs. */
uint64_t hsm_journal_put_sign(hsm_journal *journal, const hsm_journal_sign *sign, const char *tail, size_t tail_len);
/* Have the thread write what was appended: at once if the last group is long over, else
 * HSM_JOURNAL_PACE_NS after it, so that more lines share a flush. `urgent`: at once in any case. */
void hsm_journal_flush(hsm_journal *journal, int urgent);
/* Lines that are appended and not in the group that is being written. */
uint64_t hsm_journal_waiting(const hsm_journal *journal);
/* Bytes that are appended and not written yet. They are in memory without a limit: the caller keeps one. */
uint64_t hsm_journal_pending(const hsm_journal *journal);

#endif
