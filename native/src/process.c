/* The host's process: spawn, kill, reap. */
#include "process.h"

#include "pidfd.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

int hsm_host_fd(const hsm_host *host) {
    return host->pidfd;
}

int64_t hsm_host_pid(const hsm_host *host) {
    return host->pid;
}

void hsm_host_kill(hsm_host *host) {
    (void)pthread_mutex_lock(&host->lock);
    if (host->pid > 0) {
        (void)hsm_pidfd_signal(host->pidfd, SIGKILL);
    }
    (void)pthread_mutex_unlock(&host->lock);
}

bool hsm_process_end(hsm_host *host) {
    hsm_host_kill(host);
    if (host->pid > 0) {
        (void)hsm_wait_fd(host->pidfd, POLLIN, HSM_PROCESS_END_NS);
    }
    (void)pthread_mutex_lock(&host->lock);
    if (host->pid > 0 && waitpid(host->pid, NULL, WNOHANG) != 0) {
        host->pid = -1;
    }
    bool ended = host->pid < 0;
    (void)pthread_mutex_unlock(&host->lock);
    return ended;
}

/* What the process inherits. Signals that mean the application wait until it ignores them (host/main.c); a session of
 * its own keeps those of a terminal away, and its input. What it prints is no output of the application. */
static int prepare(posix_spawn_file_actions_t *actions, posix_spawnattr_t *attributes, const int *moved, int count) {
    sigset_t blocked;
    (void)sigemptyset(&blocked);
    const int signals[] = HSM_HOST_IGNORES;
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++) {
        (void)sigaddset(&blocked, signals[i]);
    }
    int code = posix_spawn_file_actions_addopen(actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    if (code == 0 && fcntl(STDERR_FILENO, F_GETFD) >= 0) { /* a service may have closed it */
        code = posix_spawn_file_actions_adddup2(actions, STDERR_FILENO, STDOUT_FILENO);
    }
    for (int i = 0; code == 0 && i < count; i++) {
        code = moved[i] < 0 ? EMFILE : posix_spawn_file_actions_adddup2(actions, moved[i], HSM_FD_CONTROL + i);
    }
    code = code != 0 ? code : posix_spawn_file_actions_addclosefrom_np(actions, HSM_FD_END);
    code = code != 0 ? code : posix_spawnattr_setsigmask(attributes, &blocked);
    return code != 0 ? code : posix_spawnattr_setflags(attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSID);
}

hsm_status hsm_process_start(hsm_host *host, hsm_error *error) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) {
        return hsm_fail_errno(error, "socketpair", "host control");
    }
    const int sources[] = {pair[1], host->client->area_fd, host->client->event_fd, host->client->timer_fd};
    enum { COUNT = sizeof sources / sizeof sources[0] };
    /* First out of the way of the final numbers: a source may sit on one of them. Duplicates are not close-on-exec. */
    int moved[COUNT];
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    (void)posix_spawn_file_actions_init(&actions);
    (void)posix_spawnattr_init(&attributes);
    for (int i = 0; i < COUNT; i++) { /* a host that lacks one would wake nobody */
        moved[i] = fcntl(sources[i], F_DUPFD_CLOEXEC, HSM_FD_END);
    }
    int unprepared = prepare(&actions, &attributes, moved, COUNT);
    char name[] = "hsmcore-host";
    char *arguments[] = {name, NULL};
    pid_t pid = -1;
    hsm_area_write_header(host->client->area);
    int code = unprepared != 0 ? unprepared
                               : posix_spawn(&pid, host->program, &actions, &attributes, arguments, host->environment);
    (void)posix_spawnattr_destroy(&attributes);
    (void)posix_spawn_file_actions_destroy(&actions);
    for (int i = 0; i < COUNT; i++) {
        if (moved[i] >= 0) {
            (void)close(moved[i]);
        }
    }
    (void)close(pair[1]);
    if (code != 0) {
        (void)close(pair[0]);
        if (unprepared != 0) {
            errno = unprepared;
            return hsm_fail_errno(error, "fcntl", "the host's descriptors");
        }
        if (code == EMFILE || code == ENFILE || code == ENOMEM || code == EAGAIN) { /* the program is not to blame */
            errno = code;
            return hsm_fail_errno(error, "posix_spawn", host->program);
        }
        return hsm_fail(error, HSM_HOST_MISSING, "posix_spawn", "%s: %s", host->program, strerrordesc_np(code));
    }
    host->control = hsm_counted(pair[0]);
    (void)pthread_mutex_lock(&host->lock);
    host->pid = pid;
    hsm_close(&host->pidfd);
    host->pidfd = hsm_counted(hsm_pidfd_open(pid));
    (void)pthread_mutex_unlock(&host->lock);
    if (host->pidfd < 0) {
        hsm_status status = hsm_fail_errno(error, "pidfd_open", "host");
        (void)kill(pid, SIGKILL);
        (void)waitpid(pid, NULL, 0); /* it has not begun yet */
        host->pid = -1;
        return status;
    }
    return HSM_OK;
}
