/* Requests over the one connection of this process. A caller waits until its request is answered, and one of those that
 * wait, the reader, does what the connection needs: it writes what came while it was awake, and wakes each caller once.
 * What was sent and not answered is sent again on the next connection with the same number; docs/WIRE.md says when that
 * is safe. */
#include <errno.h>
#include <poll.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include <hsmcore/frames.h>

#include "p11.h"

/* Types of frames, besides those of frames.h. */
enum { HELLO = 1, CANCEL = 5, ACK = 6, PING = 7, WELCOME = 129, PONG = 133, ERROR = 134 };
enum { KEYS = 135, CREDIT, GOAWAY };
enum { ACK_EVERY = 32, MOST_PING = 64, READS = 16, ROOM = 4 + HSM_FRAME_MOST + 65536, MOST_DOUBLINGS = 3, FEW = 8 };
#define GRACE (250 * P11_MS)    /* the gateway's word about a request that is late says more than ours */
#define QUIET (10000 * P11_MS)  /* a connection without a sign of life is tested after so long */
#define FORSAKE (1000 * P11_MS) /* how long a gateway that is left may take for what is open there */
#define DOUBT (20 * P11_MS)     /* how soon one that refused a request is asked again, if it does not say */

struct job {
    struct job *next, *before;
    sem_t turn;                /* posted once to one that waits: when it is done, or to read */
    bool reads, refresh, done; /* refresh: it waits for a connection, no more */
    bool uncertain;            /* another gateway process may have had it signed */
    uint8_t kind;
    unsigned key, refusals;
    uint64_t request; /* 0: it was not sent */
    const uint8_t *message;
    size_t len;
    int64_t deadline, not_before, sent_at;
    uint32_t timeout_ms;
    CK_RV rv, refusal; /* refusal: what its last attempt was told */
    uint8_t *signature;
};

static struct {
    enum { DOWN, CONNECTING, GREETING, READY } state;
    struct p11_stream stream;
    struct job *first, *last; /* in the order in which they came */
    struct job *reader;       /* there is one while there are jobs */
    struct job *answered;     /* to be woken when the lock is given up */
    pthread_cond_t idle;      /* there is no reader */
    int wake;                 /* an eventfd: what is to be written needs the reader */
    uint8_t nonce[16], instance[16];
    bool told; /* keys are known, from address told_at */
    unsigned at, told_at, open, answers;
    uint64_t next;
    uint32_t credits;
    bool draining, useful, blocked, pinged, polling, more;
    bool held; /* jobs may not be sent yet, some not before held_until */
    int64_t held_until, remember, ready_by, forsake_by, heard;
    uint8_t *in, *out;
    size_t in_len, out_at, out_len, out_room;
} wire;

static void count_open(const struct job *job, bool more) {
    struct p11_slot *slot = &p11_slots[p11_keys[job->key].slot];
    slot->open += more ? 1 : -1U;
    wire.open += more ? 1 : -1U;
}

static void finish(struct job *job, CK_RV rv) {
    if (job->request != 0) {
        count_open(job, false);
    }
    *(job->before == NULL ? &wire.first : &job->before->next) = job->next;
    *(job->next == NULL ? &wire.last : &job->next->before) = job->before;
    job->done = true;
    job->rv = rv;
    if (!job->reads) {
        job->next = wire.answered;
        wire.answered = job;
    }
}

static void finish_all(CK_RV rv) {
    while (wire.first != NULL) {
        finish(wire.first, rv);
    }
}

/* A job may be gone when it is woken. */
static void wake(struct job *job) {
    while (job != NULL) {
        struct job *next = job->next;
        (void)sem_post(&job->turn);
        job = next;
    }
}

/* Give up the lock, then wake those that are done: they need it no more. */
static void release(void) {
    struct job *done = wire.answered;
    wire.answered = NULL;
    (void)pthread_mutex_unlock(&p11_lock);
    wake(done);
}

/* To be sent again as a new request. */
static void recall(struct job *job, int64_t not_before) {
    count_open(job, false);
    job->request = 0;
    job->not_before = not_before;
    wire.held = true;
}

