/* The state that all calls read: whether the module is up, the calls inside, the current settings. */
#include <stdlib.h>

#include "chaos.h"

_Atomic int chaos_state = CHAOS_DOWN;
atomic_uint_fast64_t chaos_inside;
const struct chaos_settings *_Atomic chaos_settings;
struct chaos_config chaos_config;

/* Replaced settings are kept until C_Finalize: a call may be looking at them. */
static struct kept {
    struct kept *next;
    struct chaos_settings settings;
} *kept;

/* Called by C_Initialize and by the control thread, which are never at work at the same time. */
bool chaos_settings_replace(const struct chaos_settings *settings) {
    struct kept *next = malloc(sizeof *next);
    if (next == NULL) {
        return false;
    }
    next->settings = *settings;
    next->next = kept;
    kept = next;
    atomic_store_explicit(&chaos_settings, &next->settings, memory_order_release);
    return true;
}

void chaos_settings_reset(bool free_them) {
    atomic_store(&chaos_settings, NULL);
    while (free_them && kept != NULL) {
        struct kept *next = kept->next;
        free(kept);
        kept = next;
    }
    kept = NULL;
}
