/* Requests over the one connection of this process. A caller waits until its request is answered, and one of those that
 * wait, the reader, does what the connection needs. What was sent and not answered is sent again on the next connection
 * with the same number; docs/WIRE.md says when that is safe. */
#include <errno.h>
#include <poll.h>
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
enum { ACK_EVERY = 32, MOST_PING = 64, READS = 16, READ_ROOM = 65536, MOST_DOUBLINGS = 3, WHOLE = 4 + HSM_FRAME_MOST };
#define GRACE (250 * P11_MS)    /* the gateway's word about a request that is late says more than ours */
#define QUIET (10000 * P11_MS)  /* a connection without a sign of life is tested after so long */
#define FORSAKE (1000 * P11_MS) /* how long a gateway that is left may take for what is open there */
#define DOUBT (20 * P11_MS)     /* how soon one that refused a request is asked again, if it does not say */

struct job {
    struct job *next, *before;
    pthread_cond_t turn;
    bool refresh, done; /* refresh: it waits for a connection, no more */
    bool uncertain;     /* another gateway process may have had it signed */
    uint8_t kind;
    unsigned key, refusals;
    uint32_t timeout_ms;
    uint64_t request; /* 0: it was not sent */
    const uint8_t *message;
    size_t len;
    int64_t deadline, not_before, sent_at;
    CK_RV rv, refusal; /* refusal: what its last attempt was told */
    uint8_t signature[P11_SIGNATURE];
};

static struct {
    enum { DOWN, CONNECTING, GREETING, READY } state;
    struct p11_stream stream;
    struct job *first, *last; /* in the order in which they came */
    struct job *reader;
    unsigned inside; /* threads */
    pthread_cond_t empty;
    int wake; /* an eventfd: what is to be written needs the reader */
    uint8_t nonce[16], instance[16];
    bool knows_instance, told; /* told: keys are known, from told_at */
    unsigned at, told_at;
    uint64_t next;
    unsigned answered;
    uint32_t credits;
    bool draining, useful, blocked, pinged, polling;
    int64_t remember, ready_by, forsake_by, heard;
    uint8_t *in, *out;
    size_t in_len, in_room, out_at, out_len, out_room;
} wire;

static void unlink_job(struct job *job) {
    *(job->before == NULL ? &wire.first : &job->before->next) = job->next;
    *(job->next == NULL ? &wire.last : &job->next->before) = job->before;
}

static void finish(struct job *job, CK_RV rv) {
    if (job->request != 0) {
        p11_slots[p11_keys[job->key].slot].open--;
    }
    unlink_job(job);
    job->done = true;
    job->rv = rv;
    (void)pthread_cond_signal(&job->turn);
}

/* To be sent again as a new request. */
static void recall(struct job *job, int64_t not_before) {
    p11_slots[p11_keys[job->key].slot].open--;
    job->request = 0;
    job->not_before = not_before;
}

static void gone(bool sound, bool refused, const char *why) {
    bool was = wire.state == READY;
    if (!was) {
        p11_log("%s: %s", p11_config.addresses[wire.at], why);
    }
    uint32_t bit = UINT32_C(1) << wire.at;
    p11_route.silent = was ? p11_route.silent & ~bit : p11_route.silent | bit;
    sound = sound && was && wire.useful && !wire.draining;
    p11_stream_close(&wire.stream, false);
    wire.state = DOWN;
    wire.in_len = wire.out_at = wire.out_len = 0;
    wire.blocked = false;
    if (was && wire.useful && !p11_route.seeking) {
        p11_route_begin();
    }
    if (!sound && wire.at == p11_route.at) {
        p11_route_next(refused);
    } else if (sound) {
        p11_route.not_before = 0;
    }
}

static void malformed(void) {
    gone(false, false, "it does not speak hsmcore-wire/1");
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
            gone(true, false, wire.stream.why);
            return;
        }
        if (made != P11_DONE) {
            wire.blocked = made == P11_WANTS_WRITE;
            if (wire.polling) {
                (void)eventfd_write(wire.wake, 1);
            }
            return;
        }
    }
    wire.out_at = wire.out_len = 0;
}

/* Room for a frame; NULL: there is no memory, and the connection is given up. */
static uint8_t *room(size_t size) {
    if (wire.out_at > 0 && wire.out_len + size > wire.out_room) {
        memmove(wire.out, wire.out + wire.out_at, wire.out_len - wire.out_at);
        wire.out_len -= wire.out_at;
        wire.out_at = 0;
    }
    if (wire.out_len + size > wire.out_room) {
        uint8_t *more = realloc(wire.out, 2 * (wire.out_len + size));
        if (more == NULL) {
            gone(false, false, "no memory");
            return NULL;
        }
        wire.out = more;
        wire.out_room = 2 * (wire.out_len + size);
    }
    uint8_t *found = wire.out + wire.out_len;
    wire.out_len += size;
    return found;
}

