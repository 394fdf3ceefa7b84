/* The host's process: start it, end it. What is said to it is in host.c, which shares the structure. */
#ifndef HSM_PROCESS_H
#define HSM_PROCESS_H

#include <pthread.h>
#include <sys/types.h>

#include "client.h"

struct hsm_host {
    hsm_client *client;
    hsm_host_options options; /* strings owned */
    char **environment;
    uint8_t *pin; /* locked memory */
    int control;
    int pidfd;
    pid_t pid;
    uint32_t fork_generation;
    pthread_mutex_t lock;      /* `pid`, `pidfd` and reaping, against hsm_host_kill from another thread */
    uint64_t head_seen;        /* of the request ring, while requests wait beside idle workers, */
    uint64_t waiting_since_ns; /* and since when; 0: none waits. See `unattended` */
    /* By place; ours alone, so that nothing the process writes into the area can change what an index means. */
    hsm_key_info keys[HSM_MAX_KEYS]; /* `public_key_len` is 0 where there was none yet */
    int64_t handles[HSM_MAX_KEYS];
    _Atomic bool retired[HSM_MAX_KEYS];
};

/* Start the program with its descriptors; there must be no process yet. */
hsm_status hsm_process_start(hsm_host *host, hsm_error *error);
/* Kill the process, if there is one, and take its exit status, so that no zombie is left. */
void hsm_process_end(hsm_host *host);

#endif
