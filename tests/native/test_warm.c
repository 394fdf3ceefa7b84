/* When a thread keeps a processor awake: beside a fast module, while requests come one at a time. What it costs is
 * measured elsewhere; here is what it does that for. */
#include "engine.h"
#include "engine_fixture.h"
#include "intercept.h"

#define MICROSECOND UINT64_C(1000)

static void it_pays_for_a_lone_request_to_a_fast_module(void) {
    static const struct {
        uint64_t module_ns;
        uint32_t open;
        bool pays;
    } rows[] = {
        {0, 0, true},
        {100 * MICROSECOND, 1, true},
        {300 * MICROSECOND - 1, 1, true},
        {300 * MICROSECOND, 1, false},
        {114 * MILLISECOND, 0, false},
        {10 * MICROSECOND, 2, false},
        {UINT64_MAX, UINT32_MAX, false},
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        CHECK_INT(hsm_warming_pays(rows[i].module_ns, rows[i].open), ==, rows[i].pays);
    }
}

static CK_RV slow_sign(CK_SESSION_HANDLE session, CK_BYTE *data, CK_ULONG length, CK_BYTE *signature,
                       CK_ULONG *signature_len) {
    (void)usleep(1000);
    return intercept.real->C_Sign(session, data, length, signature, signature_len);
}

/* A lone caller of a slow device: the thread is never asked to poll. */
static void no_processor_is_kept_awake_for_a_slow_module(void) {
    intercept_begin(HSMC_NOOP_MODULE);
    intercept.list.C_Sign = slow_sign;
    hsm_engine_options options = noop_options(2);
    options.warm_ns = SECOND;
    struct fixture f = fixture_begin(&small_client, &options, "noop-key");
    for (int i = 0; i < 20; i++) {
        CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_OK);
    }
    CHECK_INT(atomic_load(&f.engine->last_answer_ns), ==, 0);
    CHECK_INT(atomic_load(&f.engine->warm), ==, 0);
    fixture_end(&f);
    intercept_end();
}

/* The same caller of a fast one: at least one of many answers is as fast as the module, however busy the machine is. */
static void it_is_for_a_fast_one(void) {
    hsm_engine_options options = noop_options(2);
    options.warm_ns = SECOND;
    struct fixture f = fixture_begin(&small_client, &options, "noop-key");
    uint64_t begun = hsm_now_ns();
    bool possible = sysconf(_SC_NPROCESSORS_ONLN) > 1;
    while (possible && atomic_load(&f.engine->last_answer_ns) == 0 && patient(begun)) {
        CHECK_STATUS(finish(&f, submit_text(&f, SIGNED, 0)).status, HSM_OK);
    }
    CHECK((atomic_load(&f.engine->last_answer_ns) != 0) == possible);
    fixture_end(&f);
}

static const struct test tests[] = {
    TEST(it_pays_for_a_lone_request_to_a_fast_module),
    TEST(no_processor_is_kept_awake_for_a_slow_module),
    TEST(it_is_for_a_fast_one),
};
HARNESS_MAIN(tests)