static void gone(enum p11_ended how, const char *why, CK_RV told) {
    bool was_up = wire.state == READY;
    if (how == P11_BROKE && (!was_up || !wire.useful || wire.draining)) {
        how = P11_USELESS;
    }
    if (!was_up) {
        p11_log("%s: %s", p11_config.addresses[wire.at], why);
    }
    p11_stream_close(&wire.stream, false);
    wire.state = DOWN;
    wire.in_len = wire.out_at = wire.out_len = 0;
    wire.blocked = wire.more = false;
    wire.held = wire.first != NULL;
    if (p11_route_gone(wire.at, how, was_up, was_up && wire.useful)) {
        finish_all(told);
    }
}

static void malformed(void) {
    gone(P11_USELESS, "it does not speak hsmcore-wire/1", CKR_DEVICE_ERROR);
}

static void broke(void) {
    gone(wire.stream.final ? P11_FINAL : P11_BROKE, wire.stream.why, CKR_DEVICE_ERROR);
}

/* ---- what is written ---- */

static bool is_up(void) {
    return wire.state == GREETING || wire.state == READY;
}

static void flush(void) {
    wire.blocked = false;
    while (is_up() && wire.out_at < wire.out_len) {
        size_t size = wire.out_len - wire.out_at;
        enum p11_progress made = p11_stream_write(&wire.stream, wire.out + wire.out_at, &size);
        wire.out_at += size;
        if (made == P11_BROKEN) {
            broke();
        } else if (made != P11_DONE) {
            wire.blocked = made == P11_WANTS_WRITE;
            if (wire.polling) {
                (void)eventfd_write(wire.wake, 1);
            }
            return;
        }
    }
    wire.out_at = wire.out_len = 0;
}

/* Room for a frame; NULL: there is no connection, or no memory for it, and it is given up. */
static uint8_t *room(size_t size) {
    if (is_up() && wire.out_len + size > wire.out_room) {
        uint8_t *more = realloc(wire.out, 2 * (wire.out_len + size));
        if (more == NULL) {
            gone(P11_USELESS, "no memory", CKR_HOST_MEMORY);
        } else {
            wire.out = more;
            wire.out_room = 2 * (wire.out_len + size);
        }
    }
    if (!is_up()) {
        return NULL;
    }
    wire.out_len += size;
    return wire.out + wire.out_len - size;
}

/* A frame without flags and slot. */
static void put(uint8_t type, uint64_t request, const uint8_t *body, size_t len) {
    uint8_t *out = room(HSM_FRAME_HEAD + len);
    if (out == NULL) {
        return;
    }
    uint64_t length = HSM_FRAME_HEAD - 4 + len;
    for (unsigned i = 0; i < 8; i++) {
        out[i] = (uint8_t)(i < 4 ? length >> (8 * i) : 0);
        out[8 + i] = (uint8_t)(request >> (8 * i));
    }
    out[4] = type;
    if (len > 0) {
        memcpy(out + HSM_FRAME_HEAD, body, len);
    }
}

static void put_hello(void) {
    uint8_t body[] = "\1\0 a nonce, 16 b. \x0ehsmcore-pkcs11"; /* version, nonce, program */
    memcpy(body + 2, wire.nonce, sizeof wire.nonce);
    put(HELLO, 0, body, sizeof body - 1);
}

static void put_ack(void) {
    uint64_t lowest = wire.next;
    for (const struct job *job = wire.first; job != NULL; job = job->next) {
        lowest = job->request != 0 && job->request < lowest ? job->request : lowest;
    }
    wire.answers = 0;
    put(ACK, lowest, NULL, 0);
}

static void put_sign(struct job *job, bool again) {
    const struct p11_key *key = &p11_keys[job->key];
    hsm_frame frame = {
        .flags = again ? HSM_FRAME_AGAIN : 0, .slot = (uint16_t)p11_slots[key->slot].number, .request = job->request};
    hsm_frame_sign sign = {
        .message_len = (uint32_t)job->len, .timeout_ms = job->timeout_ms, .version = key->version, .kind = job->kind};
    uint8_t *out = room(HSM_SIGN_HEAD + job->len);
    if (out != NULL) {
        hsm_frame_write_sign(&frame, &sign, out);
        memcpy(out + HSM_SIGN_HEAD, job->message, job->len);
    }
}

