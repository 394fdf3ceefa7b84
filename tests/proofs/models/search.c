/* The search: threads as coroutines, one choice after the other. See machine.h. */
#include "machine.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <ucontext.h>

const mm_model *model;
unsigned thread_count;
thread threads[MM_MAX_THREADS];
int current = MAIN;
uint32_t run;
static unsigned preemptions;
static jmp_buf main_here;
static ucontext_t contexts[MM_MAX_THREADS], main_context;
static struct choice {
    uint16_t picked, of;
} path[DEPTH];
static unsigned depth, path_length;
static uint64_t *states, state_count, state_room, executions;
static struct event {
    int thread;
    const char *what;
    const location *place;
    uint64_t value;
    unsigned age; /* how many newer messages there were */
} events[DEPTH];
static unsigned event_count;
enum { END = 1, PRUNED, AGAIN };

_Noreturn void mm_fail(const char *what) {
    printf("violated: %s\n", what);
    for (unsigned i = event_count > 200 ? event_count - 200 : 0; i < event_count; i++) {
        const struct event *event = &events[i];
        printf("  thread %d  %s", event->thread, event->what);
        if (event->place != NULL) {
            printf(" %s = %llu", event->place->name, (unsigned long long)event->value);
        }
        printf(event->age > 0 ? "  (%u newer)\n" : "\n", event->age);
    }
    for (unsigned i = 0; i < thread_count; i++) {
        static const char *const names[] = {"runs",  "pauses", "sleeps", "waits for an event",
                                            "joins", "locks",  "ended"};
        printf("  thread %u %s\n", i, names[threads[i].wait]);
    }
    exit(1);
}

void note(const char *what, const location *place, uint64_t value, unsigned age) {
    threads[current].history = mix(threads[current].history, value);
    if (event_count < DEPTH) {
        events[event_count++] = (struct event){current, what, place, value, age};
    }
}

unsigned choose(unsigned of) {
    if (of <= 1) {
        return 0;
    }
    if (depth == path_length) {
        if (path_length == DEPTH) {
            mm_fail("the model is too long for the explorer");
        }
        path[path_length++] = (struct choice){0, (uint16_t)of};
    }
    return path[depth++].picked;
}

uint64_t mix(uint64_t hash, uint64_t value) {
    hash = (hash ^ value) * UINT64_C(0x9e3779b97f4a7c15);
    hash = (hash ^ hash >> 32) * UINT64_C(0xd6e8feb86659fd93);
    return hash ^ hash >> 29;
}

int mm_self(void) {
    return current;
}

/* Whether a turn of the loop that pauses could read anything else now. */
static bool has_news(const thread *thread) {
    for (unsigned i = 0; i < location_count; i++) {
        const location *place = &locations[i];
        if (thread->watches[i] && place->count > 0 && place->messages[place->count - 1].at > thread->now.at[i]) {
            return true;
        }
    }
    return false;
}

static bool is_ready(const thread *thread) {
    switch (thread->wait) {
    case RUNS:
        return true;
    case PAUSES:
        return has_news(thread);
    case FUTEX:
        return thread->waits_for[0] == 0;
    case READABLE:
        return newest(thread->waits_for[0], 1) != 0 || newest(thread->waits_for[1], 1) != 0;
    case JOINS:
        return threads[thread->waits_for[0]].wait == ENDED;
    case LOCKS:
        return newest(thread->waits_for[0], 1) == 0;
    default:
        return false;
    }
}

void learn(bool *fact) {
    if (!*fact) {
        *fact = true;
        _longjmp(main_here, AGAIN);
    }
}

_Noreturn void prune(void) {
    _longjmp(main_here, PRUNED);
}

static uint64_t hash_of_state(void) {
    uint64_t hash = hash_of_memory();
    for (unsigned i = 0; i < thread_count; i++) {
        hash = mix(mix(mix(hash, threads[i].history), threads[i].wait), threads[i].waits_for[0]);
    }
    hash = model->most_preemptions > 0 ? mix(mix(hash, preemptions), (uint64_t)current) : hash;
    return hash != 0 ? hash : 1;
}

