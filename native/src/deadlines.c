/* A timing wheel of two levels. The first has a bucket for each tick of the block of 256 ticks that is under way, the
 * second one for each block after it, whose deadlines move to the first when their block begins. A deadline beyond the
 * last block lies in that one, and moves on from there. */
#include "deadlines.h"

#include <string.h>

#define TICK_BITS 22U /* a tick is 4.2 ms, */
#define SPAN_BITS 8U  /* a block 1.07 s, */
#define SPAN HSM_DEADLINE_BUCKETS

bool hsm_deadlines_grow(hsm_deadlines *wheel, uint32_t room) {
    hsm_deadline *nodes = hsm_alloc(room * sizeof *nodes);
    hsm_link *links = hsm_alloc(room * sizeof *links);
    if (nodes == NULL || links == NULL) {
        hsm_free(nodes);
        hsm_free(links);
        return false;
    }
    if (wheel->room != 0) {
        memcpy(nodes, wheel->nodes, wheel->room * sizeof *nodes);
        memcpy(links, wheel->links, wheel->room * sizeof *links);
    } else {
        for (uint32_t bucket = 0; bucket < 2 * SPAN; bucket++) {
            hsm_list_begin(&wheel->buckets[bucket]);
        }
    }
    hsm_free(wheel->nodes);
    hsm_free(wheel->links);
    wheel->nodes = nodes;
    wheel->links = links;
    wheel->room = room;
    return true;
}

void hsm_deadlines_free(hsm_deadlines *wheel) {
    hsm_free(wheel->nodes);
    hsm_free(wheel->links);
}

static void link_in(hsm_deadlines *wheel, uint32_t number) {
    hsm_deadline *node = &wheel->nodes[number];
    uint64_t tick = node->at_ns >> TICK_BITS;
    tick = tick > wheel->tick ? tick : wheel->tick;
    uint64_t block = tick >> SPAN_BITS;
    uint64_t last = (wheel->tick >> SPAN_BITS) + SPAN - 1U;
    bool under_way = block == wheel->tick >> SPAN_BITS;
    node->bucket = (uint32_t)(under_way ? tick % SPAN : SPAN + (block < last ? block : last) % SPAN);
    hsm_list_push(wheel->links, &wheel->buckets[node->bucket], number, true);
    wheel->used[node->bucket / 64U] |= UINT64_C(1) << (node->bucket % 64U);
}

void hsm_deadlines_add(hsm_deadlines *wheel, uint32_t number, uint64_t at_ns, uint64_t now) {
    if (wheel->count++ == 0) {
        wheel->tick = now >> TICK_BITS;
    }
    wheel->nodes[number].at_ns = at_ns;
    link_in(wheel, number);
}

void hsm_deadlines_drop(hsm_deadlines *wheel, uint32_t number) {
    hsm_deadline *node = &wheel->nodes[number];
    if (node->at_ns != 0) {
        hsm_list *bucket = &wheel->buckets[node->bucket];
        hsm_list_drop(wheel->links, bucket, number);
        if (bucket->count == 0) {
            wheel->used[node->bucket / 64U] &= ~(UINT64_C(1) << (node->bucket % 64U));
        }
        node->at_ns = 0;
        wheel->count--;
    }
}

/* How many buckets of a level, from the one at `from` on, are empty; SPAN - from: all of them. */
static uint32_t empty_from(const hsm_deadlines *wheel, uint32_t level, uint32_t from) {
    const uint64_t *used = &wheel->used[(size_t)level * (SPAN / 64U)];
    for (uint32_t at = from; at < SPAN; at = (at / 64U + 1U) * 64U) {
        uint64_t word = used[at / 64U] >> (at % 64U);
        if (word != 0) {
            return at + (uint32_t)__builtin_ctzll(word) - from;
        }
    }
    return SPAN - from;
}

/* A block begins: spread its deadlines over the first level. */
static void begin_block(hsm_deadlines *wheel, uint64_t block) {
    wheel->tick = block << SPAN_BITS;
    uint32_t bucket = SPAN + (uint32_t)(block % SPAN);
    hsm_list list = wheel->buckets[bucket];
    hsm_list_begin(&wheel->buckets[bucket]);
    wheel->used[bucket / 64U] &= ~(UINT64_C(1) << (bucket % 64U));
    for (uint32_t number = list.first; number != HSM_NONE;) {
        uint32_t next = wheel->links[number].next;
        link_in(wheel, number);
        number = next;
    }
}

bool hsm_deadlines_expired(hsm_deadlines *wheel, uint64_t now, uint32_t *number) {
    uint64_t end = now >> TICK_BITS;
    while (wheel->count != 0) {
        uint32_t empty = empty_from(wheel, 0, (uint32_t)(wheel->tick % SPAN));
        uint64_t tick = wheel->tick + empty;
        if (tick >= end) {
            break;
        }
        if (tick % SPAN != 0 || empty == 0) {
            wheel->tick = tick;
            *number = wheel->buckets[tick % SPAN].first;
            hsm_deadlines_drop(wheel, *number);
            return true;
        }
        begin_block(wheel, tick >> SPAN_BITS);
    }
    return false;
}

uint64_t hsm_deadlines_next(const hsm_deadlines *wheel) {
    if (wheel->count == 0) {
        return 0;
    }
    uint32_t at = (uint32_t)(wheel->tick % SPAN);
    uint32_t empty = empty_from(wheel, 0, at);
    if (at + empty < SPAN) {
        return (wheel->tick + empty + 1U) << TICK_BITS;
    }
    /* The blocks that follow are a ring. The time of one that has begun is over once a tick of it is. */
    uint32_t block = (uint32_t)((wheel->tick >> SPAN_BITS) % SPAN) + 1U;
    empty = empty_from(wheel, 1, block);
    if (block + empty == SPAN) {
        empty += empty_from(wheel, 1, 0);
    }
    return (((((wheel->tick >> SPAN_BITS) + 1U + empty) << SPAN_BITS) + 1U) << TICK_BITS);
}
