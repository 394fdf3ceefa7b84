/* The signature cache: order, eviction, single-flight, and that nothing of it stays in freed memory. */
#include <malloc.h>

#include "harness.h"

#define KEY 1U

/* ---- a look into memory that is freed ---- */

/* The sanitizers have an allocator of their own, so only a plain build looks. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define WATCHES_FREE 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define WATCHES_FREE 0
#endif
#endif
#ifndef WATCHES_FREE
#define WATCHES_FREE 1
#endif

#if WATCHES_FREE
static const char needle[] = "secret-8d1f";
/* Volatile: the compiler knows that the real free changes no variable of ours, and leaves out a strdup that is only
 * freed again. */
static volatile bool watching;
static volatile unsigned freed;
static volatile unsigned found;

/* glibc's own, under the name that stays when free is replaced. */
extern void __libc_free(void *memory); // NOLINT(bugprone-reserved-identifier)

void free(void *memory) {
    if (watching && memory != NULL) {
        freed = freed + 1;
        found = found + (memmem(memory, malloc_usable_size(memory), needle, sizeof needle - 1) != NULL ? 1U : 0U);
    }
    __libc_free(memory);
}
#endif

/* ---- shorthand ---- */

static hsm_cache *make_cache(uint64_t capacity) {
    hsm_cache *cache = NULL;
    CHECK_STATUS(hsm_cache_new(capacity, &cache), HSM_OK);
    REQUIRE(cache != NULL);
    return cache;
}

struct answer {
    enum hsm_cache_result result;
    uint64_t leader;
    uint64_t entry;
    uint32_t signature_len;
    uint8_t signature[HSM_MAX_SIGNATURE];
};

static struct answer look(hsm_cache *cache, uint32_t key, hsm_algorithm algorithm, const void *message, size_t length) {
    struct answer answer;
    memset(&answer, 0, sizeof answer);
    answer.result = hsm_cache_lookup(cache, key, algorithm, message, length, answer.signature, &answer.signature_len,
                                     &answer.leader, &answer.entry);
    return answer;
}

static struct answer look_text(hsm_cache *cache, const char *text) {
    return look(cache, KEY, HSM_ED25519, text, strlen(text));
}

static void fill(hsm_cache *cache, uint64_t entry, const char *text) {
    uint8_t signature[HSM_MAX_SIGNATURE] = {0};
    (void)snprintf((char *)signature, sizeof signature, "of %s", text);
    hsm_cache_fill(cache, entry, signature, sizeof signature, 1);
}

/* Look `text` up, which is not held, and fill it. */
static void put(hsm_cache *cache, const char *text) {
    struct answer answer = look_text(cache, text);
    CHECK_INT(answer.result, ==, HSM_CACHE_MISS);
    if (answer.result == HSM_CACHE_MISS) {
        fill(cache, answer.entry, text);
    }
}

static void check_held(hsm_cache *cache, const char *text) {
    struct answer answer = look_text(cache, text);
    char expected[HSM_MAX_SIGNATURE];
    (void)snprintf(expected, sizeof expected, "of %s", text);
    CHECK_INT(answer.result, ==, HSM_CACHE_HIT);
    CHECK_INT(answer.signature_len, ==, HSM_MAX_SIGNATURE);
    CHECK_TEXT((const char *)answer.signature, expected);
}

static void check_absent(hsm_cache *cache, const char *text) {
    struct answer answer = look_text(cache, text);
    CHECK_INT(answer.result, ==, HSM_CACHE_MISS);
    if (answer.result == HSM_CACHE_MISS) {
        hsm_cache_abandon(cache, answer.entry);
    }
}

static hsm_cache_stats stats_of(const hsm_cache *cache) {
    hsm_cache_stats stats;
    hsm_cache_stats_read(cache, &stats);
    return stats;
}

/* ---- tests ---- */

static void many_entries_share_buckets(void) {
    hsm_cache *cache = make_cache(5000);
    uint64_t empty = stats_of(cache).bytes;
    for (uint32_t i = 0; i < 12000; i++) {
        struct answer answer = look(cache, KEY, HSM_ED25519, &i, sizeof i);
        REQUIRE(answer.result == HSM_CACHE_MISS);
        uint8_t signature[HSM_MAX_SIGNATURE];
        memset(signature, (int)(i % 251), sizeof signature);
        hsm_cache_fill(cache, answer.entry, signature, sizeof signature, 1);
    }
    CHECK_INT(stats_of(cache).entries, ==, 5000);
    CHECK_INT(stats_of(cache).evictions, ==, 7000);
    for (uint32_t i = 7000; i < 12000; i++) {
        struct answer answer = look(cache, KEY, HSM_ED25519, &i, sizeof i);
        CHECK_INT(answer.result, ==, HSM_CACHE_HIT);
        CHECK_INT(answer.signature[63], ==, i % 251);
    }
    hsm_cache_clear(cache);
    CHECK_INT(stats_of(cache).entries, ==, 0);
    CHECK_INT(stats_of(cache).bytes, ==, empty);
    hsm_cache_free(cache);
}

