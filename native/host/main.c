/* hsmcore-host: the engine in a process of its own. hsm_host_begin (src/host.c) starts it with its descriptors at fixed
 * numbers. It ends on request, with the process that started it, or when it outgrows its memory limit. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine.h"
#include "pidfd.h"
#include "wire.h"

#define EXIT_USAGE 2
#define EXIT_MEMORY 3
#define LOOK_NS UINT64_C(500000000) /* how often the memory limit is looked at */

typedef struct host {
    hsm_client client; /* only the fields that an engine uses */
    hsm_engine *engine;
    pthread_t watcher;
    bool watched;
    uint64_t memory_limit;
    int parent; /* pidfd of the process that started this one */
    int statm;  /* /proc/self/statm */
    uint32_t hardening;
    int32_t landlock_abi;
} host;

static hsm_status attach(hsm_client *client) {
    client->area = &client->own_area;
    client->area_fd = HSM_FD_AREA;
    client->event_fd = HSM_FD_EVENT;
    client->timer_fd = HSM_FD_TIMER;
    client->fork_generation = hsm_fork_generation();
    atomic_store(&client->users, 1); /* it is no engine's to free */
    return hsm_area_attach(HSM_FD_AREA, client->area);
}

static uint64_t resident_bytes(const host *self) {
    char text[64] = "";
    unsigned long long pages = 0;
    if (pread(self->statm, text, sizeof text - 1, 0) <= 0 ||
        sscanf(text, "%*u %llu", &pages) != 1) { // NOLINT(cert-err34-c)
        return 0;
    }
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* The end of the parent and the memory limit, while a call may hang in the module. */
static void *watch(void *argument) {
    const host *self = argument;
    while (!hsm_wait_fd(self->parent, POLLIN, self->memory_limit != 0 ? LOOK_NS : 0)) {
        if (self->memory_limit != 0 && resident_bytes(self) > self->memory_limit) {
            _exit(EXIT_MEMORY);
        }
    }
    _exit(0);
}

static hsm_status start(host *self, const hsm_request_message *message, hsm_error *error) {
    if (self->engine != NULL) {
        return hsm_fail(error, HSM_BAD_ARGUMENT, "", "started already");
    }
    hsm_engine_options options = {
        .module_path = hsm_wire_get_string(message, &message->module_path),
        .module_args = hsm_wire_get_string(message, &message->module_args),
        .quirks = hsm_wire_get_string(message, &message->quirks),
        .token = {.label = hsm_wire_get_string(message, &message->token_label),
                  .serial = hsm_wire_get_string(message, &message->token_serial),
                  .slot_id = message->slot_id},
        .workers = message->workers,
        .verify_every = message->verify_every,
        .spin_ns = message->spin_ns,
        .patience_ns = message->patience_ns,
    };
    options.pin = hsm_wire_get(message, &message->pin, &options.pin_len);
    self->memory_limit = message->memory_limit;
    errno = self->watched ? 0 : hsm_thread_start(&self->watcher, watch, self);
    self->watched = errno == 0;
    if (!self->watched) {
        return hsm_fail_errno(error, "pthread_create", "watcher");
    }
    return hsm_engine_start(&self->client, &options, &self->engine, error);
}

static hsm_status add_key(const host *self, const hsm_request_message *message, hsm_key_info *info, hsm_error *error) {
    if (self->engine == NULL) {
        return hsm_fail(error, HSM_CLOSED, "", "not started");
    }
    hsm_key_selector selector = {.label = hsm_wire_get_string(message, &message->key_label),
                                 .handle = message->handle,
                                 .algorithm = (hsm_algorithm)message->algorithm};
    selector.id = hsm_wire_get(message, &message->key_id, &selector.id_len);
    selector.public_key = hsm_wire_get(message, &message->public_key, &selector.public_key_len);
    return hsm_engine_add_key_as(self->engine, &selector, message->index, info, error);
}

/* Carry out one message. Returns false when that was the last one. */
static bool handle(host *self, hsm_request_message *message) {
    hsm_reply_message reply = {.version = HSM_WIRE_VERSION, .operation = message->operation};
    hsm_status status = HSM_OK;
    bool go_on = true;
    uint32_t healthy;
    switch (message->operation) {
    case HSM_OP_HELLO:
        reply.hardening = self->hardening;
        reply.landlock_abi = self->landlock_abi;
        break;
    case HSM_OP_START:
        status = start(self, message, &reply.error);
        break;
    case HSM_OP_ADD_KEY:
        status = add_key(self, message, &reply.key, &reply.error);
        break;
    case HSM_OP_TOKEN:
        if (self->engine != NULL) {
            hsm_engine_token(self->engine, &reply.token);
        } else {
            status = HSM_CLOSED;
        }
        break;
    case HSM_OP_SUPERVISE:
        (void)hsm_engine_supervise(self->engine, &healthy);
        return true; /* it has no answer */
    case HSM_OP_STOP:
        (void)hsm_engine_stop(self->engine, message->timeout_ns);
        self->engine = NULL;
        go_on = false;
        break;
    default:
        status = hsm_fail(&reply.error, HSM_BAD_ARGUMENT, "", "unknown operation");
        break;
    }
    hsm_wipe(message, sizeof *message);
    reply.status = (uint32_t)status;
    return send(HSM_FD_CONTROL, &reply, sizeof reply, MSG_NOSIGNAL) == (ssize_t)sizeof reply && go_on;
}

static int serve(host *self) {
    static hsm_request_message message;
    for (;;) {
        struct pollfd watched[2] = {{.fd = HSM_FD_CONTROL, .events = POLLIN}, {.fd = self->parent, .events = POLLIN}};
        int ready = poll(watched, 2, -1);
        if (ready < 0 && errno != EINTR) {
            return EXIT_USAGE;
        }
        /* The parent's end is asked for separately: a forked sibling may hold the other end of the socket open. */
        if (ready > 0 && watched[1].revents != 0) {
            return 0;
        }
        if (ready > 0 && watched[0].revents != 0) {
            ssize_t got = recv(HSM_FD_CONTROL, &message, sizeof message, 0);
            if (got != (ssize_t)sizeof message || message.version != HSM_WIRE_VERSION) {
                return got == 0 ? 0 : EXIT_USAGE;
            }
            if (!handle(self, &message)) {
                return 0;
            }
        }
    }
}

static void ignore_signals(void) {
    const int signals[] = HSM_HOST_IGNORES;
    sigset_t none;
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++) {
        (void)signal(signals[i], SIG_IGN);
    }
    (void)sigemptyset(&none);
    (void)pthread_sigmask(SIG_SETMASK, &none, NULL);
}

