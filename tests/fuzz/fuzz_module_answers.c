/* A module whose every answer comes from the input: codes, counts, lengths, labels, handles, signatures.
 *
 * It keeps the one rule that no caller can do without: it writes no more than the room it was given (and C_Sign not
 * more than 256 bytes, which hsm_sign promises to bear). For engines it hides behind the no-op module, whose function
 * list it takes the place of. */
#include <hsmcore/hsmcore.h>

#include "algorithm.h"
#include "input.h"
#include "key.h"
#include "module.h"
#include "quirks.h"
#include "sign.h"
#include "token.h"

static struct input answers;

static CK_RV answer_code(void) {
    uint8_t choice = take_u8(&answers);
    uint64_t ckr;
    const char *name;
    hsm_status status;
    if (choice < 200) {
        return CKR_OK;
    }
    if (choice < 254 && hsm_ckr_row(take_u8(&answers), &ckr, &name, &status)) {
        return (CK_RV)ckr;
    }
    return (CK_RV)take_u64(&answers);
}

/* A number that is mostly small, and now and then as large as can be. */
static CK_ULONG answer_number(void) {
    uint8_t choice = take_u8(&answers);
    return choice < 250 ? choice % 70U : choice < 253 ? (CK_ULONG)take_u64(&answers) : CK_UNAVAILABLE_INFORMATION;
}

static CK_RV fake_GetInfo(CK_INFO *info) {
    take(&answers, info, sizeof *info);
    return answer_code();
}

static CK_RV fake_GetSlotList(CK_BBOOL present, CK_SLOT_ID *slots, CK_ULONG *count) {
    (void)present;
    CK_ULONG claimed = answer_number();
    for (CK_ULONG i = 0; slots != NULL && i < *count && i < claimed && i < 70; i++) {
        slots[i] = take_u8(&answers);
    }
    *count = claimed;
    return answer_code();
}

static CK_RV fake_GetTokenInfo(CK_SLOT_ID slot, CK_TOKEN_INFO *info) {
    (void)slot;
    uint8_t choice = take_u8(&answers);
    take(&answers, info, choice % 2 == 0 ? 32 : sizeof *info);
    return answer_code();
}

static CK_RV fake_GetMechanismInfo(CK_SLOT_ID slot, CK_MECHANISM_TYPE type, CK_MECHANISM_INFO *info) {
    (void)slot;
    (void)type;
    info->flags = take_u8(&answers) % 4 == 0 ? 0 : CKF_SIGN;
    return answer_code();
}

static CK_RV fake_OpenSession(CK_SLOT_ID slot, CK_FLAGS flags, void *application, CK_NOTIFY notify,
                              CK_SESSION_HANDLE *session) {
    (void)slot;
    (void)flags;
    (void)application;
    (void)notify;
    *session = take_u8(&answers);
    return answer_code();
}

static CK_RV fake_CloseSession(CK_SESSION_HANDLE session) {
    (void)session;
    return answer_code();
}

static CK_RV fake_GetSessionInfo(CK_SESSION_HANDLE session, CK_SESSION_INFO *info) {
    (void)session;
    info->state = take_u8(&answers);
    return answer_code();
}

static CK_RV fake_Login(CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_UTF8CHAR *pin, CK_ULONG length) {
    (void)session;
    (void)user;
    (void)pin;
    (void)length;
    return answer_code();
}

static CK_RV fake_FindObjectsInit(CK_SESSION_HANDLE session, CK_ATTRIBUTE *template, CK_ULONG count) {
    (void)session;
    static volatile uint8_t sink; /* reads all that it was given */
    for (CK_ULONG i = 0; i < count; i++) {
        for (CK_ULONG at = 0; at < template[i].ulValueLen; at++) {
            sink = ((const uint8_t *)template[i].pValue)[at];
        }
    }
    (void)sink;
    return answer_code();
}

static CK_RV fake_FindObjects(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE *objects, CK_ULONG max, CK_ULONG *count) {
    (void)session;
    CK_ULONG claimed = answer_number() % 8 == 0 ? answer_number() : take_u8(&answers) % 3U;
    for (CK_ULONG i = 0; i < max && i < claimed; i++) {
        objects[i] = take_u8(&answers);
    }
    *count = claimed;
    return answer_code();
}

static CK_RV fake_FindObjectsFinal(CK_SESSION_HANDLE session) {
    (void)session;
    return answer_code();
}

