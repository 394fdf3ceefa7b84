/* A program in the place of hsmcore-host that speaks its protocol, signs what it is asked for at first, and then
 * misbehaves as the module's arguments say: "KIND SEED AFTER". AFTER is the number of good signatures before that.
 *
 *   random    random bytes all over the memory that both sides share, again and again
 *   rings     random places of the completion ring and of the request ring's head and tail
 *   answers   answers of any length and status, twice, out of turn, and for requests of others
 *   flood     wakes without end
 *   silence   no answer, to requests and to messages
 *   hang-up   the socket is closed, the process lives on
 *   blocking  the descriptors are made blocking, and one wake is made that says it was none
 *   end       the process ends
 *
 * Lies in its replies come from the start on:
 *   index, id, key, label, error   a field of the reply is out of range, or text has no end
 *   short, long, version, operation   the reply is another message's, or none
 */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "engine.h"
#include "wire.h"

static hsm_area area;
static char kind[32];
static unsigned seed;
static unsigned after;
static uint8_t public_key[crypto_sign_PUBLICKEYBYTES], secret_key[crypto_sign_SECRETKEYBYTES];
static _Atomic bool misbehaves;

static bool is(const char *name) {
    return strcmp(kind, name) == 0;
}

/* xorshift: the same seed misbehaves in the same way. */
static uint64_t dice(void) {
    static uint64_t state;
    state = state != 0 ? state : seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static void wake(void) {
    atomic_store(&area.shared->notify, HSM_NOTIFY_FIRED);
    (void)eventfd_write(HSM_FD_EVENT, 1);
}

static void sign(uint32_t index) {
    hsm_slot *slot = hsm_area_slot(&area, index & (area.slots - 1U));
    size_t length = slot->message_len <= area.max_message ? slot->message_len : 0;
    (void)crypto_sign_detached(slot->signature, NULL, hsm_area_message(&area, index, length), length, secret_key);
    slot->status = HSM_OK;
    slot->signature_len = HSM_MAX_SIGNATURE;
    slot->call = 0;
    slot->ckr = 0;
    hsm_sha256(hsm_area_message(&area, index, length), length, slot->digest);
    hsm_area_complete(&area, index);
    wake();
}

static void overwrite(void *memory, size_t size) {
    for (size_t i = 0; i < 64; i++) {
        ((uint8_t *)memory)[dice() % size] = (uint8_t)dice();
    }
}

static void answer_badly(void) {
    uint32_t index = (uint32_t)dice();
    hsm_slot *slot = hsm_area_slot(&area, index % area.slots);
    slot->status = (uint32_t)(dice() % 3 == 0 ? HSM_OK : dice());
    slot->signature_len = (uint32_t)dice();
    slot->message_len = (uint32_t)dice();
    slot->key = (uint32_t)dice();
    slot->call = (uint16_t)dice();
    slot->prehashed = (uint8_t)dice();
    slot->ckr = dice();
    hsm_area_complete(&area, dice() % 4 == 0 ? index : index % area.slots);
    wake();
}

static void misbehave(void) {
    if (is("random")) {
        /* Not the layout, which the client never reads again. */
        overwrite((char *)area.shared + sizeof(uint64_t) * 8, area.size - sizeof(uint64_t) * 8);
        overwrite(area.shared->keys, sizeof area.shared->keys);
        overwrite(area.slot_table, area.slots * sizeof *area.slot_table);
        overwrite(area.worker_table, area.max_workers * sizeof *area.worker_table);
        wake();
    } else if (is("rings")) {
        for (uint32_t i = 0; i < area.slots; i++) {
            atomic_store(&area.completions[i], (uint32_t)(dice() % 2 == 0 ? dice() : dice() % (area.slots + 2)));
        }
        atomic_store(&area.shared->request_head, dice());
        atomic_store(&area.shared->request_tail, dice());
        atomic_store(&area.shared->completion_tail, dice());
        wake();
    } else if (is("answers")) {
        answer_badly();
    } else if (is("flood")) {
        const struct itimerspec now = {.it_value = {.tv_nsec = 1}};
        (void)timerfd_settime(HSM_FD_TIMER, 0, &now, NULL);
        wake();
        return;
    } else if (is("blocking")) {
        (void)fcntl(HSM_FD_EVENT, F_SETFL, 0);
        (void)fcntl(HSM_FD_TIMER, F_SETFL, 0);
        (void)eventfd_write(HSM_FD_EVENT, 1);
    } else if (is("hang-up")) {
        (void)shutdown(HSM_FD_CONTROL, SHUT_RDWR);
    } else if (is("end")) {
        _exit(0);
    }
    hsm_sleep(200000);
}

static void *serve(void *unused) {
    (void)unused;
    hsm_worker_record *record = hsm_area_worker(&area, 0);
    atomic_store(&record->running, 1);
    for (unsigned signed_ = 0;;) {
        uint32_t index; /* of a slot */
        if (signed_ >= after) {
            atomic_store(&misbehaves, true);
            misbehave();
        } else if (hsm_area_claim(&area, &index)) {
            sign(index);
            signed_++;
        } else {
            hsm_sleep(100000);
        }
    }
    return NULL;
}

static void fill(void *text, size_t size) {
    memset(text, 'x', size);
}

static void start(const hsm_request_message *message) {
    const char *arguments = hsm_wire_get_string(message, &message->module_args);
    (void)sscanf(arguments != NULL ? arguments : "", "%31s %u %u", kind, &seed, &after);
}

static void add_key(hsm_reply_message *reply) {
    hsm_key_info *key = &reply->key;
    key->index = is("index") ? UINT32_MAX - 1 : 0;
    key->algorithm = HSM_ED25519;
    key->id_len = is("id") ? UINT32_MAX : 1;
    key->id[0] = 1;
    key->public_key_len = is("key") ? UINT32_MAX : sizeof public_key;
    memcpy(key->public_key, public_key, sizeof public_key);
    memcpy(key->label, "hostile", sizeof "hostile");
    hsm_key_record *record = &area.shared->keys[0];
    record->algorithm = HSM_ED25519;
    record->public_key_len = sizeof public_key;
    memcpy(record->public_key, public_key, sizeof public_key);
    atomic_store(&record->index, 0);
    atomic_store(&record->state, HSM_KEY_ACTIVE);
    if (is("label")) {
        fill(key->label, sizeof key->label);
    }
    if (is("error")) {
        fill(&reply->error, sizeof reply->error);
        reply->status = (uint32_t)HSM_KEY_NOT_FOUND;
    }
}

static bool answer(const hsm_request_message *message) {
    hsm_reply_message reply;
    memset(&reply, 0, sizeof reply);
    reply.version = is("version") ? 1 : HSM_WIRE_VERSION;
    reply.operation = is("operation") ? HSM_OP_STOP : message->operation;
    pthread_t thread;
    switch (message->operation) {
    case HSM_OP_START:
        start(message);
        break;
    case HSM_OP_ADD_KEY:
        add_key(&reply);
        (void)pthread_create(&thread, NULL, serve, NULL);
        break;
    case HSM_OP_TOKEN:
        memcpy(reply.token.label, "hostile", sizeof "hostile");
        if (is("label")) {
            fill(&reply.token, sizeof reply.token);
        }
        break;
    case HSM_OP_SUPERVISE:
        return true;
    default:
        break;
    }
    if (is("silence") && atomic_load(&misbehaves)) {
        return true;
    }
    static char huge[3 * sizeof reply];
    memcpy(huge, &reply, sizeof reply);
    size_t size = is("short") && message->operation == HSM_OP_ADD_KEY ? 3 : sizeof reply;
    size = is("long") && message->operation == HSM_OP_ADD_KEY ? sizeof huge : size;
    return send(HSM_FD_CONTROL, huge, size, MSG_NOSIGNAL) > 0 && message->operation != HSM_OP_STOP;
}

int main(void) {
    static hsm_request_message message;
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (sodium_init() < 0 || hsm_area_attach(HSM_FD_AREA, &area) != HSM_OK) {
        return 2;
    }
    const uint8_t fixed[crypto_sign_SEEDBYTES] = "the key of a hostile host";
    (void)crypto_sign_seed_keypair(public_key, secret_key, fixed);
    while (recv(HSM_FD_CONTROL, &message, sizeof message, 0) == (ssize_t)sizeof message && answer(&message)) {
    }
    while (is("hang-up")) {
        (void)pause();
    }
    _exit(0);
}
