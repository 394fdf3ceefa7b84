/* The memory: messages, views, fences, data races. See machine.h. */
#include "machine.h"

#include <string.h>

location locations[LOCATIONS];
unsigned location_count;
static view fences, sc_stores;
static bool has_fences, has_shared_memory;
static uint64_t plain_mark;
static cell cells[CELLS];

static uint64_t plain_load(uintptr_t address, unsigned size) {
    uint64_t value = 0;
    memcpy(&value, (const void *)address, size);
    return value;
}

location *find(uintptr_t address) {
    for (unsigned i = 0; i < location_count; i++) {
        if (locations[i].address == address) {
            return &locations[i];
        }
    }
    if (location_count == LOCATIONS) {
        mm_fail("the model has too many atomics for the explorer");
    }
    location *place = &locations[location_count++];
    *place = (location){.address = address, .owner = NOBODY, .name = "an atomic"};
    return place;
}

uint64_t newest(uintptr_t address, unsigned size) {
    for (unsigned i = 0; i < location_count; i++) {
        const location *place = &locations[i];
        if (place->address == address && place->count > 0) {
            return place->messages[place->count - 1].value;
        }
    }
    return plain_load(address, size);
}

static uint64_t mix_all(uint64_t hash, const uint32_t *values, unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        hash = mix(hash, values[i]);
    }
    return hash;
}

static uint64_t mix_view(uint64_t hash, const view *view) {
    hash = mix_all(hash, view->at, location_count);
    return has_shared_memory ? mix_all(hash, view->clock, thread_count) : hash;
}

/* All that the rest of the execution depends on. What no thread can see any more is left out, and views that no thread
 * will join. */
uint64_t hash_of_memory(void) {
    uint64_t hash = plain_mark;
    for (unsigned i = 0; i < thread_count; i++) {
        hash = mix_view(hash, &threads[i].now);
        hash = has_fences ? mix_view(mix_view(hash, &threads[i].acquirable), &threads[i].released) : hash;
    }
    for (unsigned i = 0; i < location_count; i++) {
        const location *place = &locations[i];
        uint32_t from = UINT32_MAX;
        for (unsigned j = 0; j < thread_count; j++) {
            from = threads[j].wait != ENDED && threads[j].now.at[i] < from ? threads[j].now.at[i] : from;
        }
        for (unsigned j = 0; j < place->count; j++) {
            const message *message = &place->messages[j];
            if (message->at >= from || j + 1 == place->count) {
                hash = mix(mix(mix(hash, message->value), message->at), message->followed);
                hash = place->acquired || has_fences ? mix_view(hash, &message->seen) : hash;
            }
        }
        hash = mix(mix(hash, place->count), place->woken);
    }
    hash = mix_view(mix_view(hash, &fences), &sc_stores);
    return hash;
}

void raise_to(uint32_t *mark, uint32_t to) {
    *mark = *mark < to ? to : *mark;
}

static void join_order(view *into, const view *from) {
    for (unsigned i = 0; i < location_count; i++) {
        raise_to(&into->at[i], from->at[i]);
    }
}

static void join(view *into, const view *from) {
    join_order(into, from);
    for (unsigned i = 0; i < thread_count; i++) {
        raise_to(&into->clock[i], from->clock[i]);
    }
}

location *use(uintptr_t address, unsigned size) {
    if (current == MAIN) {
        return NULL;
    }
    location *place = find(address);
    if (place->owner == NOBODY) {
        place->owner = current;
        place->size = size;
    }
    if (place->owner == current && !place->is_shared) {
        return NULL;
    }
    learn(&place->is_shared);
    if (place->size != size) {
        mm_fail("one atomic is used in two sizes");
    }
    if (threads[current].has_acted) {
        schedule();
    }
    if (place->count == 0) {
        place->messages[0] = (message){.value = plain_load(address, size), .at = 1};
        place->count = 1;
    }
    return place;
}

/* The first message that an operation of the current thread may still take. */
static unsigned oldest(const location *place, int order) {
    unsigned index = (unsigned)(place - locations);
    uint32_t from = threads[current].now.at[index];
    if (order == SEQ_CST) {
        raise_to(&from, fences.at[index]);
        raise_to(&from, sc_stores.at[index]);
    }
    unsigned first = 0;
    while (first + 1 < place->count && place->messages[first].at < from) {
        first++;
    }
    return first;
}

static void take(location *place, const message *message, int order) {
    thread *self = &threads[current];
    self->watches[place - locations] = true;
    self->turn = mix(mix(self->turn, (uint64_t)(place - locations)), message->at);
    self->has_acted = self->has_acted || order == SEQ_CST;
    raise_to(&self->now.at[place - locations], message->at);
    join(&self->acquirable, &message->seen);
    if (order != RELAXED && order != RELEASE) {
        learn(&place->acquired);
        join(&self->now, &message->seen);
    }
}

/* Put a message after the one at `index`. */
static void put(location *place, unsigned index, uint64_t value, int order, const view *chain) {
    thread *self = &threads[current];
    self->has_acted = self->has_put = true;
    if (place->count == MESSAGES) {
        mm_fail("an atomic is written too often for the explorer");
    }
    message *before = &place->messages[index];
    uint32_t at = index + 1 == place->count ? before->at + GAP : before->at + (before[1].at - before->at) / 2;
    memmove(before + 2, before + 1, (place->count - index - 1) * sizeof *before);
    place->count++;
    raise_to(&self->now.at[place - locations], at);
    raise_to(&self->acquirable.at[place - locations], at);
    before[1] = (message){.value = value, .at = at, .seen = order >= RELEASE ? self->now : self->released};
    raise_to(&before[1].seen.at[place - locations], at);
    if (chain != NULL) {
        join(&before[1].seen, chain);
        before->followed = true;
    }
    if (order == SEQ_CST) {
        raise_to(&sc_stores.at[place - locations], at);
    }
    self->now.clock[current]++;
    self->acquirable.clock[current] = self->now.clock[current];
}

