# The C boundary: native/include/hsmcore/*.h, declaration by declaration. No logic.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "hsmcore/status.h" nogil:
    ctypedef enum hsm_status:
        HSM_OK
        HSM_QUEUE_FULL
        HSM_KEY_DEACTIVATED
        HSM_DEADLINE_EXCEEDED
        HSM_CLOSED
        HSM_FORKED
        HSM_BAD_ARGUMENT
        HSM_NOT_HOLDER
        HSM_SYSTEM
        HSM_SIGNATURE_MALFORMED
        HSM_CKR_UNKNOWN
        HSM_STATUS_COUNT

    enum hsm_class:
        HSM_CLASS_COUNT

    ctypedef struct hsm_error:
        hsm_status status
        uint64_t ckr
        char call[40]
        char detail[216]

    const char *hsm_status_name(hsm_status status)
    const char *hsm_status_text(hsm_status status)
    hsm_class hsm_status_class(hsm_status status)
    const char *hsm_class_name(hsm_class class_)
    const char *hsm_ckr_name(uint64_t ckr)
    int hsm_ckr_row(size_t index, uint64_t *ckr, const char **name, hsm_status *status)


cdef extern from "hsmcore/hsmcore.h" nogil:
    enum:
        HSM_MAX_SIGNATURE
        HSM_MAX_PUBLIC_KEY
        HSM_MAX_KEY_ID
        HSM_MAX_LABEL
        HSM_MAX_KEYS
        HSM_HISTOGRAM_BUCKETS

    ctypedef enum hsm_algorithm:
        HSM_ALGORITHM_NONE
        HSM_ED25519

    const char *hsm_algorithm_name(hsm_algorithm algorithm)
    hsm_algorithm hsm_algorithm_of_name(const char *name)
    int hsm_algorithm_is_deterministic(hsm_algorithm algorithm)
    hsm_status hsm_recovery_id(const uint8_t *public_key, const uint8_t *digest, const uint8_t *signature,
                               uint8_t *recovery_id)
    hsm_status hsm_verify(hsm_algorithm algorithm, const uint8_t *public_key, size_t public_key_len,
                          const uint8_t *message, size_t message_len, int prehashed, const uint8_t *signature,
                          size_t signature_len)

    ctypedef struct hsm_client:
        pass

    ctypedef struct hsm_client_options:
        uint32_t slots
        uint32_t max_message
        uint32_t max_workers
        uint32_t digests
        uint64_t coalesce_ns

    hsm_status hsm_client_new(const hsm_client_options *options, hsm_client **client, hsm_error *error)
    void hsm_client_free(hsm_client *client)
    uint32_t hsm_client_queued(const hsm_client *client)
    void hsm_client_batch_begin(hsm_client *client)
    void hsm_client_batch_end(hsm_client *client)
    const char *hsm_call_name(uint64_t call)

    ctypedef struct hsm_engine:
        pass

    ctypedef struct hsm_token_selector:
        const char *label
        const char *serial
        int64_t slot_id

    ctypedef struct hsm_engine_options:
        const char *module_path
        const char *module_args
        const char *quirks
        hsm_token_selector token
        const uint8_t *pin
        size_t pin_len
        uint32_t workers
        uint64_t spin_ns
        uint64_t patience_ns
        uint32_t verify_every

    ctypedef struct hsm_token_info:
        uint64_t slot_id
        uint64_t flags
        uint64_t max_sessions
        char label[HSM_MAX_LABEL]
        char serial[HSM_MAX_LABEL]
        char manufacturer[HSM_MAX_LABEL]
        char model[HSM_MAX_LABEL]
        char library[HSM_MAX_LABEL]
        char quirks[32]

    ctypedef struct hsm_key_selector:
        const char *label
        const uint8_t *id
        size_t id_len
        int64_t handle
        hsm_algorithm algorithm
        const uint8_t *public_key
        size_t public_key_len

    ctypedef struct hsm_key_info:
        uint32_t index
        hsm_algorithm algorithm
        uint32_t id_len
        uint8_t id[HSM_MAX_KEY_ID]
        uint32_t public_key_len
        uint8_t public_key[HSM_MAX_PUBLIC_KEY]
        uint32_t apart
        char label[HSM_MAX_LABEL]

    hsm_status hsm_engine_start(hsm_client *client, const hsm_engine_options *options, hsm_engine **engine,
                                hsm_error *error)
    uint32_t hsm_engine_stop(hsm_engine *engine, uint64_t timeout_ns)
    uint32_t hsm_engine_supervise(hsm_engine *engine, uint32_t *healthy)
    void hsm_engine_token(const hsm_engine *engine, hsm_token_info *info)
    hsm_status hsm_engine_add_key(hsm_engine *engine, const hsm_key_selector *selector, hsm_key_info *info,
                                  hsm_error *error)
    hsm_status hsm_engine_retire_key(hsm_engine *engine, uint32_t index)

    ctypedef struct hsm_host:
        pass

    ctypedef struct hsm_host_options:
        hsm_engine_options engine
        const char *program
        const char *const *environment
        uint64_t memory_limit
        uint64_t timeout_ns

    hsm_status hsm_host_new(hsm_client *client, const hsm_host_options *options, hsm_host **host, hsm_error *error)
    hsm_status hsm_host_begin(hsm_host *host, hsm_error *error)
    int hsm_host_fd(const hsm_host *host)
    int64_t hsm_host_pid(const hsm_host *host)
    uint32_t hsm_harden(int32_t *landlock_abi)
    uint32_t hsm_host_hardening(const hsm_host *host, int32_t *landlock_abi)
    enum:
        HSM_NO_CORE_DUMPS, HSM_NOT_DUMPABLE, HSM_NO_NEW_PRIVILEGES, HSM_SECCOMP, HSM_LANDLOCK
    hsm_status hsm_host_add_key(hsm_host *host, const hsm_key_selector *selector, hsm_key_info *info, hsm_error *error)
    hsm_status hsm_host_retire_key(hsm_host *host, uint32_t index)
    uint32_t hsm_host_supervise(hsm_host *host, uint32_t *healthy)
    hsm_status hsm_host_token(hsm_host *host, hsm_token_info *info, hsm_error *error)
    void hsm_host_kill(hsm_host *host)
    hsm_status hsm_host_restart(hsm_host *host, hsm_error *error)
    hsm_status hsm_host_use_pin(hsm_host *host, const uint8_t *pin, size_t pin_len, hsm_error *error)
    void hsm_host_stop(hsm_host *host, uint64_t timeout_ns)

    ctypedef struct hsm_stats:
        uint64_t signatures
        uint64_t failures
        uint64_t expired
        uint64_t cancelled
        uint64_t wrong
        uint64_t wakes
        uint64_t recoveries[HSM_CLASS_COUNT]
        uint64_t failed[HSM_CLASS_COUNT]
        uint32_t workers
        uint32_t busy
        uint32_t stuck
        uint32_t down
        uint32_t queued
        uint64_t oldest_queued_ns
        uint64_t oldest_call_ns
        uint64_t hsm_sum_ns
        uint64_t queue_sum_ns
        uint64_t verify_sum_ns
        uint64_t hsm_ns[HSM_HISTOGRAM_BUCKETS]
        uint64_t queue_ns[HSM_HISTOGRAM_BUCKETS]
        uint64_t verify_ns[HSM_HISTOGRAM_BUCKETS]

    void hsm_client_stats(const hsm_client *client, hsm_stats *stats)
    uint32_t hsm_histogram_bucket(uint64_t ns)
    uint64_t hsm_histogram_upper(uint32_t bucket)

    ctypedef struct hsm_cache:
        pass

    ctypedef struct hsm_cache_stats:
        uint64_t hits
        uint64_t misses
        uint64_t joined
        uint64_t evictions
        uint64_t entries
        uint64_t in_flight
        uint64_t bytes

    hsm_status hsm_cache_new(uint64_t capacity, hsm_cache **cache)
    void hsm_cache_free(hsm_cache *cache)
    void hsm_cache_clear(hsm_cache *cache)
    void hsm_cache_stats_read(const hsm_cache *cache, hsm_cache_stats *stats)

    ctypedef struct hsm_module:
        pass
    hsm_status hsm_module_acquire(const char *path, const char *args, hsm_module **module, hsm_error *error)
    void hsm_module_release(hsm_module *module)
    uint64_t hsm_module_enter(hsm_module *module)
    void hsm_module_exit(hsm_module *module)
    void *hsm_module_functions(const char *path)
    void hsm_turn_begin(const char *quirks, const char *module_path)
    void hsm_turn_end()
    const char *hsm_quirks_name(size_t index)
    uint32_t hsm_fork_generation()

    ctypedef struct hsm_leaks:
        int64_t allocations
        int64_t threads
        int64_t sessions
        int64_t descriptors

    void hsm_leaks_read(hsm_leaks *leaks)
    uint64_t hsm_now_ns()
    void hsm_wipe(void *memory, size_t size)


