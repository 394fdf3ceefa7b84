/* The pick of a member, which each request of a failover chain pays for. */
#include <hsmcore/routes.h>

uint32_t hsm_routes_pick(hsm_route *routes, uint32_t ramping, uint32_t count, uint64_t round) {
    for (uint32_t i = 0; i < ramping; i++) {
        routes[i].turn += routes[i].weight;
        if (routes[i].turn >= round) {
            routes[i].turn = 0;
            return i;
        }
    }
    if (count == ramping + 1U) {
        return ramping;
    }
    uint32_t best = HSM_NO_ROUTE;
    uint64_t least = UINT64_MAX;
    for (uint32_t i = ramping; i < count; i++) {
        uint64_t load = *routes[i].table != NULL ? hsm_requests_load(*routes[i].table) : 0;
        if (load < least) {
            best = i;
            least = load;
        }
    }
    return best;
}
