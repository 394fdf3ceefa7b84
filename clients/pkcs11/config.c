/* Settings: lines "name = value" of a file, or "name=value" with spaces between in pReserved, or the environment. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "p11.h"

#define DEFAULT_FILE "/etc/hsmcore/pkcs11.conf"
#define DEFAULT_ADDRESS "unix:/run/hsmcore/sign.sock"
#define VARIABLE(name) "HSMCORE_PKCS11_" name

enum { FILE_MOST = 65536, MOST_MS = 86400000, DEFAULT_MS = 10000 };

struct p11_config p11_config;
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
    for (unsigned i = 0; i < p11_config.count; i++) {
        free(p11_config.addresses[i]);
    }
    free(p11_config.tls_cert), free(p11_config.tls_key), free(p11_config.tls_ca);
    free(p11_config.tls_name), free(p11_config.log);
    p11_config = (struct p11_config){.count = 0};
}

static bool wrong(const char *what, const char *value) {
    (void)snprintf(problem, sizeof problem, "%s: %.120s", what, value);
    return false;
}

static bool keep(char **place, const char *value) {
    free(*place);
    *place = value == NULL || *value == '\0' ? NULL : strdup(value);
    return value == NULL || *value == '\0' || *place != NULL;
}

/* Addresses, with commas between. */
static bool take_addresses(char *value) {
    for (unsigned i = 0; i < p11_config.count; i++) {
        (void)keep(&p11_config.addresses[i], NULL);
    }
    p11_config.count = 0;
    char *rest = NULL;
    for (char *one = strtok_r(value, ", \t", &rest); one != NULL; one = strtok_r(NULL, ", \t", &rest)) {
        const char *port = strrchr(one, ':');
        if (strncmp(one, "unix:/", 6) != 0 && (strncmp(one, "tls:", 4) != 0 || port < one + 5)) {
            return wrong("address: give unix:/path or tls:host:port, with commas between several", one);
        }
        char **place = &p11_config.addresses[p11_config.count];
        if (p11_config.count == P11_ADDRESSES || !keep(place, one)) {
            return wrong("address: there are too many", one);
        }
        p11_config.count++;
    }
    return p11_config.count > 0 || wrong("address", "is empty");
}

/* "client.pem,client.key,authority.pem", as --tls of the commands has it. */
static bool take_tls(char *value) {
    char **places[] = {&p11_config.tls_cert, &p11_config.tls_key, &p11_config.tls_ca};
    unsigned found = 0;
    char *rest = NULL;
    for (char *one = strtok_r(value, ",", &rest); one != NULL; one = strtok_r(NULL, ",", &rest)) {
        if (found == 3 || !keep(places[found], one)) {
            found = 0;
            break;
        }
        found++;
    }
    return found == 3 || wrong("tls", "give three files: certificate,key,authorities");
}

static bool take_timeout(char *value) {
    char *end = NULL;
    errno = 0;
    unsigned long ms = strtoul(value, &end, 10);
    if (errno != 0 || *value < '0' || *value > '9' || *end != '\0' || ms == 0 || ms > MOST_MS) {
        return wrong("timeout_ms: give a number of milliseconds, at most a day", value);
    }
    p11_config.timeout = (int64_t)ms * P11_MS;
    return true;
}

static bool take_verify(char *value) {
    p11_config.verify = strcmp(value, "yes") == 0;
    return p11_config.verify || strcmp(value, "no") == 0 || wrong("verify: give yes or no", value);
}

static bool take_name(char *value) {
    return keep(&p11_config.tls_name, value);
}

static bool take_log(char *value) {
    return keep(&p11_config.log, value);
}

static bool take(const char *name, char *value) {
    static const struct {
        const char *name;
        bool (*take)(char *value);
    } settings[] = {{"address", take_addresses}, {"tls", take_tls},       {"timeout_ms", take_timeout},
                    {"verify", take_verify},     {"tls_name", take_name}, {"log", take_log}};
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        if (strcmp(name, settings[i].name) == 0) {
            return settings[i].take(value);
        }
    }
    return wrong("no such setting: there are address, tls, tls_name, timeout_ms, verify, log; this is", name);
}

static char *trimmed(char *text) {
    text += strspn(text, " \t\r");
    size_t len = strlen(text);
    while (len > 0 && strchr(" \t\r", text[len - 1]) != NULL) {
        text[--len] = '\0';
    }
    return text;
}

static bool take_lines(char *text, const char *between) {
    char *rest = NULL;
    for (char *line = strtok_r(text, between, &rest); line != NULL; line = strtok_r(NULL, between, &rest)) {
        line = trimmed(line);
        char *equals = strchr(line, '=');
        if (*line == '\0' || *line == '#') {
            continue;
        }
        if (equals == NULL) {
            return wrong("a setting is name = value; this is none", line);
        }
        *equals = '\0';
        if (!take(trimmed(line), trimmed(equals + 1))) {
            return false;
        }
    }
    return true;
}

/* Only what is named must be there. */
static bool take_file(const char *path, bool named) {
    FILE *file = fopen(path, "re");
    if (file == NULL) {
        return !named || wrong("the file of settings cannot be read", path);
    }
    char *text = calloc(1, FILE_MOST + 1);
    size_t size = text == NULL ? 0 : fread(text, 1, FILE_MOST + 1, file);
    bool good = text != NULL && ferror(file) == 0 && size <= FILE_MOST;
    (void)fclose(file);
    if (good) {
        text[size] = '\0';
        good = take_lines(text, "\n");
    } else {
        (void)wrong("the file of settings cannot be read, or is larger than 64 KiB", path);
    }
    free(text);
    return good;
}

static bool take_text(const char *name, const char *value, const char *between) {
    char *copy = value == NULL ? NULL : strdup(value);
    bool good = value == NULL || (copy != NULL && (name == NULL ? take_lines(copy, between) : take(name, copy)));
    free(copy);
    return good;
}

const char *p11_config_load(const char *reserved) {
    char address[] = DEFAULT_ADDRESS;
    const char *file = secure_getenv(VARIABLE("CONF"));
    p11_config_free();
    p11_config.timeout = DEFAULT_MS * P11_MS;
    problem[0] = '\0';
    bool good = take_addresses(address);
    if (good && reserved != NULL && strchr(reserved, '=') != NULL) {
        good = take_text(NULL, reserved, " ");
    } else if (good) {
        good = take_file(file == NULL ? DEFAULT_FILE : file, file != NULL) &&
               take_text("address", secure_getenv(VARIABLE("ADDRESS")), NULL) &&
               take_text("tls", secure_getenv(VARIABLE("TLS")), NULL) &&
               take_text("timeout_ms", secure_getenv(VARIABLE("TIMEOUT_MS")), NULL);
    }
    if (good) {
        return NULL;
    }
    p11_config_free();
    return problem[0] != '\0' ? problem : "no memory";
}