cdef extern from "hsmcore/requests.h" nogil:
    enum:
        HSM_NO_SLOT

    ctypedef struct hsm_requests:
        pass

    ctypedef struct hsm_ask:
        const uint8_t *message
        uint32_t message_len
        uint32_t key
        uint64_t timeout_ns
        uint64_t tag
        int admitted
        int prehashed
        int held

    ctypedef struct hsm_answer:
        uint64_t request
        uint64_t tag
        uint64_t deadline_ns
        hsm_status status
        uint64_t ckr
        uint64_t call
        hsm_status failed
        uint32_t key
        uint32_t slot
        uint32_t signature_len
        const uint8_t *signature
        const uint8_t *digest
        uint64_t latency_ns
        uint64_t seq
        uint64_t round
        uint8_t claimed
        uint8_t told
        uint8_t shared
        uint8_t cached
        uint8_t begun
        uint8_t last

    ctypedef enum hsm_which:
        HSM_QUEUED_ONES
        HSM_HELD_ONES
        HSM_UNSIGNED_ONES
        HSM_ALL

    ctypedef struct hsm_requests_counts:
        uint32_t open
        uint32_t queued
        uint32_t slots
        uint32_t held
        uint32_t awaiting
        uint32_t owed
        uint64_t wrong
        uint64_t each_ns

    hsm_status hsm_requests_new(hsm_client *client, hsm_cache *cache, hsm_requests **table)
    void hsm_requests_free(hsm_requests *table)
    hsm_status hsm_requests_pin(hsm_requests *table, const hsm_key_info *key, int cacheable, uint32_t verify_every)
    void hsm_requests_retire(hsm_requests *table, uint32_t key)
    uint32_t hsm_requests_room(hsm_requests *table)
    int hsm_requests_knows(const hsm_requests *table, uint32_t key)
    int hsm_requests_cacheable(const hsm_requests *table, uint32_t key)
    void hsm_requests_serve(hsm_requests *table, uint32_t workers)
    bint hsm_requests_starving(const hsm_requests *table, uint64_t waiting)
    int hsm_requests_refuses(hsm_requests *table, uint64_t count, uint64_t timeout_ns)
    hsm_status hsm_requests_submit(hsm_requests *table, const hsm_ask *ask, hsm_answer *answer)
    void hsm_requests_wake_fds(const hsm_requests *table, int *event_fd, int *timer_fd)
    void hsm_requests_wake_clear(hsm_requests *table)
    int hsm_requests_catch_up(hsm_requests *table)
    void hsm_requests_settle(hsm_requests *table)
    int hsm_requests_next(hsm_requests *table, hsm_answer *answer)
    void hsm_requests_end(hsm_requests *table, uint64_t request)
    void hsm_requests_hold(hsm_requests *table, uint64_t request, uint64_t seq, uint64_t round)
    void hsm_requests_release(hsm_requests *table, uint64_t seq)
    void hsm_requests_confirm(hsm_requests *table, uint64_t round)
    int hsm_requests_cancel(hsm_requests *table, uint64_t request, int *begun)
    uint32_t hsm_requests_key(const hsm_requests *table, uint64_t request)
    uint32_t hsm_requests_sweep(hsm_requests *table, uint64_t now)
    uint64_t hsm_requests_sweep_at(const hsm_requests *table)
    void hsm_requests_fail(hsm_requests *table, hsm_which which, hsm_status status)
    uint32_t hsm_requests_replay(hsm_requests *table)
    void hsm_requests_count(const hsm_requests *table, hsm_requests_counts *counts)

