/* The wrappers that functions.def describes in full: enter, call the wrapped module, leave. The others are in hooks.c,
 * objects.c, vendor_info.c, module.c and entry.c. */
#include "chaos.h"

#define OBJECT(given) chaos_handle(&call, given)
#define FIRST_MODULE
#define FIRST_SLOT .slot_id = slot,
#define FIRST_SESSION .handle = session,
#define MAKE_OWN(scope, name, parameters, arguments)
#define MAKE_PLAIN(scope, name, parameters, arguments)                                                                 \
    CK_RV chaos_##name parameters {                                                                                    \
        struct chaos_call call = {FIRST_##scope.function = CHAOS_##name};                                              \
        return chaos_enter(&call) ? chaos_leave(&call, chaos_wrapped.name arguments) : call.rv;                        \
    }
#define FUNCTION(version, scope, make, name, parameters, arguments) MAKE_##make(scope, name, parameters, arguments)
#include "functions.def"
#undef FUNCTION
