/* The name that an instruction gets is of its first bytes, for data of any bytes and of any length up to MOST: of a
 * program with few names, so that the loop over them is short. */
#include "instructions.c"

#include <stdlib.h>

enum { MOST = 10 };

size_t nondet_size(void);

void prove_form(void) {
    size_t size = nondet_size();
    size_t which = nondet_size();
    __CPROVER_assume(size <= MOST && (which == 2 || which == 4)); /* ComputeBudget, AssociatedToken */
    uint8_t *data = malloc(size);
    __CPROVER_assume(data != NULL);
    const hsm_instruction_form *form = hsm_form_of(&hsm_programs[which], data, size);
    if (form != NULL) {
        __CPROVER_assert(form->size <= size && (form->size > 0 || size == 0), "its tag lies inside");
        size_t any = nondet_size();
        __CPROVER_assume(any < form->size);
        __CPROVER_assert(data[any] == (uint8_t)(form->tag >> 8 * any), "it begins with its tag");
    }
}