/* Send it if the gateway has room for it. Return whether it was sent, or is done. */
static bool place(struct job *job, int64_t now) {
    const struct p11_key *key = &p11_keys[job->key];
    const struct p11_slot *slot = &p11_slots[key->slot];
    if (wire.state != READY || wire.draining || job->not_before > now) {
        return false;
    }
    if (slot->number < 0 || !key->listed) {
        finish(job, slot->number < 0 ? CKR_DEVICE_REMOVED : CKR_KEY_HANDLE_INVALID);
        return true;
    }
    if (slot->open >= (p11_route.seeking && wire.credits > 1 ? 1 : wire.credits)) {
        return false;
    }
    int64_t left = (job->deadline - now) / P11_MS;
    job->timeout_ms = left > 0 ? (uint32_t)left : 1;
    job->sent_at = now;
    job->request = wire.next++;
    count_open(job, true);
    put_sign(job, false);
    return true;
}

static void pump(int64_t now) {
    struct job *next = NULL;
    wire.held = false;
    wire.held_until = INT64_MAX;
    for (struct job *job = wire.first; job != NULL; job = next) {
        next = job->next;
        if (!job->refresh && job->request == 0 && !place(job, now)) {
            wire.held = true;
            wire.held_until = job->not_before > now ? p11_least(wire.held_until, job->not_before) : wire.held_until;
        }
    }
}

static void resend(bool same, int64_t now) {
    struct job *next = NULL;
    for (struct job *job = wire.first; job != NULL && wire.state == READY; job = next) {
        next = job->next;
        if (job->refresh || job->request == 0) {
            continue;
        }
        const struct p11_key *key = &p11_keys[job->key];
        bool listed = key->listed && p11_slots[key->slot].number >= 0;
        if (!same || now - job->sent_at >= wire.remember || !listed) {
            /* It is remembered nowhere: only a signature that comes out the same may be asked for again. */
            job->uncertain = true;
            job->sent_at = now;
            if (key->algorithm != P11_ED25519 || !listed) {
                finish(job, CKR_DEVICE_ERROR);
                continue;
            }
        }
        put_sign(job, true);
    }
}

/* ---- what the gateway says ---- */

static void welcome(const hsm_frame *frame, int64_t now) {
    struct p11_welcome found;
    bool elsewhere = wire.told && wire.at != wire.told_at;
    enum p11_learned learned = p11_read_welcome(frame->body, frame->body_len, elsewhere, &found);
    if (learned == P11_MALFORMED) {
        malformed();
        return;
    }
    if (learned == P11_OTHER_VERSION) {
        gone(P11_FINAL, "it speaks another version of hsmcore-wire", CKR_DEVICE_ERROR);
        return;
    }
    if (learned == P11_STRANGE) {
        gone(P11_REFUSED, "it lists other keys than the gateway before: it is of another fleet", CKR_DEVICE_ERROR);
        return;
    }
    bool same = wire.told && memcmp(wire.instance, found.instance, sizeof wire.instance) == 0;
    memcpy(wire.instance, found.instance, sizeof wire.instance);
    wire.told = true;
    wire.told_at = wire.at;
    wire.credits = found.credits;
    wire.remember = (int64_t)found.remember_ms * P11_MS;
    wire.state = READY;
    wire.draining = wire.useful = wire.pinged = false;
    resend(same, now);
    struct job *next = NULL;
    for (struct job *job = wire.first; job != NULL; job = next) {
        next = job->next;
        if (job->refresh) {
            finish(job, CKR_OK);
        }
    }
}

/* How long a request waits that was refused `refusals` times; what it is told to wait for may pass for many at once. */
static int64_t pause_of(const struct p11_refusal *refusal, unsigned refusals) {
    int64_t pause = refusal->retry_after_ms == 0 ? DOUBT : (int64_t)refusal->retry_after_ms * P11_MS;
    pause += p11_jittered(pause);
    return pause << (refusals < MOST_DOUBLINGS ? refusals : MOST_DOUBLINGS);
}

