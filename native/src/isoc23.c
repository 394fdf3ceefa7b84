/* What headers of the GNU C library 2.38 and later make of strtol and its like, by the functions that each C library
 * has: so that what is built with such headers runs on older systems. The newer ones also read "0b1", which nothing
 * here is asked to read. For the linker alone; nobody calls them by these names. */
#include <stdarg.h>

// NOLINTBEGIN(bugprone-reserved-identifier,cert-*,readability-identifier-naming)
long hsm_strtol(const char *text, char **end, int base) __asm__("strtol");
unsigned long hsm_strtoul(const char *text, char **end, int base) __asm__("strtoul");
long long hsm_strtoll(const char *text, char **end, int base) __asm__("strtoll");
unsigned long long hsm_strtoull(const char *text, char **end, int base) __asm__("strtoull");
int hsm_vsscanf(const char *text, const char *format, va_list values) __asm__("__isoc99_vsscanf");

long __isoc23_strtol(const char *text, char **end, int base);
unsigned long __isoc23_strtoul(const char *text, char **end, int base);
long long __isoc23_strtoll(const char *text, char **end, int base);
unsigned long long __isoc23_strtoull(const char *text, char **end, int base);
int __isoc23_sscanf(const char *text, const char *format, ...);

long __isoc23_strtol(const char *text, char **end, int base) {
    return hsm_strtol(text, end, base);
}

unsigned long __isoc23_strtoul(const char *text, char **end, int base) {
    return hsm_strtoul(text, end, base);
}

long long __isoc23_strtoll(const char *text, char **end, int base) {
    return hsm_strtoll(text, end, base);
}

unsigned long long __isoc23_strtoull(const char *text, char **end, int base) {
    return hsm_strtoull(text, end, base);
}

int __isoc23_sscanf(const char *text, const char *format, ...) {
    va_list values;
    va_start(values, format);
    int count = hsm_vsscanf(text, format, values);
    va_end(values);
    return count;
}
// NOLINTEND(bugprone-reserved-identifier,cert-*,readability-identifier-naming)