cdef extern from "hsmcore/routes.h" nogil:
    ctypedef struct hsm_route:
        hsm_requests **table
        uint32_t key
        uint32_t weight
        uint32_t turn

    uint32_t HSM_NO_ROUTE
    uint32_t hsm_routes_pick(hsm_route *routes, uint32_t ramping, uint32_t count, uint64_t round)


cdef extern from "hsmcore/guest.h" nogil:
    ctypedef struct hsm_guest:
        pass

    hsm_status hsm_guest_new(hsm_requests *table, uint32_t runners, uint32_t verify_every, hsm_guest **guest)
    void hsm_guest_free(hsm_guest *guest)
    hsm_status hsm_guest_add_key(hsm_guest *guest, hsm_key_info *key, int cacheable)
    uint64_t hsm_guest_begin(hsm_guest *guest, uint32_t runner, uint32_t *key)
    int hsm_guest_overran(hsm_guest *guest, uint32_t runner)
    uint32_t hsm_guest_end(hsm_guest *guest, uint32_t runner, hsm_status status, uint64_t ckr, const uint8_t *signature)
    void hsm_guest_refuse(hsm_guest *guest, hsm_status status)


cdef extern from "hsmcore/journal.h" nogil:
    const uint64_t HSM_JOURNAL_PACE_NS
    ctypedef struct hsm_journal:
        pass

    cdef enum hsm_durability:
        HSM_DURABLE_FSYNC
        HSM_DURABLE_WRITE
        HSM_DURABLE_INTERVAL

    ctypedef struct hsm_journal_options:
        const char *path
        const char *archive
        uint64_t first_seq
        uint64_t next_seq
        uint64_t rotate_bytes
        uint64_t interval_ns
        hsm_durability durability

    ctypedef struct hsm_journal_sign:
        uint64_t time_ns
        uint64_t latency_ns
        uint64_t message_len
        const uint8_t *digest
        const uint8_t *message
        const uint8_t *signature
        uint32_t signature_len
        int cached
        const char *result
        const char *error

    ctypedef struct hsm_journal_stats:
        uint64_t oldest_ns
        uint64_t commit_sum_ns
        uint64_t commit_ns[HSM_HISTOGRAM_BUCKETS]

    void hsm_journal_stats_read(const hsm_journal *journal, hsm_journal_stats *stats)
    hsm_status hsm_journal_open(const hsm_journal_options *options, hsm_journal **journal, hsm_error *error)
    uint64_t hsm_journal_close(hsm_journal *journal)
    int hsm_journal_fd(const hsm_journal *journal)
    void hsm_journal_clear(hsm_journal *journal)
    uint64_t hsm_journal_kept(const hsm_journal *journal)
    uint64_t hsm_journal_written(const hsm_journal *journal)
    int hsm_journal_failure(const hsm_journal *journal)
    void hsm_journal_condemn(hsm_journal *journal)
    uint64_t hsm_journal_oldest_ns(const hsm_journal *journal)
    uint64_t hsm_journal_next(const hsm_journal *journal)
    int hsm_journal_put(hsm_journal *journal, const char *line, size_t len)
    uint64_t hsm_journal_put_sign(hsm_journal *journal, const hsm_journal_sign *sign, const char *tail, size_t tail_len)
    uint64_t hsm_journal_waiting(const hsm_journal *journal)
    void hsm_journal_flush(hsm_journal *journal, int urgent)
    uint64_t hsm_journal_pending(const hsm_journal *journal)


