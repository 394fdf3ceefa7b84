/* Admission control: a request that cannot meet its deadline at the measured service rate is refused at once. One
 * thread at a time. Times are nanoseconds of CLOCK_MONOTONIC. */
#ifndef HSM_ADMISSION_H
#define HSM_ADMISSION_H

#include "base.h"

#define HSM_ADMISSION_WINDOWS 4U

/* Measures how fast requests are answered while others wait, in windows; the fastest of the last four counts. A module
 * that pauses must not count as slow, or the pause would cost further requests: only what is slow in four windows is.
 * Zeroed memory, with `servers` set, has measured nothing. */
typedef struct hsm_admission {
    uint64_t each_ns;                        /* from one answer to the next; 0: fewer than four windows so far */
    uint64_t windows[HSM_ADMISSION_WINDOWS]; /* the last ones, in ns; 0: none */
    uint32_t next;
    uint64_t servers; /* requests that are served at the same time */
    uint64_t begun_ns, measured_ns, answers;
    bool loaded;
} hsm_admission;

/* Count the answers between the last call and `now`. `loaded`: more requests wait. */
void hsm_admission_note(hsm_admission *admission, uint64_t now, uint64_t answers, bool loaded);
/* Whether a request behind `ahead` others would wait for more than four fifths of `limit_ns`. The last fifth is a
 * reserve for the measurement's error. */
bool hsm_admission_late(const hsm_admission *admission, uint64_t ahead, uint64_t limit_ns);
/* Whether to refuse `count` requests behind `ahead` others because the last one would be late. Only answers renew the
 * measurement, so two rules keep requests flowing: nothing is refused while there is an idle server for each request,
 * and while any server is idle a measurement older than `limit_ns` is forgotten. */
bool hsm_admission_refuses(hsm_admission *admission, uint64_t ahead, uint64_t count, uint64_t limit_ns);

#endif
