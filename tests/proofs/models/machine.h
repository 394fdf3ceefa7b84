/* The explorer. Clang compiles the engine's sources with -fsanitize=thread, which turns each atomic operation and each
 * plain access into a call; this file stands in for the sanitizer's runtime, so what is checked is the very code.
 *
 * The model is C11's as repaired in RC11 (Lahav et al., PLDI 2017), as a machine with views: a location is a list of
 * messages in modification order; a thread's view says how far into each list it has seen. A load may return any message
 * that is not older than the view, a store may go before messages that its thread has not seen, and acquire, release and
 * fences join views. Whatever AArch64 and RISC-V may do with the compiled code is allowed here too, but for one
 * thing: a relaxed load is not delayed beyond a later store of its thread. Two plain accesses that nothing orders are a
 * data race, which is reported.
 *
 * The search is depth-first over all choices: which thread goes on, which message a load returns, where a store goes. An
 * execution is run again from its start for each choice. A state that was seen before is not searched again: a state is
 * what each thread has read so far, with the messages and views. A location that only one thread uses takes no part; at
 * its first use by a second one the search begins again. A wait that nothing ends is a violation, whatever its timeout:
 * so a lost wake-up cannot hide behind one. */
#ifndef HSM_EXPLORE_MACHINE_H
#define HSM_EXPLORE_MACHINE_H

#include <setjmp.h>

#include "explore.h"

enum { LOCATIONS = 96, MESSAGES = 40, DEPTH = 4096, STACK = 1 << 18, CELLS = 1 << 16, GAP = 1 << 16 };
enum { RELAXED, CONSUME, ACQUIRE, RELEASE, ACQ_REL, SEQ_CST };
enum { MAIN = -1, NOBODY = -2 };
enum wait { RUNS, PAUSES, FUTEX, READABLE, JOINS, LOCKS, ENDED };

typedef struct view {
    uint32_t at[LOCATIONS];
    uint32_t clock[MM_MAX_THREADS]; /* for data races: what happens before */
} view;

typedef struct message {
    uint64_t value;
    uint32_t at;
    bool followed; /* by the write of a read-modify-write, which nothing may come before */
    view seen;     /* what a load of it with acquire makes visible */
} message;

typedef struct location {
    uintptr_t address;
    const char *name;
    unsigned size, count;
    int owner;
    bool is_shared; /* several threads use it */
    bool acquired;  /* some load of it is more than relaxed */
    uint32_t woken; /* what a futex's last FUTEX_WAKE had seen */
    message messages[MESSAGES];
} location;

typedef struct thread {
    jmp_buf begin, here;
    view now, acquirable,
        released; /* what is visible; would be after an acquire fence; was at the last release fence */
    uint64_t history, clock_ns;
    enum wait wait;
    uintptr_t waits_for[2];
    bool has_acted;             /* since it was scheduled, in a way that others may notice */
    bool watches[LOCATIONS];    /* read since the last pause */
    uint64_t turn, turn_before; /* what was read since the last pause, and in the turn before that */
    uint64_t history_at_pause;
    bool has_put; /* since then */
} thread;

typedef struct cell { /* a byte that plain accesses touch */
    uintptr_t address;
    uint32_t run, written, read[MM_MAX_THREADS];
    int writer;
    uint64_t mark;
} cell;

/* search.c */
extern const mm_model *model;
extern unsigned thread_count;
extern thread threads[MM_MAX_THREADS];
extern int current; /* the thread that runs, or MAIN */
extern uint32_t run;
/* One of so many alternatives. */
unsigned choose(unsigned of);
/* Let one of the threads that can go on do so. Returns when the caller is chosen. */
void schedule(void);
/* Wait for one of two things; see is_ready. */
void wait_for(enum wait wait, uintptr_t first, uintptr_t second);
/* End this execution: the rest is like one that was searched. */
_Noreturn void prune(void);
/* Search from the beginning, since something was left out that counts. */
void learn(bool *fact);
/* For the report of a violation, and the history of the thread. `age` is the number of newer messages. */
void note(const char *what, const location *place, uint64_t value, unsigned age);
uint64_t mix(uint64_t hash, uint64_t value);

/* memory.c. The parameter `order` is one of C11's memory orders, as the compiler numbers them. */
extern location locations[LOCATIONS];
extern unsigned location_count;
void begin_memory(void);
uint64_t hash_of_memory(void);
location *find(uintptr_t address);
/* The value that no thread's next read-modify-write can miss. */
uint64_t newest(uintptr_t address, unsigned size);
/* The location, if several threads use it; NULL if it is memory like any other. */
location *use(uintptr_t address, unsigned size);
void raise_to(uint32_t *mark, uint32_t to);
/* Let the current thread see all that another one did. */
void join_thread(const thread *ended);
uint64_t load(uintptr_t address, unsigned size, int order);
void store(uintptr_t address, unsigned size, uint64_t value, int order);
/* A read-modify-write; for COMPARE only if the value is `expected`. Returns the old value. */
enum change { EXCHANGE, ADD, SUB, AND, OR, XOR, COMPARE };
uint64_t modify(uintptr_t address, unsigned size, enum change change, uint64_t value, uint64_t expected, int order,
                int failure_order);
void fence(int order);
/* A plain access: two of them race if neither happens before the other. */
void touch(uintptr_t address, unsigned long size, bool is_write);

/* runtime.c */
void begin_runtime(void);

#endif
