#include "area.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static uint64_t aligned(uint64_t size, uint64_t to) {
    return (size + to - 1U) / to * to;
}

hsm_status hsm_area_create(const hsm_client_options *options, hsm_area **area, int *fd, hsm_error *error) {
    uint32_t slots = 1;
    while (slots < options->slots) {
        slots *= 2U;
    }
    hsm_area layout = {
        .magic = HSM_AREA_MAGIC,
        .version = HSM_AREA_VERSION,
        .slots = slots,
        .max_message = options->max_message,
        .max_workers = options->max_workers,
        .coalesce_ns = options->coalesce_ns,
    };
    layout.overflow_stride = options->max_message > HSM_INLINE_MESSAGE ? aligned(options->max_message, 4096) : 0;

    uint64_t end = aligned(sizeof layout, HSM_CACHE_LINE);
    layout.request_ring = end;
    end = aligned(end + slots * sizeof(uint32_t), HSM_CACHE_LINE);
    layout.completion_ring = end;
    end = aligned(end + slots * sizeof(uint32_t), HSM_CACHE_LINE);
    layout.slot_table = end;
    end += slots * sizeof(hsm_slot);
    layout.worker_table = end;
    end = aligned(end + options->max_workers * sizeof(hsm_worker_record), 4096);
    layout.overflow = end;
    end += slots * layout.overflow_stride;
    layout.size = end;

    int file = memfd_create("hsmcore", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (file < 0) {
        return hsm_fail_errno(error, "memfd_create", "shared area");
    }
    hsm_count(HSM_RESOURCE_DESCRIPTOR, 1);
    if (ftruncate(file, (off_t)end) != 0) {
        hsm_status status = hsm_fail_errno(error, "ftruncate", "shared area");
        hsm_area_destroy(NULL, file);
        return status;
    }
    void *memory = mmap(NULL, end, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
    if (memory == MAP_FAILED) {
        hsm_status status = hsm_fail_errno(error, "mmap", "shared area");
        hsm_area_destroy(NULL, file);
        return status;
    }
    /* Messages may be confidential: keep them out of core dumps, and out of a forked child that may not use them. */
    (void)madvise(memory, end, MADV_DONTDUMP);
    (void)madvise(memory, end, MADV_DONTFORK);
    memcpy(memory, &layout, sizeof layout);
    *area = memory;
    *fd = file;
    return HSM_OK;
}

void hsm_area_destroy(hsm_area *area, int fd) {
    if (area != NULL) {
        (void)munmap(area, area->size);
    }
    if (fd >= 0) {
        (void)close(fd);
        hsm_count(HSM_RESOURCE_DESCRIPTOR, -1);
    }
}

void hsm_area_unpark(hsm_area *area, uint64_t count) {
    uint32_t words = (area->max_workers + 63U) / 64U;
    for (uint32_t word = 0; word < words && count > 0; word++) {
        uint64_t sleeping = atomic_load_explicit(&area->parked[word], memory_order_relaxed);
        while (sleeping != 0 && count > 0) {
            uint64_t bit = sleeping & (~sleeping + 1U);
            sleeping &= ~bit;
            /* Only the one who clears the bit wakes, so no worker is woken twice for one sleep. */
            if ((atomic_fetch_and_explicit(&area->parked[word], ~bit, memory_order_acq_rel) & bit) == 0) {
                continue;
            }
            uint32_t worker = word * 64U + (uint32_t)__builtin_ctzll(bit);
            if (worker >= area->max_workers) {
                continue; /* the area may be shared with a process that misbehaves */
            }
            _Atomic uint32_t *park = &hsm_area_worker(area, worker)->park;
            atomic_store_explicit(park, 1, memory_order_release);
            hsm_futex_wake(park, 1);
            count--;
        }
    }
}

void hsm_area_park(hsm_area *area, uint32_t worker, uint64_t timeout_ns) {
    _Atomic uint64_t *word = &area->parked[worker / 64U];
    uint64_t bit = UINT64_C(1) << (worker % 64U);
    _Atomic uint32_t *park = &hsm_area_worker(area, worker)->park;

    atomic_store_explicit(park, 0, memory_order_relaxed);
    /* Sequentially consistent, like the fence in the submitting thread: either it sees this bit, or we see its
     * request here. */
    atomic_fetch_or(word, bit);
    atomic_thread_fence(memory_order_seq_cst);
    uint32_t mode = atomic_load(&area->mode);
    if (mode == HSM_MODE_PAUSED || (mode == HSM_MODE_RUN && hsm_area_queued(area) == 0)) {
        hsm_futex_wait(park, 0, timeout_ns);
    }
    atomic_fetch_and(word, ~bit);
}
