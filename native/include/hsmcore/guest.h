/* A guest serves the requests of a table in the caller's own thread, in place of an engine: for keys behind coroutines
 * or in memory. It claims a request for one of its runners, the caller signs, the guest completes it; then the answer
 * is taken with hsm_requests_next as ever. Its counters are those of an engine, see hsm_client_stats.
 *
 * One thread at a time, the one that submits. A table has a guest or an engine, not both. A runner that is with no
 * request, or a guest that is NULL, has nothing to overrun or to end: a call may outlast both.
 */
#ifndef HSMCORE_GUEST_H
#define HSMCORE_GUEST_H

#include <hsmcore/requests.h>

typedef struct hsm_guest hsm_guest;

/* `runners` requests may be under way, 1 .. the client's max_workers. Each `verify_every`-th signature of a key is
 * verified before it is handed out; 0: none. The table outlives the guest. */
HSM_NODISCARD hsm_status hsm_guest_new(hsm_requests *table, uint32_t runners, uint32_t verify_every, hsm_guest **guest);
/* NULL is allowed. */
void hsm_guest_free(hsm_guest *guest);
/* Take in a key: of `key` the algorithm and the public key count, `index` is filled. Returns HSM_BAD_ARGUMENT when
 * HSM_MAX_KEYS keys are in use, HSM_CLOSED without a guest, or HSM_OUT_OF_MEMORY. */
HSM_NODISCARD hsm_status hsm_guest_add_key(hsm_guest *guest, hsm_key_info *key, int cacheable);
/* Begin the next request with this idle runner. Requests that were cancelled, whose deadline has passed or whose key is
 * retired complete without it. Returns the request's number, or 0 when there is none or the runner is with one. */
uint64_t hsm_guest_begin(hsm_guest *guest, uint32_t runner, uint32_t *key);
/* 1 if a call has overrun: the runner's request has no waiter left, and its deadline has passed. From then on the
 * runner counts as stuck. */
int hsm_guest_overran(hsm_guest *guest, uint32_t runner);
/* End the runner's request: with a signature of HSM_MAX_SIGNATURE bytes, or with a status other than HSM_OK. Returns
 * the slot that it had, or HSM_NO_SLOT if it was with none. */
uint32_t hsm_guest_end(hsm_guest *guest, uint32_t runner, hsm_status status, uint64_t ckr, const uint8_t *signature);
/* Complete every request that no runner has begun. */
void hsm_guest_refuse(hsm_guest *guest, hsm_status status);

#endif
