/* The log file: one write for each line, so that lines of several threads and processes never mix. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "chaos.h"

static atomic_int log_fd = -1;

bool chaos_log_open(const char *path, struct chaos_error *error) {
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) {
        int code = errno;
        (void)snprintf(error->text, sizeof error->text, "can't open %.512s: %s", path, strerrordesc_np(code));
        return false;
    }
    int old = atomic_exchange(&log_fd, fd);
    if (old >= 0) {
        (void)close(old);
    }
    return true;
}

void chaos_log_close(void) {
    int old = atomic_exchange(&log_fd, -1);
    if (old >= 0) {
        (void)close(old);
    }
}

/* One write per line, so that lines of several threads and processes never mix. */
static void write_line(int fd, const char *line, size_t length) {
    ssize_t ignored = write(fd, line, length);
    (void)ignored; /* there is nowhere left to say that the log can't be written */
}

static size_t put_message(char *out, size_t size, size_t used, const char *format, va_list arguments) {
    int more = vsnprintf(out + used, size - used - 1, format, arguments);
    used += more < 0 ? 0 : (size_t)more;
    if (used > size - 2) {
        used = size - 2;
    }
    out[used++] = '\n';
    return used;
}

static void log_message(const char *format, va_list arguments) {
    int fd = atomic_load(&log_fd);
    if (fd < 0) {
        return;
    }
    char line[1400];
    struct timespec now;
    struct tm parts;
    (void)clock_gettime(CLOCK_REALTIME, &now);
    (void)gmtime_r(&now.tv_sec, &parts);
    size_t used = strftime(line, sizeof line, "%Y-%m-%dT%H:%M:%S", &parts);
    used += (size_t)snprintf(line + used, sizeof line - used, ".%06ldZ %ld ", now.tv_nsec / 1000, (long)getpid());
    write_line(fd, line, put_message(line, sizeof line, used, format, arguments));
}

void chaos_log(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    log_message(format, arguments);
    va_end(arguments);
}

void chaos_complain(const char *format, ...) {
    va_list arguments;
    char line[1400] = "libhsmcore_chaos: ";
    va_start(arguments, format);
    write_line(STDERR_FILENO, line, put_message(line, sizeof line, strlen(line), format, arguments));
    va_end(arguments);
    va_start(arguments, format);
    log_message(format, arguments);
    va_end(arguments);
}
