/* The reference: a thread with a session of its own for each worker, and nothing between it and the module. The next
 * planned request goes to the thread that is free first; a request that finds none free waits, which counts in its
 * latency. */
#include "load.h"

#include <stdlib.h>

#include "algorithm.h"
#include "key.h"
#include "module.h"
#include "token.h"

static struct {
    hsm_module *module;
    CK_SESSION_HANDLE login;
    CK_SESSION_HANDLE *sessions;
    CK_OBJECT_HANDLE key;
    hsm_algorithm algorithm;
    uint32_t workers;
} raw;

typedef struct signer {
    load_run *run;
    load_tally *tally;
    CK_SESSION_HANDLE session;
    pthread_t thread;
} signer;

static void check(hsm_status status, const hsm_error *error) {
    if (status != HSM_OK) {
        load_fail("%s %s: %s", error->call, hsm_status_name(status), error->detail);
    }
}

static void open_raw(const load_settings *settings, hsm_key_info *info) {
    hsm_error error = {.status = HSM_OK};
    hsm_turn_begin(settings->quirks, settings->module);
    check(hsm_module_acquire(settings->module, settings->module_args, &raw.module, &error), &error);
    CK_FUNCTION_LIST *p11 = raw.module->p11;
    hsm_token_selector selector = {settings->token_label, settings->token_serial, settings->slot_id};
    hsm_token_info token;
    check(hsm_token_find(p11, &selector, &token, &error), &error);
    check(hsm_session_open(p11, token.slot_id, false, &raw.login, &error), &error);
    bool already;
    if (settings->pin != NULL) {
        check(hsm_token_login(p11, token.slot_id, raw.login, settings->pin, settings->pin_len, &already, &error),
              &error);
    }
    hsm_turn_end();
    hsm_key_selector wanted = load_key_selector(settings);
    check(hsm_key_find(p11, raw.login, &wanted, &raw.key, info, &error), &error);
    raw.algorithm = info->algorithm;
    raw.workers = settings->workers;
    raw.sessions = load_alloc(settings->workers * sizeof *raw.sessions);
    for (uint32_t i = 0; i < settings->workers; i++) {
        check(hsm_session_open(p11, token.slot_id, false, &raw.sessions[i], &error), &error);
    }
}

static CK_RV sign(CK_SESSION_HANDLE session, uint8_t *message, size_t size, uint8_t signature[HSM_MAX_SIGNATURE]) {
    const hsm_algorithm_info *info = hsm_algorithm_lookup(raw.algorithm);
    uint8_t digest[HSM_SHA256_SIZE];
    if (info->prehashed) {
        hsm_sha256(message, size, digest);
        message = digest;
        size = sizeof digest;
    }
    CK_MECHANISM mechanism = {info->mechanism, NULL, 0};
    CK_ULONG length = HSM_MAX_SIGNATURE;
    CK_RV rv = raw.module->p11->C_SignInit(session, &mechanism, raw.key);
    if (rv == CKR_OK) {
        rv = raw.module->p11->C_Sign(session, message, size, signature, &length);
    }
    return rv == CKR_OK && (length != HSM_MAX_SIGNATURE || !hsm_normalize_s(raw.algorithm, signature))
               ? CKR_SIGNATURE_LEN_RANGE
               : rv;
}

static bool take(load_run *run, load_request *request) {
    uint64_t offset;
    (void)pthread_mutex_lock(&run->plan_lock);
    bool more = load_plan_next(&run->plan, &offset);
    request->number = run->next_number;
    run->next_number += more ? 1U : 0U;
    (void)pthread_mutex_unlock(&run->plan_lock);
    request->planned = more ? run->begin + offset : 0;
    return more;
}

static void *signer_main(void *argument) {
    signer *self = argument;
    load_run *run = self->run;
    uint8_t *message = load_alloc(run->settings->max_message);
    uint8_t signature[HSM_MAX_SIGNATURE];
    load_request request;
    while (!atomic_load_explicit(&run->stop, memory_order_relaxed) && take(run, &request)) {
        size_t size = load_message(&run->messages, request.number, message);
        while ((request.started = hsm_now_ns()) < request.planned &&
               !atomic_load_explicit(&run->stop, memory_order_relaxed)) {
            load_sleep_until(request.planned);
        }
        if (request.started < request.planned) {
            break;
        }
        load_tally_started(self->tally, &request);
        if (request.started - request.planned >= run->settings->timeout_ns) {
            load_tally_answered(self->tally, &request, request.started, HSM_DEADLINE_EXCEEDED, NULL, false);
            continue;
        }
        CK_RV rv = sign(self->session, message, size, signature);
        load_tally_answered(self->tally, &request, hsm_now_ns(), rv == CKR_OK ? HSM_OK : hsm_status_of_ckr(rv),
                            signature, false);
    }
    free(message);
    return NULL;
}

static void run_raw(load_run *run) {
    signer *signers = load_alloc(raw.workers * sizeof *signers);
    for (uint32_t i = 0; i < raw.workers; i++) {
        signers[i] = (signer){.run = run, .tally = &run->tallies[i], .session = raw.sessions[i]};
        if (pthread_create(&signers[i].thread, NULL, signer_main, &signers[i]) != 0) {
            load_fail("no thread can be started");
        }
    }
    for (uint32_t i = 0; i < raw.workers; i++) {
        (void)pthread_join(signers[i].thread, NULL);
    }
    free(signers);
}

static size_t tallies(const load_settings *settings) {
    return settings->workers;
}

static void close_raw(void) {
    for (uint32_t i = 0; i < raw.workers; i++) {
        hsm_session_close(raw.module->p11, raw.sessions[i]);
    }
    free(raw.sessions);
    hsm_session_close(raw.module->p11, raw.login);
    hsm_module_release(raw.module);
}

const load_way load_raw = {open_raw, tallies, run_raw, close_raw};
