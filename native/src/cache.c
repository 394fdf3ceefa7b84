/* LRU signature cache with single-flight. An entry holds the whole message, in one allocation, and answers for exactly
 * the bytes that were signed. A hash chain finds it; one doubly linked list, most recently used first, has the entries
 * that hold a signature, another one those whose request is in flight. */
#include "base.h"

#include <sodium.h>
#include <string.h>

/* A DETACHED entry was cleared while in flight: no request joins it, and its signature is not kept. */
enum entry_state { IN_FLIGHT, HELD, DETACHED };

typedef struct entry {
    struct entry *chain;
    struct entry *newer;
    struct entry *older;
    uint64_t hash;
    uint64_t leader;
    uint32_t message_len;
    uint32_t key;
    uint8_t algorithm;
    uint8_t state;
    uint8_t signature_len;
    uint8_t signature[HSM_MAX_SIGNATURE];
    uint8_t message[];
} entry;

struct order {
    entry *newest;
    entry *oldest;
};

struct hsm_cache {
    uint8_t hash_key[crypto_shorthash_KEYBYTES];
    entry **buckets;
    uint64_t bucket_mask;
    struct order held;
    struct order flying;
    uint64_t capacity;
    hsm_cache_stats stats;
};

static size_t size_of(const entry *item) {
    return sizeof *item + item->message_len;
}

hsm_status hsm_cache_new(uint64_t capacity, hsm_cache **out) {
    *out = NULL;
    if (capacity > UINT32_MAX || sodium_init() < 0) {
        return HSM_BAD_ARGUMENT;
    }
    hsm_cache *cache = hsm_alloc(sizeof *cache);
    if (cache == NULL) {
        return HSM_OUT_OF_MEMORY;
    }
    uint64_t buckets = 256;
    while (buckets < capacity * 2U) {
        buckets *= 2U;
    }
    cache->buckets = hsm_alloc(buckets * sizeof *cache->buckets);
    if (cache->buckets == NULL) {
        hsm_free(cache);
        return HSM_OUT_OF_MEMORY;
    }
    cache->bucket_mask = buckets - 1U;
    cache->capacity = capacity;
    cache->stats.bytes = sizeof *cache + buckets * sizeof *cache->buckets;
    crypto_shorthash_keygen(cache->hash_key);
    *out = cache;
    return HSM_OK;
}

static void link_newest(struct order *order, entry *item) {
    item->newer = NULL;
    item->older = order->newest;
    *(order->newest != NULL ? &order->newest->newer : &order->oldest) = item;
    order->newest = item;
}

static void unlink_order(struct order *order, entry *item) {
    *(item->newer != NULL ? &item->newer->older : &order->newest) = item->older;
    *(item->older != NULL ? &item->older->newer : &order->oldest) = item->newer;
}

static void unlink_chain(hsm_cache *cache, entry *item) {
    entry **link = &cache->buckets[item->hash & cache->bucket_mask];
    while (*link != item) {
        link = &(*link)->chain;
    }
    *link = item->chain;
}

static void destroy(hsm_cache *cache, entry *item) {
    cache->stats.bytes -= size_of(item);
    hsm_wipe(item, size_of(item));
    hsm_free(item);
}

static void drop_held(hsm_cache *cache, entry *item) {
    unlink_order(&cache->held, item);
    unlink_chain(cache, item);
    cache->stats.entries--;
    destroy(cache, item);
}

void hsm_cache_clear(hsm_cache *cache) {
    if (cache == NULL) {
        return;
    }
    while (cache->held.oldest != NULL) {
        drop_held(cache, cache->held.oldest);
    }
    for (entry *item = cache->flying.oldest; item != NULL; item = item->newer) {
        if (item->state == IN_FLIGHT) {
            unlink_chain(cache, item);
            item->state = DETACHED;
        }
    }
}

void hsm_cache_free(hsm_cache *cache) {
    hsm_cache_clear(cache);
    if (cache == NULL) {
        return;
    }
    while (cache->flying.oldest != NULL) {
        hsm_cache_abandon(cache, (uint64_t)(uintptr_t)cache->flying.oldest);
    }
    hsm_free(cache->buckets);
    hsm_wipe(cache, sizeof *cache);
    hsm_free(cache);
}

