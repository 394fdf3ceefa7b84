/* Where two things meet that each do well alone: an engine that is stopped while a call of its ladder hangs, and two
 * engines of one module of which one is mended while the other signs, starts and stops. All calls of the module pass
 * hooks that count who is inside, and hold one of them. */
#include <pthread.h>
#include <sched.h>
#include <time.h>

#include "engine.h"
#include "engine_fixture.h"

#define POINTS(X)                                                                                                      \
    X(C_SignInit, (CK_SESSION_HANDLE s, CK_MECHANISM * mechanism, CK_OBJECT_HANDLE key), (s, mechanism, key))          \
    X(C_Sign, (CK_SESSION_HANDLE s, CK_BYTE * data, CK_ULONG size, CK_BYTE * out, CK_ULONG * room),                    \
      (s, data, size, out, room))                                                                                      \
    X(C_OpenSession, (CK_SLOT_ID slot, CK_FLAGS flags, void *data, CK_NOTIFY notify, CK_SESSION_HANDLE *s),            \
      (slot, flags, data, notify, s))                                                                                  \
    X(C_CloseSession, (CK_SESSION_HANDLE s), (s))                                                                      \
    X(C_GetSessionInfo, (CK_SESSION_HANDLE s, CK_SESSION_INFO * info), (s, info))                                      \
    X(C_GetTokenInfo, (CK_SLOT_ID slot, CK_TOKEN_INFO * info), (slot, info))                                           \
    X(C_GetSlotList, (CK_BYTE present, CK_SLOT_ID * list, CK_ULONG * count), (present, list, count))                   \
    X(C_Login, (CK_SESSION_HANDLE s, CK_USER_TYPE user, CK_UTF8CHAR * pin, CK_ULONG size), (s, user, pin, size))       \
    X(C_FindObjectsInit, (CK_SESSION_HANDLE s, CK_ATTRIBUTE * wanted, CK_ULONG count), (s, wanted, count))             \
    X(C_FindObjects, (CK_SESSION_HANDLE s, CK_OBJECT_HANDLE * found, CK_ULONG most, CK_ULONG * count),                 \
      (s, found, most, count))                                                                                         \
    X(C_FindObjectsFinal, (CK_SESSION_HANDLE s), (s))                                                                  \
    X(C_GetAttributeValue, (CK_SESSION_HANDLE s, CK_OBJECT_HANDLE object, CK_ATTRIBUTE * asked, CK_ULONG count),       \
      (s, object, asked, count))                                                                                       \
    X(C_Initialize, (void *arguments), (arguments))                                                                    \
    X(C_Finalize, (void *reserved), (reserved))

enum point {
#define X(name, parameters, arguments) POINT_##name,
    POINTS(X)
#undef X
        POINT_COUNT
};

static const char *const names[] = {
#define X(name, parameters, arguments) #name,
    POINTS(X)
#undef X
};

static struct {
    hsm_module *module;
    CK_FUNCTION_LIST *real;
    CK_FUNCTION_LIST list;
    _Atomic int held; /* a point, or -1 */
    _Atomic bool arrived;
    _Atomic unsigned fail_sign; /* so many calls of C_Sign fail with `ckr` */
    _Atomic CK_RV ckr;
    _Atomic unsigned logins, wrong_pins, initialized;
    _Atomic int inside;
    _Atomic unsigned finalized_beside; /* C_Finalize with another call inside */
} hooks;

static void pass(enum point point) {
    if (atomic_load(&hooks.held) == (int)point) {
        atomic_store(&hooks.arrived, true);
    }
    while (atomic_load(&hooks.held) == (int)point) {
        (void)sched_yield();
    }
}

#define X(name, parameters, arguments)                                                                                 \
    static CK_RV through_##name parameters {                                                                           \
        int others = atomic_fetch_add(&hooks.inside, 1);                                                               \
        if (POINT_##name == POINT_C_Finalize && others != 0) {                                                         \
            atomic_fetch_add(&hooks.finalized_beside, 1);                                                              \
        }                                                                                                              \
        pass(POINT_##name);                                                                                            \
        CK_RV rv = hooks.real->name arguments;                                                                         \
        atomic_fetch_sub(&hooks.inside, 1);                                                                            \
        return rv;                                                                                                     \
    }
POINTS(X)
#undef X

static CK_RV login(CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_UTF8CHAR *pin, CK_ULONG size) {
    atomic_fetch_add(&hooks.logins, 1);
    CK_RV rv = through_C_Login(session, user, pin, size);
    atomic_fetch_add(&hooks.wrong_pins, size == 4 && memcmp(pin, "1234", 4) == 0 ? 0U : 1U);
    return rv;
}