static void refused(struct job *job, const struct p11_refusal *refusal, int64_t now) {
    bool unheld = strcmp(refusal->status, "NOT_HOLDER") == 0;
    bool uncertain = refusal->maybe_signed || job->uncertain;
    job->refusal = p11_rv_of(refusal);
    if (unheld && p11_route_turned_away(refusal->holder) &&
        (!uncertain || p11_keys[job->key].algorithm == P11_ED25519)) {
        bool leaves = p11_route.at != wire.at;
        if (leaves && !wire.draining) {
            wire.draining = true;
            wire.forsake_by = now + FORSAKE;
        }
        job->uncertain = uncertain;
        recall(job, leaves ? now : now + pause_of(refusal, job->refusals++));
        return;
    }
    int64_t until = wire.draining ? now : now + pause_of(refusal, job->refusals++);
    if (!unheld && !uncertain && refusal->retryable && until < job->deadline) {
        recall(job, until);
    } else {
        finish(job, job->refusal);
    }
}

/* Return whether it is well-formed. */
static bool answer(const hsm_frame *frame, int64_t now) {
    struct job *job = wire.first;
    while (job != NULL && (job->refresh || job->request != frame->request)) {
        job = job->next;
    }
    if (job == NULL || frame->request == 0) { /* of one that was withdrawn, or of none */
        return frame->request != 0 && frame->request < wire.next;
    }
    hsm_frame_signed made;
    struct p11_refusal refusal;
    if (frame->type == ERROR && p11_read_error(frame->body, frame->body_len, &refusal)) {
        refused(job, &refusal, now);
    } else if (frame->type == HSM_FRAME_SIGNED && hsm_frame_read_signed(frame, &made) && made.level <= 3 &&
               made.signature_len == P11_SIGNATURE && made.version == p11_keys[job->key].version) {
        memcpy(job->signature, made.signature, P11_SIGNATURE);
        p11_route.seeking = false;
        wire.useful = true;
        finish(job, CKR_OK);
    } else {
        return false;
    }
    if (++wire.answers >= ACK_EVERY) {
        put_ack();
    }
    return true;
}

static void take(const hsm_frame *frame, int64_t now) {
    struct p11_refusal refusal;
    bool good = true;
    if (frame->type == ERROR && frame->request == 0) {
        good = p11_read_error(frame->body, frame->body_len, &refusal);
        if (good) {
            p11_log("%s: %s %s", p11_config.addresses[wire.at], refusal.status, refusal.text);
            gone(refusal.retryable || wire.state == READY ? P11_REFUSED : P11_FINAL, "the gateway refuses this client",
                 p11_rv_of(&refusal));
        }
    } else if (wire.state == GREETING && frame->type == WELCOME) {
        welcome(frame, now);
    } else if (wire.state == GREETING || frame->type == WELCOME) {
        good = false;
    } else if (frame->type == KEYS) {
        good = p11_read_keys(frame->body, frame->body_len) == P11_LEARNED;
    } else if (frame->type == CREDIT) {
        good = p11_read_credit(frame->body, frame->body_len, &wire.credits);
    } else if (frame->type == GOAWAY) {
        good = p11_read_goaway(frame->body, frame->body_len);
        wire.draining = true;
        wire.forsake_by = INT64_MAX;
    } else if (frame->type == PONG) {
        good = frame->body_len <= MOST_PING;
        wire.useful = true;
    } else {
        good = answer(frame, now);
    }
    if (!good) {
        malformed();
    }
}

/* Take the frames that are whole. */
static void cut_frames(int64_t now) {
    static uint8_t flags[256];
    size_t at = 0;
    if (flags[0] == 0) { /* no frame of a gateway has flags */
        memset(flags, HSM_FRAME_REFUSED, sizeof flags);
        memset(flags + WELCOME, 0, GOAWAY - WELCOME + 1);
    }
    while (is_up()) {
        hsm_frame frame;
        size_t cut = wire.in_len - at;
        hsm_cut found = hsm_frame_cut(wire.in + at, &cut, flags, &frame);
        if (found == HSM_CUT_MORE) {
            memmove(wire.in, wire.in + at, wire.in_len - at);
            wire.in_len -= at;
            return;
        }
        if (found == HSM_CUT_FRAME) {
            at += cut;
            take(&frame, now);
        } else {
            malformed();
        }
    }
}