/* A frame without flags and slot. */
static void put(uint8_t type, uint64_t request, const uint8_t *body, size_t len) {
    uint8_t *out = is_up() ? room(HSM_FRAME_HEAD + len) : NULL;
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
    static const uint8_t program[] = "hsmcore-pkcs11";
    uint8_t body[2 + sizeof wire.nonce + 1 + sizeof program - 1] = {1, 0};
    memcpy(body + 2, wire.nonce, sizeof wire.nonce);
    body[18] = sizeof program - 1;
    memcpy(body + 19, program, sizeof program - 1);
    put(HELLO, 0, body, sizeof body);
}

static void put_ack(void) {
    uint64_t lowest = wire.next;
    for (const struct job *job = wire.first; job != NULL; job = job->next) {
        lowest = job->request != 0 && job->request < lowest ? job->request : lowest;
    }
    put(ACK, lowest, NULL, 0);
}

static void put_sign(struct job *job, bool again) {
    const struct p11_key *key = &p11_keys[job->key];
    const struct p11_slot *slot = &p11_slots[key->slot];
    hsm_frame frame = {.flags = again ? HSM_FRAME_AGAIN : 0, .slot = (uint16_t)slot->number, .request = job->request};
    hsm_frame_sign sign = {
        .message_len = (uint32_t)job->len, .timeout_ms = job->timeout_ms, .version = key->version, .kind = job->kind};
    uint8_t *out = room(HSM_SIGN_HEAD + job->len);
    if (out != NULL) {
        hsm_frame_write_sign(&frame, &sign, out);
        memcpy(out + HSM_SIGN_HEAD, job->message, job->len);
    }
}

/* Send what the gateway has room for. */
static void pump(int64_t now) {
    struct job *next = NULL;
    for (struct job *job = wire.first; job != NULL && wire.state == READY && !wire.draining; job = next) {
        next = job->next;
        if (job->refresh || job->request != 0 || job->not_before > now) {
            continue;
        }
        const struct p11_key *key = &p11_keys[job->key];
        struct p11_slot *slot = &p11_slots[key->slot];
        if (slot->number < 0 || !key->listed) {
            finish(job, slot->number < 0 ? CKR_DEVICE_REMOVED : CKR_KEY_HANDLE_INVALID);
        } else if (slot->open < (p11_route.seeking && wire.credits > 1 ? 1 : wire.credits)) {
            int64_t left = (job->deadline - now) / P11_MS;
            job->timeout_ms = left > 0 ? (uint32_t)left : 1;
            job->sent_at = now;
            job->request = wire.next++;
            slot->open++;
            put_sign(job, false);
        }
    }
    flush();
}

