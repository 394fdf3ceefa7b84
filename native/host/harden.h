/* Give up what a signing process does not need. */
#ifndef HSM_HARDEN_H
#define HSM_HARDEN_H

/* No core dumps, no debugger, no new privileges; a seccomp filter, where the kernel has it, that refuses to start
 * programs, look into other processes, or change the system. A step that the kernel lacks is skipped. Call it before
 * any thread is started. */
void hsm_harden(void);

#endif
