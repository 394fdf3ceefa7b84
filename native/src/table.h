/* The request table's memory: requests by number, slots, lists. A request is in one list at a time: it waits for a
 * slot, follows an identical request in a slot, is ready to be answered, is held until its record is durable or a round
 * is over, or is free. One that is with the workers is in none: its slot names it. */
#ifndef HSM_TABLE_H
#define HSM_TABLE_H

#include <hsmcore/requests.h>

#include <assert.h>

#include "admission.h"
#include "client.h"
#include "deadlines.h"
#include "list.h"
#include "pinned.h"
#include "verdicts.h"

/* GIVEN: its answer was taken; the caller ends it or holds it next. SENT: it is with the workers. */
enum hsm_request_state {
    HSM_REQUEST_FREE,
    HSM_REQUEST_QUEUED,
    HSM_REQUEST_FOLLOWING,
    HSM_REQUEST_SENT,
    HSM_REQUEST_READY,
    HSM_REQUEST_GIVEN,
    HSM_REQUEST_HELD,
    HSM_REQUEST_AWAITING
};

typedef struct hsm_request {
    uint64_t deadline_ns;
    const uint8_t *message;
    uint32_t message_len;
    uint32_t generation; /* the upper half of its number */
    uint32_t slot;       /* that it has, or whose request it follows; or HSM_NONE */
    uint8_t state;       /* enum hsm_request_state */
    bool prehashed;      /* see hsm_ask */
    hsm_answer answer;   /* `claimed`: its waiter has no answer; `slot`: that it had */
    uint8_t signature[HSM_MAX_SIGNATURE];
} hsm_request;

typedef struct hsm_place {
    uint32_t owner; /* the request in this slot, or HSM_NONE */
    uint64_t entry; /* the cache entry that it leads, or 0 */
    hsm_list followers;
} hsm_place;

struct hsm_requests {
    hsm_client *client;
    hsm_cache *cache; /* or NULL */
    hsm_admission admission;
    hsm_deadlines deadlines; /* by index of a request */
    hsm_pinned pinned;
    hsm_verdicts *verdicts; /* NULL: nothing is verified on this side */
    hsm_place *places;      /* by slot */
    hsm_request *all;
    hsm_link *links; /* by index of a request */
    uint32_t room;
    hsm_list free, queue, ready, held, awaiting;
    uint32_t open;  /* waiters without an answer */
    uint32_t owed;  /* of these, those whose request is with the workers */
    uint64_t taken; /* completions of calls since admission control was told */
};

/* Make room for more requests. Returns false when memory is short. */
bool hsm_table_grow(hsm_requests *table);
/* By state, a bit for each state that may come next. */
extern const uint8_t hsm_request_moves[HSM_REQUEST_AWAITING + 1];

/* Note the next state of a request that is in no list. What no request may do is a defect: it gets no signature. */
static inline void hsm_request_becomes(hsm_request *request, enum hsm_request_state state) {
    bool legal = (hsm_request_moves[request->state] >> state & 1U) != 0;
    assert(legal);
    if (!legal) {
        request->answer.status = HSM_SYSTEM;
        request->answer.signature_len = 0;
    }
    request->state = (uint8_t)state;
}

/* Take a request that is not free out of its list and put it into the one that goes with `state`, which is not FREE. */
void hsm_table_move(hsm_requests *table, uint32_t index, enum hsm_request_state state);
/* The index of a request by its number; HSM_NONE if it is over. */
uint32_t hsm_table_find(const hsm_requests *table, uint64_t number);

static inline uint64_t hsm_table_number(const hsm_request *request, uint32_t index) {
    return (uint64_t)request->generation << 32U | index;
}

#endif
