/* The fault-injecting module's file and its control socket's commands: whatever is in them is taken or refused with a
 * reason. The first byte chooses between the two. */
#include "../../bench/native/chaos/chaos.h"

#include <sys/mman.h>
#include <unistd.h>

#include "input.h"

/* In place of log.c: a path that the fuzzer makes up must not be written to. */
bool chaos_log_open(const char *path, struct chaos_error *error) {
    (void)path;
    (void)error;
    return true;
}

void chaos_log_close(void) {}

void chaos_log(const char *format, ...) {
    (void)format;
}

void chaos_complain(const char *format, ...) {
    (void)format;
}

static void load_file(const uint8_t *data, size_t size) {
    char path[64];
    struct chaos_error error = {""};
    struct chaos_config config;
    memset(&config, 0, sizeof config);
    int fd = memfd_create("script", MFD_CLOEXEC);
    REQUIRE(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    bool taken = chaos_config_load(path, &config, &error);
    REQUIRE(memchr(error.text, '\0', sizeof error.text) != NULL);
    REQUIRE(taken == (error.text[0] == '\0'));
    REQUIRE(!taken || config.module[0] != '\0');
    REQUIRE(memchr(config.socket, '\0', sizeof config.socket) != NULL);
    chaos_config_free(&config);
    (void)close(fd);
}

static void run_command(const uint8_t *data, size_t size) {
    /* As C_Initialize leaves them, before which there is no control socket. */
    static const struct chaos_settings none = {.capacity = {.queue = UINT64_MAX}};
    REQUIRE(atomic_load(&chaos_settings) != NULL || chaos_settings_replace(&none));
    char *line = malloc(size + 1);
    REQUIRE(line != NULL);
    memcpy(line, data, size);
    line[size] = '\0';
    char *reply = chaos_command(line);
    REQUIRE(reply != NULL);
    REQUIRE((strstr(reply, "\"ok\":true") != NULL) != (strstr(reply, "\"ok\":false") != NULL));
    REQUIRE(strchr(reply, '\n') == NULL);
    free(reply);
    free(line);
    /* Faults that were installed must not pile up from one input to the next. */
    char clear[] = "{\"cmd\":\"clear\"}";
    free(chaos_command(clear));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0 || size > 8192) {
        return 0;
    }
    if (data[0] % 2 == 0) {
        load_file(data + 1, size - 1);
    } else {
        run_command(data + 1, size - 1);
    }
    return 0;
}