/* Read what is there; wire.more: there may be more. */
static void receive(void) {
    int64_t now = p11_now();
    wire.more = is_up();
    for (unsigned reads = 0; wire.more && reads < READS; reads++) {
        size_t left = ROOM - wire.in_len;
        size_t size = left;
        enum p11_progress made = p11_stream_read(&wire.stream, wire.in + wire.in_len, &size);
        wire.more = made == P11_DONE && (size == left || wire.stream.ssl != NULL);
        if (made == P11_BROKEN) {
            broke();
        } else if (made == P11_DONE) {
            wire.in_len += size;
            wire.heard = now;
            wire.pinged = false;
            cut_frames(now);
        }
    }
}

/* ---- the reader ---- */

/* Do what is due. Return what to poll for. */
static short advance(int64_t now) {
    short events = POLLIN;
    if (wire.state == DOWN && now >= p11_route.not_before) {
        wire.at = p11_route.at;
        wire.state = CONNECTING;
        wire.ready_by = now + p11_route_try();
        p11_stream_open(&wire.stream, p11_config.addresses[wire.at]);
    }
    if (wire.state == CONNECTING) {
        enum p11_progress made = p11_stream_connect(&wire.stream);
        events = made == P11_WANTS_WRITE ? POLLOUT : POLLIN;
        if (made == P11_BROKEN) {
            broke();
        } else if (made == P11_DONE) {
            wire.state = GREETING;
            put_hello();
        }
    }
    if ((wire.state == CONNECTING || wire.state == GREETING) && now >= wire.ready_by) {
        gone(P11_USELESS, "no word from it in time", CKR_OK);
    }
    if (wire.state == READY && wire.draining && (now >= wire.forsake_by || wire.open == 0)) {
        gone(P11_REFUSED, "", CKR_OK);
    }
    if (wire.state == READY && now - wire.heard >= QUIET) {
        if (wire.pinged) {
            gone(P11_USELESS, "", CKR_OK);
        } else {
            wire.pinged = true;
            wire.heard = now;
            put(PING, 0, NULL, 0);
        }
    }
    if (wire.held) {
        pump(now);
    }
    flush();
    return (short)(events | (wire.blocked ? POLLOUT : 0));
}

/* When something is due though nothing is heard. */
static int64_t due(int64_t until) {
    if (wire.state == DOWN) {
        return p11_least(until, p11_route.not_before);
    }
    until = p11_least(until, wire.state == READY ? wire.heard + QUIET : wire.ready_by);
    until = wire.draining ? p11_least(until, wire.forsake_by) : until;
    return wire.held ? p11_least(until, wire.held_until) : until;
}

/* Wait for the gateway, or until `end`, without the lock. */
static void turn(int64_t end) {
    int64_t now = p11_now();
    short events = advance(now);
    if (wire.reader->done) {
        return;
    }
    struct pollfd fds[] = {{.fd = wire.wake, .events = POLLIN}, {.fd = wire.stream.fd, .events = events}};
    nfds_t count = wire.state == DOWN ? 1 : 2;
    int64_t left = wire.more ? 0 : due(end) - now;
    const struct timespec wait = {left > 0 ? left / (1000 * P11_MS) : 0, left > 0 ? left % (1000 * P11_MS) : 0};
    eventfd_t value;
    wire.polling = true;
    release();
    (void)ppoll(fds, count, &wait, NULL);
    (void)pthread_mutex_lock(&p11_lock);
    wire.polling = false;
    if (fds[0].revents != 0) {
        (void)eventfd_read(wire.wake, &value);
    }
    receive();
}

static void late(struct job *job) {
    bool ready = wire.state == READY;
    CK_RV rv = ready ? CKR_FUNCTION_FAILED : CKR_DEVICE_REMOVED;
    if (job->request != 0 && ready) {
        put(CANCEL, job->request, NULL, 0);
        flush();
    }
    if (!job->done) {
        finish(job, job->refusal != CKR_OK ? job->refusal : rv);
    }
}

/* Wait as one that does not read. Return whether it reads now, and has the lock again; else it is done. */
static bool wait_for_turn(struct job *job, int64_t end) {
    const struct timespec until = {end / (1000 * P11_MS), end % (1000 * P11_MS)};
    release();
    int slept = 0;
    do {
        slept = sem_clockwait(&job->turn, CLOCK_MONOTONIC, &until);
    } while (slept != 0 && errno == EINTR);
    if (slept == 0 && !job->reads) {
        return false;
    }
    (void)pthread_mutex_lock(&p11_lock);
    if (job->reads) {
        return true;
    }
    bool posted = job->done; /* or just about to be: it must not be gone before */
    if (!posted) {
        late(job);
    }
    release();
    while (posted && sem_wait(&job->turn) != 0) {
    }
    return false;
}

