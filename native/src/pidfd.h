/* Descriptors of processes, by system call: the C library has functions for them from 2.36 on only. */
#ifndef HSM_PIDFD_H
#define HSM_PIDFD_H

#include <sys/types.h>

/* As pidfd_open(2), without flags: a descriptor that is closed on exec, or -1 with errno. */
int hsm_pidfd_open(pid_t pid);

/* As pidfd_send_signal(2), without siginfo and flags: 0, or -1 with errno. */
int hsm_pidfd_signal(int pidfd, int number);

#endif
