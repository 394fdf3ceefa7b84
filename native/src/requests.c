/* The way of a request: from hsm_requests_submit through a slot, or behind an identical request, to
 * hsm_requests_next. */
#include <string.h>

#include "algorithm.h"
#include "table.h"

/* ---- in ---- */

/* What the cache knows of a message. */
static enum hsm_cache_result look_up(hsm_requests *table, uint32_t key, const uint8_t *message, uint32_t message_len,
                                     bool prehashed, uint8_t *signature, uint32_t *signature_len, uint64_t *leader,
                                     uint64_t *entry) {
    *entry = 0;
    if (!hsm_requests_cacheable(table, key)) {
        return HSM_CACHE_MISS;
    }
    /* An index stands for one key and its one algorithm, so NONE is free for digests: the same bytes are two things. */
    hsm_algorithm algorithm = prehashed ? HSM_ALGORITHM_NONE : table->pinned.keys[hsm_key_place(key)].algorithm;
    enum hsm_cache_result result =
        hsm_cache_lookup(table->cache, key, algorithm, message, message_len, signature, signature_len, leader, entry);
    return result == HSM_CACHE_NO_MEMORY ? HSM_CACHE_MISS : result; /* it is signed, and not kept */
}

static void forget_entry(hsm_requests *table, uint64_t entry) {
    if (entry != 0) {
        hsm_cache_abandon(table->cache, entry);
    }
}

/* Write a request into a slot. Returns false if there is none. */
static bool send(hsm_requests *table, hsm_request *r, uint64_t now) {
    if (table->verdicts != NULL && hsm_client_next_slot(table->client) != HSM_NONE) {
        hsm_verdicts_expect(table->verdicts, hsm_client_next_slot(table->client), r->answer.key, r->message,
                            r->message_len, r->prehashed);
    }
    return hsm_client_write(table->client, r->answer.key, r->message, r->message_len, r->prehashed, now, r->deadline_ns,
                            &r->slot) == HSM_OK;
}

/* Go on with a request that is in no list, after the cache was asked for it. */
static void proceed(hsm_requests *table, uint32_t index, enum hsm_cache_result found, uint64_t leader, uint64_t entry,
                    uint64_t now) {
    hsm_request *r = &table->all[index];
    if (found == HSM_CACHE_HIT) {
        r->answer.status = HSM_OK;
        r->answer.shared = r->answer.cached = true;
        hsm_table_move(table, index, HSM_REQUEST_READY);
    } else if (found == HSM_CACHE_JOINED) {
        r->slot = (uint32_t)leader;
        hsm_table_move(table, index, HSM_REQUEST_FOLLOWING);
    } else if (send(table, r, now)) {
        hsm_place *at = &table->places[r->slot];
        at->owner = index;
        at->entry = entry;
        if (entry != 0) {
            hsm_cache_set_leader(table->cache, entry, r->slot);
        }
        hsm_request_becomes(r, HSM_REQUEST_SENT);
        table->owed++;
    } else { /* it asks the cache again when it gets a slot */
        forget_entry(table, entry);
        hsm_table_move(table, index, HSM_REQUEST_QUEUED);
    }
}

int hsm_requests_refuses(hsm_requests *table, uint64_t count, uint64_t timeout_ns) {
    /* A call that hangs is nobody to wait for once its waiter has been answered. */
    return hsm_admission_refuses(&table->admission, (uint64_t)table->owed + table->queue.count, count, timeout_ns);
}