/* Mostly what a key would say, so that the search gets on; otherwise anything. */
static CK_RV fake_GetAttributeValue(CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE *template,
                                    CK_ULONG count) {
    (void)session;
    (void)object;
    static const CK_OBJECT_CLASS private_key = CKO_PRIVATE_KEY;
    static const CK_KEY_TYPE edwards = CKK_EC_EDWARDS;
    static const CK_BBOOL yes = CK_TRUE;
    static const uint8_t curve[] = {0x06, 0x03, 0x2b, 0x65, 0x70};
    static const uint8_t point[34] = {0x04, 0x20, 0x58, 0x66};
    static const struct {
        CK_ATTRIBUTE_TYPE type;
        const void *value;
        size_t size;
    } usual[] = {
        {CKA_CLASS, &private_key, sizeof private_key}, {CKA_KEY_TYPE, &edwards, sizeof edwards},
        {CKA_EC_PARAMS, curve, sizeof curve},          {CKA_SIGN, &yes, sizeof yes},
        {CKA_EC_POINT, point, sizeof point},
    };
    REQUIRE(count == 1);
    CK_ULONG room = template->ulValueLen;
    uint8_t choice = take_u8(&answers);
    for (size_t i = 0; i < sizeof usual / sizeof usual[0] && choice < 200; i++) {
        if (usual[i].type == template->type && usual[i].size <= room) {
            memcpy(template->pValue, usual[i].value, usual[i].size);
            template->ulValueLen = usual[i].size;
            return CKR_OK;
        }
    }
    CK_ULONG claimed = choice < 230 ? answer_number() : take_u16(&answers);
    take(&answers, template->pValue, claimed < room ? claimed : room);
    template->ulValueLen = claimed;
    return answer_code();
}

static CK_RV fake_SignInit(CK_SESSION_HANDLE session, CK_MECHANISM *mechanism, CK_OBJECT_HANDLE key) {
    (void)session;
    (void)mechanism;
    (void)key;
    return answer_code();
}

static CK_RV fake_Sign(CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG length, CK_BYTE *signature,
                       CK_ULONG *signature_len) {
    (void)session;
    (void)data;
    (void)length;
    uint8_t choice = take_u8(&answers);
    size_t written = choice < 200 ? 64U : choice; /* up to 255 */
    take(&answers, signature, written);
    *signature_len = choice < 200 ? 64U : answer_number();
    return answer_code();
}

/* Called by an idle worker when it likes, so it leaves the input alone. */
static CK_RV fake_GenerateRandom(CK_SESSION_HANDLE session, CK_BYTE *random, CK_ULONG length) {
    (void)session;
    memset(random, 4, length);
    return CKR_OK;
}

static CK_FUNCTION_LIST fake = {
    .C_GetInfo = fake_GetInfo,
    .C_GetSlotList = fake_GetSlotList,
    .C_GetTokenInfo = fake_GetTokenInfo,
    .C_GetMechanismInfo = fake_GetMechanismInfo,
    .C_OpenSession = fake_OpenSession,
    .C_CloseSession = fake_CloseSession,
    .C_GetSessionInfo = fake_GetSessionInfo,
    .C_Login = fake_Login,
    .C_FindObjectsInit = fake_FindObjectsInit,
    .C_FindObjects = fake_FindObjects,
    .C_FindObjectsFinal = fake_FindObjectsFinal,
    .C_GetAttributeValue = fake_GetAttributeValue,
    .C_GenerateRandom = fake_GenerateRandom,
    .C_SignInit = fake_SignInit,
    .C_Sign = fake_Sign,
};

/* Loaded once and held; what it costs is there before anything is counted. */
static hsm_leaks hide_behind_the_no_op_module(void) {
    static hsm_module *module;
    static hsm_leaks before;
    if (module == NULL) {
        REQUIRE(hsm_module_acquire(HSMC_NOOP_MODULE, NULL, &module, NULL) == HSM_OK);
        module->p11 = &fake;
        hsm_leaks_read(&before);
    }
    return before;
}

/* ---- the callers ---- */

static bool terminated(const char *text, size_t size) {
    return memchr(text, '\0', size) != NULL;
}

static void check_error(hsm_status status, const hsm_error *error) {
    REQUIRE((uint32_t)status < HSM_STATUS_COUNT);
    if (status != HSM_OK) {
        REQUIRE(error->status == status);
        REQUIRE(terminated(error->call, sizeof error->call) && terminated(error->detail, sizeof error->detail));
    }
}

static void check_token(const hsm_token_info *info) {
    REQUIRE(terminated(info->label, sizeof info->label) && terminated(info->serial, sizeof info->serial));
    REQUIRE(terminated(info->manufacturer, sizeof info->manufacturer) && terminated(info->model, sizeof info->model));
}

static void check_key(const hsm_key_selector *selector, const hsm_key_info *info) {
    const hsm_algorithm_info *algorithm = hsm_algorithm_lookup(info->algorithm);
    REQUIRE(algorithm != NULL && info->public_key_len == algorithm->public_key_len);
    REQUIRE(info->id_len <= HSM_MAX_KEY_ID && terminated(info->label, sizeof info->label));
    REQUIRE(selector->algorithm == HSM_ALGORITHM_NONE || selector->algorithm == info->algorithm);
    REQUIRE(selector->public_key == NULL || memcmp(selector->public_key, info->public_key, info->public_key_len) == 0);
}

