/* The latency histogram's buckets: in order, without gaps, and never wider than promised. */
#include "hist.h"

#include "harness.h"

static void small_values_have_a_bucket_each(void) {
    for (uint64_t ns = 0; ns < 16; ns++) {
        CHECK_INT(hsm_histogram_bucket(ns), ==, ns);
        CHECK_INT(hsm_histogram_upper((uint32_t)ns), ==, ns);
    }
}

static void buckets_follow_each_other_without_gaps(void) {
    for (uint32_t bucket = 0; bucket < HSM_HISTOGRAM_BUCKETS; bucket++) {
        uint64_t upper = hsm_histogram_upper(bucket);
        CHECK_INT(hsm_histogram_bucket(upper), ==, bucket);
        if (bucket + 1 < HSM_HISTOGRAM_BUCKETS) {
            CHECK_INT(hsm_histogram_bucket(upper + 1), ==, bucket + 1);
            CHECK_INT(hsm_histogram_upper(bucket + 1), >, upper);
        }
    }
}

static void no_bucket_is_wider_than_promised(void) {
    uint64_t lower = 0;
    for (uint32_t bucket = 0; bucket < HSM_HISTOGRAM_BUCKETS; bucket++) {
        uint64_t upper = hsm_histogram_upper(bucket);
        /* In thousandths: the header promises less than 6.3 %. */
        CHECK_INT((upper - lower) * 1000, <=, lower * 63);
        lower = upper + 1;
    }
}

static void the_range_is_as_long_as_promised(void) {
    CHECK_INT(hsm_histogram_upper(HSM_HISTOGRAM_BUCKETS - 1), >=, UINT64_C(1) << 40U);
    CHECK_INT(hsm_histogram_bucket(UINT64_C(1) << 40U), <, HSM_HISTOGRAM_BUCKETS - 1);
}

static void what_is_longer_falls_into_the_last_bucket(void) {
    uint64_t longest = hsm_histogram_upper(HSM_HISTOGRAM_BUCKETS - 1);
    CHECK_INT(hsm_histogram_bucket(longest + 1), ==, HSM_HISTOGRAM_BUCKETS - 1);
    CHECK_INT(hsm_histogram_bucket(UINT64_C(1) << 63U), ==, HSM_HISTOGRAM_BUCKETS - 1);
    CHECK_INT(hsm_histogram_bucket(UINT64_MAX), ==, HSM_HISTOGRAM_BUCKETS - 1);
}

static void longer_never_falls_into_an_earlier_bucket(void) {
    uint32_t before = 0;
    for (uint64_t ns = 1; ns < UINT64_C(1) << 62U; ns += ns / 37 + 1) {
        uint32_t bucket = hsm_histogram_bucket(ns);
        CHECK_INT(bucket, >=, before);
        CHECK_INT(bucket, <, HSM_HISTOGRAM_BUCKETS);
        if (bucket < HSM_HISTOGRAM_BUCKETS - 1) {
            CHECK_INT(hsm_histogram_upper(bucket), >=, ns);
        }
        before = bucket;
    }
}

/* A number outside the table must not shift by more bits than there are. */
static void a_bucket_outside_the_table_is_harmless(void) {
    uint64_t last = hsm_histogram_upper(HSM_HISTOGRAM_BUCKETS - 1);
    CHECK_INT(hsm_histogram_upper(HSM_HISTOGRAM_BUCKETS) >= last, ==, 1);
    CHECK_INT(hsm_histogram_upper(2000) >= last, ==, 1);
    CHECK_INT(hsm_histogram_upper(UINT32_MAX) >= last, ==, 1);
}

static const struct test tests[] = {
    TEST(small_values_have_a_bucket_each),           TEST(buckets_follow_each_other_without_gaps),
    TEST(no_bucket_is_wider_than_promised),          TEST(the_range_is_as_long_as_promised),
    TEST(what_is_longer_falls_into_the_last_bucket), TEST(longer_never_falls_into_an_earlier_bucket),
    TEST(a_bucket_outside_the_table_is_harmless),
};
HARNESS_MAIN(tests)
