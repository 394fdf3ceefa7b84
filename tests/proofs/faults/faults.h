/* The n-th call of the system that the code under test makes fails, or hangs. The linker puts these calls between the
 * library and the C library (see CMakeLists.txt): calls of the module, of libcrypto and of the C library itself are not
 * counted, nor writes to anything but files. */
#ifndef HSM_FAULTS_H
#define HSM_FAULTS_H

#include <stdbool.h>
#include <stdint.h>

enum fault { FAULT_FAIL, FAULT_HANG };

/* Begin to count: call `n` fails (1: the first), or writing and syncing hang in it; 0: none does. */
void faults_begin(enum fault fault, uint64_t n);
/* Nothing fails any more. Returns whether anything has. */
bool faults_end(void);
/* The name of the call that failed or hangs; NULL: none has so far. */
const char *faults_call(void);
/* Whether a call hangs. faults_release lets it go on. */
bool faults_hung(void);
void faults_release(void);

#endif