cdef extern from "hsmcore/payload.h" nogil:
    enum:
        HSM_ADDRESS, HSM_PROGRAMS, HSM_MOST_OWNED

    ctypedef enum hsm_payload:
        HSM_PAYLOAD_RAW, HSM_PAYLOAD_DIGEST32, HSM_PAYLOAD_TX_LEGACY, HSM_PAYLOAD_TX_V0, HSM_PAYLOAD_TX_V1
        HSM_PAYLOAD_OFF_CHAIN, HSM_PAYLOAD_BLOCK, HSM_PAYLOAD_STATE_ROOT
        HSM_PAYLOAD_BATCH_ROOT, HSM_PAYLOAD_KEY_SET, HSM_PAYLOAD_INTERNAL, HSM_PAYLOAD_UNKNOWN

    ctypedef struct hsm_transaction:
        pass

    ctypedef struct hsm_ordered:
        const uint8_t *domain
        size_t domain_len
        uint64_t position

    ctypedef union hsm_payload_parts:
        hsm_transaction transaction
        hsm_ordered ordered

    hsm_payload hsm_payload_of(const uint8_t *message, size_t size, hsm_payload_parts *parts)

    ctypedef struct hsm_instruction_form:
        const char *name
        uint64_t tag
        uint8_t size
        uint8_t recipient
        uint8_t source
        uint8_t amount
        uint8_t harmless

    ctypedef struct hsm_program:
        const char *name
        const hsm_instruction_form *forms
        size_t form_count
        uint8_t tag_size
        uint8_t kind
        uint8_t address[HSM_ADDRESS]

    const hsm_program hsm_programs[HSM_PROGRAMS]

    ctypedef enum hsm_role:
        HSM_ROLE_ANY, HSM_ROLE_FEE_PAYER, HSM_ROLE_AUTHORITY

    ctypedef struct hsm_rules:
        const uint8_t *programs
        const uint8_t *recipients
        const uint8_t *owned
        const uint8_t *signers
        size_t program_count, recipient_count, owned_count, signer_count
        uint64_t forms[HSM_PROGRAMS][2]
        uint64_t max_fee
        hsm_role role

    ctypedef enum hsm_refusal:
        HSM_REFUSAL_NONE, HSM_REFUSAL_UNSOUND, HSM_REFUSAL_PROGRAM, HSM_REFUSAL_RECIPIENT, HSM_REFUSAL_OWNED
        HSM_REFUSAL_FEE, HSM_REFUSAL_ROLE, HSM_REFUSAL_NAMED

    ctypedef struct hsm_judgement:
        const uint8_t *address
        const uint8_t *account
        const hsm_program *program
        const hsm_instruction_form *form
        uint64_t tag
        uint64_t fee
        bint moves
        uint64_t leaves[HSM_MOST_OWNED]

    hsm_refusal hsm_rules_judge(const hsm_rules *rules, const hsm_transaction *transaction, hsm_judgement *judgement)