hsm_status hsm_requests_submit(hsm_requests *table, const hsm_ask *ask, hsm_answer *answer) {
    answer->request = 0;
    answer->cached = 0;
    if (hsm_client_forked(table->client)) {
        return HSM_FORKED;
    }
    if (ask->message_len > table->client->area->max_message) { /* it would wait for a slot for ever */
        return HSM_MESSAGE_TOO_LARGE;
    }
    int known = hsm_pinned_state(&table->pinned, ask->key);
    if (known != 1) {
        return known == 0 ? HSM_KEY_DEACTIVATED : HSM_KEY_NOT_FOUND;
    }
    bool prehashed = ask->prehashed != 0;
    hsm_status fits =
        prehashed ? hsm_takes_digest(table->pinned.keys[hsm_key_place(ask->key)].algorithm, ask->message_len) : HSM_OK;
    if (fits != HSM_OK) {
        return fits;
    }
    if (table->free.count == 0 && !hsm_table_grow(table)) {
        return HSM_OUT_OF_MEMORY;
    }
    uint32_t index = table->free.first;
    hsm_request *r = &table->all[index];
    uint64_t leader = 0;
    uint64_t entry = 0;
    r->answer.signature_len = 0;
    enum hsm_cache_result found = look_up(table, ask->key, ask->message, ask->message_len, prehashed, r->signature,
                                          &r->answer.signature_len, &leader, &entry);
    answer->cached = found == HSM_CACHE_HIT;
    if (found == HSM_CACHE_HIT && ask->held == 0) {
        answer->signature = r->signature;
        answer->signature_len = r->answer.signature_len;
        return HSM_OK;
    }
    if (found == HSM_CACHE_MISS && ask->admitted == 0 && hsm_requests_refuses(table, 1, ask->timeout_ns)) {
        forget_entry(table, entry);
        return HSM_QUEUE_FULL;
    }
    uint64_t now = hsm_now_ns();
    (void)hsm_list_pop(table->links, &table->free);
    hsm_request_becomes(r, HSM_REQUEST_GIVEN);
    if (__builtin_add_overflow(now, ask->timeout_ns, &r->deadline_ns)) {
        r->deadline_ns = UINT64_MAX;
    }
    r->message = ask->message;
    r->message_len = ask->message_len;
    r->prehashed = prehashed;
    r->slot = HSM_NONE;
    r->answer = (hsm_answer){.request = hsm_table_number(r, index),
                             .tag = ask->tag,
                             .key = ask->key,
                             .slot = HSM_NONE,
                             .signature_len = r->answer.signature_len,
                             .claimed = 1};
    table->open++;
    hsm_deadlines_add(&table->deadlines, index, r->deadline_ns, now);
    if (found == HSM_CACHE_MISS && table->queue.count != 0) { /* it does not overtake those that wait */
        forget_entry(table, entry);
        hsm_table_move(table, index, HSM_REQUEST_QUEUED);
    } else {
        proceed(table, index, found, leader, entry, now);
    }
    answer->request = r->answer.request;
    answer->deadline_ns = r->deadline_ns;
    return HSM_OK;
}

/* Give free slots to the requests that wait, in their order. Returns whether any was ready at once. */
static bool refill(hsm_requests *table) {
    uint64_t now = hsm_now_ns();
    hsm_client_batch_begin(table->client);
    while (table->queue.count != 0 && hsm_client_free_slots(table->client) != 0) {
        uint32_t index = table->queue.first;
        hsm_request *r = &table->all[index];
        uint64_t leader = 0;
        uint64_t entry = 0;
        enum hsm_cache_result found = look_up(table, r->answer.key, r->message, r->message_len, r->prehashed,
                                              r->signature, &r->answer.signature_len, &leader, &entry);
        (void)hsm_list_pop(table->links, &table->queue);
        hsm_request_becomes(r, HSM_REQUEST_GIVEN);
        proceed(table, index, found, leader, entry, now);
    }
    hsm_client_batch_end(table->client);
    return table->ready.count != 0;
}

/* ---- out ---- */

/* A request has this answer, to be given by the next call of hsm_requests_next. */
static void settle(hsm_requests *table, uint32_t index, hsm_status status) {
    table->all[index].answer.status = status;
    hsm_table_move(table, index, HSM_REQUEST_READY);
}

/* The request in a slot has ended with `r`'s answer: so have those that follow it. What ended it alone, its deadline or
 * its waiter, does not end them: they ask again, before all others. `begun`: a worker has begun it. `r` has that of its
 * own waiter, who may have left before. */
