/* What a vendor's module says of itself, its slots and its mechanisms: the wrappers of C_Get*Info and
 * C_GetMechanismList. */
#include <stdlib.h>
#include <string.h>

#include "chaos.h"

/* Padded with blanks, as the standard wants it (section 3.1). */
static void put(CK_UTF8CHAR *out, size_t size, const char *text) {
    if (text[0] != '\0') {
        size_t length = strlen(text) < size ? strlen(text) : size;
        memset(out, ' ', size);
        memcpy(out, text, length);
    }
}

CK_RV chaos_C_GetInfo(CK_INFO *info) {
    struct chaos_call call = {.function = CHAOS_C_GetInfo};
    if (!chaos_enter(&call)) {
        return call.rv;
    }
    CK_RV rv = chaos_wrapped.C_GetInfo(info);
    if (rv == CKR_OK && !call.plain) {
        put(info->manufacturerID, sizeof info->manufacturerID, chaos_config.vendor.manufacturer);
        put(info->libraryDescription, sizeof info->libraryDescription, chaos_config.vendor.description);
    }
    return chaos_leave(&call, rv);
}

/* ---- slots ---- */

const struct chaos_slot_info *chaos_slot_info_of(CK_SLOT_ID slot) {
    const struct chaos_vendor *vendor = &chaos_config.vendor;
    CK_TOKEN_INFO token;
    if (vendor->slot_count == 0 || chaos_wrapped.C_GetTokenInfo(slot, &token) != CKR_OK) {
        return NULL;
    }
    for (size_t i = 0; i < vendor->slot_count; i++) {
        CK_UTF8CHAR label[sizeof token.label];
        memset(label, ' ', sizeof label);
        put(label, sizeof label, vendor->slots[i].token);
        if (memcmp(label, token.label, sizeof label) == 0) {
            return &vendor->slots[i];
        }
    }
    return NULL;
}

void chaos_show_slot(const struct chaos_slot_info *shown, CK_SLOT_INFO *info) {
    if (shown != NULL) {
        put(info->slotDescription, sizeof info->slotDescription, shown->description);
        put(info->manufacturerID, sizeof info->manufacturerID, shown->manufacturer);
    }
}

CK_RV chaos_C_GetTokenInfo(CK_SLOT_ID slot, CK_TOKEN_INFO *info) {
    struct chaos_call call = {.function = CHAOS_C_GetTokenInfo, .slot_id = slot};
    if (!chaos_enter(&call)) {
        return call.rv;
    }
    CK_RV rv = chaos_wrapped.C_GetTokenInfo(slot, info);
    const struct chaos_slot_info *shown = rv == CKR_OK && !call.plain ? chaos_slot_info_of(slot) : NULL;
    if (shown != NULL) {
        put(info->label, sizeof info->label, shown->label);
        put(info->serialNumber, sizeof info->serialNumber, shown->serial);
        put(info->manufacturerID, sizeof info->manufacturerID, shown->manufacturer);
        put(info->model, sizeof info->model, shown->model);
    }
    if (rv == CKR_OK && !call.plain && chaos_config.vendor.session_limit != 0) {
        info->ulMaxSessionCount = chaos_config.vendor.session_limit;
        info->ulMaxRwSessionCount = chaos_config.vendor.session_limit;
    }
    return chaos_leave(&call, rv);
}

/* ---- mechanisms ---- */

static const struct chaos_mechanism *rule_of(CK_MECHANISM_TYPE type) {
    const struct chaos_vendor *vendor = &chaos_config.vendor;
    for (size_t i = 0; i < vendor->mechanism_count; i++) {
        if (vendor->mechanisms[i].mechanism == type && vendor->mechanisms[i].curve.length == 0) {
            return &vendor->mechanisms[i];
        }
    }
    return NULL;
}

static bool lists(const CK_MECHANISM_TYPE *list, CK_ULONG count, CK_MECHANISM_TYPE type) {
    for (CK_ULONG i = 0; i < count; i++) {
        if (list[i] == type) {
            return true;
        }
    }
    return false;
}

/* Less those that are absent, and with those that have another name here. */
static CK_RV own_mechanisms(CK_SLOT_ID slot, CK_MECHANISM_TYPE *list, CK_ULONG *count) {
    const struct chaos_vendor *vendor = &chaos_config.vendor;
    CK_ULONG total = 0;
    CK_ULONG kept = 0;
    CK_RV rv = chaos_wrapped.C_GetMechanismList(slot, NULL, &total);
    CK_MECHANISM_TYPE *all = calloc(total + CHAOS_MANY, sizeof *all);
    if (all == NULL) {
        return CKR_HOST_MEMORY;
    }
    if (rv == CKR_OK) {
        rv = chaos_wrapped.C_GetMechanismList(slot, all, &total);
    }
    for (CK_ULONG i = 0; rv == CKR_OK && i < total; i++) {
        const struct chaos_mechanism *rule = rule_of(all[i]);
        if (rule == NULL || !rule->absent) {
            all[kept++] = all[i];
        }
    }
    for (size_t i = 0; rv == CKR_OK && i < vendor->mechanism_count; i++) {
        CK_MECHANISM_TYPE type = vendor->mechanisms[i].mechanism;
        if (!vendor->mechanisms[i].absent && !lists(all, kept, type)) {
            all[kept++] = type;
        }
    }
    if (rv == CKR_OK && list != NULL && *count < kept) {
        rv = CKR_BUFFER_TOO_SMALL;
    }
    if (rv == CKR_OK && list != NULL) {
        memcpy(list, all, kept * sizeof *list);
    }
    if (rv == CKR_OK || rv == CKR_BUFFER_TOO_SMALL) {
        *count = kept;
    }
    free(all);
    return rv;
}

CK_RV chaos_C_GetMechanismList(CK_SLOT_ID slot, CK_MECHANISM_TYPE *mechanism_list, CK_ULONG *count) {
    struct chaos_call call = {.function = CHAOS_C_GetMechanismList, .slot_id = slot, .query = mechanism_list == NULL};
    if (!chaos_enter(&call)) {
        return call.rv;
    }
    bool own = !call.plain && count != NULL && chaos_config.vendor.mechanism_count > 0;
    return chaos_leave(&call, own ? own_mechanisms(slot, mechanism_list, count)
                                  : chaos_wrapped.C_GetMechanismList(slot, mechanism_list, count));
}

CK_RV chaos_C_GetMechanismInfo(CK_SLOT_ID slot, CK_MECHANISM_TYPE type, CK_MECHANISM_INFO *info) {
    struct chaos_call call = {.function = CHAOS_C_GetMechanismInfo, .slot_id = slot};
    if (!chaos_enter(&call)) {
        return call.rv;
    }
    const struct chaos_mechanism *rule = call.plain ? NULL : rule_of(type);
    if (rule != NULL && rule->absent) {
        return chaos_leave(&call, CKR_MECHANISM_INVALID);
    }
    return chaos_leave(&call, chaos_wrapped.C_GetMechanismInfo(slot, rule != NULL ? rule->as : type, info));
}