struct wishes {
    hsm_token_selector token;
    hsm_key_selector key;
    char token_label[4];
    char key_label[260];
    uint8_t id[HSM_MAX_KEY_ID];
    uint8_t public_key[HSM_MAX_PUBLIC_KEY];
};

static void draw_wishes(struct wishes *wishes) {
    uint8_t which = take_u8(&answers);
    memset(wishes, 0, sizeof *wishes);
    take(&answers, wishes->token_label, sizeof wishes->token_label - 1);
    wishes->token.label = (which & 1U) != 0 ? wishes->token_label : NULL;
    wishes->token.serial = (which & 2U) != 0 ? "" : NULL;
    wishes->token.slot_id = (which & 4U) != 0 ? take_u8(&answers) : -1;
    memset(wishes->key_label, 'k', (which & 8U) != 0 ? 3 : sizeof wishes->key_label - 1);
    wishes->key.label = (which & 16U) != 0 ? wishes->key_label : NULL;
    wishes->key.id = (which & 32U) != 0 ? wishes->id : NULL;
    wishes->key.id_len = (which & 32U) != 0 ? take_u8(&answers) % (HSM_MAX_KEY_ID + 1) : 0;
    wishes->key.handle = (which & 64U) != 0 ? take_u8(&answers) : -1;
    wishes->key.algorithm = (hsm_algorithm)(take_u8(&answers) % 8 == 1 ? HSM_ECDSA_P256 : HSM_ALGORITHM_NONE);
    if ((which & 128U) != 0) {
        wishes->key.public_key = wishes->public_key;
        wishes->key.public_key_len = take_u8(&answers) % 3 == 0 ? 65 : 32;
    }
}

static void drive_parts(const struct wishes *wishes) {
    hsm_error error;
    hsm_token_info token;
    hsm_status status = hsm_token_find(&fake, &wishes->token, &token, &error);
    check_error(status, &error);
    if (status == HSM_OK) {
        check_token(&token);
        bool already;
        uint8_t pin[] = "1234";
        check_error(hsm_token_login(&fake, token.slot_id, 1, pin, 4, &already, &error), &error);
    }
    CK_OBJECT_HANDLE handle;
    hsm_key_info key;
    status = hsm_key_find(&fake, 1, &wishes->key, &handle, &key, &error);
    check_error(status, &error);
    if (status == HSM_OK) {
        check_key(&wishes->key, &key);
        check_error(hsm_key_check_mechanism(&fake, 1, key.algorithm, &error), &error);
    }
    hsm_outcome outcome;
    uint8_t signature[HSM_MAX_SIGNATURE];
    uint8_t message[3] = {1, 2, 3};
    hsm_algorithm algorithm = take_u8(&answers) % 2 == 0 ? HSM_ED25519 : HSM_ECDSA_SECP256K1;
    status = hsm_sign(&fake, 1, 1, algorithm, message, sizeof message, false, signature, &outcome);
    REQUIRE((uint32_t)status < HSM_STATUS_COUNT && hsm_call_name(outcome.call)[0] != '\0');
    REQUIRE(status != HSM_OK || hsm_normalize_s(algorithm, signature));
}

static void drive_engine(const struct wishes *wishes) {
    static const hsm_client_options options = {.slots = 2, .max_message = 16, .max_workers = 1, .coalesce_ns = 0};
    hsm_client *client = NULL;
    hsm_engine *engine = NULL;
    hsm_error error;
    REQUIRE(hsm_client_new(&options, &client, &error) == HSM_OK);
    hsm_engine_options start = {.module_path = HSMC_NOOP_MODULE,
                                .token = wishes->token,
                                .pin = (const uint8_t *)"1234",
                                .pin_len = 4,
                                .workers = 1,
                                .verify_every = 1};
    hsm_status status = hsm_engine_start(client, &start, &engine, &error);
    check_error(status, &error);
    REQUIRE((status == HSM_OK) == (engine != NULL));
    if (status == HSM_OK) {
        hsm_token_info token;
        hsm_engine_token(engine, &token);
        check_token(&token);
        REQUIRE(terminated(token.library, sizeof token.library) && terminated(token.quirks, sizeof token.quirks));
        hsm_key_info key;
        /* A module that does not sign proves no key, so this must fail, whatever it claims. */
        status = hsm_engine_add_key(engine, &wishes->key, &key, &error);
        check_error(status, &error);
        REQUIRE(status != HSM_OK);
        REQUIRE(hsm_engine_stop(engine, UINT64_MAX) == 0);
    }
    hsm_client_free(client);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    hsm_leaks before = hide_behind_the_no_op_module();
    answers = (struct input){data, size};
    struct wishes wishes;
    uint8_t how = take_u8(&answers);
    draw_wishes(&wishes);
    if (how % 8 == 0) {
        drive_engine(&wishes);
    } else {
        drive_parts(&wishes);
    }
    hsm_leaks leaks;
    hsm_leaks_read(&leaks);
    REQUIRE(memcmp(&leaks, &before, sizeof leaks) == 0);
    return 0;
}
