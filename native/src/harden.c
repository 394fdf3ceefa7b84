/* Privileges that a process gives up which others speak to, or whose code is not ours. */
#include "landlock.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/sockios.h>
#include <sched.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <hsmcore/hsmcore.h>

#if defined(__x86_64__)
#define NATIVE_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define NATIVE_ARCH AUDIT_ARCH_AARCH64
#endif

#ifdef NATIVE_ARCH
/* Newer than some kernel headers; the same number on every architecture. */
#ifndef SYS_open_tree_attr
#define SYS_open_tree_attr 467
#endif
#define FOREIGN 0x40000000U /* x86-64: from here on the numbers of x32 */
#define NEW_NAMESPACES                                                                                                 \
    (CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET)

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)offsetof(struct seccomp_data, field))
#define IF(test, value, then, otherwise) BPF_JUMP(BPF_JMP | BPF_##test | BPF_K, (uint32_t)(value), then, otherwise)
#define ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define FAIL(code) BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ((code) & SECCOMP_RET_DATA))

#define REFUSE(name) IF(JEQ, SYS_##name, 0, 1), FAIL(EPERM)
/* Allow it with this process in the argument (0 means the same), and with no other one. */
#define OWN(name, argument)                                                                                            \
    IF(JEQ, SYS_##name, 0, 5), LOAD(args[argument]), IF(JEQ, 0, 2, 0), IF(JEQ, OWN_PID, 1, 0), FAIL(EPERM), ALLOW
#define OWN_PID UINT32_MAX /* in the place of this process's number, which is none a process has */
/* Refuse it with one of four values in the argument. */
#define NONE_OF(name, argument, first, second, third, fourth)                                                          \
    IF(JEQ, SYS_##name, 0, 7), LOAD(args[argument]), IF(JEQ, first, 3, 0), IF(JEQ, second, 2, 0),                      \
        IF(JEQ, third, 1, 0), IF(JEQ, fourth, 0, 1), FAIL(EPERM), ALLOW

/* System calls that no PKCS#11 module has a reason for are refused. The list refuses and does not allow: vendors' code
 * is unknown, and a module that fails in an odd way is worse than a filter that is less tight. A constant: GCC's
 * sanitizers take seconds to compile one that is made in a function. */
// clang-format off: several names in a line
static const struct sock_filter FILTER[] = {
    LOAD(arch), IF(JEQ, NATIVE_ARCH, 1, 0), FAIL(EPERM),
    LOAD(nr), IF(JGE, FOREIGN, 0, 1), FAIL(EPERM),
    /* other programs, and a copy of this one, which would outlive it */
    REFUSE(execve), REFUSE(execveat),
#ifdef SYS_fork
    REFUSE(fork), REFUSE(vfork),
#endif
    IF(JEQ, SYS_clone3, 0, 1), FAIL(ENOSYS), /* its flags cannot be read here; the C library takes clone instead */
    IF(JEQ, SYS_clone, 0, 5), LOAD(args[0]),
        IF(JSET, NEW_NAMESPACES, 1, 0), IF(JSET, CLONE_THREAD, 1, 0), FAIL(EPERM), ALLOW,
    /* other processes: their memory and descriptors, */
    REFUSE(ptrace), REFUSE(process_vm_readv), REFUSE(process_vm_writev), REFUSE(process_madvise), REFUSE(kcmp),
    REFUSE(pidfd_open), REFUSE(pidfd_getfd), REFUSE(userfaultfd), REFUSE(perf_event_open),
    /* signals, those of asynchronous input and output too: no owner of a descriptor's signals, by any way to name
     * one (two are calls of ioctl, below), no choice of the signal, and none when a folder changes */
    OWN(kill, 0), OWN(tgkill, 0), OWN(rt_sigqueueinfo, 0), OWN(rt_tgsigqueueinfo, 0), REFUSE(tkill),
    REFUSE(pidfd_send_signal), NONE_OF(fcntl, 1, F_SETOWN, F_SETOWN_EX, F_SETSIG, F_NOTIFY),
    /* limits and priorities */
    OWN(prlimit64, 0), OWN(sched_setaffinity, 0), OWN(sched_setscheduler, 0), OWN(sched_setparam, 0),
    OWN(sched_setattr, 0), OWN(migrate_pages, 0), OWN(move_pages, 0), REFUSE(setpriority), REFUSE(ioprio_set),
    /* namespaces and mounts, and ways around the paths that Landlock knows */
    REFUSE(unshare), REFUSE(setns), REFUSE(mount), REFUSE(umount2), REFUSE(pivot_root), REFUSE(chroot),
    REFUSE(fsopen), REFUSE(fsconfig), REFUSE(fsmount), REFUSE(fspick), REFUSE(move_mount), REFUSE(open_tree),
    REFUSE(open_tree_attr), REFUSE(mount_setattr), REFUSE(open_by_handle_at), REFUSE(fanotify_init),
    /* a terminal's input, and the owner of a descriptor's signals */
    NONE_OF(ioctl, 1, TIOCSTI, TIOCLINUX, FIOSETOWN, SIOCSPGRP),
    /* the kernel: its keys, a second way in that no filter sees, and the system */
    REFUSE(keyctl), REFUSE(add_key), REFUSE(request_key),
    REFUSE(io_uring_setup), REFUSE(io_uring_enter), REFUSE(io_uring_register), REFUSE(bpf),
    REFUSE(init_module), REFUSE(finit_module), REFUSE(delete_module), REFUSE(kexec_load), REFUSE(kexec_file_load),
    REFUSE(reboot), REFUSE(swapon), REFUSE(swapoff), REFUSE(settimeofday), REFUSE(clock_settime),
    REFUSE(clock_adjtime), REFUSE(adjtimex), REFUSE(acct), REFUSE(quotactl), REFUSE(sethostname),
#ifdef SYS_iopl
    REFUSE(iopl), REFUSE(ioperm),
#endif
    ALLOW,
};
// clang-format on

static bool filter_calls(void) {
    struct sock_filter filter[sizeof FILTER / sizeof FILTER[0]];
    memcpy(filter, FILTER, sizeof filter);
    for (size_t at = 0; at < sizeof filter / sizeof filter[0]; at++)
        if (filter[at].code == (BPF_JMP | BPF_JEQ | BPF_K) && filter[at].k == OWN_PID)
            filter[at].k = (uint32_t)getpid();
    struct sock_fprog program = {.len = sizeof filter / sizeof filter[0], .filter = filter};
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) == 0;
}
#else
static bool filter_calls(void) {
    return false;
}
#endif

uint32_t hsm_harden(int32_t *landlock_abi) {
    const struct rlimit none = {0, 0};
    *landlock_abi = hsm_landlock_abi();
    uint32_t done = setrlimit(RLIMIT_CORE, &none) == 0 ? HSM_NO_CORE_DUMPS : 0;
    done |= prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0 ? HSM_NOT_DUMPABLE : 0U;
    done |= prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 ? HSM_NO_NEW_PRIVILEGES : 0U;
    done |= hsm_landlock_enter(*landlock_abi) ? HSM_LANDLOCK : 0U;
    done |= filter_calls() ? HSM_SECCOMP : 0U;
    return done;
}
