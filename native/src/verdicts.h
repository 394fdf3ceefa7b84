/* Verification on the client's side of the boundary, in a thread of its own: it takes the completions in place of the
 * thread that asks, copies them, verifies the signatures whose turn it is, and hands the copies on. Where the workers
 * are not trusted, nothing that they may still write into is looked at afterwards, but for a digest.
 *
 * To the request table a request whose verdict is not there yet is one that the workers still have: its slot is taken,
 * its deadline and its cancellation are those of any request in a slot. */
#ifndef HSM_VERDICTS_H
#define HSM_VERDICTS_H

#include "client.h"
#include "pinned.h"

typedef struct hsm_verdicts hsm_verdicts;

/* Start the thread, for a module with so many workers. From now on only this thread calls hsm_client_next,
 * hsm_client_wake_clear and hsm_client_catch_up of the client, which outlives it. HSM_OUT_OF_MEMORY, HSM_SYSTEM. */
hsm_status hsm_verdicts_new(hsm_client *client, hsm_pinned *pinned, uint64_t workers, hsm_verdicts **out);
/* End the thread after it has verified all that has come; the workers have ended. Idempotent. */
void hsm_verdicts_end(hsm_verdicts *verdicts);
/* End and free. NULL is allowed. */
void hsm_verdicts_free(hsm_verdicts *verdicts);
/* Keep the thread from completions and keys until hsm_verdicts_resume: for hsm_client_replay and hsm_pinned_add. Waits
 * for one verification at most. */
void hsm_verdicts_pause(hsm_verdicts *verdicts);
void hsm_verdicts_resume(hsm_verdicts *verdicts);

/* Before hsm_client_write: what the request in this slot asks for. The message stays in place until its verdict is
 * taken. */
void hsm_verdicts_expect(hsm_verdicts *verdicts, uint32_t slot, uint32_t key, const uint8_t *message,
                         uint32_t message_len, bool prehashed);
/* In place of hsm_client_next: take one completion that has its verdict. */
bool hsm_verdicts_next(hsm_verdicts *verdicts, hsm_completion *done);
/* As hsm_client_wake_clear and hsm_client_catch_up, for the descriptor that says that verdicts wait. */
int hsm_verdicts_fd(const hsm_verdicts *verdicts);
void hsm_verdicts_wake_clear(hsm_verdicts *verdicts);
bool hsm_verdicts_wait(const hsm_verdicts *verdicts);
/* Signatures that did not verify. */
uint64_t hsm_verdicts_wrong(const hsm_verdicts *verdicts);

#endif
