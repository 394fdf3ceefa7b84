/* Settings: lines "name = value" of a file and the environment, or "name=value" with spaces between in pReserved. */
#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "p11.h"

#define DEFAULT_FILE "/etc/hsmcore/pkcs11.conf"
#define DEFAULT_ADDRESS "unix:/run/hsmcore/sign.sock"
#define VARIABLE "HSMCORE_PKCS11_"

enum { FILE_MOST = 65536, MOST_MS = 86400000, DEFAULT_MS = 10000 };
enum setting { ADDRESS, TLS, TLS_NAME, TIMEOUT_MS, VERIFY, LOG, SETTINGS };

struct p11_config p11_config;
static const char *const names[SETTINGS] = {"address", "tls", "tls_name", "timeout_ms", "verify", "log"};
static char *values[SETTINGS]; /* p11_config points into them */
static char problem[256];

void p11_log(const char *format, ...) {
    if (p11_config.log == NULL) {
        return;
    }
    bool is_stderr = strcmp(p11_config.log, "stderr") == 0;
    FILE *file = is_stderr ? stderr : fopen(p11_config.log, "ae");
    if (file == NULL) {
        return;
    }
    char text[512]; /* one write, as other processes may write to the file, too */
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    for (char *c = text; *c != '\0'; c++) {
        *c = (unsigned char)*c < ' ' || *c == 0x7f ? ' ' : *c; /* a gateway's words are in it */
    }
    (void)fprintf(file, "hsmcore_pkcs11: %s\n", text);
    if (!is_stderr) {
        (void)fclose(file);
    }
}

void p11_config_free(void) {
    for (unsigned i = 0; i < SETTINGS; i++) {
        free(values[i]);
        values[i] = NULL;
    }
    p11_config = (struct p11_config){.count = 0};
}

static bool wrong(const char *what, const char *value) {
    (void)snprintf(problem, sizeof problem, "%s: %.120s", what, value);
    return false;
}

static bool keep(enum setting setting, const char *value) {
    free(values[setting]);
    values[setting] = strdup(value);
    return values[setting] != NULL;
}

static char *trimmed(char *text) {
    text += strspn(text, " \t\r");
    for (size_t len = strlen(text); len > 0 && strchr(" \t\r", text[len - 1]) != NULL; len--) {
        text[len - 1] = '\0';
    }
    return text;
}

static bool take_line(char *line) {
    char *equals = strchr(line, '=');
    if (*line == '\0' || *line == '#') {
        return true;
    }
    if (equals == NULL) {
        return wrong("a setting is name = value; this is none", line);
    }
    *equals = '\0';
    line = trimmed(line);
    for (unsigned i = 0; i < SETTINGS; i++) {
        if (strcmp(line, names[i]) == 0) {
            return keep(i, trimmed(equals + 1));
        }
    }
    return wrong("no such setting: there are address, tls, tls_name, timeout_ms, verify, log; this is", line);
}

static bool take_lines(char *text, const char *between) {
    char *rest = NULL;
    bool good = text != NULL;
    for (char *line = strtok_r(text, between, &rest); good && line != NULL; line = strtok_r(NULL, between, &rest)) {
        good = take_line(trimmed(line));
    }
    free(text);
    return good;
}

/* Only what is named must be there. */
static bool take_file(const char *path, bool named) {
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return !named || wrong("the file of settings cannot be read", path);
    }
    char *text = calloc(1, FILE_MOST + 2);
    size_t size = text == NULL ? 0 : fread(text, 1, FILE_MOST + 1, file);
    bool good = text != NULL && ferror(file) == 0 && size <= FILE_MOST;
    (void)fclose(file);
    if (good) {
        return take_lines(text, "\n");
    }
    free(text);
    return wrong("the file of settings cannot be read, or is larger than 64 KiB", path);
}

static bool take_environment(void) {
    bool good = true;
    for (unsigned i = 0; good && i < SETTINGS; i++) {
        char name[32] = VARIABLE;
        for (size_t k = 0; k < strlen(names[i]); k++) {
            name[sizeof VARIABLE - 1 + k] = (char)toupper(names[i][k]);
        }
        const char *value = secure_getenv(name);
        good = value == NULL || keep(i, value);
    }
    return good;
}

/* Cut a value into parts. Return how many, at most one more than there is room for. */
static unsigned split(char *value, const char *between, char **parts, unsigned most) {
    unsigned count = 0;
    char *rest = NULL;
    for (char *one = strtok_r(value, between, &rest); one != NULL; one = strtok_r(NULL, between, &rest)) {
        if (count == most) {
            return most + 1;
        }
        parts[count++] = one;
    }
    return count;
}

static bool use(void) {
    char *tls[] = {NULL, NULL, NULL}; /* as --tls of the commands has them */
    char *end = NULL;
    for (unsigned i = TLS; i < SETTINGS; i++) {
        if (values[i] != NULL && *values[i] == '\0') { /* is none */
            free(values[i]);
            values[i] = NULL;
        }
    }
    p11_config.count = split(values[ADDRESS], ", \t", p11_config.addresses, P11_ADDRESSES);
    if (p11_config.count == 0 || p11_config.count > P11_ADDRESSES) {
        return wrong("address: give one to 32", "");
    }
    for (unsigned i = 0; i < p11_config.count; i++) {
        const char *one = p11_config.addresses[i];
        if (strncmp(one, "unix:/", 6) != 0 && (strncmp(one, "tls:", 4) != 0 || strrchr(one, ':') < one + 5)) {
            return wrong("address: give unix:/path or tls:host:port, with commas between several", one);
        }
    }
    if (values[TLS] != NULL && split(values[TLS], ",", tls, 3) != 3) {
        return wrong("tls", "give three files: certificate,key,authorities");
    }
    unsigned long ms = DEFAULT_MS;
    if (values[TIMEOUT_MS] != NULL) {
        errno = 0;
        ms = strtoul(values[TIMEOUT_MS], &end, 10);
        if (errno != 0 || !isdigit((unsigned char)*values[TIMEOUT_MS]) || *end != '\0' || ms == 0 || ms > MOST_MS) {
            return wrong("timeout_ms: give a number of milliseconds, at most a day", values[TIMEOUT_MS]);
        }
    }
    p11_config.verify = values[VERIFY] != NULL && strcmp(values[VERIFY], "yes") == 0;
    if (values[VERIFY] != NULL && !p11_config.verify && strcmp(values[VERIFY], "no") != 0) {
        return wrong("verify: give yes or no", values[VERIFY]);
    }
    p11_config.timeout = (int64_t)ms * P11_MS;
    p11_config.tls_cert = tls[0], p11_config.tls_key = tls[1], p11_config.tls_ca = tls[2];
    p11_config.tls_name = values[TLS_NAME];
    p11_config.log = values[LOG];
    return true;
}

const char *p11_config_load(const char *reserved) {
    const char *file = secure_getenv(VARIABLE "CONF");
    p11_config_free();
    problem[0] = '\0';
    bool good = keep(ADDRESS, DEFAULT_ADDRESS);
    if (good && reserved != NULL && strchr(reserved, '=') != NULL) {
        good = take_lines(strdup(reserved), " ");
    } else if (good) {
        good = take_file(file == NULL ? DEFAULT_FILE : file, file != NULL) && take_environment();
    }
    if (good && use()) {
        return NULL;
    }
    p11_config_free();
    return problem[0] != '\0' ? problem : "no memory";
}
