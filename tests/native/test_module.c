/* Loading modules: which files are none, which call initializes one, and when it is finalized. */
#include "engine.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sodium.h>
#include <sys/stat.h>

#include "harness.h"
#include "intercept.h"

static void check_refused(const char *path, hsm_status expected) {
    hsm_module *module = (hsm_module *)&module;
    hsm_error error;
    memset(&error, 0, sizeof error);
    CHECK_STATUS(hsm_module_acquire(path, NULL, &module, &error), expected);
    CHECK(module == NULL);
    CHECK_STATUS(error.status, expected);
    CHECK(error.detail[0] != '\0');
    CHECK_STATUS(hsm_module_acquire(path, NULL, &module, NULL), expected);
}

static void a_path_that_is_no_module_is_refused(void) {
    check_refused("/nonexistent/libnothing.so", HSM_MODULE_MISSING);
    check_refused("", HSM_MODULE_MISSING);
    check_refused("/", HSM_MODULE_INVALID);
    check_refused("/dev/null", HSM_MODULE_INVALID);
    check_refused("/proc/self/exe", HSM_MODULE_INVALID); /* an ELF file, but a program */
    char too_long[PATH_MAX + 10];
    memset(too_long, 'x', sizeof too_long - 1);
    too_long[0] = '/';
    too_long[sizeof too_long - 1] = '\0';
    check_refused(too_long, HSM_MODULE_MISSING);
}

static void a_file_that_is_no_library_is_refused(void) {
    char path[] = "/tmp/hsmcore-test-XXXXXX";
    int fd = mkstemp(path);
    REQUIRE(fd >= 0);
    static const char text[] = "\177ELF, or so it says";
    CHECK_INT(write(fd, text, sizeof text), ==, sizeof text);
    (void)close(fd);
    check_refused(path, HSM_MODULE_INVALID);
    CHECK_INT(truncate(path, 0), ==, 0);
    check_refused(path, HSM_MODULE_INVALID);
    CHECK_INT(chmod(path, 0), ==, 0);
    if (geteuid() != 0) { /* root may read everything */
        check_refused(path, HSM_MODULE_MISSING);
    }
    CHECK_INT(unlink(path), ==, 0);
}

static void a_library_that_is_no_module_is_refused(void) {
    /* libsodium, wherever it is: a good library without C_GetFunctionList. */
    int (*function)(void) = sodium_init;
    void *address;
    memcpy(&address, &function, sizeof address);
    Dl_info info;
    REQUIRE(dladdr(address, &info) != 0);
    char path[PATH_MAX];
    REQUIRE(realpath(info.dli_fname, path) != NULL);
    hsm_module *module;
    hsm_error error;
    CHECK_STATUS(hsm_module_acquire(path, NULL, &module, &error), HSM_MODULE_INVALID);
    CHECK(strstr(error.detail, "libsodium") != NULL);
}

static hsm_module *acquire(const char *path) {
    hsm_module *module = NULL;
    hsm_error error = {.status = HSM_OK};
    REQUIRE_OK(hsm_module_acquire(path, NULL, &module, &error), error);
    REQUIRE(module != NULL && module->p11 != NULL);
    return module;
}

static void *release(void *module) {
    hsm_module_release(module);
    return NULL;
}

static void *acquire_in_thread(void *path) {
    return acquire(path);
}

static CK_RV ask(const CK_FUNCTION_LIST *p11) {
    CK_INFO info;
    return p11->C_GetInfo(&info);
}

static void it_is_initialized_once_and_finalized_last(void) {
    hsm_module *first = acquire(HSMC_NOOP_MODULE);
    const CK_FUNCTION_LIST *p11 = first->p11;
    CHECK_INT(ask(p11), ==, CKR_OK);
    hsm_module *second = acquire(HSMC_NOOP_MODULE);
    CHECK(first == second);
    CHECK_INT(first->users, ==, 2);
    hsm_module_release(first);
    CHECK_INT(ask(p11), ==, CKR_OK);
    hsm_module_release(second);
    CHECK_INT(ask(p11), ==, CKR_CRYPTOKI_NOT_INITIALIZED); /* still mapped, since several modules need that */
    hsm_module *third = acquire(HSMC_NOOP_MODULE);
    CHECK_INT(ask(third->p11), ==, CKR_OK);
    hsm_module_release(third);
    hsm_module_release(NULL);
}

static void other_code_gets_the_list_by_which_it_was_initialized(void) {
    CHECK(hsm_module_functions(HSMC_NOOP_MODULE) == NULL);
    CHECK(hsm_module_functions("/nonexistent/libnothing.so") == NULL);
    hsm_module *module = acquire(HSMC_NOOP_MODULE);
    CHECK(hsm_module_functions(HSMC_NOOP_MODULE) == module->p11);
    hsm_module_release(module);
    CHECK(hsm_module_functions(HSMC_NOOP_MODULE) == NULL);
}