static void resend(bool same, int64_t now) {
    struct job *next = NULL;
    for (struct job *job = wire.first; job != NULL && wire.state == READY; job = next) {
        next = job->next;
        if (job->request == 0) {
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
    if (learned != P11_LEARNED) {
        if (learned == P11_MALFORMED) {
            malformed();
        } else {
            gone(false, true, "it lists other keys than the gateway before: it is of another fleet");
        }
        return;
    }
    bool same = wire.knows_instance && memcmp(wire.instance, found.instance, sizeof wire.instance) == 0;
    memcpy(wire.instance, found.instance, sizeof wire.instance);
    wire.knows_instance = wire.told = true;
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

static void answer(const hsm_frame *frame, int64_t now) {
    struct job *job = wire.first;
    while (job != NULL && job->request != frame->request) {
        job = job->next;
    }
    if (job == NULL || frame->request == 0) { /* of one that was withdrawn, or of none */
        if (frame->request == 0 || frame->request >= wire.next) {
            malformed();
        }
        return;
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
        malformed();
        return;
    }
    if (++wire.answered >= ACK_EVERY) {
        wire.answered = 0;
        put_ack();
    }
}

static void take(const hsm_frame *frame, int64_t now) {
    struct p11_refusal refusal;
    bool good = true;
    if (frame->type == ERROR && frame->request == 0) {
        good = p11_read_error(frame->body, frame->body_len, &refusal);
        if (good) {
            p11_log("%s: %s %s", p11_config.addresses[wire.at], refusal.status, refusal.text);
            gone(false, true, "the gateway refuses this client");
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
        answer(frame, now);
    }
    if (!good) {
        malformed();
    }
}

/* Read what is there. Return whether there may be more. */
static bool receive(int64_t now) {
    static uint8_t flags[256];
    if (flags[0] == 0) { /* no frame of a gateway has flags */
        memset(flags, HSM_FRAME_REFUSED, sizeof flags);
        for (unsigned type = WELCOME; type <= GOAWAY; type++) {
            flags[type] = 0;
        }
    }
    for (unsigned reads = 0; is_up(); reads++) {
        if (reads == READS) {
            return true;
        }
        if (wire.in_room - wire.in_len < READ_ROOM) {
            uint8_t *more = realloc(wire.in, wire.in_len + 2 * (size_t)READ_ROOM);
            if (more == NULL) {
                gone(false, false, "no memory");
                return false;
            }
            wire.in = more;
            wire.in_room = wire.in_len + 2 * (size_t)READ_ROOM;
        }
        size_t size = wire.in_room - wire.in_len;
        enum p11_progress made = p11_stream_read(&wire.stream, wire.in + wire.in_len, &size);
        if (made == P11_BROKEN) {
            gone(true, false, wire.stream.why);
        }
        if (made != P11_DONE) {
            return false;
        }
        wire.in_len += size;
        wire.heard = now;
        wire.pinged = false;
        size_t at = 0;
        while (is_up()) {
            hsm_frame frame;
            size_t cut = wire.in_len - at;
            hsm_cut found = hsm_frame_cut(wire.in + at, &cut, flags, &frame);
            if (found == HSM_CUT_MORE) {
                memmove(wire.in, wire.in + at, wire.in_len - at);
                wire.in_len -= at;
                break;
            }
            if (found != HSM_CUT_FRAME) {
                malformed();
                break;
            }
            at += cut;
            take(&frame, now);
        }
    }
    return false;
}

/* ---- the reader ---- */

static bool has_sent(void) {
    for (const struct job *job = wire.first; job != NULL; job = job->next) {
        if (job->request != 0) {
            return true;
        }
    }
    return false;
}

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
            gone(false, false, wire.stream.why);
        } else if (made == P11_DONE) {
            wire.state = GREETING;
            put_hello();
        }
    }
    if ((wire.state == CONNECTING || wire.state == GREETING) && now >= wire.ready_by) {
        gone(false, false, "no word from it in time");
    }
    if (wire.state == READY && wire.draining && (now >= wire.forsake_by || !has_sent())) {
        gone(false, true, "");
    }
    if (wire.state == READY && now - wire.heard >= QUIET) {
        if (wire.pinged) {
            gone(false, false, "");
        } else {
            wire.pinged = true;
            wire.heard = now;
            put(PING, 0, NULL, 0);
        }
    }
    pump(now);
    return (short)(events | (wire.blocked ? POLLOUT : 0));
}

/* When something is due though nothing is heard. */
static int64_t due(const struct job *reader, int64_t now) {
    int64_t until = reader->refresh ? reader->deadline : reader->deadline + GRACE;
    int64_t times[] = {wire.state == DOWN ? p11_route.not_before : INT64_MAX,
                       wire.state == CONNECTING || wire.state == GREETING ? wire.ready_by : INT64_MAX,
                       wire.state == READY ? wire.heard + QUIET : INT64_MAX,
                       wire.state == READY && wire.draining ? wire.forsake_by : INT64_MAX};
    for (size_t i = 0; i < sizeof times / sizeof *times; i++) {
        until = times[i] < until ? times[i] : until;
    }
    for (const struct job *job = wire.first; job != NULL; job = job->next) {
        until = job->not_before > now && job->request == 0 && job->not_before < until ? job->not_before : until;
    }
    return until;
}

static void turn(const struct job *reader, bool more) {
    int64_t now = p11_now();
    short events = advance(now);
    if (reader->done) {
        return;
    }
    struct pollfd fds[] = {{.fd = wire.wake, .events = POLLIN}, {.fd = wire.stream.fd, .events = events}};
    nfds_t count = wire.state == DOWN ? 1 : 2;
    int64_t left = more ? 0 : due(reader, now) - now;
    struct timespec wait = {.tv_sec = left > 0 ? left / (1000 * P11_MS) : 0,
                            .tv_nsec = left > 0 ? left % (1000 * P11_MS) : 0};
    eventfd_t value;
    wire.polling = true;
    (void)pthread_mutex_unlock(&p11_lock);
    (void)ppoll(fds, count, &wait, NULL);
    (void)pthread_mutex_lock(&p11_lock);
    wire.polling = false;
    if (fds[0].revents != 0) {
        (void)eventfd_read(wire.wake, &value);
    }
}

static void late(struct job *job) {
    bool ready = wire.state == READY;
    if (job->request != 0 && ready) {
        put(CANCEL, job->request, NULL, 0);
        flush();
    }
    if (!job->done) {
        CK_RV rv = ready ? CKR_FUNCTION_FAILED : CKR_DEVICE_REMOVED;
        finish(job, job->refusal != CKR_OK ? job->refusal : rv);
    }
}

static CK_RV run(struct job *job) {
    int64_t end = job->refresh ? job->deadline : job->deadline + GRACE;
    bool more = false;
    if (pthread_cond_init(&job->turn, NULL) != 0) {
        return CKR_HOST_MEMORY;
    }
    job->before = wire.last;
    *(wire.last == NULL ? &wire.first : &wire.last->next) = job;
    wire.last = job;
    wire.inside++;
    if (wire.reader != NULL) {
        pump(p11_now());
    } else { /* a connection that has ended meanwhile is not to be sent on: what may have been sent is not sent twice */
        more = receive(p11_now());
    }
    while (!job->done) {
        int64_t now = p11_now();
        if (now >= end) {
            late(job);
        } else if (wire.reader != NULL && wire.reader != job) {
            const struct timespec until = {end / (1000 * P11_MS), end % (1000 * P11_MS)};
            (void)pthread_cond_clockwait(&job->turn, &p11_lock, CLOCK_MONOTONIC, &until);
        } else {
            wire.reader = job;
            turn(job, more);
            more = !job->done && receive(p11_now());
        }
    }
    if (wire.reader == job) {
        wire.reader = NULL;
        flush();
        if (wire.first != NULL) {
            (void)pthread_cond_signal(&wire.first->turn);
        }
    }
    if (--wire.inside == 0) {
        (void)pthread_cond_signal(&wire.empty);
    }
    (void)pthread_cond_destroy(&job->turn);
    return job->rv;
}

CK_RV p11_link_sign(unsigned key, uint8_t kind, const uint8_t *message, size_t len, uint8_t signature[P11_SIGNATURE]) {
    if (len == 0 || len > HSM_FRAME_MOST - HSM_SIGN_HEAD) {
        return CKR_DATA_LEN_RANGE;
    }
    struct job job = {
        .key = key, .kind = kind, .message = message, .len = len, .deadline = p11_now() + p11_config.timeout};
    CK_RV rv = run(&job);
    if (rv == CKR_OK) {
        memcpy(signature, job.signature, P11_SIGNATURE);
    }
    return rv;
}

CK_RV p11_link_refresh(void) {
    if (wire.reader == NULL) {
        (void)receive(p11_now());
    }
    if (wire.state == READY && !wire.draining) {
        return CKR_OK;
    }
    struct job job = {.refresh = true, .deadline = p11_now() + p11_config.timeout};
    return run(&job); // NOLINT(clang-analyzer-core.StackAddressEscape): it is in no list when its call ends
}

CK_RV p11_link_open(void) {
    wire.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (getrandom(wire.nonce, sizeof wire.nonce, 0) != sizeof wire.nonce || wire.wake < 0 ||
        pthread_cond_init(&wire.empty, NULL) != 0) {
        return CKR_FUNCTION_FAILED;
    }
    wire.state = DOWN;
    wire.stream.fd = -1;
    wire.next = 1;
    wire.knows_instance = wire.told = false;
    p11_route = (struct p11_route){.at = 0};
    return CKR_OK;
}

void p11_link_close(void) {
    while (wire.first != NULL) {
        finish(wire.first, CKR_CRYPTOKI_NOT_INITIALIZED);
    }
    while (wire.inside > 0) {
        (void)eventfd_write(wire.wake, 1);
        (void)pthread_cond_wait(&wire.empty, &p11_lock);
    }
    if (wire.state == READY) {
        put_ack();
        flush();
    }
    p11_stream_close(&wire.stream, false);
    (void)close(wire.wake);
    free(wire.in), free(wire.out);
    (void)pthread_cond_destroy(&wire.empty);
    memset(&wire, 0, sizeof wire);
}

/* The other threads are not here, and their requests are the parent's. */
void p11_link_after_fork(void) {
    int wake = wire.wake;
    p11_stream_close(&wire.stream, true);
    wire.first = wire.last = wire.reader = NULL;
    wire.inside = 0;
    wire.polling = wire.blocked = false;
    wire.in_len = wire.out_at = wire.out_len = 0;
    for (unsigned i = 0; i < p11_slot_count; i++) {
        p11_slots[i].open = 0;
    }
    (void)p11_link_open();
    (void)close(wake);
}
