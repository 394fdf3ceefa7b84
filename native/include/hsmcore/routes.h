/* Which of several members takes the next request. For the thread of their event loop. */
#ifndef HSMCORE_ROUTES_H
#define HSMCORE_ROUTES_H

#include <hsmcore/requests.h>

typedef struct hsm_route {
    hsm_requests *const *table; /* the member's; what it points to is NULL once the member is closed */
    uint32_t key;               /* the index of its key there */
    uint32_t weight;            /* of a ramping member: it takes `weight` of `round` requests */
    uint32_t turn;              /* its weights since it had its turn */
} hsm_route;

#define HSM_NO_ROUTE UINT32_MAX

/* The place of the member that takes the next request: of the first `ramping` the one whose turn it is, else of the
 * others the one with the fewest requests. HSM_NO_ROUTE: there is none. */
uint32_t hsm_routes_pick(hsm_route *routes, uint32_t ramping, uint32_t count, uint64_t round);

#endif