static void one_file_is_one_module_under_any_name(void) {
    char folder[] = "/tmp/hsmcore-test-XXXXXX";
    REQUIRE(mkdtemp(folder) != NULL);
    char link[PATH_MAX];
    (void)snprintf(link, sizeof link, "%s/alias.so", folder);
    REQUIRE(symlink(HSMC_NOOP_MODULE, link) == 0);
    hsm_module *direct = acquire(HSMC_NOOP_MODULE);
    hsm_module *alias = acquire(link);
    CHECK(direct == alias);
    hsm_module_release(alias);
    hsm_module_release(direct);
    CHECK_INT(unlink(link), ==, 0);
    CHECK_INT(rmdir(folder), ==, 0);
}

static void other_arguments_are_refused_while_it_is_in_use(void) {
    hsm_module *module = acquire(HSMC_NOOP_MODULE);
    hsm_module *other = (hsm_module *)&other;
    hsm_error error;
    CHECK_STATUS(hsm_module_acquire(HSMC_NOOP_MODULE, "slot=1", &other, &error), HSM_BAD_ARGUMENT);
    CHECK(other == NULL);
    CHECK_INT(module->users, ==, 1);
    hsm_module_release(module);
    /* And what the module itself refuses is said with its own words. */
    CHECK_STATUS(hsm_module_acquire(HSMC_NOOP_MODULE, "slot=1", &other, &error), HSM_REQUEST_REJECTED);
    CHECK_INT(error.ckr, ==, CKR_ARGUMENTS_BAD);
    CHECK_TEXT(error.call, "C_Initialize");
    module = acquire(HSMC_NOOP_MODULE); /* a refusal leaves no trace */
    hsm_module_release(module);
}

static void a_module_that_others_initialized_is_refused(void) {
    void *library = dlopen(HSMC_NOOP_MODULE, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    REQUIRE(library != NULL);
    CK_C_GetFunctionList get_list;
    void *symbol = dlsym(library, "C_GetFunctionList");
    memcpy(&get_list, &symbol, sizeof get_list);
    CK_FUNCTION_LIST *p11 = NULL;
    REQUIRE(get_list != NULL && get_list(&p11) == CKR_OK);
    REQUIRE(p11->C_Initialize(NULL) == CKR_OK);

    hsm_module *module = (hsm_module *)&module;
    hsm_error error;
    CHECK_STATUS(hsm_module_acquire(HSMC_NOOP_MODULE, NULL, &module, &error), HSM_REQUEST_REJECTED);
    CHECK(module == NULL);
    CHECK_INT(error.ckr, ==, CKR_CRYPTOKI_ALREADY_INITIALIZED);
    CHECK_TEXT(error.call, "C_Initialize");
    CHECK_INT(ask(p11), ==, CKR_OK); /* it is not ours to finalize */
    CHECK_INT(p11->C_Finalize(NULL), ==, CKR_OK);
    module = acquire(HSMC_NOOP_MODULE);
    hsm_module_release(module);
    (void)dlclose(library);
}

static void a_lost_initialization_can_be_made_again(void) {
    hsm_module *module = acquire(HSMC_NOOP_MODULE);
    CHECK_INT(module->p11->C_Finalize(NULL), ==, CKR_OK); /* other code did */
    hsm_error error = {.status = HSM_OK};
    CHECK_STATUS(hsm_module_reinitialize(module, &error), HSM_OK);
    CHECK_INT(ask(module->p11), ==, CKR_OK);
    CHECK_STATUS(hsm_module_reinitialize(module, &error), HSM_OK);
    CHECK_INT(ask(module->p11), ==, CKR_OK);
    hsm_module_release(module);
}

/* ---- a module that hangs, a module that is claimed ---- */

static void *reinitialize(void *argument) {
    hsm_error error = {.status = HSM_OK};
    CHECK(hsm_module_claim(argument));
    CHECK_STATUS(hsm_module_reinitialize(argument, &error), HSM_OK);
    hsm_module_disclaim(argument);
    return NULL;
}

static void *use_other_module(void *path) {
    hsm_module *module = acquire(path);
    hsm_engine engine = {.module = module};
    hsm_engine_join(&engine);
    CHECK(hsm_module_claim(module));
    hsm_module_disclaim(module);
    hsm_engine_leave(&engine);
    hsm_module_release(module);
    return NULL;
}

static void a_module_that_hangs_holds_up_no_other(void) {
    char path[] = "/tmp/hsmcore-test-XXXXXX";
    copy_module(path);
    intercept_begin(HSMC_NOOP_MODULE);
    atomic_store(&intercept.hold_finalize, true);
    pthread_t hangs;
    pthread_t other;
    REQUIRE(pthread_create(&hangs, NULL, reinitialize, intercept.module) == 0);
    intercept_await(&intercept.inside_finalize, 1);
    REQUIRE(pthread_create(&other, NULL, use_other_module, path) == 0);
    bool waited = !ends_soon(other);
    CHECK(!waited);
    atomic_store(&intercept.hold_finalize, false);
    (void)pthread_join(hangs, NULL);
    if (waited) {
        (void)pthread_join(other, NULL);
    }
    intercept_end();
    CHECK_INT(unlink(path), ==, 0);
}

static _Atomic unsigned joined;

static void *join(void *engine) {
    hsm_engine_join(engine);
    atomic_store(&joined, 1);
    return NULL;
}

static void no_engine_joins_a_module_that_is_claimed(void) {
    hsm_module *module = acquire(HSMC_NOOP_MODULE);
    hsm_engine first = {.module = module};
    hsm_engine second = {.module = module};
    hsm_engine_join(&first);
    atomic_store(&joined, 0);
    REQUIRE(hsm_module_claim(module));
    CHECK(!hsm_module_claim(module));
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, join, &second) == 0);
    hsm_error error = {.status = HSM_OK};
    for (int i = 0; i < 100; i++) {
        CHECK_STATUS(hsm_module_reinitialize(module, &error), HSM_OK);
        CHECK_INT(atomic_load(&joined), ==, 0);
        intercept_pause();
    }
    hsm_module_disclaim(module);
    (void)pthread_join(thread, NULL);
    CHECK(module->first == &second && second.next == &first);
    hsm_engine_leave(&first);
    hsm_engine_leave(&second);
    CHECK(module->first == NULL);
    hsm_module_release(module);
}

