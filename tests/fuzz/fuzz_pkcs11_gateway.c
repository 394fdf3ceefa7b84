/* A hostile gateway and libhsmcore_pkcs11.so whole, but for its sockets: the input says what is read from them. Time is
 * virtual, so each wait ends at once. What the module writes is well-formed, and each call ends. */
#include <poll.h>
#include <time.h>

#include <hsmcore/frames.h>

#include "../../clients/pkcs11/p11.h"

#include "input.h"

enum { MOST = 1024, WELCOME = 129, LAST = 137, SIGNATURE_AT = HSM_SIGNED_HEAD };
static struct input input;
static struct {
    int64_t now;
    uint64_t request;
    uint8_t frame[HSM_FRAME_HEAD + 2 * MOST];
    size_t at, len; /* of what is to be read */
    bool honest;    /* the last answer has the signature that a true gateway makes */
} gateway;

int __wrap_clock_gettime(clockid_t clock, struct timespec *now);
int __wrap_ppoll(struct pollfd *fds, nfds_t count, const struct timespec *wait, const void *mask);

int __wrap_clock_gettime(clockid_t clock, struct timespec *now) {
    (void)clock;
    *now = (struct timespec){gateway.now / 1000000000, gateway.now % 1000000000};
    return 0;
}

int __wrap_ppoll(struct pollfd *fds, nfds_t count, const struct timespec *wait, const void *mask) {
    (void)mask;
    for (nfds_t i = 0; i < count; i++) {
        fds[i].revents = 0;
    }
    gateway.now += (wait->tv_sec * 1000000000 + wait->tv_nsec) / (count > 1 && input.left > 0 ? 8 : 1) + 1;
    return 0;
}

void p11_stream_open(struct p11_stream *stream, const char *address) {
    *stream = (struct p11_stream){.fd = -1};
    gateway.at = gateway.len = 0;
    REQUIRE(strncmp(address, "unix:/", 6) == 0);
}

static enum p11_progress broken(struct p11_stream *stream) {
    (void)snprintf(stream->why, sizeof stream->why, "it ended");
    return P11_BROKEN;
}

enum p11_progress p11_stream_connect(struct p11_stream *stream) {
    uint8_t how = take_u8(&input);
    return how < 8 ? broken(stream) : how < 16 ? P11_WANTS_WRITE : P11_DONE;
}

void p11_stream_close(struct p11_stream *stream, bool inherited) {
    (void)inherited;
    *stream = (struct p11_stream){.fd = -1};
}

enum p11_progress p11_stream_write(struct p11_stream *stream, const uint8_t *data, size_t *size) {
    static const uint8_t flags[256] = {[HSM_FRAME_SIGN] = HSM_FRAME_AGAIN};
    hsm_frame frame;
    if (take_u8(&input) == 1) {
        *size = 0;
        return broken(stream);
    }
    for (size_t at = 0, cut = *size; at < *size; at += cut, cut = *size - at) {
        REQUIRE(hsm_frame_cut(data + at, &cut, flags, &frame) == HSM_CUT_FRAME);
        if (frame.type == HSM_FRAME_SIGN) {
            hsm_frame_sign sign;
            REQUIRE(hsm_frame_read_sign(&frame, &sign) && frame.request != 0 && sign.timeout_ms > 0);
            gateway.request = frame.request;
        }
    }
    return P11_DONE;
}

