/* Which gateway of a list is used (decision 0066): one at a time, and the next one where it is of no use. */
#include <stdlib.h>
#include <string.h>

#include "p11.h"

#define FIRST_PAUSE (10 * P11_MS)
#define NEAR_PAUSE (50 * P11_MS) /* the longest at a Unix socket that is the only address, which costs microseconds */
#define SEEKING_PAUSE (500 * P11_MS) /* the longest while gateways answer of which none holds the epoch */
#define FAR_PAUSE (2000 * P11_MS)
#define FIRST_TRY (1000 * P11_MS)
enum { MOST_DOUBLINGS = 8 };

struct p11_route p11_route;

/* Between half of it and all: several that lost one gateway do not come back at once. */
int64_t p11_jittered(int64_t most) {
    static uint64_t state;
    state = (state ^ (uint64_t)p11_now()) * UINT64_C(6364136223846793005) + 1;
    return most / 2 + (int64_t)((state >> 33) % (uint64_t)(most / 2 + 1));
}

static int64_t doubled(int64_t first) {
    return first << (p11_route.rounds < MOST_DOUBLINGS ? p11_route.rounds : MOST_DOUBLINGS);
}

int64_t p11_route_try(void) {
    return p11_config.count > 1 ? p11_least(p11_config.timeout, doubled(FIRST_TRY)) : p11_config.timeout;
}

static void begin(void) {
    p11_route.tried = 0;
    p11_route.rounds = 0;
}

static uint32_t bit(unsigned at) {
    return UINT32_C(1) << at;
}

static uint32_t all(void) {
    return UINT32_MAX >> (P11_ADDRESSES - p11_config.count);
}

/* Go on to another address, if there is one. `first`: those to prefer, a bit for each. `refused`: this one's gateway has
 * said that it does not want us. */
static void next(uint32_t first, bool refused) {
    unsigned count = p11_config.count;
    unsigned at = p11_route.at;
    uint32_t others = count == 1 ? 1 : all() & ~bit(at);
    p11_route.tried |= bit(at);
    uint32_t left = others & ~p11_route.tried;
    int64_t pause = FIRST_PAUSE;
    if (left == 0) {
        p11_route.tried = 0;
        left = others;
        bool near = count == 1 && !refused && strncmp(p11_config.addresses[0], "unix:", 5) == 0;
        bool heard = count > 1 && p11_route.silent != all();
        pause = p11_least(near ? NEAR_PAUSE : heard ? SEEKING_PAUSE : FAR_PAUSE, doubled(FIRST_PAUSE));
        p11_route.rounds++;
    }
    p11_route.not_before = p11_now() + p11_jittered(pause);
    left = (left & first) != 0 ? left & first : left;
    do {
        at = at + 1 < count ? at + 1 : 0;
    } while ((left & bit(at)) == 0);
    p11_route.at = at;
}

bool p11_route_gone(unsigned at, enum p11_ended how, bool was_up, bool was_useful) {
    p11_route.silent = was_up ? p11_route.silent & ~bit(at) : p11_route.silent | bit(at);
    p11_route.final &= was_up ? 0 : ~bit(at);
    p11_route.final |= how == P11_FINAL ? bit(at) : 0;
    if (was_useful && !p11_route.seeking) {
        begin();
    }
    if (how == P11_BROKE) {
        p11_route.not_before = 0;
    } else if (at == p11_route.at) {
        next(0, how >= P11_REFUSED);
    }
    bool hopeless = p11_route.final == all();
    p11_route.final = hopeless ? 0 : p11_route.final;
    return hopeless;
}

/* A host's name in the fleet is the host of an address or its first label, or the name of a socket's folder or file. */
static bool is_named(const char *address, const char *host) {
    size_t len = strlen(host);
    bool is_unix = strncmp(address, "unix:", 5) == 0;
    const char *begin = is_unix ? strrchr(address, '/') + 1 : address + 4;
    const char *end = is_unix ? address + strlen(address) : strrchr(address, ':');
    if (is_unix) {
        const char *folder_end = begin - 1;
        const char *folder = folder_end;
        while (folder > address + 5 && folder[-1] != '/') {
            folder--;
        }
        if ((size_t)(folder_end - folder) == len && memcmp(folder, host, len) == 0) {
            return true;
        }
        end -= end - begin > 5 && strcmp(end - 5, ".sock") == 0 ? 5 : 0;
    }
    size_t have = (size_t)(end - begin);
    return have >= len && memcmp(begin, host, len) == 0 && (have == len || (!is_unix && begin[len] == '.'));
}

bool p11_route_turned_away(const char *holder) {
    uint32_t named = 0;
    if (p11_config.count == 1) {
        return false;
    }
    for (unsigned i = 0; *holder != '\0' && i < p11_config.count; i++) {
        named |= is_named(p11_config.addresses[i], holder) ? bit(i) : 0;
    }
    if (named != bit(p11_route.at)) { /* else it is the holder, and not sure of it */
        if (!p11_route.seeking) {
            begin();
        }
        p11_route.seeking = true;
        next(named, true);
    }
    return true;
}