static uint64_t hash_of(const hsm_cache *cache, uint32_t key, hsm_algorithm algorithm, const uint8_t *message,
                        size_t message_len) {
    uint64_t hash;
    (void)crypto_shorthash((uint8_t *)&hash, message, message_len, cache->hash_key);
    return hash ^ ((uint64_t)key << 8U | (uint64_t)algorithm);
}

static entry *find(hsm_cache *cache, uint64_t hash, uint32_t key, hsm_algorithm algorithm, const uint8_t *message,
                   size_t message_len) {
    entry *item = cache->buckets[hash & cache->bucket_mask];
    while (item != NULL && !(item->hash == hash && item->key == key && item->algorithm == algorithm &&
                             item->message_len == message_len && memcmp(item->message, message, message_len) == 0)) {
        item = item->chain;
    }
    return item;
}

enum hsm_cache_result hsm_cache_lookup(hsm_cache *cache, uint32_t key, hsm_algorithm algorithm, const uint8_t *message,
                                       size_t message_len, uint8_t *signature, uint32_t *signature_len,
                                       uint64_t *leader, uint64_t *entry_id) {
    if (message_len == 0) {
        message = (const uint8_t *)""; /* may be NULL, which memcpy and memcmp may not be given */
    }
    uint64_t hash = hash_of(cache, key, algorithm, message, message_len);
    entry *item = find(cache, hash, key, algorithm, message, message_len);
    if (item != NULL && item->state == HELD) {
        if (item != cache->held.newest) {
            unlink_order(&cache->held, item);
            link_newest(&cache->held, item);
        }
        memcpy(signature, item->signature, item->signature_len);
        *signature_len = item->signature_len;
        cache->stats.hits++;
        return HSM_CACHE_HIT;
    }
    if (item != NULL) {
        *leader = item->leader;
        cache->stats.joined++;
        return HSM_CACHE_JOINED;
    }
    item = hsm_alloc(sizeof *item + message_len);
    if (item == NULL) {
        return HSM_CACHE_NO_MEMORY;
    }
    item->hash = hash;
    item->key = key;
    item->algorithm = (uint8_t)algorithm;
    item->state = IN_FLIGHT;
    item->message_len = (uint32_t)message_len;
    memcpy(item->message, message, message_len);
    item->chain = cache->buckets[hash & cache->bucket_mask];
    cache->buckets[hash & cache->bucket_mask] = item;
    link_newest(&cache->flying, item);
    cache->stats.misses++;
    cache->stats.in_flight++;
    cache->stats.bytes += size_of(item);
    *entry_id = (uint64_t)(uintptr_t)item;
    return HSM_CACHE_MISS;
}

static entry *entry_of(uint64_t entry_id) {
    /* The caller got it from a lookup and has not ended it yet; see the header. */
    return (entry *)(uintptr_t)entry_id; // NOLINT(performance-no-int-to-ptr)
}

void hsm_cache_set_leader(hsm_cache *cache, uint64_t entry_id, uint64_t leader) {
    (void)cache;
    entry_of(entry_id)->leader = leader;
}

void hsm_cache_abandon(hsm_cache *cache, uint64_t entry_id) {
    entry *item = entry_of(entry_id);
    if (item->state == IN_FLIGHT) {
        unlink_chain(cache, item);
    }
    unlink_order(&cache->flying, item);
    cache->stats.in_flight--;
    destroy(cache, item);
}

void hsm_cache_fill(hsm_cache *cache, uint64_t entry_id, const uint8_t *signature, uint32_t signature_len, int keep) {
    entry *item = entry_of(entry_id);
    if (item->state == DETACHED || !keep || cache->capacity == 0 || signature_len > HSM_MAX_SIGNATURE) {
        hsm_cache_abandon(cache, entry_id);
        return;
    }
    memcpy(item->signature, signature, signature_len);
    item->signature_len = (uint8_t)signature_len;
    item->state = HELD;
    cache->stats.in_flight--;
    cache->stats.entries++;
    unlink_order(&cache->flying, item);
    link_newest(&cache->held, item);
    if (cache->stats.entries > cache->capacity) {
        drop_held(cache, cache->held.oldest);
        cache->stats.evictions++;
    }
}

void hsm_cache_stats_read(const hsm_cache *cache, hsm_cache_stats *stats) {
    *stats = cache != NULL ? cache->stats : (hsm_cache_stats){0};
}
