/* The host's process: start it, end it. What is said to it is in host.c, which shares the structure. */
#ifndef HSM_PROCESS_H
#define HSM_PROCESS_H

#include <pthread.h>
#include <sys/types.h>

#include "client.h"
#include "wire.h"

struct hsm_host {
    hsm_client *client;
    hsm_request_message start; /* the engine's options but for the PIN */
    char *program;
    char **environment;
    uint64_t timeout_ns;
    uint8_t *pin; /* locked memory */
    size_t pin_len;
    int control;
    int pidfd;
    pid_t pid;
    uint32_t fork_generation;
    pthread_mutex_t lock; /* `pid` and `pidfd`, against hsm_host_kill from another thread; never held for long */
    uint32_t hardening;   /* as the process said before it loaded the module */
    int32_t landlock_abi;
    uint64_t head_seen;        /* of the request ring, while requests wait beside idle workers, */
    uint64_t waiting_since_ns; /* and since when; 0: none waits. See `unattended` */
    /* By place; ours alone, so that nothing the process writes into the area can change what an index means. */
    hsm_key_info keys[HSM_MAX_KEYS]; /* `public_key_len` is 0 where there was none yet */
    int64_t handles[HSM_MAX_KEYS];
    _Atomic bool retired[HSM_MAX_KEYS];
};

/* Start the program with its descriptors; there must be no process yet. */
hsm_status hsm_process_start(hsm_host *host, hsm_error *error);
/* Time for a killed process to end, in ns. One that waits in the kernel for a device ends when the device answers. */
#define HSM_PROCESS_END_NS UINT64_C(1000000000)
/* Kill the process, if there is one, and take its exit status, so that no zombie is left. Returns false if it has not
 * ended in time: then it does nothing any more, but holds what it has open. */
bool hsm_process_end(hsm_host *host);

#endif