/* Wait until it is done. The lock is given up. */
static CK_RV run(struct job *job) {
    int64_t end = job->deadline + (job->refresh ? 0 : GRACE);
    if (sem_init(&job->turn, 0, 0) != 0) {
        return p11_leave(CKR_HOST_MEMORY);
    }
    job->before = wire.last;
    *(wire.last == NULL ? &wire.first : &wire.last->next) = job;
    wire.last = job;
    job->reads = wire.reader == NULL;
    if (job->reads) { /* a connection that has ended meanwhile is not to be sent on: what was sent is not sent twice */
        wire.reader = job;
        receive();
    }
    int64_t now = p11_now();
    if (!job->refresh && (wire.held || !place(job, now))) {
        pump(now);
    }
    if (!job->reads && wire.polling && wire.open <= FEW) {
        flush();
    } else if (!job->reads && wire.polling) { /* the reader writes it, with what others ask until it is awake */
        wire.polling = false;
        (void)eventfd_write(wire.wake, 1);
    }
    if (!job->reads && !wait_for_turn(job, end)) {
        return job->rv;
    }
    while (!job->done) {
        if (p11_now() >= end) {
            late(job);
        } else {
            turn(end);
        }
    }
    wire.reader = wire.first;
    if (wire.reader != NULL) {
        wire.reader->reads = true;
        (void)sem_post(&wire.reader->turn);
    } else {
        flush();
        (void)pthread_cond_signal(&wire.idle);
    }
    release();
    return job->rv;
}

CK_RV p11_link_sign(unsigned key, uint8_t kind, const uint8_t *message, size_t len, uint8_t signature[P11_SIGNATURE]) {
    struct job job = {.key = key,
                      .kind = kind,
                      .message = message,
                      .len = len,
                      .signature = signature,
                      .deadline = p11_now() + p11_config.timeout};
    return len == 0 || len > HSM_FRAME_MOST - HSM_SIGN_HEAD ? p11_leave(CKR_DATA_LEN_RANGE) : run(&job);
}

CK_RV p11_link_refresh(void) {
    if (wire.reader == NULL) {
        receive();
    }
    if (wire.state == READY && !wire.draining) {
        return CKR_OK;
    }
    struct job job = {.refresh = true, .deadline = p11_now() + p11_config.timeout};
    CK_RV rv = run(&job); // NOLINT(clang-analyzer-core.StackAddressEscape): it is in no list when its call ends
    (void)pthread_mutex_lock(&p11_lock);
    return rv;
}

CK_RV p11_link_open(void) {
    memset(&wire, 0, sizeof wire);
    wire.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    wire.in = malloc(ROOM);
    wire.stream.fd = -1;
    wire.next = 1;
    p11_route = (struct p11_route){.at = 0};
    bool good = wire.wake >= 0 && wire.in != NULL && pthread_cond_init(&wire.idle, NULL) == 0 &&
                getrandom(wire.nonce, sizeof wire.nonce, 0) == sizeof wire.nonce;
    return good ? CKR_OK : CKR_FUNCTION_FAILED;
}

static void close_link(bool inherited) {
    p11_stream_close(&wire.stream, inherited);
    (void)close(wire.wake);
    free(wire.in), free(wire.out);
}

void p11_link_close(void) {
    finish_all(CKR_CRYPTOKI_NOT_INITIALIZED);
    wake(wire.answered);
    wire.answered = NULL;
    while (wire.reader != NULL) {
        (void)eventfd_write(wire.wake, 1);
        (void)pthread_cond_wait(&wire.idle, &p11_lock);
    }
    if (wire.state == READY) {
        put_ack();
        flush();
    }
    (void)pthread_cond_destroy(&wire.idle);
    close_link(false);
}

/* The other threads are not here, and their requests are the parent's. */
void p11_link_after_fork(void) {
    close_link(true);
    for (unsigned i = 0; i < p11_slot_count; i++) {
        p11_slots[i].open = 0;
    }
    (void)p11_link_open();
}
