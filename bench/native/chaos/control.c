/* The control socket: one thread, line-delimited JSON, one answer line per command. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "chaos.h"

#define CLIENTS 16
#define LINE_MAX_BYTES 65536

struct client {
    int fd;
    size_t used;
    bool skipping; /* the rest of a line that is too long */
    char line[LINE_MAX_BYTES];
};

static pthread_t thread;
static bool running;
static int listen_fd = -1, stop_fd = -1;
static char socket_path[CHAOS_PATH];
static struct client *clients[CLIENTS]; /* used by the thread only; in the child of a fork, by chaos_control_forget */

/* ---- the thread ---- */

static bool send_all(int fd, const char *text, size_t length) {
    while (length > 0) {
        ssize_t sent = send(fd, text, length, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) {
            continue;
        }
        if (sent <= 0) {
            return false;
        }
        text += sent;
        length -= (size_t)sent;
    }
    return true;
}

static bool answer(struct client *client, const char *line) {
    static const char refusal[] = "{\"error\":\"the line is too long\",\"ok\":false}\n";
    if (client->skipping) {
        client->skipping = false;
        return send_all(client->fd, refusal, sizeof refusal - 1);
    }
    char *reply = chaos_command(line);
    bool ok = reply != NULL && send_all(client->fd, reply, strlen(reply)) && send_all(client->fd, "\n", 1);
    free(reply);
    return ok;
}

/* False: the client is done with. */
static bool serve(struct client *client) {
    ssize_t got = recv(client->fd, client->line + client->used, sizeof client->line - client->used, 0);
    if (got <= 0) {
        return got < 0 && errno == EINTR;
    }
    client->used += (size_t)got;
    char *start = client->line;
    char *end = client->line + client->used;
    char *newline;
    while ((newline = memchr(start, '\n', (size_t)(end - start))) != NULL) {
        *newline = '\0';
        if (!answer(client, start)) {
            return false;
        }
        start = newline + 1;
    }
    client->used = (size_t)(end - start);
    memmove(client->line, start, client->used);
    if (client->used == sizeof client->line) {
        client->skipping = true;
        client->used = 0;
    }
    return true;
}

static void accept_client(void) {
    int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) {
        return;
    }
    /* A client that does not read its answers must not keep C_Finalize waiting. */
    struct timeval patience = {.tv_sec = 1};
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    for (int i = 0; i < CLIENTS; i++) {
        if (clients[i] == NULL) {
            clients[i] = malloc(sizeof *clients[i]);
            if (clients[i] != NULL) {
                clients[i]->fd = fd;
                clients[i]->used = 0;
                clients[i]->skipping = false;
                return;
            }
            break;
        }
    }
    (void)close(fd);
}

static void drop_client(int i) {
    (void)close(clients[i]->fd);
    free(clients[i]);
    clients[i] = NULL;
}

static void *run(void *unused) {
    (void)unused;
    for (;;) {
        struct pollfd polled[CLIENTS + 2] = {{.fd = stop_fd, .events = POLLIN}, {.fd = listen_fd, .events = POLLIN}};
        for (int i = 0; i < CLIENTS; i++) {
            polled[i + 2] = (struct pollfd){.fd = clients[i] != NULL ? clients[i]->fd : -1, .events = POLLIN};
        }
        if (poll(polled, CLIENTS + 2, -1) < 0) {
            continue; /* EINTR */
        }
        if (polled[0].revents != 0) {
            break;
        }
        for (int i = 0; i < CLIENTS; i++) {
            if (polled[i + 2].revents != 0 && !serve(clients[i])) {
                drop_client(i);
            }
        }
        if (polled[1].revents != 0) {
            accept_client();
        }
    }
    for (int i = 0; i < CLIENTS; i++) {
        if (clients[i] != NULL) {
            drop_client(i);
        }
    }
    return NULL;
}

/* ---- start and stop ---- */

static bool fail(struct chaos_error *error, const char *what, const char *path) {
    int code = errno;
    (void)snprintf(error->text, sizeof error->text, "%s %.256s: %s", what, path, strerrordesc_np(code));
    return false;
}

/* A socket without a listener was left by a process that died; one with a listener is in use. */
static bool remove_stale(const struct sockaddr_un *address, struct chaos_error *error) {
    struct stat info;
    if (lstat(address->sun_path, &info) != 0) {
        return errno == ENOENT || fail(error, "can't use", address->sun_path);
    }
    int probe = S_ISSOCK(info.st_mode) ? socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0) : -1;
    bool refused =
        probe >= 0 && connect(probe, (const struct sockaddr *)address, sizeof *address) != 0 && errno == ECONNREFUSED;
    if (probe >= 0) {
        (void)close(probe);
    }
    if (!refused) {
        (void)snprintf(error->text, sizeof error->text, "%.256s is %s; \"%%p\" in the name stands for the process id",
                       address->sun_path,
                       S_ISSOCK(info.st_mode) ? "in use by another process" : "there already and is no socket");
        return false;
    }
    return unlink(address->sun_path) == 0 || fail(error, "can't remove", address->sun_path);
}

static bool listen_at(const char *path, struct chaos_error *error) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        (void)snprintf(error->text, sizeof error->text, "is longer than %zu bytes", sizeof address.sun_path - 1);
        return false;
    }
    memcpy(address.sun_path, path, strlen(path) + 1);
    if (!remove_stale(&address, error)) {
        return false;
    }
    listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listen_fd < 0) {
        return fail(error, "can't make a socket for", path);
    }
    /* The file takes its mode from the socket, so it is never open to others, not even for an instant. */
    if (fchmod(listen_fd, S_IRUSR | S_IWUSR) != 0 ||
        bind(listen_fd, (const struct sockaddr *)&address, sizeof address) != 0) {
        return fail(error, "can't bind", path);
    }
    (void)snprintf(socket_path, sizeof socket_path, "%s", path);
    return listen(listen_fd, CLIENTS) == 0 || fail(error, "can't listen at", path);
}

static void close_all(void) {
    int *const fds[] = {&listen_fd, &stop_fd};
    for (size_t i = 0; i < 2; i++) {
        if (*fds[i] >= 0) {
            (void)close(*fds[i]);
            *fds[i] = -1;
        }
    }
}

bool chaos_control_start(const char *path, struct chaos_error *error) {
    socket_path[0] = '\0';
    stop_fd = eventfd(0, EFD_CLOEXEC);
    if (stop_fd < 0 ? !fail(error, "no eventfd for", path) : !listen_at(path, error)) {
        chaos_control_stop();
        return false;
    }
    /* The client's signals are the client's: none is delivered to this thread. */
    sigset_t all;
    sigset_t before;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(&thread, NULL, run, NULL);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    running = code == 0;
    if (!running) {
        errno = code;
        (void)fail(error, "no thread for", path);
        chaos_control_stop();
    }
    return running;
}

void chaos_control_stop(void) {
    if (running) {
        const uint64_t one = 1;
        ssize_t written = write(stop_fd, &one, sizeof one);
        (void)written; /* an eventfd that was never written to takes it */
        (void)pthread_join(thread, NULL);
        running = false;
    }
    if (socket_path[0] != '\0') {
        (void)unlink(socket_path);
        socket_path[0] = '\0';
    }
    close_all();
}

void chaos_control_forget(void) {
    running = false;
    socket_path[0] = '\0';
    for (int i = 0; i < CLIENTS; i++) {
        if (clients[i] != NULL) {
            drop_client(i);
        }
    }
    close_all();
}
