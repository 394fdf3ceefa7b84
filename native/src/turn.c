/* Turns at a token store that several processes share.
 *
 * SoftHSM empties a token's file and writes it anew at each login, whoever may be reading it. A C_Initialize that reads
 * it meanwhile, in another process or of another copy of the module in this one, does not see the token, or ends its
 * process by an assertion; a C_GetTokenInfo fails. And if the writer's process ends in between, the token is lost. */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>

#include "base.h"
#include "quirks.h"

#define PAUSE_NS UINT64_C(250000)
/* Then it goes on without: another one that hangs inside its module holds this one up no longer. */
#define MOST_PAUSES 4000

static _Thread_local struct {
    unsigned depth;
    int file;
} turn;

static int take(const char *path) {
    int file = hsm_counted(open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
    for (int i = 0; file >= 0 && flock(file, LOCK_EX | LOCK_NB) != 0 && i < MOST_PAUSES; i++) {
        hsm_sleep(PAUSE_NS);
    }
    return file;
}

void hsm_turn_begin(const char *quirks, const char *module_path) {
    if (turn.depth++ == 0) {
        const hsm_quirks *row = quirks != NULL ? hsm_quirks_of_name(quirks) : hsm_quirks_of_path(module_path);
        turn.file = -1;
        if (row->store_variable != NULL) {
            const char *store = getenv(row->store_variable);
            turn.file = take(store != NULL ? store : module_path);
        }
    }
}

void hsm_turn_end(void) {
    if (--turn.depth == 0 && turn.file >= 0) {
        (void)flock(turn.file, LOCK_UN); /* a child that was forked meanwhile has the descriptor, too */
        hsm_close(&turn.file);
    }
}

void hsm_turn_drop(void) {
    while (turn.depth > 0) {
        hsm_turn_end();
    }
}
