/* The wrappers that functions.def describes, and the function lists that clients get. */
#include <string.h>

#include "chaos.h"

const char *const chaos_function_names[CHAOS_FUNCTIONS] = {
#define FUNCTION(version, scope, make, name, parameters, arguments) [CHAOS_##name] = #name,
#include "functions.def"
#undef FUNCTION
};

const enum chaos_scope chaos_function_scopes[CHAOS_FUNCTIONS] = {
#define FUNCTION(version, scope, make, name, parameters, arguments) [CHAOS_##name] = SCOPE_##scope,
#include "functions.def"
#undef FUNCTION
};

enum chaos_function chaos_function_of_name(const char *name) {
    int function = 0;
    while (function < CHAOS_FUNCTIONS && strcmp(chaos_function_names[function], name) != 0) {
        function++;
    }
    return (enum chaos_function)function;
}

#define OBJECT(given) chaos_object(&call, given)
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

#define IN_V2_V2(name) .name = chaos_##name,
#define IN_V2_V3(name)
CK_FUNCTION_LIST chaos_list_v2 = {
    .version = {2, 40},
#define FUNCTION(version, scope, make, name, parameters, arguments) IN_V2_##version(name)
#include "functions.def"
#undef FUNCTION
};

CK_FUNCTION_LIST_3_0 chaos_list_v3 = {
    .version = {3, 0},
#define FUNCTION(version, scope, make, name, parameters, arguments) .name = chaos_##name,
#include "functions.def"
#undef FUNCTION
};
