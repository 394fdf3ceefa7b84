/* Serves instructions.c: which instruction of which program some bytes are. Any thread; nothing here allocates. */
#ifndef HSMCORE_INSTRUCTIONS_H
#define HSMCORE_INSTRUCTIONS_H

#include <hsmcore/payload.h>

/* Tags of ComputeBudget that change the fee. */
enum { HSM_REQUEST_UNITS = 0, HSM_UNIT_LIMIT = 2, HSM_UNIT_PRICE = 3 };

/* The program at an address; NULL: it is none of hsm_programs. */
const hsm_program *hsm_program_of(const uint8_t *address);

/* The instruction that a program takes these bytes for; NULL: it has no name. */
const hsm_instruction_form *hsm_form_of(const hsm_program *program, const uint8_t *data, size_t size);

/* An unsigned number of up to 8 bytes, the lowest first. */
uint64_t hsm_little(const uint8_t *at, size_t count);

#endif