static void share(hsm_requests *table, hsm_list *followers, const hsm_request *r, bool begun) {
    bool alone = r->answer.status == HSM_CANCELLED || r->answer.status == HSM_DEADLINE_EXCEEDED;
    while (followers->count != 0) {
        uint32_t index = alone ? followers->last : followers->first;
        hsm_request *follower = &table->all[index];
        hsm_list_drop(table->links, followers, index);
        follower->slot = HSM_NONE;
        follower->answer.begun |= begun;
        if (alone) {
            hsm_request_becomes(follower, HSM_REQUEST_QUEUED);
            hsm_list_push(table->links, &table->queue, index, true);
            continue;
        }
        hsm_request_becomes(follower, HSM_REQUEST_GIVEN);
        follower->answer.ckr = r->answer.ckr;
        follower->answer.call = r->answer.call;
        follower->answer.slot = r->answer.slot;
        follower->answer.shared = true;
        follower->answer.signature_len = r->answer.signature_len;
        memcpy(follower->signature, r->signature, r->answer.signature_len);
        settle(table, index, (hsm_status)r->answer.status);
    }
}

/* Take one completion. Returns the request that it answers; HSM_NONE: there is none. */
static uint32_t take(hsm_requests *table) {
    hsm_completion done;
    if (table->verdicts != NULL ? !hsm_verdicts_next(table->verdicts, &done)
                                : hsm_client_next(table->client, &done) == 0) {
        return HSM_NONE;
    }
    hsm_place *at = &table->places[done.slot];
    uint32_t index = at->owner;
    hsm_request *r = &table->all[index];
    hsm_status status = done.status < HSM_STATUS_COUNT ? done.status : HSM_CKR_UNKNOWN;
    table->taken += done.hsm_ns != 0 ? 1U : 0U; /* what was dropped says nothing about the service */
    r->answer.signature_len = 0;
    if (status == HSM_OK && done.signature_len != HSM_MAX_SIGNATURE) {
        status = HSM_SIGNATURE_MALFORMED;
    } else if (status == HSM_OK) { /* copied once: what is kept, recorded and handed out is the same */
        r->answer.signature_len = HSM_MAX_SIGNATURE;
        memcpy(r->signature, done.signature, sizeof r->signature);
    }
    r->answer.ckr = done.ckr;
    r->answer.call = done.call;
    r->answer.failed = status == HSM_DEADLINE_EXCEEDED ? hsm_client_failed(table->client, done.slot) : HSM_OK;
    r->answer.digest = done.hsm_ns != 0 && table->client->area->digests ? done.digest : NULL;
    r->answer.latency_ns = done.queue_ns + done.hsm_ns;
    if (at->entry != 0 && status == HSM_OK) {
        hsm_cache_fill(table->cache, at->entry, r->signature, r->answer.signature_len,
                       hsm_pinned_state(&table->pinned, r->answer.key) == 1);
    } else {
        forget_entry(table, at->entry);
    }
    at->entry = 0;
    at->owner = HSM_NONE;
    bool begun = status == HSM_OK || hsm_client_begun(table->client, done.slot) != 0;
    r->answer.begun |= begun;
    hsm_client_release(table->client, done.slot);
    r->answer.slot = done.slot;
    r->slot = HSM_NONE;
    table->owed -= r->answer.claimed ? 1U : 0U;
    r->answer.status = status;
    if (at->followers.count != 0) {
        share(table, &at->followers, r, begun);
    }
    return index;
}

/* The request to be answered next, in no list; HSM_NONE: there is none now. */
static uint32_t next(hsm_requests *table) {
    for (;;) {
        if (table->ready.count != 0) {
            return hsm_list_pop(table->links, &table->ready);
        }
        uint32_t index = take(table);
        if (index != HSM_NONE) {
            return index;
        }
        if (table->taken != 0) {
            bool loaded = table->queue.count != 0 || hsm_client_queued(table->client) != 0;
            hsm_admission_note(&table->admission, hsm_now_ns(), table->taken, loaded);
            table->taken = 0;
        }
        if (table->queue.count == 0 || !refill(table)) {
            return HSM_NONE;
        }
    }
}