static CK_RV sign(CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG size, CK_BYTE *out, CK_ULONG *room) {
    CK_RV rv = through_C_Sign(session, data, size, out, room);
    unsigned left = atomic_load(&hooks.fail_sign);
    while (left > 0 && !atomic_compare_exchange_weak(&hooks.fail_sign, &left, left - 1)) {
    }
    return left > 0 ? atomic_load(&hooks.ckr) : rv;
}

static CK_RV initialize(void *arguments) {
    atomic_fetch_add(&hooks.initialized, 1);
    return through_C_Initialize(arguments);
}

static void hooks_begin(void) {
    hsm_error error = {.status = HSM_OK};
    REQUIRE_OK(hsm_module_acquire(HSMC_NOOP_MODULE, NULL, &hooks.module, &error), error);
    hooks.real = hooks.module->p11;
    hooks.list = *hooks.real;
#define X(name, parameters, arguments) hooks.list.name = through_##name;
    POINTS(X)
#undef X
    hooks.list.C_Login = login;
    hooks.list.C_Sign = sign;
    hooks.list.C_Initialize = initialize;
    hooks.module->p11 = &hooks.list;
    atomic_store(&hooks.held, -1);
    atomic_store(&hooks.arrived, false);
    atomic_store(&hooks.fail_sign, 0);
    atomic_store(&hooks.logins, 0);
    atomic_store(&hooks.wrong_pins, 0);
    atomic_store(&hooks.initialized, 0);
    atomic_store(&hooks.finalized_beside, 0);
}

static void hooks_end(void) {
    hooks.module->p11 = hooks.real;
    hsm_module_release(hooks.module);
    hooks.module = NULL;
}

/* ---- a stop at each point of the ladder ---- */

/* Returns whether the ladder came to this point after a C_Sign that failed with `ckr`. */
static bool stop_at(enum point point, CK_RV ckr) {
    hooks_begin();
    struct fixture f = noop_begin(2);
    (void)finish(&f, submit_text(&f, SIGNED, 0));
    atomic_store(&hooks.ckr, ckr);
    atomic_store(&hooks.fail_sign, 3);
    atomic_store(&hooks.held, (int)point);
    uint32_t slot = submit_text(&f, SIGNED, 0);
    hsm_completion done = {.slot = UINT32_MAX};
    while (!atomic_load(&hooks.arrived) && hsm_client_next(f.client, &done) == 0) {
        (void)sched_yield();
    }
    bool reached = atomic_load(&hooks.arrived);
    if (!reached) {
        atomic_store(&hooks.held, -1);
    }
    uint32_t left = hsm_engine_stop(f.engine, reached ? 10 * MILLISECOND : PATIENCE);
    unsigned logins = atomic_load(&hooks.logins);
    if (reached) {
        CHECK_INT(left, >=, 1);
        atomic_store(&hooks.held, -1);
        (void)finish(&f, slot);
        fixture_left(&f);
    } else {
        CHECK_INT(left, ==, 0);
        hsm_client_release(f.client, done.slot);
        hsm_client_free(f.client);
    }
    /* A login that is under way ends, with the PIN; none begins. */
    bool logging_in = point == POINT_C_OpenSession || point == POINT_C_GetTokenInfo;
    if (atomic_load(&hooks.logins) > logins + (logging_in ? 1U : 0U)) {
        FAIL("a login after a stop in %s, after 0x%lx", names[point], ckr);
    }
    CHECK_INT(atomic_load(&hooks.wrong_pins), ==, 0);
    CHECK_INT(atomic_load(&hooks.inside), ==, 0);
    hooks_end();
    return reached;
}

static void a_stop_at_each_point_of_the_ladder(void) {
    static const CK_RV ways[] = {CKR_CRYPTOKI_NOT_INITIALIZED, CKR_USER_NOT_LOGGED_IN, CKR_SESSION_HANDLE_INVALID,
                                 CKR_DEVICE_ERROR, CKR_KEY_HANDLE_INVALID};
    for (int point = 0; point < POINT_COUNT; point++) {
        bool reached = false;
        for (size_t i = 0; i < COUNT_OF(ways); i++) {
            reached = stop_at((enum point)point, ways[i]) || reached;
        }
        if (!reached) {
            FAIL("the ladder never came to %s", names[point]);
        }
    }
}

/* ---- two engines of one module ---- */

