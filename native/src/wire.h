/* Messages between the client's process and the host's: one each way per call (none back for SUPERVISE), over a
 * SOCK_SEQPACKET socket pair, so that a message is whole or absent. Each carries HSM_WIRE_VERSION, which must be the
 * other side's; still every length is checked, since the host runs foreign code. */
#ifndef HSM_WIRE_H
#define HSM_WIRE_H

#include <signal.h>

#include "base.h"

/* The host finds its descriptors at these numbers. */
enum hsm_host_fd { HSM_FD_CONTROL = 3, HSM_FD_AREA, HSM_FD_EVENT, HSM_FD_TIMER, HSM_FD_END };

/* Signals that a terminal or a service manager sends to every process of the application. The host ends with the
 * client, so that what it has begun is answered. */
#define HSM_HOST_IGNORES {SIGINT, SIGTERM, SIGHUP, SIGQUIT}

/* Changes with every change of a message or of the area's layout. */
#define HSM_WIRE_VERSION UINT64_C(0x68736d2d30303036)
#define HSM_WIRE_TEXT 4096U /* bytes of all strings of a message together */

enum hsm_operation { HSM_OP_HELLO = 1, HSM_OP_START, HSM_OP_ADD_KEY, HSM_OP_TOKEN, HSM_OP_SUPERVISE, HSM_OP_STOP };

/* A string or byte string inside `text`; `present` tells an empty one from none. */
typedef struct hsm_wire_text {
    uint32_t present, offset, length;
} hsm_wire_text;

typedef struct hsm_request_message {
    uint64_t version;
    uint32_t operation;
    uint32_t used; /* bytes of text */
    /* START */
    hsm_wire_text module_path, module_args, quirks, token_label, token_serial, pin;
    int64_t slot_id;
    uint32_t workers, verify_every;
    uint64_t spin_ns, patience_ns, memory_limit, timeout_ns;
    /* ADD_KEY */
    hsm_wire_text key_label, key_id, public_key;
    int64_t handle;
    uint32_t algorithm;
    uint32_t index; /* that the key had in a process before this one, or HSM_ANY_INDEX */
    uint8_t text[HSM_WIRE_TEXT];
} hsm_request_message;

typedef struct hsm_reply_message {
    uint64_t version;
    uint32_t operation, status;
    /* HELLO */
    uint32_t hardening;
    int32_t landlock_abi;
    /* the others */
    hsm_error error;
    hsm_key_info key;
    hsm_token_info token;
} hsm_reply_message;

/* Put bytes into a message. Returns false if they do not fit. `data` may be NULL. */
bool hsm_wire_put(hsm_request_message *message, hsm_wire_text *field, const void *data, size_t length);
bool hsm_wire_put_string(hsm_request_message *message, hsm_wire_text *field, const char *string);
/* Take them out: NULL if absent; a string is always terminated inside the message. */
const uint8_t *hsm_wire_get(const hsm_request_message *message, const hsm_wire_text *field, size_t *length);
const char *hsm_wire_get_string(const hsm_request_message *message, const hsm_wire_text *field);

#endif