/* The process that made the control channel and started this one, or -1: it has ended. What getppid() says does not
 * tell: in a container process 1 may be hsmcore itself, elsewhere it adopts children of what has ended. */
static int open_parent(void) {
    struct ucred maker = {0};
    socklen_t size = sizeof maker;
    if (getsockopt(HSM_FD_CONTROL, SOL_SOCKET, SO_PEERCRED, &maker, &size) != 0) {
        return -1;
    }
    int opened = hsm_pidfd_open(maker.pid);
    if (opened >= 0 && getppid() != maker.pid) {
        (void)close(opened);
        return -1;
    }
    return opened;
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "--version") == 0) {
        (void)printf("hsmcore-host %llx\n", (unsigned long long)HSM_WIRE_VERSION);
        return 0;
    }
    host self = {.parent = -1};
    if (argc != 1 || attach(&self.client) != HSM_OK) {
        (void)fputs("hsmcore-host is started by hsmcore, not by hand.\n", stderr);
        return EXIT_USAGE;
    }
    self.parent = open_parent();
    self.statm = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    if (self.parent < 0) {
        return 0;
    }
    ignore_signals();
    self.hardening = hsm_harden(&self.landlock_abi);
    /* Not exit: handlers of the module may hang, and nothing of ours needs flushing. */
    _exit(serve(&self));
}
