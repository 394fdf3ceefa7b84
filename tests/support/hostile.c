/* A module before TARGET whose C_Sign does, for a message "do:NAME ...", what NAME says against the application,
 * appends "NAME result" to the file beside it (0: it was done, else the errno), and then signs.
 * tests/support/wrapper.py puts the rest of a module before it. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/mount.h>
#include <linux/sockios.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { AREA = 4, EVENT, TIMER }; /* the descriptors that the host is started with */

static int failed(long result) {
    return result < 0 ? errno : 0;
}

static int opens(const char *format, const char *argument, int flags) {
    char path[512];
    (void)snprintf(path, sizeof path, format, getppid(), argument);
    int fd = open(path, flags | O_CLOEXEC);
    int code = failed(fd);
    (void)close(fd);
    return code;
}

static int opens_own(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    char byte;
    int code = fd < 0 ? errno : failed(read(fd, &byte, 1));
    (void)close(fd);
    return code;
}

static int forks(void) {
    pid_t child = fork();
    if (child == 0) {
        _exit(0);
    }
    return child < 0 ? errno : failed(waitpid(child, NULL, 0));
}

static int peeks(void) {
    char here;
    struct iovec local = {&here, 1};
    struct iovec remote = {&here, 1};
    return failed(process_vm_readv(getppid(), &local, 1, &remote, 1, 0));
}

static int takes_descriptor(void) {
    int parent = (int)syscall(SYS_pidfd_open, getppid(), 0);
    int fd = parent < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, parent, 0, 0);
    int code = failed(fd);
    (void)close(fd);
    (void)close(parent);
    return code;
}

/* The host has a pidfd of its parent itself: any number will do. */
static int signals_by_descriptor(void) {
    int code = EBADF;
    for (int fd = 3; fd < 64 && code != 0; fd++) {
        int now = failed(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0));
        code = now == EBADF ? code : now;
    }
    return code;
}

static int owns_signals(void) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) {
        return errno;
    }
    int code = failed(fcntl(pair[0], F_SETOWN, getppid()));
    (void)close(pair[0]);
    (void)close(pair[1]);
    return code;
}

/* The older ways to say whom a descriptor's signals are for. */
static int owns_signals_by(unsigned long request) {
    int pair[2];
    int owner = getppid();
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) {
        return errno;
    }
    int code = failed(ioctl(pair[0], request, &owner));
    (void)close(pair[0]);
    (void)close(pair[1]);
    return code;
}

/* Kill the process with this number, by input and output that it is told of: each way there is. */
static int kills_by_input(const char *number) {
    int pair[2];
    int victim = atoi(number);
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) {
        return errno;
    }
    (void)ioctl(pair[0], FIOSETOWN, &victim);
    (void)ioctl(pair[0], SIOCSPGRP, &victim);
    (void)fcntl(pair[0], F_SETOWN, victim);
    (void)fcntl(pair[0], F_SETSIG, SIGKILL);
    (void)fcntl(pair[0], F_SETFL, O_ASYNC);
    int code = failed(write(pair[1], "x", 1));
    (void)close(pair[0]);
    (void)close(pair[1]);
    return code;
}

/* Who may write there stops and kills groups of processes. */
static int makes_control_group(void) {
    int code = failed(mkdir("/sys/fs/cgroup/hsmcore-test", 0700));
    (void)rmdir("/sys/fs/cgroup/hsmcore-test");
    return code;
}

static int limits_parent(void) {
    struct rlimit now;
    (void)getrlimit(RLIMIT_NOFILE, &now);
    return failed(prlimit(getppid(), RLIMIT_NOFILE, &now, NULL));
}

static int niceness_of_parent(void) {
    struct sched_param parameters = {0};
    return failed(sched_setscheduler(getppid(), SCHED_OTHER, &parameters));
}

/* Both wake descriptors block from now on; the event comes without a completion, so that the client looks at both. */
static int blocks_reads(void) {
    int code = failed(fcntl(EVENT, F_SETFL, 0));
    code = code != 0 ? code : failed(fcntl(TIMER, F_SETFL, 0));
    const uint64_t one = 1;
    return code != 0 ? code : failed(write(EVENT, &one, sizeof one));
}

/* Take away what the client is about to read. */
static void *steal(void *argument) {
    (void)argument;
    for (int i = 0; i < 100000; i++) {
        uint64_t count = 1;
        struct iovec where = {&count, sizeof count};
        (void)!write(EVENT, &count, sizeof count);
        (void)!preadv2(EVENT, &where, 1, -1, RWF_NOWAIT);
    }
    return NULL;
}

static int steals(void) {
    pthread_t thread;
    int code = blocks_reads();
    code = code != 0 ? code : pthread_create(&thread, NULL, steal, NULL);
    return code != 0 ? code : pthread_detach(thread);
}

static int seals(void) {
    return failed(fcntl(AREA, F_ADD_SEALS, F_SEAL_FUTURE_WRITE));
}

