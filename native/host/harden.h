/* Give up what a signing process does not need. */
#ifndef HSM_HARDEN_H
#define HSM_HARDEN_H

#include <stdint.h>

/* No core dumps, no debugger, no new privileges; then the two filters: Landlock for files and other processes' memory
 * (landlock.c), seccomp for system calls. A step that the kernel lacks is skipped. Returns what took effect, as bits of
 * enum hsm_hardening. Call it before any thread is started. */
uint32_t hsm_harden(int32_t *landlock_abi);

#endif