uint64_t load(uintptr_t address, unsigned size, int order) {
    location *place = use(address, size);
    if (place == NULL) {
        return newest(address, size); /* after an execution; or no other thread uses it */
    }
    unsigned age = choose(place->count - oldest(place, order));
    const message *message = &place->messages[place->count - 1 - age];
    take(place, message, order);
    note("load", place, message->value, age);
    return message->value;
}

void store(uintptr_t address, unsigned size, uint64_t value, int order) {
    location *place = use(address, size);
    if (place == NULL) {
        memcpy((void *)address, &value, size);
        return;
    }
    unsigned after[MESSAGES];
    unsigned count = 0;
    for (unsigned i = place->count; i-- > oldest(place, order);) {
        if (!place->messages[i].followed) {
            after[count++] = i;
        }
    }
    unsigned at = after[choose(count)];
    note("store", place, value, place->count - 1 - at);
    put(place, at, value, order, NULL);
}

static uint64_t changed(enum change change, uint64_t old, uint64_t value) {
    switch (change) {
    case ADD:
        return old + value;
    case SUB:
        return old - value;
    case AND:
        return old & value;
    case OR:
        return old | value;
    case XOR:
        return old ^ value;
    default:
        return value;
    }
}

uint64_t modify(uintptr_t address, unsigned size, enum change change, uint64_t value, uint64_t expected, int order,
                int failure_order) {
    uint64_t mask = size == 8 ? UINT64_MAX : (UINT64_C(1) << size * 8) - 1;
    location *place = use(address, size);
    if (place == NULL) {
        uint64_t old = plain_load(address, size);
        uint64_t new = changed(change, old, value) & mask;
        if (change != COMPARE || old == expected) {
            memcpy((void *)address, &new, size);
        }
        return old;
    }
    unsigned from[MESSAGES];
    unsigned count = 0;
    for (unsigned i = place->count; i-- > 0;) {
        bool succeeds = change != COMPARE || place->messages[i].value == expected;
        if (i >= oldest(place, succeeds ? order : failure_order) && !(succeeds && place->messages[i].followed)) {
            from[count++] = i;
        }
    }
    unsigned at = from[choose(count)];
    message old = place->messages[at];
    bool succeeds = change != COMPARE || old.value == expected;
    take(place, &old, succeeds ? order : failure_order);
    note(succeeds ? "change" : "compare", place, old.value, place->count - 1 - at);
    if (succeeds) {
        put(place, at, changed(change, old.value, value) & mask, order, &old.seen);
    }
    return old.value;
}

void fence(int order) {
    thread *self = &threads[current];
    learn(&has_fences);
    if (order == SEQ_CST && self->has_acted) {
        schedule();
    }
    self->has_acted = self->has_acted || order == SEQ_CST;
    if (order != RELEASE) {
        join(&self->now, &self->acquirable);
    }
    if (order == SEQ_CST) {
        join_order(&self->now, &fences);
        join_order(&self->now, &sc_stores);
        join_order(&fences, &self->now);
        note("fence", NULL, 0, 0);
    }
    if (order != ACQUIRE) {
        self->released = self->now;
        self->now.clock[current]++;
    }
    join(&self->acquirable, &self->now);
}

void touch(uintptr_t address, unsigned long size, bool is_write) {
    for (; current != MAIN && size > 0; address++, size--) {
        unsigned at = (unsigned)(address * 40503U) % CELLS;
        while (cells[at].run == run && cells[at].address != address) {
            at = (at + 1) % CELLS;
        }
        cell *cell = &cells[at];
        if (cell->run != run) {
            memset(cell, 0, sizeof *cell);
            cell->run = run;
            cell->address = address;
        }
        const view *now = &threads[current].now;
        bool race = cell->written > now->clock[cell->writer];
        bool is_shared = cell->written > 0 && cell->writer != current;
        for (unsigned i = 0; is_write && i < thread_count; i++) {
            race = race || cell->read[i] > now->clock[i];
            is_shared = is_shared || (cell->read[i] > 0 && (int)i != current);
        }
        if (is_shared) {
            learn(&has_shared_memory);
        }
        if (race) {
            mm_fail("a data race");
        }
        if (is_write) {
            cell->written = now->clock[current];
            cell->writer = current;
            plain_mark ^= cell->mark;
            cell->mark = mix(mix(address, threads[current].history), (uint64_t)current);
            plain_mark ^= cell->mark;
        } else {
            cell->read[current] = now->clock[current];
        }
    }
}

void mm_name(const void *address, const char *name) {
    find((uintptr_t)address)->name = name;
}

void join_thread(const thread *ended) {
    join(&threads[current].now, &ended->now);
    join(&threads[current].acquirable, &ended->now);
}

void begin_memory(void) {
    memset(&fences, 0, sizeof fences);
    memset(&sc_stores, 0, sizeof sc_stores);
    plain_mark = 0;
    for (unsigned i = 0; i < location_count; i++) {
        locations[i].count = locations[i].woken = 0;
    }
}
