/* The shared area: its layout in memory, and the sleep of workers. The rings themselves are inline, in area.h. */
#include "area.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

static uint64_t aligned(uint64_t size, uint64_t to) {
    return (size + to - 1U) / to * to;
}

/* Where everything lies, from the start of the memory. */
typedef struct offsets {
    uint64_t requests, completions, slots, workers, overflow;
} offsets;

/* Fill in all of `area` that follows from the options. */
static offsets lay_out(hsm_area *area, const hsm_client_options *options) {
    offsets at;
    area->slots = 1;
    while (area->slots < options->slots && area->slots < HSM_MAX_SLOTS) {
        area->slots *= 2U;
    }
    area->max_message = options->max_message;
    area->max_workers = options->max_workers;
    area->digests = options->digests != 0;
    area->coalesce_ns = options->coalesce_ns;
    area->shared = NULL;
    area->overflow_stride = area->max_message > HSM_INLINE_MESSAGE ? aligned(area->max_message, 4096) : 0;
    at.requests = aligned(sizeof(hsm_shared), HSM_CACHE_LINE);
    at.completions = aligned(at.requests + area->slots * sizeof(uint32_t), HSM_CACHE_LINE);
    at.slots = aligned(at.completions + area->slots * sizeof(uint32_t), HSM_CACHE_LINE);
    at.workers = at.slots + area->slots * sizeof(hsm_slot);
    at.overflow = aligned(at.workers + area->max_workers * sizeof(hsm_worker_record), 4096);
    area->size = at.overflow + area->slots * area->overflow_stride;
    return at;
}

static void describe(hsm_area *area, const offsets *at, char *memory) {
    area->shared = (hsm_shared *)(void *)memory;
    area->requests = (_Atomic uint32_t *)(void *)(memory + at->requests);
    area->completions = (_Atomic uint32_t *)(void *)(memory + at->completions);
    area->slot_table = (hsm_slot *)(void *)(memory + at->slots);
    area->worker_table = (hsm_worker_record *)(void *)(memory + at->workers);
    area->overflow = (uint8_t *)memory + at->overflow;
}

static char *map(int fd, uint64_t size) {
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (memory == MAP_FAILED) {
        return NULL;
    }
    /* Messages may be confidential: keep them out of core dumps, and out of a forked child that may not use them. */
    (void)madvise(memory, size, MADV_DONTDUMP);
    (void)madvise(memory, size, MADV_DONTFORK);
    return memory;
}

