/* Which files, and which other processes, the host may reach. */
#ifndef HSM_LANDLOCK_H
#define HSM_LANDLOCK_H

#include <stdbool.h>
#include <stdint.h>

/* The kernel's version of Landlock; 0: none. */
int32_t hsm_landlock_abi(void);
/* Enter a Landlock domain. Keeps a few descriptors open. Needs no new privileges. Returns whether it took effect. */
bool hsm_landlock_enter(int32_t abi);

#endif
