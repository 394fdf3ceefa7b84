/* The cache against a model of it: a list in order of use, and one of what is in flight. */
#include <hsmcore/hsmcore.h>

#include "input.h"

#define QUESTIONS 64U /* 2 keys, 2 algorithms, 16 messages */
#define FLIGHTS 64U

struct flight {
    uint64_t entry;
    uint64_t leader;
    unsigned question;
    bool detached;
    bool used;
};

static struct {
    hsm_cache *cache;
    uint64_t capacity;
    unsigned held[QUESTIONS]; /* most recently used first */
    size_t held_count;
    uint8_t fill_of[QUESTIONS];
    struct flight flights[FLIGHTS];
    hsm_cache_stats stats;
} model;

static const uint8_t *message_of(unsigned question, size_t *length) {
    static uint8_t message[64];
    unsigned number = question % 16;
    *length = number * 4; /* among them the empty one, and prefixes of each other */
    memset(message, (int)(number / 8), sizeof message);
    return message;
}

static struct flight *flight_of(unsigned question) {
    for (size_t i = 0; i < FLIGHTS; i++) {
        if (model.flights[i].used && !model.flights[i].detached && model.flights[i].question == question) {
            return &model.flights[i];
        }
    }
    return NULL;
}

static struct flight *free_flight(void) {
    for (size_t i = 0; i < FLIGHTS; i++) {
        if (!model.flights[i].used) {
            return &model.flights[i];
        }
    }
    return NULL;
}

static size_t place_of(unsigned question) {
    size_t place = 0;
    while (place < model.held_count && model.held[place] != question) {
        place++;
    }
    return place;
}

/* Move the one at `place` to the front. */
static void use(size_t place, unsigned question) {
    memmove(model.held + 1, model.held, place * sizeof model.held[0]);
    model.held[0] = question;
}

static void lookup(unsigned question) {
    size_t length;
    const uint8_t *message = message_of(question, &length);
    struct flight *flying = flight_of(question);
    struct flight *fresh = free_flight();
    size_t place = place_of(question);
    if (place == model.held_count && flying == NULL && fresh == NULL) {
        return; /* the model has no room for one more in flight */
    }
    uint8_t signature[HSM_MAX_SIGNATURE];
    uint32_t signature_len = 0;
    uint64_t leader = 0;
    uint64_t entry = 0;
    hsm_algorithm algorithm = (question / 32) % 2 == 0 ? HSM_ED25519 : HSM_ECDSA_P256;
    enum hsm_cache_result result = hsm_cache_lookup(model.cache, (question / 16) % 2, algorithm, message, length,
                                                    signature, &signature_len, &leader, &entry);
    if (place < model.held_count) {
        REQUIRE(result == HSM_CACHE_HIT);
        REQUIRE(signature_len == HSM_MAX_SIGNATURE);
        for (size_t i = 0; i < sizeof signature; i++) {
            REQUIRE(signature[i] == model.fill_of[question]);
        }
        use(place, question);
        model.stats.hits++;
    } else if (flying != NULL) {
        REQUIRE(result == HSM_CACHE_JOINED);
        REQUIRE(leader == flying->leader);
        model.stats.joined++;
    } else {
        REQUIRE(result == HSM_CACHE_MISS);
        *fresh = (struct flight){.entry = entry, .question = question, .used = true};
        model.stats.misses++;
        model.stats.in_flight++;
    }
}

static void end(struct flight *flight, uint8_t how, uint8_t fill) {
    if (!flight->used) {
        return;
    }
    uint8_t signature[HSM_MAX_SIGNATURE + 1];
    memset(signature, fill, sizeof signature);
    bool keep = how % 4 == 0;
    switch (how % 4) {
    case 0:
    case 1:
        hsm_cache_fill(model.cache, flight->entry, signature, HSM_MAX_SIGNATURE, keep);
        break;
    case 2: /* longer than any signature */
        hsm_cache_fill(model.cache, flight->entry, signature, sizeof signature, 1);
        break;
    default:
        hsm_cache_abandon(model.cache, flight->entry);
        break;
    }
    flight->used = false;
    model.stats.in_flight--;
    if (!keep || flight->detached || model.capacity == 0) {
        return;
    }
    use(model.held_count++, flight->question);
    model.fill_of[flight->question] = fill;
    if (model.held_count > model.capacity) {
        model.held_count--;
        model.stats.evictions++;
    }
}

static void clear(void) {
    hsm_cache_clear(model.cache);
    model.held_count = 0;
    for (size_t i = 0; i < FLIGHTS; i++) {
        model.flights[i].detached = true;
    }
}

static void check_stats(void) {
    hsm_cache_stats stats;
    hsm_cache_stats_read(model.cache, &stats);
    REQUIRE(stats.hits == model.stats.hits && stats.misses == model.stats.misses);
    REQUIRE(stats.joined == model.stats.joined && stats.evictions == model.stats.evictions);
    REQUIRE(stats.entries == model.held_count && stats.in_flight == model.stats.in_flight);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input input = {data, size};
    memset(&model, 0, sizeof model);
    model.capacity = take_u8(&input) % 9;
    REQUIRE(hsm_cache_new(model.capacity, &model.cache) == HSM_OK);
    while (input.left > 0) {
        uint8_t operation = take_u8(&input);
        uint8_t operand = take_u8(&input);
        struct flight *flight = &model.flights[operand % FLIGHTS];
        switch (operation % 8) {
        case 0:
        case 1:
        case 2:
            lookup(operand % QUESTIONS);
            break;
        case 3:
        case 4:
        case 5:
            end(flight, operation / 8, operand);
            break;
        case 6:
            if (flight->used) {
                flight->leader = take_u64(&input);
                hsm_cache_set_leader(model.cache, flight->entry, flight->leader);
            }
            break;
        default:
            if (operand < 64) {
                clear();
            }
            break;
        }
        check_stats();
    }
    /* Half of the time with requests still in flight. */
    for (size_t i = 0; i < FLIGHTS && size % 2 == 0; i++) {
        end(&model.flights[i], 3, 0);
    }
    hsm_cache_free(model.cache);
    hsm_leaks leaks;
    hsm_leaks_read(&leaks);
    REQUIRE(leaks.allocations == 0);
    return 0;
}