/* Whether the state was there before; it is from now on. */
static bool seen_before(uint64_t hash) {
    if (state_count * 2 >= state_room) {
        uint64_t *old = states;
        uint64_t old_room = state_room;
        state_room = old_room > 0 ? old_room * 4 : 1 << 16;
        states = calloc(state_room, sizeof *states);
        if (states == NULL) {
            mm_fail("out of memory");
        }
        for (uint64_t i = 0; i < old_room; i++) {
            uint64_t at = old[i] & (state_room - 1);
            for (; old[i] != 0 && states[at] != 0; at = (at + 1) & (state_room - 1)) {
            }
            states[at] = old[i] != 0 ? old[i] : states[at];
        }
        free(old);
    }
    uint64_t at = hash & (state_room - 1);
    for (; states[at] != 0; at = (at + 1) & (state_room - 1)) {
        if (states[at] == hash) {
            return true;
        }
    }
    states[at] = hash;
    state_count++;
    return false;
}

void schedule(void) {
    int ready[MM_MAX_THREADS];
    unsigned count = 0;
    unsigned ended = 0;
    for (unsigned i = 0; i < thread_count; i++) {
        ended += threads[i].wait == ENDED ? 1U : 0U;
        if (is_ready(&threads[i])) {
            ready[count++] = (int)i;
        }
    }
    if (ended == thread_count) {
        _longjmp(main_here, END);
    }
    if (count == 0) {
        mm_fail("threads wait for ever");
    }
    bool stays = current != MAIN && is_ready(&threads[current]);
    if (stays && model->most_preemptions > 0 && preemptions == model->most_preemptions) {
        ready[0] = current;
        count = 1;
    }
    if (depth == path_length && seen_before(hash_of_state())) {
        _longjmp(main_here, PRUNED);
    }
    int next = ready[choose(count)];
    int self = current;
    preemptions += model->most_preemptions > 0 && stays && next != self ? 1U : 0U;
    threads[next].has_acted = false;
    threads[next].history = mix(threads[next].history, 1); /* a step further */
    if (next != self) {
        current = next;
        if (self == MAIN || threads[self].wait == ENDED || _setjmp(threads[self].here) == 0) {
            _longjmp(threads[next].here, 1);
        }
    }
}

void wait_for(enum wait wait, uintptr_t first, uintptr_t second) {
    thread *self = &threads[current];
    self->wait = wait;
    self->waits_for[0] = first;
    self->waits_for[1] = second;
    schedule();
    self->wait = RUNS;
    self->waits_for[0] = self->waits_for[1] = 0;
}

static void live(unsigned index) {
    thread *self = &threads[index];
    if (_setjmp(self->begin) == 0) {
        (void)swapcontext(&contexts[index], &main_context);
    }
    if (_setjmp(self->here) == 0) {
        _longjmp(main_here, AGAIN); /* ready to be scheduled */
    }
    model->threads[index]();
    self->wait = ENDED;
    schedule();
}

static void begin_execution(void) {
    run++;
    depth = event_count = preemptions = 0;
    current = MAIN;
    begin_memory();
    begin_runtime();
    for (volatile unsigned i = 0; i < thread_count; i++) {
        thread *thread = &threads[i];
        memset(&thread->now, 0, sizeof *thread - offsetof(struct thread, now));
        thread->now.clock[i] = 1;
        thread->has_put = true;
        if (_setjmp(main_here) == 0) {
            _longjmp(thread->begin, 1);
        }
    }
    model->reset();
}

/* Move on to the next path. Returns false when there is none. */
static bool next_path(void) {
    path_length = depth < path_length ? depth : path_length;
    while (path_length > 0 && ++path[path_length - 1].picked == path[path_length - 1].of) {
        path_length--;
    }
    return path_length > 0;
}

int main(int argc, char **argv) {
    model = mm_choose(argc > 1 ? atoi(argv[1]) : 0);
    while (thread_count < MM_MAX_THREADS && model->threads[thread_count] != NULL) {
        thread_count++;
    }
    for (volatile unsigned i = 0; i < thread_count; i++) {
        (void)getcontext(&contexts[i]);
        contexts[i].uc_stack.ss_sp = malloc(STACK);
        contexts[i].uc_stack.ss_size = STACK;
        makecontext(&contexts[i], (void (*)(void))live, 1, i);
        (void)swapcontext(&main_context, &contexts[i]);
    }
    bool more = true;
    while (more) {
        begin_execution();
        executions++;
        int how = _setjmp(main_here);
        if (how == 0) {
            schedule();
        }
        current = MAIN;
        if (how == AGAIN) { /* with one more location that several threads use */
            path_length = 0;
            state_count = 0;
            memset(states, 0, state_room * sizeof *states);
            continue;
        }
        if (how == END && model->check != NULL) {
            model->check();
        }
        more = next_path();
    }
    printf("holds: %llu executions, %llu states, %.1f s\n", (unsigned long long)executions,
           (unsigned long long)state_count, (double)clock() / CLOCKS_PER_SEC);
    return 0;
}