static _Atomic bool over;

/* Signs, with faults in between; each request ends. */
static void *mended(void *argument) {
    struct fixture *f = argument;
    static const CK_RV ways[] = {CKR_CRYPTOKI_NOT_INITIALIZED, CKR_USER_NOT_LOGGED_IN, CKR_DEVICE_ERROR};
    for (unsigned round = 0; !atomic_load(&over); round++) {
        atomic_store(&hooks.ckr, ways[round % COUNT_OF(ways)]);
        atomic_store(&hooks.fail_sign, round % 4);
        uint32_t slots[16];
        for (size_t i = 0; i < COUNT_OF(slots); i++) {
            slots[i] = submit_text(f, SIGNED, 0);
        }
        for (size_t i = 0; i < COUNT_OF(slots); i++) {
            (void)finish(f, UINT32_MAX);
        }
    }
    return NULL;
}

static void one_engine_is_mended_while_another_starts_signs_and_stops(void) {
    hooks_begin();
    struct fixture first = noop_begin(2);
    pthread_t thread;
    atomic_store(&over, false);
    REQUIRE(pthread_create(&thread, NULL, mended, &first) == 0);
    uint64_t begun = hsm_now_ns();
    unsigned starts = 0;
    while (starts < 50 && patient(begun)) {
        hsm_client *client = new_client(&small_client);
        hsm_engine_options options = noop_options(2);
        hsm_engine *engine = NULL;
        hsm_error error = {.status = HSM_OK};
        /* A start may meet the moment in which the other one initializes the module again. */
        if (hsm_engine_start(client, &options, &engine, &error) == HSM_OK) {
            struct fixture second = {.client = client, .engine = engine};
            hsm_key_selector selector = {.label = "noop-key", .handle = -1};
            if (hsm_engine_add_key(engine, &selector, &second.key, &error) == HSM_OK) {
                (void)finish(&second, submit_text(&second, SIGNED, 0));
            }
            CHECK_INT(hsm_engine_stop(engine, PATIENCE), ==, 0);
            starts++;
        }
        hsm_client_free(client);
    }
    atomic_store(&over, true);
    (void)pthread_join(thread, NULL);
    CHECK_INT(starts, ==, 50);
    CHECK_INT(atomic_load(&hooks.finalized_beside), ==, 0);
    CHECK_INT(atomic_load(&hooks.wrong_pins), ==, 0);
    atomic_store(&hooks.fail_sign, 0);
    CHECK_STATUS(finish(&first, submit_text(&first, SIGNED, 0)).status, HSM_OK);
    printf("# %u starts beside %u initializations\n", starts, atomic_load(&hooks.initialized));
    fixture_end(&first);
    hooks_end();
}

/* Each of them initializes the module again under the other one, which goes on. */
static void two_engines_are_mended_at_once(void) {
    hooks_begin();
    struct fixture engines[] = {noop_begin(2), noop_begin(2)};
    pthread_t threads[COUNT_OF(engines)];
    unsigned initialized = atomic_load(&hooks.initialized);
    atomic_store(&over, false);
    for (size_t i = 0; i < COUNT_OF(engines); i++) {
        REQUIRE(pthread_create(&threads[i], NULL, mended, &engines[i]) == 0);
    }
    uint64_t begun = hsm_now_ns();
    while (patient(begun) && atomic_load(&hooks.initialized) < initialized + 20) {
        (void)usleep(1000);
    }
    CHECK_INT(atomic_load(&hooks.initialized), >=, initialized + 20);
    atomic_store(&over, true);
    for (size_t i = 0; i < COUNT_OF(engines); i++) {
        (void)pthread_join(threads[i], NULL);
    }
    CHECK_INT(atomic_load(&hooks.finalized_beside), ==, 0);
    CHECK_INT(atomic_load(&hooks.wrong_pins), ==, 0);
    atomic_store(&hooks.fail_sign, 0);
    for (size_t i = 0; i < COUNT_OF(engines); i++) {
        CHECK_STATUS(finish(&engines[i], submit_text(&engines[i], SIGNED, PATIENCE)).status, HSM_OK);
    }
    for (size_t i = 0; i < COUNT_OF(engines); i++) {
        fixture_end(&engines[i]);
    }
    hooks_end();
}

static const struct test tests[] = {
    TEST(a_stop_at_each_point_of_the_ladder),
    TEST(one_engine_is_mended_while_another_starts_signs_and_stops),
    TEST(two_engines_are_mended_at_once),
};
HARNESS_MAIN(tests)
