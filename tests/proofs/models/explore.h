/* A model checker for the engine's own atomics: runs a few threads of real code in every order and with every value
 * that C11 lets their loads return. See explore.c for the memory model; a model is one .c file beside it. */
#ifndef HSM_EXPLORE_H
#define HSM_EXPLORE_H

#include <stdbool.h>
#include <stdint.h>

#define MM_MAX_THREADS 5

typedef struct mm_model {
    void (*reset)(void); /* put all memory of the model into its first state; runs before each execution */
    void (*threads[MM_MAX_THREADS])(void);
    void (*check)(void); /* after an execution in which all threads have ended; may be NULL */
    /* How often a thread may be interrupted that could go on, in one execution; 0: without a limit. Stale values are
     * returned in any case. */
    unsigned most_preemptions;
} mm_model;

/* One for each program; `variant` is the program's argument, 0 without one. */
const mm_model *mm_choose(int variant);

#define MM_CHECK(condition) ((condition) ? (void)0 : mm_fail(#condition))
_Noreturn void mm_fail(const char *what);
/* In place of the processor's hint in polling loops. */
void mm_relax(void);
/* The name of an atomic in a report. */
void mm_name(const void *address, const char *name);
/* The number of the thread that runs. */
int mm_self(void);
/* Let other threads go on until one has written what this one has read since its last pause. For loops that poll: a
 * turn without a store must leave no trace in the caller's variables. */
void mm_pause(void);
/* Wait until the descriptor, or the other one, is readable: hsm_event_set makes it so, hsm_event_clear ends it. */
void mm_wait_readable(int fd, int other);
/* Wait until another thread has ended, and see all that it did. */
void mm_join(int thread);

#endif
