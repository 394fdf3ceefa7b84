/* What a vendor's module always refuses, and mechanisms that it calls by another number. */
#include <string.h>

#include "chaos.h"

static CK_RV refuse(const struct chaos_call *call, CK_RV ckr, const char *why) {
    chaos_log("%s slot %lu: refused 0x%lx: %s", chaos_function_names[call->function], call->slot->id, ckr, why);
    return ckr;
}

CK_RV chaos_refused(const struct chaos_call *call) {
    CK_RV ckr = chaos_config.vendor.denied[call->function];
    if (ckr != CKR_OK) {
        return refuse(call, ckr, "not there");
    }
    const struct chaos_user *user = atomic_load_explicit(&call->slot->user, memory_order_acquire);
    if (user != NULL && user->denied[call->function] != CKR_OK) {
        return refuse(call, user->denied[call->function], "not this user's right");
    }
    return CKR_OK;
}

CK_RV chaos_refused_session(const struct chaos_call *call, CK_FLAGS flags) {
    const struct chaos_vendor *vendor = &chaos_config.vendor;
    if (vendor->read_only != CKR_OK && (flags & CKF_RW_SESSION) == 0) {
        return refuse(call, vendor->read_only, "read-only");
    }
    if (vendor->session_limit != 0 && chaos_sessions_open() >= vendor->session_limit) {
        return refuse(call, vendor->over_limit, "too many sessions");
    }
    return CKR_OK;
}

const struct chaos_user *chaos_user_of(const CK_BYTE *pin, CK_ULONG length) {
    const struct chaos_vendor *vendor = &chaos_config.vendor;
    for (size_t i = 0; pin != NULL && i < vendor->user_count; i++) {
        const struct chaos_user *user = &vendor->users[i];
        if (strlen(user->pin) == length && memcmp(user->pin, pin, length) == 0) {
            return user;
        }
    }
    return NULL;
}

/* ---- templates ---- */

static bool is_known(CK_ATTRIBUTE_TYPE type) {
    const struct chaos_vendor *vendor = &chaos_config.vendor;
    for (size_t i = 0; i < vendor->known_count; i++) {
        if (vendor->known[i] == type) {
            return true;
        }
    }
    return vendor->known_count == 0;
}

static bool is_curve(const struct chaos_curve *curve, const CK_ATTRIBUTE *row) {
    return row->pValue != NULL && row->ulValueLen == curve->length &&
           memcmp(row->pValue, curve->params, curve->length) == 0;
}

static CK_RV refused_row(const struct chaos_call *call, const CK_ATTRIBUTE *row) {
    const struct chaos_vendor *vendor = &chaos_config.vendor;
    if (!is_known(row->type)) {
        return refuse(call, vendor->unknown_attribute, "unknown attribute");
    }
    for (size_t i = 0; i < vendor->fixed_count; i++) {
        const struct chaos_fixed *fixed = &vendor->fixed[i];
        if (fixed->type == row->type && row->pValue != NULL && row->ulValueLen == sizeof fixed->value &&
            *(const CK_BBOOL *)row->pValue != fixed->value) {
            return refuse(call, vendor->wrong_value, "attribute with a value of its own");
        }
    }
    for (size_t i = 0; row->type == CKA_EC_PARAMS && i < vendor->curve_count; i++) {
        if (is_curve(&vendor->curves[i], row)) {
            return refuse(call, vendor->wrong_curve, "curve");
        }
    }
    return CKR_OK;
}

/* A template is read only if the vendor refuses something in it: a count that is too large is the wrapped module's to
 * judge. */
CK_RV chaos_refused_template(const struct chaos_call *call, const CK_ATTRIBUTE *rows, CK_ULONG count) {
    const struct chaos_vendor *vendor = &chaos_config.vendor;
    bool reads = vendor->known_count + vendor->fixed_count + vendor->curve_count != 0 && !call->plain && rows != NULL;
    CK_RV rv = CKR_OK;
    for (CK_ULONG i = 0; reads && rv == CKR_OK && i < count; i++) {
        rv = refused_row(call, &rows[i]);
    }
    return rv;
}

/* ---- mechanisms ---- */

static bool fits(const struct chaos_mechanism *rule, const CK_ATTRIBUTE *rows, CK_ULONG count) {
    if (rule->curve.length == 0) {
        return true;
    }
    for (CK_ULONG i = 0; rows != NULL && i < count; i++) {
        if (rows[i].type == CKA_EC_PARAMS) {
            return is_curve(&rule->curve, &rows[i]);
        }
    }
    return false;
}

CK_RV chaos_translated(const struct chaos_call *call, CK_MECHANISM **mechanism, CK_MECHANISM *own,
                       const CK_ATTRIBUTE *rows, CK_ULONG count) {
    const struct chaos_vendor *vendor = &chaos_config.vendor;
    for (size_t i = 0; !call->plain && *mechanism != NULL && i < vendor->mechanism_count; i++) {
        const struct chaos_mechanism *rule = &vendor->mechanisms[i];
        if (rule->mechanism != (*mechanism)->mechanism || !fits(rule, rows, count)) {
            continue;
        }
        if (rule->absent) {
            return refuse(call, CKR_MECHANISM_INVALID, "mechanism");
        }
        *own = **mechanism;
        own->mechanism = rule->as;
        *mechanism = own;
        return CKR_OK;
    }
    return CKR_OK;
}
