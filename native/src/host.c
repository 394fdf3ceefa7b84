/* The client's side of the host process: start it, send it messages and read its replies, start it again. The other
 * side is native/host/main.c; the messages are in wire.h. */
#include "process.h"

#include <errno.h>
#include <poll.h>
#include <sodium.h>
#include <string.h>
#include <sys/socket.h>

/* Time for which requests may lie beside an idle worker: far beyond what a loaded machine explains. */
#define UNATTENDED_NS UINT64_C(1000000000)

/* ---- one call ---- */

static hsm_status call(hsm_host *host, hsm_request_message *message, hsm_reply_message *reply, hsm_error *error) {
    message->version = HSM_WIRE_VERSION;
    uint64_t limit = host->timeout_ns;
    /* A host that reads nothing, because a call hangs in its module, has a full socket after a while. */
    ssize_t sent = -1;
    bool in_time = hsm_wait_fd(host->control, POLLOUT, limit);
    if (in_time) {
        sent = send(host->control, message, sizeof *message, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    hsm_wipe(message->text, sizeof message->text);
    if (in_time && sent != (ssize_t)sizeof *message) {
        return hsm_fail(error, HSM_HOST_LOST, "send", "the host has ended");
    }
    if (!in_time || !hsm_wait_fd(host->control, POLLIN, limit)) {
        (void)hsm_process_end(host);
        return hsm_fail(error, HSM_HOST_LOST, "poll", "the host did not answer within %llu ms and was killed",
                        (unsigned long long)(limit / 1000000U));
    }
    ssize_t got = recv(host->control, reply, sizeof *reply, 0);
    if (got != (ssize_t)sizeof *reply) {
        return hsm_fail(error, HSM_HOST_LOST, "recv", "the host ended, perhaps with a crash of the module");
    }
    if (reply->version != HSM_WIRE_VERSION || reply->operation != message->operation) {
        return hsm_fail(error, HSM_HOST_MISMATCH, "recv", "%s is another version's", host->program);
    }
    hsm_status status = (hsm_status)reply->status;
    if (status != HSM_OK && error != NULL) {
        *error = reply->error;
        error->status = status;
        error->call[sizeof error->call - 1] = '\0';
        error->detail[sizeof error->detail - 1] = '\0';
    }
    return status;
}

static hsm_status too_long(hsm_error *error) {
    return hsm_fail(error, HSM_BAD_ARGUMENT, "", "the options are longer than %u bytes", HSM_WIRE_TEXT);
}

static hsm_status begin(hsm_host *host, hsm_error *error) {
    hsm_request_message message = {.operation = HSM_OP_HELLO};
    hsm_reply_message reply = {0};
    hsm_status status = call(host, &message, &reply, error);
    if (status == HSM_HOST_LOST) {
        /* A program that does not answer is not our host. */
        return hsm_fail(error, HSM_HOST_MISMATCH, "recv", "%s does not answer as a host", host->program);
    }
    if (status != HSM_OK) {
        return status;
    }
    host->hardening = reply.hardening;
    host->landlock_abi = reply.landlock_abi;
    message = host->start;
    if (!hsm_wire_put(&message, &message.pin, host->pin, host->pin_len)) {
        hsm_wipe(&message, sizeof message);
        return too_long(error);
    }
    return call(host, &message, &reply, error);
}

static hsm_status send_key(hsm_host *host, const hsm_key_selector *selector, uint32_t index, hsm_key_info *info,
                           hsm_error *error) {
    hsm_request_message message = {.operation = HSM_OP_ADD_KEY,
                                   .handle = selector->handle,
                                   .algorithm = (uint32_t)selector->algorithm,
                                   .index = index};
    hsm_reply_message reply = {0};
    if (!hsm_wire_put_string(&message, &message.key_label, selector->label) ||
        !hsm_wire_put(&message, &message.key_id, selector->id, selector->id_len) ||
        !hsm_wire_put(&message, &message.public_key, selector->public_key, selector->public_key_len)) {
        return hsm_fail(error, HSM_BAD_ARGUMENT, "", "the key selector is longer than %u bytes", HSM_WIRE_TEXT);
    }
    hsm_status status = call(host, &message, &reply, error);
    if (status == HSM_OK) {
        const hsm_key_info *key = &reply.key;
        if ((index != HSM_ANY_INDEX && key->index != index) || key->id_len > HSM_MAX_KEY_ID ||
            key->public_key_len == 0 || key->public_key_len > HSM_MAX_PUBLIC_KEY) {
            return hsm_fail(error, HSM_HOST_MISMATCH, "recv", "the host's answer is out of range");
        }
        *info = *key;
        info->label[sizeof info->label - 1] = '\0';
    }
    return status;
}

/* ---- life cycle ---- */

static void free_host(hsm_host *host) {
    hsm_close(&host->control);
    hsm_close(&host->pidfd);
    if (host->pin != NULL) {
        sodium_free(host->pin);
    }
    hsm_free(host->program);
    for (size_t i = 0; host->environment != NULL && host->environment[i] != NULL; i++) {
        hsm_wipe(host->environment[i], strlen(host->environment[i]));
        hsm_free(host->environment[i]);
    }
    hsm_free((void *)host->environment);
    (void)pthread_mutex_destroy(&host->lock);
    hsm_free(host);
}

/* Put all but the PIN into the message that starts the engine. Returns false if they do not fit. */
static bool put_options(hsm_request_message *start, const hsm_host_options *options) {
    const hsm_engine_options *engine = &options->engine;
    *start = (hsm_request_message){.operation = HSM_OP_START,
                                   .slot_id = engine->token.slot_id,
                                   .workers = engine->workers,
                                   .verify_every = engine->verify_every,
                                   .spin_ns = engine->spin_ns,
                                   .patience_ns = engine->patience_ns,
                                   .memory_limit = options->memory_limit};
    return hsm_wire_put_string(start, &start->module_path, engine->module_path) &&
           hsm_wire_put_string(start, &start->module_args, engine->module_args) &&
           hsm_wire_put_string(start, &start->quirks, engine->quirks) &&
           hsm_wire_put_string(start, &start->token_label, engine->token.label) &&
           hsm_wire_put_string(start, &start->token_serial, engine->token.serial);
}

static bool copy_options(hsm_host *host, const hsm_host_options *options) {
    size_t count = 0;
    while (options->environment != NULL && options->environment[count] != NULL) {
        count++;
    }
    host->environment = (char **)hsm_alloc((count + 1) * sizeof *host->environment);
    for (size_t i = 0; host->environment != NULL && i < count; i++) {
        host->environment[i] = hsm_strdup(options->environment[i]);
        if (host->environment[i] == NULL) {
            return false;
        }
    }
    host->program = hsm_strdup(options->program);
    host->timeout_ns = options->timeout_ns;
    host->pin_len = options->engine.pin_len;
    return hsm_secret_copy(options->engine.pin, host->pin_len, &host->pin) && host->environment != NULL &&
           host->program != NULL;
}

hsm_status hsm_host_new(hsm_client *client, const hsm_host_options *options, hsm_host **out, hsm_error *error) {
    *out = NULL;
    if (options->program == NULL || options->engine.module_path == NULL) {
        return hsm_fail(error, HSM_BAD_ARGUMENT, "", "no host program or module");
    }
    hsm_host *host = hsm_alloc(sizeof *host);
    if (host == NULL) {
        return hsm_fail(error, HSM_OUT_OF_MEMORY, "", "host");
    }
    host->client = client;
    host->control = host->pidfd = -1;
    host->pid = -1;
    host->fork_generation = hsm_fork_generation();
    (void)pthread_mutex_init(&host->lock, NULL);
    bool fits = put_options(&host->start, options);
    if (!fits || !copy_options(host, options)) {
        free_host(host);
        return fits ? hsm_fail(error, HSM_OUT_OF_MEMORY, "", "host") : too_long(error);
    }
    *out = host;
    return HSM_OK;
}

hsm_status hsm_host_begin(hsm_host *host, hsm_error *error) {
    hsm_area *area = host->client->area;
    area->one_process = false;
    atomic_store(&area->shared->mode, HSM_MODE_RUN);
    hsm_status status = hsm_process_start(host, error);
    HSM_THEN(status, begin(host, error));
    if (status != HSM_OK) {
        (void)hsm_process_end(host);
    }
    return status;
}

uint32_t hsm_host_hardening(const hsm_host *host, int32_t *landlock_abi) {
    *landlock_abi = host->landlock_abi;
    return host->hardening;
}

static hsm_status check_fork(const hsm_host *host, hsm_error *error) {
    return host->fork_generation == hsm_fork_generation()
               ? HSM_OK
               : hsm_fail(error, HSM_FORKED, "", "use spawn instead of fork");
}

hsm_status hsm_host_add_key(hsm_host *host, const hsm_key_selector *selector, hsm_key_info *info, hsm_error *error) {
    hsm_status status = check_fork(host, error);
    HSM_THEN(status, send_key(host, selector, HSM_ANY_INDEX, info, error));
    if (status != HSM_OK) {
        return status;
    }
    uint32_t place = hsm_key_place(info->index);
    hsm_key_info *known = &host->keys[place];
    if (known->public_key_len != 0 && (!atomic_load(&host->retired[place]) || info->index <= known->index)) {
        return hsm_fail(error, HSM_HOST_MISMATCH, "recv", "the host gave a key the index of another one");
    }
    *known = *info;
    host->handles[place] = selector->handle;
    atomic_store(&host->retired[place], false);
    return HSM_OK;
}

hsm_status hsm_host_retire_key(hsm_host *host, uint32_t index) {
    hsm_status status = check_fork(host, NULL);
    uint32_t place = hsm_key_place(index);
    const hsm_key_info *known = &host->keys[place];
    if (status == HSM_OK && (known->public_key_len == 0 || index > known->index)) {
        return HSM_BAD_ARGUMENT;
    }
    if (status == HSM_OK && index == known->index) {
        atomic_store(&host->retired[place], true);
        atomic_store(&host->client->area->shared->keys[place].state, HSM_KEY_RETIRED);
    }
    return status;
}

hsm_status hsm_host_token(hsm_host *host, hsm_token_info *info, hsm_error *error) {
    hsm_status status = check_fork(host, error);
    if (status != HSM_OK) {
        return status;
    }
    hsm_request_message message = {.operation = HSM_OP_TOKEN};
    hsm_reply_message reply;
    status = call(host, &message, &reply, error);
    if (status == HSM_OK) {
        *info = reply.token;
        char *const texts[] = {info->label, info->serial, info->manufacturer, info->model, info->library};
        for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
            texts[i][HSM_MAX_LABEL - 1] = '\0';
        }
        info->quirks[sizeof info->quirks - 1] = '\0';
    }
    return status;
}

/* Whether requests have lain queued for long beside an idle worker: the process is stopped, or starved. */
static bool unattended(hsm_host *host, uint64_t now) {
    hsm_area *area = host->client->area;
    uint64_t head = atomic_load(&area->shared->request_head);
    bool idle = false;
    for (uint32_t i = 0; i < area->max_workers; i++) {
        const hsm_worker_record *record = hsm_area_worker(area, i);
        idle = idle || (atomic_load(&record->running) != 0 && atomic_load(&record->call_deadline_ns) == 0);
    }
    bool waiting = idle && hsm_area_queued(area) != 0 && atomic_load(&area->shared->mode) == HSM_MODE_RUN;
    /* From the first look that finds the oldest request waiting: nobody looks at a host without requests, so the last
     * look may be long ago. */
    if (waiting && (host->waiting_since_ns == 0 || head != host->head_seen)) {
        host->head_seen = head;
        host->waiting_since_ns = now;
    } else if (!waiting) {
        host->waiting_since_ns = 0;
    }
    return waiting && now - host->waiting_since_ns >= UNATTENDED_NS;
}

uint32_t hsm_host_supervise(hsm_host *host, uint32_t *healthy) {
    *healthy = 0;
    if (host == NULL || host->fork_generation != hsm_fork_generation()) {
        return 0;
    }
    hsm_area *area = host->client->area;
    uint64_t now = hsm_now_ns();
    uint32_t stuck = 0;
    hsm_client_look(host->client, now);
    bool stopped = unattended(host, now);
    for (uint32_t i = 0; i < area->max_workers; i++) {
        const hsm_worker_record *record = hsm_area_worker(area, i);
        bool over = stopped || hsm_worker_overran(record, now) || atomic_load(&record->quarantined) != 0;
        bool running = atomic_load(&record->running) != 0;
        stuck += over && running ? 1U : 0U;
        *healthy += running && !over ? 1U : 0U;
    }
    /* Answers may lie there of which the host does not tell: its module can close the descriptor. */
    hsm_event_set(host->client->event_fd);
    if (stuck > 0 || *healthy < host->start.workers) { /* or the module has ended some */
        /* No answer is awaited: the caller has deadlines to keep. */
        hsm_request_message message = {.version = HSM_WIRE_VERSION, .operation = HSM_OP_SUPERVISE};
        (void)send(host->control, &message, sizeof message, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    return stuck;
}

/* Whether a failure concerns one key only: process, token and login may serve the others. */
static bool is_of_one_key(hsm_status status) {
    return status != HSM_HOST_LOST && status != HSM_HOST_MISMATCH && hsm_status_class(status) != HSM_CLASS_AUTH_FATAL &&
           hsm_status_class(status) != HSM_CLASS_PROCESS_FATAL;
}

/* Have the new process find a key again, under its index. HSM_OK also for a key that must not sign any more; `*found`
 * says whether it was found. */
static hsm_status find_again(hsm_host *host, uint32_t place, bool *found, hsm_error *error) {
    const hsm_key_info *pinned = &host->keys[place];
    hsm_key_record *record = &host->client->area->shared->keys[place];
    *found = false;
    uint32_t state = atomic_load(&record->state);
    if (pinned->public_key_len == 0 || atomic_load(&host->retired[place]) ||
        (state != HSM_KEY_ACTIVE && state != HSM_KEY_MISMATCHED)) {
        return HSM_OK;
    }
    bool by_handle = host->handles[place] >= 0;
    hsm_key_selector selector = {
        .label = pinned->id_len > 0 || by_handle ? NULL : pinned->label,
        .id = pinned->id_len > 0 && !by_handle ? pinned->id : NULL,
        .id_len = pinned->id_len,
        .handle = host->handles[place],
        .algorithm = pinned->algorithm,
        .public_key = pinned->public_key,
        .public_key_len = pinned->public_key_len,
    };
    hsm_key_info again = {.index = 0};
    hsm_status status = send_key(host, &selector, pinned->index, &again, error);
    if (status == HSM_KEY_MISMATCH) {
        /* Nothing may be signed with it until the pinned one is found again; other keys may go on. */
        (void)atomic_compare_exchange_strong(&record->state, &state, HSM_KEY_MISMATCHED);
        return HSM_OK;
    }
    *found = status == HSM_OK;
    if (*found) {
        (void)atomic_compare_exchange_strong(&record->state, &state, HSM_KEY_ACTIVE);
    }
    return status;
}

/* Have the new process find all keys again. One that is not found fails only the requests for it, unless none is found;
 * `error` says why the last missing one was not. */
static hsm_status find_all_again(hsm_host *host, hsm_error *error) {
    hsm_status missing = HSM_OK;
    bool any = false;
    for (uint32_t place = 0; place < HSM_MAX_KEYS; place++) {
        bool found;
        hsm_status status = find_again(host, place, &found, error);
        if (status != HSM_OK && !is_of_one_key(status)) {
            return status;
        }
        missing = status != HSM_OK ? status : missing;
        any = any || found;
    }
    return any ? HSM_OK : missing;
}

/* The process that has ended may have overwritten which keys there are. A key that it found to be another one stays
 * refused until the next one has looked at it. */
static void restore_key_table(hsm_host *host) {
    for (uint32_t place = 0; place < HSM_MAX_KEYS; place++) {
        hsm_key_record *record = &host->client->area->shared->keys[place];
        const hsm_key_info *pinned = &host->keys[place];
        bool known = pinned->public_key_len != 0;
        atomic_store(&record->index, known ? pinned->index : place);
        if (!known || atomic_load(&record->state) != HSM_KEY_MISMATCHED) {
            atomic_store(&record->state, known ? HSM_KEY_ACTIVE : HSM_KEY_ABSENT);
        }
        record->algorithm = known ? (uint32_t)pinned->algorithm : HSM_ALGORITHM_NONE;
        if (atomic_load(&host->retired[place])) { /* looked at last: another thread may retire it now */
            atomic_store(&record->state, HSM_KEY_RETIRED);
        }
    }
}

hsm_status hsm_host_restart(hsm_host *host, hsm_error *error) {
    hsm_status status = check_fork(host, error);
    if (status != HSM_OK) {
        return status;
    }
    if (!hsm_process_end(host)) {
        return hsm_fail(error, HSM_HOST_LOST, "waitpid",
                        "the host was killed and has not ended: it waits for its device");
    }
    hsm_close(&host->control);
    restore_key_table(host);
    status = hsm_process_start(host, error);
    HSM_THEN(status, begin(host, error));
    HSM_THEN(status, find_all_again(host, error));
    if (status != HSM_OK) {
        (void)hsm_process_end(host);
        return status;
    }
    host->waiting_since_ns = 0; /* the requests that wait did not wait for this process */
    /* Only now may its workers claim: before, they had no keys to sign with. */
    atomic_store(&host->client->area->shared->mode, HSM_MODE_RUN);
    hsm_area_unpark_all(host->client->area);
    return HSM_OK;
}

hsm_status hsm_host_use_pin(hsm_host *host, const uint8_t *pin, size_t pin_len, hsm_error *error) {
    uint8_t *copy;
    if (!hsm_secret_copy(pin, pin_len, &copy)) {
        return hsm_fail(error, HSM_OUT_OF_MEMORY, "sodium_malloc", "locked memory for the PIN");
    }
    if (host->pin != NULL) {
        sodium_free(host->pin);
    }
    host->pin = copy;
    host->pin_len = pin_len;
    return HSM_OK;
}

void hsm_host_stop(hsm_host *host, uint64_t timeout_ns) {
    if (host == NULL || host->fork_generation != hsm_fork_generation()) {
        return;
    }
    if (host->pid > 0) {
        hsm_request_message message = {.operation = HSM_OP_STOP};
        hsm_reply_message reply;
        message.timeout_ns = timeout_ns;
        host->timeout_ns = timeout_ns + 250000000U;
        (void)call(host, &message, &reply, NULL);
    }
    (void)hsm_process_end(host);
    free_host(host);
}
