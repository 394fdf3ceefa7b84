/* The behaviour of a vendor's module: what it lacks, refuses, calls otherwise or shows otherwise than the module that
 * is wrapped. Unlike faults they hold for every call. All of it is data from the configuration, read once at
 * C_Initialize and never changed while calls are made, so it is read without a lock. */
#ifndef HSMCORE_CHAOS_VENDOR_H
#define HSMCORE_CHAOS_VENDOR_H

#include "functions.h"

#define CHAOS_MANY 64  /* attributes, mechanisms, users, slots, curves: at most so many */
#define CHAOS_PIN 256  /* bytes */
#define CHAOS_CURVE 64 /* bytes of CKA_EC_PARAMS */

/* CKR_OK: allowed. */
typedef CK_RV chaos_denied[CHAOS_FUNCTIONS];

struct chaos_user {
    char pin[CHAOS_PIN];       /* what the client gives */
    char token_pin[CHAOS_PIN]; /* what the wrapped module gets */
    chaos_denied denied;
};

/* A text that stands in place of the wrapped module's; empty: that of the wrapped module. */
struct chaos_slot_info {
    char token[33]; /* the label by which the wrapped module knows the token */
    char label[33], serial[17], manufacturer[33], model[17], description[65];
};

struct chaos_curve {
    CK_BYTE params[CHAOS_CURVE];
    size_t length;
};

struct chaos_mechanism {
    CK_MECHANISM_TYPE mechanism;
    bool absent;
    CK_MECHANISM_TYPE as;     /* what the wrapped module gets instead, unless `absent` */
    struct chaos_curve curve; /* only with these CKA_EC_PARAMS; length 0: always */
};

struct chaos_fixed {
    CK_ATTRIBUTE_TYPE type;
    CK_BBOOL value;
};

struct chaos_vendor {
    chaos_denied denied;
    CK_RV read_only;        /* what opening a read-only session gives; CKR_OK: it is allowed */
    uint64_t session_limit; /* 0: none */
    CK_RV over_limit;
    size_t known_count; /* 0: all attributes are known */
    CK_ATTRIBUTE_TYPE known[CHAOS_MANY];
    CK_RV unknown_attribute;
    size_t fixed_count;
    struct chaos_fixed fixed[CHAOS_MANY]; /* attributes that a template may give this value only */
    CK_RV wrong_value;
    size_t curve_count;
    struct chaos_curve curves[CHAOS_MANY]; /* refused */
    CK_RV wrong_curve;
    bool raw_points; /* CKA_EC_POINT without its OCTET STRING */
    bool handles_per_session;
    bool handles_at_login; /* a login numbers all objects, as a device does that numbers them for good */
    size_t mechanism_count;
    struct chaos_mechanism mechanisms[CHAOS_MANY];
    char manufacturer[33], description[33]; /* of CK_INFO */
    size_t slot_count;                      /* 0: all slots are shown, as they are */
    struct chaos_slot_info slots[CHAOS_MANY];
    size_t user_count; /* 0: PINs are passed on */
    struct chaos_user users[CHAOS_MANY];
};

#endif
