/* Names and scopes of the functions of PKCS #11, from functions.def. */
#include "functions.h"

#include <string.h>

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
