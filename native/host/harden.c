/* Privileges that a signing process gives up. */
#include "harden.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#if defined(__x86_64__)
#define NATIVE_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define NATIVE_ARCH AUDIT_ARCH_AARCH64
#endif

#ifdef NATIVE_ARCH
/* System calls that no PKCS#11 module has a reason for. The list refuses and does not allow: vendors' code is unknown,
 * and a module that fails in an odd way is worse than a filter that is less tight. */
#define REFUSE(name) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_##name, 0, 1), BPF_STMT(BPF_RET | BPF_K, REFUSAL)
#define REFUSAL (SECCOMP_RET_ERRNO | (EPERM & SECCOMP_RET_DATA))

// clang-format off: several names in a line
static struct sock_filter filter[] = {
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, NATIVE_ARCH, 1, 0),
    BPF_STMT(BPF_RET | BPF_K, REFUSAL),
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    REFUSE(execve), REFUSE(execveat), REFUSE(ptrace), REFUSE(process_vm_readv), REFUSE(process_vm_writev),
    REFUSE(mount), REFUSE(umount2), REFUSE(pivot_root), REFUSE(chroot), REFUSE(reboot), REFUSE(kexec_load),
    REFUSE(init_module), REFUSE(finit_module), REFUSE(delete_module), REFUSE(bpf), REFUSE(perf_event_open),
    REFUSE(userfaultfd), REFUSE(swapon), REFUSE(swapoff),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
};
// clang-format on
#endif

void hsm_harden(void) {
    const struct rlimit none = {0, 0};
    (void)setrlimit(RLIMIT_CORE, &none);
    (void)prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    (void)prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
#ifdef NATIVE_ARCH
    struct sock_fprog program = {.len = sizeof filter / sizeof filter[0], .filter = filter};
    (void)prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0);
#endif
}
