#include "pidfd.h"

#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

int hsm_pidfd_open(pid_t pid) {
    return (int)syscall(SYS_pidfd_open, pid, 0);
}

int hsm_pidfd_signal(int pidfd, int number) {
    return (int)syscall(SYS_pidfd_send_signal, pidfd, number, NULL, 0);
}