int hsm_requests_next(hsm_requests *table, hsm_answer *answer) {
    uint32_t index = hsm_client_forked(table->client) ? HSM_NONE : next(table);
    if (index == HSM_NONE) {
        return 0;
    }
    hsm_request *r = &table->all[index];
    r->answer.last = r->slot == HSM_NONE;
    r->answer.signature = r->signature;
    hsm_request_becomes(r, r->answer.last != 0 ? HSM_REQUEST_GIVEN : HSM_REQUEST_SENT);
    *answer = r->answer;
    if (r->answer.status != HSM_OK) {
        answer->signature_len = 0;
    }
    if (r->answer.claimed != 0) {
        r->answer.claimed = 0;
        r->answer.told = 1;
        table->open--;
    }
    return 1;
}

void hsm_requests_end(hsm_requests *table, uint64_t request) {
    uint32_t index = hsm_table_find(table, request);
    if (index != HSM_NONE && table->all[index].state == HSM_REQUEST_GIVEN) {
        hsm_request *r = &table->all[index];
        hsm_deadlines_drop(&table->deadlines, index);
        r->generation += r->generation == UINT32_MAX ? 2U : 1U; /* no number is 0 */
        hsm_request_becomes(r, HSM_REQUEST_FREE);
        hsm_list_push(table->links, &table->free, index, true); /* few requests that stay warm, not all in turn */
    }
}

void hsm_requests_hold(hsm_requests *table, uint64_t request, uint64_t seq, uint64_t round) {
    uint32_t index = hsm_table_find(table, request);
    if (index != HSM_NONE && table->all[index].state == HSM_REQUEST_GIVEN) {
        hsm_request *r = &table->all[index];
        if (hsm_deadlines_passed(&table->deadlines, index)) { /* a sweep came between its answer and this call */
            hsm_deadlines_add(&table->deadlines, index, r->deadline_ns, hsm_now_ns());
        }
        r->answer.digest = NULL; /* it lies in the slot, which is another request's by now */
        r->answer.slot = HSM_NONE;
        r->answer.seq = seq != 0 ? seq : r->answer.seq;
        r->answer.round = round;
        r->answer.claimed = true;
        r->answer.told = false;
        table->open++;
        hsm_table_move(table, index, round != 0 ? HSM_REQUEST_AWAITING : HSM_REQUEST_HELD);
        hsm_client_note_held(table->client, table->held.count + table->awaiting.count);
    }
}

void hsm_requests_release(hsm_requests *table, uint64_t seq) {
    while (table->held.count != 0 && table->all[table->held.first].answer.seq <= seq) {
        settle(table, table->held.first, HSM_OK);
    }
    hsm_client_note_held(table->client, table->held.count + table->awaiting.count);
}

void hsm_requests_confirm(hsm_requests *table, uint64_t round) {
    while (table->awaiting.count != 0 && table->all[table->awaiting.first].answer.round <= round) {
        settle(table, table->awaiting.first, HSM_OK);
    }
    hsm_client_note_held(table->client, table->held.count + table->awaiting.count);
}

/* ---- ends that are not the workers' ---- */

/* Withdraw the request in a slot, unless others follow it. Returns whether a signature of it was or will be made. */
static bool withdraw(hsm_requests *table, uint32_t slot) {
    return table->places[slot].followers.count != 0 || hsm_client_cancel(table->client, slot) == 0;
}

/* A follower leaves the request in its slot: withdraw that one if no waiter is left. Returns as withdraw. */
static bool unfollow(hsm_requests *table, uint32_t index) {
    uint32_t slot = table->all[index].slot;
    const hsm_request *leader = &table->all[table->places[slot].owner];
    hsm_table_move(table, index, HSM_REQUEST_GIVEN);
    table->all[index].slot = HSM_NONE;
    return (leader->answer.claimed && leader->state == HSM_REQUEST_SENT) || withdraw(table, slot);
}

int hsm_requests_cancel(hsm_requests *table, uint64_t request, int *begun) {
    uint32_t index = hsm_table_find(table, request);
    *begun = 1;
    if (index == HSM_NONE || !table->all[index].answer.claimed) {
        return 0;
    }
    hsm_request *r = &table->all[index];
    r->answer.claimed = false;
    table->open--;
    if (r->state == HSM_REQUEST_FOLLOWING) {
        *begun = unfollow(table, index) || r->answer.begun;
        hsm_requests_end(table, request);
        return 1;
    }
    if (r->slot != HSM_NONE) { /* it stays until the workers are done with it */
        table->owed -= r->state == HSM_REQUEST_SENT ? 1U : 0U;
        *begun = withdraw(table, r->slot) || r->answer.begun; /* its deadline stays: a call that hangs is found by it */
        hsm_table_move(table, index, HSM_REQUEST_SENT);
        return 0;
    }
    *begun = r->answer.begun || (r->state != HSM_REQUEST_QUEUED && r->answer.status == HSM_OK);
    hsm_table_move(table, index, HSM_REQUEST_GIVEN);
    hsm_requests_end(table, request);
    return 1;
}

