/* Deadlines by number, in a timing wheel: adding, dropping and expiring one costs O(1). One thread at a time. Times are
 * nanoseconds of CLOCK_MONOTONIC. */
#ifndef HSM_DEADLINES_H
#define HSM_DEADLINES_H

#include "list.h"

#define HSM_DEADLINE_BUCKETS 256U /* in each of the two levels */

typedef struct hsm_deadline {
    uint64_t at_ns; /* 0: none */
    uint32_t bucket;
} hsm_deadline;

typedef struct hsm_deadlines {
    uint64_t tick; /* every earlier bucket is empty */
    uint32_t count;
    uint32_t room;
    hsm_deadline *nodes; /* by number */
    hsm_link *links;     /* by number */
    hsm_list buckets[2 * HSM_DEADLINE_BUCKETS];
    uint64_t used[2 * HSM_DEADLINE_BUCKETS / 64]; /* a bit for each bucket that is not empty */
} hsm_deadlines;

/* Make room for the numbers below `room`. Zeroed memory is a wheel without room. Returns false when memory is short. */
bool hsm_deadlines_grow(hsm_deadlines *wheel, uint32_t room);
void hsm_deadlines_free(hsm_deadlines *wheel);
/* Watch a deadline for a number that has none. */
void hsm_deadlines_add(hsm_deadlines *wheel, uint32_t number, uint64_t at_ns, uint64_t now);
/* Forget the deadline of a number. Idempotent. */
void hsm_deadlines_drop(hsm_deadlines *wheel, uint32_t number);
/* Whether a number has no deadline: none was added, or it was dropped. */
static inline bool hsm_deadlines_passed(const hsm_deadlines *wheel, uint32_t number) {
    return wheel->nodes[number].at_ns == 0;
}
/* Drop one deadline that has passed and return true; false: none has passed by more than a tick of 4.2 ms. */
bool hsm_deadlines_expired(hsm_deadlines *wheel, uint64_t now, uint32_t *number);
/* When to ask hsm_deadlines_expired again, at the earliest; 0: no deadline is watched. */
uint64_t hsm_deadlines_next(const hsm_deadlines *wheel);

#endif