static void what_is_not_to_be_kept_is_not(void) {
    hsm_cache *cache = make_cache(4);
    struct answer first = look_text(cache, "m");
    uint8_t signature[HSM_MAX_SIGNATURE + 1] = {1};
    hsm_cache_fill(cache, first.entry, signature, HSM_MAX_SIGNATURE, 0);
    CHECK_INT(stats_of(cache).entries, ==, 0);
    check_absent(cache, "m");
    /* Longer than a signature can be: not kept either, and nothing overwritten. */
    first = look_text(cache, "m");
    hsm_cache_fill(cache, first.entry, signature, sizeof signature, 1);
    check_absent(cache, "m");
    hsm_cache_free(cache);
}

static void freeing_takes_detached_requests_too(void) {
    hsm_cache *cache = make_cache(4);
    (void)look_text(cache, "in flight");
    hsm_cache_clear(cache);
    hsm_cache_free(cache); /* the harness sees whether all is gone */
    hsm_cache_free(NULL);
}

static void an_impossible_capacity_is_refused(void) {
    hsm_cache *cache = (hsm_cache *)&cache;
    CHECK_STATUS(hsm_cache_new(UINT64_MAX, &cache), HSM_BAD_ARGUMENT);
    CHECK(cache == NULL);
}

static void an_empty_message_has_its_place(void) {
    hsm_cache *cache = make_cache(2);
    put(cache, "");
    check_held(cache, "");
    /* Bindings give NULL for an empty buffer. */
    CHECK_INT(look(cache, KEY, HSM_ED25519, NULL, 0).result, ==, HSM_CACHE_HIT);
    CHECK_INT(look(cache, KEY + 1, HSM_ED25519, NULL, 0).result, ==, HSM_CACHE_MISS);
    hsm_cache_free(cache);
}

static void the_bytes_are_counted(void) {
    hsm_cache *cache = make_cache(2);
    uint64_t empty = stats_of(cache).bytes;
    CHECK_INT(empty, >, 0);
    uint8_t large[5000] = {0};
    struct answer first = look(cache, KEY, HSM_ED25519, large, sizeof large);
    uint64_t one = stats_of(cache).bytes;
    CHECK_INT(one - empty, >=, sizeof large + HSM_MAX_SIGNATURE);
    CHECK_INT(one - empty, <=, sizeof large + 256);
    hsm_cache_abandon(cache, first.entry);
    CHECK_INT(stats_of(cache).bytes, ==, empty);
    hsm_cache_free(cache);
}

#if WATCHES_FREE
static void nothing_stays_in_freed_memory(void) {
    static const char *const texts[] = {"secret-8d1f evicted", "secret-8d1f cleared",   "secret-8d1f abandoned",
                                        "secret-8d1f freed",   "secret-8d1f in flight", "secret-8d1f detached"};
    /* The needle is found when it is there. */
    char *volatile plain = strdup(texts[0]);
    freed = found = 0;
    watching = true;
    free(plain);
    watching = false;
    CHECK_INT(found, ==, 1);

    hsm_cache *cache = make_cache(1);
    freed = found = 0;
    watching = true;
    put(cache, texts[0]);
    put(cache, texts[1]); /* evicts the first */
    struct answer detached = look_text(cache, texts[5]);
    hsm_cache_clear(cache);
    hsm_cache_abandon(cache, detached.entry);
    struct answer abandoned = look_text(cache, texts[2]);
    hsm_cache_abandon(cache, abandoned.entry);
    put(cache, texts[3]);
    (void)look_text(cache, texts[4]);
    hsm_cache_free(cache);
    watching = false;
    CHECK_INT(freed, >=, 8);
    CHECK_INT(found, ==, 0);
}
#endif

static const struct test tests[] = {
    TEST(many_entries_share_buckets),          TEST(what_is_not_to_be_kept_is_not),
    TEST(freeing_takes_detached_requests_too), TEST(an_impossible_capacity_is_refused),
    TEST(an_empty_message_has_its_place),      TEST(the_bytes_are_counted),
#if WATCHES_FREE
    TEST(nothing_stays_in_freed_memory),
#endif
};
HARNESS_MAIN(tests)