hsm_status hsm_area_create(const hsm_client_options *options, hsm_area *area, int *fd, hsm_error *error) {
    offsets at = lay_out(area, options);
    int file = hsm_counted(memfd_create("hsmcore", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (file < 0) {
        return hsm_fail_errno(error, "memfd_create", "shared area");
    }
    char *memory = NULL;
    /* Sealed, so that the other side cannot shrink the file under our mapping, nor keep the next process from mapping
     * it with a seal of its own. */
    if (ftruncate(file, (off_t)area->size) == 0 &&
        fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0) {
        memory = map(file, area->size);
    }
    if (memory == NULL) {
        hsm_status status = hsm_fail_errno(error, "mmap", "shared area");
        hsm_area_destroy(area, &file);
        return status;
    }
    describe(area, &at, memory);
    hsm_area_write_header(area);
    area->one_process = true; /* until a host attaches */
    *fd = file;
    return HSM_OK;
}

void hsm_area_write_header(hsm_area *area) {
    area->shared->magic = HSM_AREA_MAGIC;
    area->shared->version = HSM_AREA_VERSION;
    area->shared->options = (hsm_client_options){.slots = area->slots,
                                                 .max_message = area->max_message,
                                                 .max_workers = area->max_workers,
                                                 .digests = area->digests ? 1 : 0,
                                                 .coalesce_ns = area->coalesce_ns};
    area->shared->size = area->size;
}

hsm_status hsm_area_attach(int fd, hsm_area *area) {
    hsm_shared head;
    if (pread(fd, &head, sizeof head, 0) != (ssize_t)sizeof head || head.magic != HSM_AREA_MAGIC ||
        head.version != HSM_AREA_VERSION) {
        return HSM_HOST_MISMATCH;
    }
    offsets at = lay_out(area, &head.options);
    area->one_process = false;
    char *memory = area->size == head.size ? map(fd, area->size) : NULL;
    if (memory == NULL) {
        return HSM_HOST_MISMATCH;
    }
    describe(area, &at, memory);
    return HSM_OK;
}

/* Wipe what was ever written: messages may be confidential, and another process may still have the file. The rest of
 * the memory is a hole, which stays one. */
static void wipe(const hsm_area *area, int fd) {
    off_t end;
    for (off_t at = 0; (at = lseek(fd, at, SEEK_DATA)) >= 0; at = end) {
        end = lseek(fd, at, SEEK_HOLE);
        if (end <= at || (uint64_t)end > area->size) {
            return;
        }
        hsm_wipe((char *)area->shared + at, (size_t)(end - at));
    }
}

void hsm_area_destroy(hsm_area *area, int *fd) {
    if (area->shared != NULL) {
        wipe(area, *fd);
        (void)munmap(area->shared, area->size);
        area->shared = NULL;
    }
    hsm_close(fd);
}

void hsm_area_fail(hsm_area *area, uint32_t slot, hsm_status status) {
    hsm_slot_fill(hsm_area_slot(area, slot), &(hsm_ending){.status = status}, 0);
    hsm_area_complete(area, slot);
}

/* Wake this worker, if it sleeps. Returns whether it did. */
static bool unpark_one(hsm_area *area, uint32_t worker) {
    uint64_t bit = UINT64_C(1) << (worker % 64U);
    /* Only the thread that clears the bit wakes its worker: not twice for one sleep. */
    if ((atomic_fetch_and_explicit(&area->shared->parked[worker / 64U], ~bit, memory_order_acq_rel) & bit) == 0 ||
        worker >= area->max_workers) { /* the area may be shared with a process that misbehaves */
        return false;
    }
    _Atomic uint32_t *park = &hsm_area_worker(area, worker)->park;
    atomic_store_explicit(park, 1, memory_order_release);
    hsm_futex_wake(park, 1, area->one_process);
    return true;
}

void hsm_area_unpark(hsm_area *area, uint64_t count) {
    uint32_t words = (area->max_workers + 63U) / 64U;
    for (uint32_t word = 0; word < words && count > 0; word++) {
        uint64_t sleeping = atomic_load_explicit(&area->shared->parked[word], memory_order_relaxed);
        while (sleeping != 0 && count > 0) {
            uint64_t bit = sleeping & (~sleeping + 1U);
            sleeping &= ~bit;
            count -= unpark_one(area, word * 64U + (uint32_t)__builtin_ctzll(bit)) ? 1U : 0U;
        }
    }
}

void hsm_area_unpark_all(hsm_area *area) {
    /* Either a worker that is about to sleep sees what was stored, or its bit is seen here. */
    atomic_thread_fence(memory_order_seq_cst);
    hsm_area_unpark(area, HSM_MAX_WORKERS);
}

void hsm_area_quarantine(hsm_area *area, uint32_t worker) {
    atomic_store(&hsm_area_worker(area, worker)->quarantined, 1);
    atomic_thread_fence(memory_order_seq_cst); /* as above: its call may have ended a moment ago */
    (void)unpark_one(area, worker);
}

void hsm_area_park(hsm_area *area, uint32_t worker, uint64_t timeout_ns) {
    _Atomic uint64_t *word = &area->shared->parked[worker / 64U];
    uint64_t bit = UINT64_C(1) << (worker % 64U);
    hsm_worker_record *record = hsm_area_worker(area, worker);
    _Atomic uint32_t *park = &record->park;

    atomic_store_explicit(park, 0, memory_order_relaxed);
    /* Sequentially consistent, like the fence in the submitting thread: either it sees this bit, or its request is seen
     * here. */
    atomic_fetch_or(word, bit);
    atomic_thread_fence(memory_order_seq_cst);
    uint32_t mode = atomic_load(&area->shared->mode);
    if (atomic_load(&record->quarantined) == 0 &&
        (mode == HSM_MODE_PAUSED || (mode == HSM_MODE_RUN && hsm_area_queued(area) == 0))) {
        hsm_futex_wait(park, 0, timeout_ns, area->one_process);
    }
    atomic_fetch_and(word, ~bit);
}

uint64_t hsm_area_oldest(hsm_area *area) {
    uint64_t head = atomic_load_explicit(&area->shared->request_head, memory_order_acquire);
    if (hsm_area_queued_from(area, head) == 0) {
        return 0;
    }
    uint32_t slot = atomic_load_explicit(&area->requests[head & (area->slots - 1U)], memory_order_relaxed);
    uint64_t submitted =
        atomic_load_explicit(&hsm_area_slot(area, slot & (area->slots - 1U))->submitted_ns, memory_order_acquire);
    /* If it was claimed by now, the slot may be another request's, and the queue moves. */
    return atomic_load_explicit(&area->shared->request_head, memory_order_relaxed) == head ? submitted : 0;
}