/* Answer a waiter before its request has ended. */
static void answer_early(hsm_requests *table, uint32_t index, hsm_status status) {
    hsm_request *r = &table->all[index];
    if (r->slot != HSM_NONE && status == HSM_DEADLINE_EXCEEDED) {
        r->answer.failed = hsm_client_failed(table->client, r->slot);
    }
    if (r->state == HSM_REQUEST_SENT) {
        table->owed--;
        r->answer.begun |= status == HSM_CLOSED || withdraw(table, r->slot);
    } else if (r->state == HSM_REQUEST_FOLLOWING) {
        r->answer.begun |= unfollow(table, index);
    }
    settle(table, index, status);
}

uint32_t hsm_requests_key(const hsm_requests *table, uint64_t request) {
    uint32_t index = hsm_table_find(table, request);
    return index != HSM_NONE ? table->all[index].answer.key : 0;
}

uint32_t hsm_requests_sweep(hsm_requests *table, uint64_t now) {
    uint32_t index;
    uint32_t overdue = 0;
    while (hsm_deadlines_expired(&table->deadlines, now, &index)) {
        const hsm_request *r = &table->all[index];
        overdue += r->state == HSM_REQUEST_SENT || r->state == HSM_REQUEST_FOLLOWING ? 1U : 0U;
        if (r->answer.claimed && r->state != HSM_REQUEST_READY) {
            answer_early(table, index, HSM_DEADLINE_EXCEEDED);
        }
    }
    return overdue;
}

uint64_t hsm_requests_sweep_at(const hsm_requests *table) {
    return hsm_deadlines_next(&table->deadlines);
}

void hsm_requests_fail(hsm_requests *table, enum hsm_which which, hsm_status status) {
    while (which != HSM_HELD_ONES && table->queue.count != 0) {
        settle(table, table->queue.first, status);
    }
    while ((which == HSM_HELD_ONES || which == HSM_ALL) && table->held.count != 0) {
        settle(table, table->held.first, status);
    }
    while (which == HSM_ALL && table->awaiting.count != 0) {
        settle(table, table->awaiting.first, status);
    }
    for (uint32_t index = 0; which >= HSM_UNSIGNED_ONES && index < table->room; index++) {
        const hsm_request *r = &table->all[index];
        if (r->answer.claimed && (r->state == HSM_REQUEST_SENT || r->state == HSM_REQUEST_FOLLOWING)) {
            answer_early(table, index, status);
        }
    }
}

uint32_t hsm_requests_replay(hsm_requests *table) {
    if (hsm_client_forked(table->client)) {
        return 0;
    }
    if (table->verdicts != NULL) {
        hsm_verdicts_pause(table->verdicts);
    }
    for (uint32_t slot = 0; slot < hsm_client_slots(table->client); slot++) {
        const hsm_place *at = &table->places[slot];
        if (at->owner != HSM_NONE) {
            hsm_request *r = &table->all[at->owner];
            r->answer.begun = true; /* by the host that is lost, for all that is known */
            for (uint32_t index = at->followers.first; index != HSM_NONE; index = table->links[index].next) {
                table->all[index].answer.begun = true;
            }
            bool again =
                hsm_algorithm_is_deterministic(table->pinned.keys[hsm_key_place(r->answer.key)].algorithm) != 0;
            hsm_client_restore(table->client, slot, r->answer.key, r->message, r->message_len, r->prehashed,
                               r->deadline_ns, again);
        }
    }
    uint32_t again = hsm_client_replay(table->client);
    if (table->verdicts != NULL) {
        hsm_verdicts_resume(table->verdicts);
    }
    return again;
}
