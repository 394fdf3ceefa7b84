/* The functions of PKCS #11, as functions.def lists them. */
#ifndef HSMCORE_CHAOS_FUNCTIONS_H
#define HSMCORE_CHAOS_FUNCTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <p11-kit/pkcs11.h>

enum chaos_function {
#define FUNCTION(version, scope, make, name, parameters, arguments) CHAOS_##name,
#include "functions.def"
#undef FUNCTION
    CHAOS_FUNCTIONS
};

enum chaos_scope { SCOPE_MODULE, SCOPE_SLOT, SCOPE_SESSION };

extern const char *const chaos_function_names[CHAOS_FUNCTIONS];
extern const enum chaos_scope chaos_function_scopes[CHAOS_FUNCTIONS];
enum chaos_function chaos_function_of_name(const char *name); /* CHAOS_FUNCTIONS if there is none */

#endif