static int overwrites(size_t size) {
    char rubbish[16384];
    memset(rubbish, 0xa5, sizeof rubbish);
    return failed(pwrite(AREA, rubbish, size, 0));
}

static int tries(const char *name, const char *argument) {
    pid_t parent = getppid();
    char *const none[] = {NULL};
    sigset_t set;
    (void)sigemptyset(&set);
#define IS(what) (strcmp(name, what) == 0)
    return IS("write-memory")       ? opens("/proc/%d/mem", "", O_RDWR)
           : IS("read-memory")      ? opens("/proc/%d/mem", "", O_RDONLY)
           : IS("memory-elsewhere") ? opens("%2$s/%1$d/mem", argument, O_RDONLY)
           : IS("environment")      ? opens("/proc/%d/environ", "", O_RDONLY)
           : IS("descriptors")      ? opens("/proc/%d/fd", "", O_RDONLY)
           : IS("oom-score")        ? opens("/proc/%d/oom_score_adj", "", O_WRONLY)
           : IS("sysctl")           ? opens("/proc/%2$.0s/sys/kernel/core_pattern", "", O_WRONLY)
           : IS("own-maps")         ? opens_own("/proc/self/maps")
           : IS("own-thread")       ? opens_own("/proc/thread-self/stat")
           : IS("processors")       ? opens_own("/proc/cpuinfo")
           : IS("fips")             ? opens_own("/proc/sys/kernel/osrelease")
           : IS("peek")             ? peeks()
           : IS("ptrace")           ? failed(ptrace(PTRACE_SEIZE, parent, NULL, NULL))
           : IS("take-descriptor")  ? takes_descriptor()
           : IS("kcmp")             ? failed(syscall(SYS_kcmp, parent, getpid(), 0, 0, 0))
           : IS("probe")            ? failed(kill(parent, 0))
           : IS("continue")         ? failed(kill(parent, SIGCONT))
           : IS("thread-signal")    ? failed(syscall(SYS_tgkill, parent, parent, 0))
           : IS("old-signal")       ? failed(syscall(SYS_tkill, parent, 0))
           : IS("signal-all")       ? failed(kill(-1, 0))
           : IS("pidfd-signal")     ? signals_by_descriptor()
           : IS("owner")            ? owns_signals()
           : IS("old-owner")        ? owns_signals_by(FIOSETOWN)
           : IS("socket-owner")     ? owns_signals_by(SIOCSPGRP)
           : IS("signal-choice")    ? failed(fcntl(0, F_SETSIG, SIGKILL))
           : IS("kill-by-input")    ? kills_by_input(argument)
           : IS("control-group")    ? makes_control_group()
           : IS("own-signal")       ? failed(kill(getpid(), 0))
           : IS("limit")            ? limits_parent()
           : IS("priority")         ? niceness_of_parent()
           : IS("fork")             ? forks()
           : IS("exec")             ? failed(execve("/bin/true", none, none))
           : IS("user-namespace")   ? failed(unshare(CLONE_NEWUSER))
           : IS("enter")            ? failed(setns(AREA, 0))
           : IS("mount")            ? failed(syscall(SYS_fsopen, "tmpfs", 0))
           : IS("clone-tree")       ? failed(syscall(SYS_open_tree, AT_FDCWD, "/", 0))
           : IS("handle")           ? failed(syscall(SYS_open_by_handle_at, AT_FDCWD, none, 0))
           : IS("io-uring")         ? failed(syscall(SYS_io_uring_setup, 0, NULL))
           : IS("keyring")          ? failed(syscall(SYS_keyctl, 0, -2, 0))
#ifdef __x86_64__
           : IS("x32") ? failed(syscall(0x40000000L + SYS_getpid))
#endif
           : IS("terminal")    ? failed(ioctl(0, TIOCSTI, ""))
           : IS("seal")        ? seals()
           : IS("block-reads") ? blocks_reads()
           : IS("steal")       ? steals()
           : IS("header")      ? overwrites(64)
           : IS("everything")  ? overwrites(16384)
                               : -1;
}

static CK_RV hostile_Sign(CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG length, CK_BYTE *signature,
                          CK_ULONG *size) {
    char name[64];
    char argument[256] = "";
    char text[320];
    (void)snprintf(text, sizeof text, "%.*s", (int)length, (const char *)data);
    if (signature != NULL && sscanf(text, "do:%63s %255s", name, argument) >= 1) {
        char line[128];
        int code = tries(name, argument);
        int length_of_line = snprintf(line, sizeof line, "%s %d\n", name, code);
        int file = open(RESULTS, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        (void)!write(file, line, (size_t)length_of_line);
        (void)close(file);
        if (strcmp(argument, "crash") == 0) {
            abort();
        }
    }
    return theirs->C_Sign(session, data, length, signature, size);
}

static void change(void) {
    own.C_Sign = hostile_Sign;
}