/* Between the end of the last user and C_Finalize another one may come. */
static void a_user_that_comes_during_c_finalize_initializes_it_again(void) {
    intercept_begin(HSMC_NOOP_MODULE);
    hsm_module *module = intercept.module;
    atomic_store(&intercept.hold_finalize, true);
    pthread_t last;
    pthread_t next;
    REQUIRE(pthread_create(&last, NULL, release, module) == 0);
    intercept_await(&intercept.inside_finalize, 1);
    static char path[] = HSMC_NOOP_MODULE;
    REQUIRE(pthread_create(&next, NULL, acquire_in_thread, path) == 0);
    while (atomic_load(&module->users) == 0) {
        intercept_pause();
    }
    atomic_store(&intercept.hold_finalize, false);
    (void)pthread_join(last, NULL);
    void *again = NULL;
    (void)pthread_join(next, &again);
    CHECK(again == module);
    CHECK_INT(ask(module->p11), ==, CKR_OK);
    intercept_end();
}

#define THREADS 4
#define ROUNDS 300

static void *take_turns(void *argument) {
    (void)argument;
    for (int i = 0; i < ROUNDS; i++) {
        hsm_module *module = NULL;
        hsm_error error = {.status = HSM_OK};
        hsm_status status = hsm_module_acquire(HSMC_NOOP_MODULE, NULL, &module, &error);
        CHECK_STATUS(status, HSM_OK);
        if (status == HSM_OK) {
            CHECK_INT(ask(module->p11), ==, CKR_OK);
            hsm_module_release(module);
        }
    }
    return NULL;
}

static void threads_may_take_and_release_it_at_once(void) {
    pthread_t threads[THREADS];
    for (size_t i = 0; i < THREADS; i++) {
        REQUIRE(pthread_create(&threads[i], NULL, take_turns, NULL) == 0);
    }
    for (size_t i = 0; i < THREADS; i++) {
        (void)pthread_join(threads[i], NULL);
    }
}

static const struct test tests[] = {
    TEST(a_path_that_is_no_module_is_refused),
    TEST(a_file_that_is_no_library_is_refused),
    TEST(a_library_that_is_no_module_is_refused),
    TEST(it_is_initialized_once_and_finalized_last),
    TEST(other_code_gets_the_list_by_which_it_was_initialized),
    TEST(one_file_is_one_module_under_any_name),
    TEST(other_arguments_are_refused_while_it_is_in_use),
    TEST(a_module_that_others_initialized_is_refused),
    TEST(a_lost_initialization_can_be_made_again),
    TEST(threads_may_take_and_release_it_at_once),
    TEST(a_module_that_hangs_holds_up_no_other),
    TEST(no_engine_joins_a_module_that_is_claimed),
    TEST(a_user_that_comes_during_c_finalize_initializes_it_again),
};
HARNESS_MAIN(tests)