/* A frame that is whole: its type, and a body of the input's or a good one. */
static void make_frame(void) {
    // clang-format off: a field in each string
    static const char good[] =
        "\1\0" "0123456789abcdef" "\100\0\0\0" "\0\0\20\0" "\0\1" "\x60\xea\0\0" "\1c" "\1\0" "\1s" "\2\0"
        "\0\0" "\1\0\0\0" "\1" "\1" "\2ab" "\x20" "0123456789abcdef0123456789abcdef" "\xff\x7f"
        "\0\0" "\1\0\0\0" "\1" "\2" "\2cd" "\x41" "\4" "0123456789abcdef0123456789abcdef"
        "0123456789abcdef0123456789abcdef" "\xff\x7f";
    // clang-format on
    uint8_t what = take_u8(&input), type = what < 64 ? WELCOME : what < 128 ? HSM_FRAME_SIGNED : WELCOME + what % 9;
    size_t len = what < 64    ? sizeof good - 1
                 : what < 128 ? SIGNATURE_AT - HSM_FRAME_HEAD + 64
                              : take_u16(&input) % MOST;
    uint8_t *body = gateway.frame + HSM_FRAME_HEAD;
    if (what < 64) {
        memcpy(body, good, sizeof good - 1);
    } else if (what < 128) {
        memset(body, 0, len);
        body[0] = 1; /* the version */
        memset(gateway.frame + SIGNATURE_AT, 0xa5, 64);
    } else {
        take(&input, body, len);
    }
    for (uint8_t changes = take_u8(&input) % 4, i = 0; changes > 1 && i < changes - 1 && len > 0; i++) {
        body[take_u8(&input) % len] = take_u8(&input);
    }
    memset(gateway.frame, 0, HSM_FRAME_HEAD);
    size_t length = HSM_FRAME_HEAD - 4 + len;
    gateway.frame[0] = (uint8_t)length, gateway.frame[1] = (uint8_t)(length >> 8), gateway.frame[4] = type;
    memcpy(gateway.frame + 8, &gateway.request, what % 8 == 7 ? 0 : sizeof gateway.request);
    gateway.at = 0, gateway.len = HSM_FRAME_HEAD + len;
}

enum p11_progress p11_stream_read(struct p11_stream *stream, uint8_t *data, size_t *size) {
    uint8_t how = gateway.at < gateway.len ? 255 : input.left == 0 ? 32 : take_u8(&input);
    size_t most = *size;
    *size = 0;
    if (how < 8) {
        return broken(stream);
    }
    if (how < 64) {
        return P11_WANTS_READ;
    }
    if (how < 80) {
        gateway.at = 0, gateway.len = how - 63U;
        take(&input, gateway.frame, gateway.len);
    } else if (how < 255) {
        make_frame();
    }
    size_t left = gateway.len - gateway.at;
    *size = how % 16 == 0 && left > 1 ? left / 2 : left;
    *size = *size < most ? *size : most;
    memcpy(data, gateway.frame + gateway.at, *size);
    gateway.at += *size;
    return P11_DONE;
}

static void use(CK_FUNCTION_LIST *module, CK_SLOT_ID slot) {
    CK_SESSION_HANDLE session;
    CK_OBJECT_HANDLE keys[4];
    CK_ULONG count = 0;
    CK_OBJECT_CLASS private = CKO_PRIVATE_KEY;
    CK_ATTRIBUTE wanted = {CKA_CLASS, &private, sizeof private};
    if (module->C_OpenSession(slot, CKF_SERIAL_SESSION, NULL, NULL, &session) != CKR_OK ||
        module->C_FindObjectsInit(session, &wanted, 1) != CKR_OK) {
        return;
    }
    REQUIRE(module->C_FindObjects(session, keys, 4, &count) == CKR_OK && count <= 4);
    REQUIRE(module->C_FindObjectsFinal(session) == CKR_OK);
    for (CK_ULONG i = 0; i < count; i++) {
        CK_MECHANISM ways[] = {{CKM_EDDSA, NULL, 0}, {CKM_ECDSA_SHA256, NULL, 0}};
        for (size_t way = 0; way < 2; way++) {
            uint8_t made[P11_SIGNATURE], message[] = "m";
            CK_ULONG len = sizeof made;
            if (module->C_SignInit(session, &ways[way], keys[i]) == CKR_OK) {
                CK_RV rv = module->C_Sign(session, message, 1, made, &len);
                REQUIRE(rv != CKR_OK || len == P11_SIGNATURE);
                REQUIRE(module->C_SignInit(session, NULL, 0) == CKR_OK);
            }
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    CK_FUNCTION_LIST *module;
    char settings[] = "address=unix:/one,unix:/two timeout_ms=200";
    CK_C_INITIALIZE_ARGS begin = {.flags = CKF_OS_LOCKING_OK, .pReserved = settings};
    REQUIRE(C_GetFunctionList(&module) == CKR_OK && module->C_Initialize(&begin) == CKR_OK);
    input = (struct input){data, size};
    for (unsigned rounds = 0; rounds < 4 && (rounds == 0 || input.left > 0); rounds++) {
        CK_SLOT_ID slots[4];
        CK_ULONG count = 4;
        if (module->C_GetSlotList(CK_TRUE, slots, &count) == CKR_OK) {
            for (CK_ULONG i = 0; i < count; i++) {
                use(module, slots[i]);
            }
        }
    }
    REQUIRE(module->C_Finalize(NULL) == CKR_OK);
    return 0;
}
