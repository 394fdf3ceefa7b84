/* The Landlock domain of a host process or a gateway's front: no process outside it can be looked into or written to,
 * whatever files lead there, and of /proc there is what modules read.
 *
 * Landlock allows and does not refuse, so each entry of the root folder is allowed but for /proc. Where a module's
 * library, configuration and token lie is the vendor's choice, and so is what it connects to: they all stay as they
 * are; but /sys is only read, since who writes to its control groups stops and kills other processes. What is mounted
 * directly under / later on is not seen. */
#include "landlock.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Kernel headers may be older than the kernel. */
#ifndef LANDLOCK_ACCESS_FS_REFER
#define LANDLOCK_ACCESS_FS_REFER (UINT64_C(1) << 13)
#endif
#define SCOPE_SIGNAL (UINT64_C(1) << 1)
enum { ABI_REFER = 2, ABI_SCOPE = 6 };

struct ruleset {
    uint64_t handled_access_fs, handled_access_net, scoped;
};

#define READ_FILE LANDLOCK_ACCESS_FS_READ_FILE
#define READ_FOLDER (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR)
#define USE_FILE (READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE)
#define USE_FOLDER                                                                                                     \
    (USE_FILE | READ_FOLDER | LANDLOCK_ACCESS_FS_REMOVE_DIR | LANDLOCK_ACCESS_FS_REMOVE_FILE |                         \
     LANDLOCK_ACCESS_FS_MAKE_DIR | LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_MAKE_SOCK |                        \
     LANDLOCK_ACCESS_FS_MAKE_FIFO | LANDLOCK_ACCESS_FS_MAKE_SYM)
/* Allowed nowhere: to run a program (a library needs no such right) and to make a device node. */
#define NEVER (LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_MAKE_CHAR | LANDLOCK_ACCESS_FS_MAKE_BLOCK)

static bool add_rule(int ruleset, int fd, uint64_t access) {
    const struct landlock_path_beneath_attr rule = {.allowed_access = access, .parent_fd = fd};
    return syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) == 0;
}

/* Without asking a file server, which may hang. */
static bool look_at(int fd, struct statx *found) {
    return fd >= 0 && statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, found) == 0;
}

static bool is_folder(const struct statx *found) {
    return (found->stx_mode & S_IFMT) == S_IFDIR;
}

/* An entry that cannot be opened is of no use to the module either. */
static bool allow_root_entries(int ruleset, uint64_t refer) {
    struct statx proc = {0};
    int fd = open("/proc", O_PATH | O_CLOEXEC);
    (void)look_at(fd, &proc);
    if (fd >= 0) {
        (void)close(fd);
    }
    DIR *root = opendir("/");
    if (root == NULL) {
        return false;
    }
    int folder = dirfd(root);
    bool done = folder >= 0;
    for (const struct dirent *entry; done && (entry = readdir(root)) != NULL;) {
        struct statx found;
        fd = openat(folder, entry->d_name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
        bool dots = strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0;
        /* By its device too: it may be bound to a second place. */
        bool skipped = dots || strcmp(entry->d_name, "proc") == 0 || !look_at(fd, &found) ||
                       (found.stx_dev_major == proc.stx_dev_major && found.stx_dev_minor == proc.stx_dev_minor) ||
                       (found.stx_mode & S_IFMT) == S_IFLNK;
        uint64_t folder_access = strcmp(entry->d_name, "sys") == 0 ? READ_FOLDER : USE_FOLDER | refer;
        done = skipped || add_rule(ruleset, fd, is_folder(&found) ? folder_access : USE_FILE);
        if (fd >= 0) {
            (void)close(fd);
        }
    }
    (void)closedir(root);
    return done;
}

/* What modules and their libraries read of /proc. The descriptors stay open: the kernel makes a new inode, which no
 * rule names, when it has forgotten an entry of /proc. */
static bool allow_proc_entries(int ruleset) {
    static const char *const names[] = {"bus",         "cgroups", "cpuinfo", "crypto", "devices", "driver",
                                        "filesystems", "loadavg", "meminfo", "misc",   "modules", "scsi",
                                        "stat",        "sys",     "sysvipc", "tty",    "uptime",  "version"};
    int proc = open("/proc", O_PATH | O_CLOEXEC);
    if (proc < 0) {
        return true; /* it is not mounted */
    }
    struct statx found;
    int self = openat(proc, "self", O_PATH | O_DIRECTORY | O_CLOEXEC); /* a link to its number */
    bool done = self < 0 || add_rule(ruleset, self, READ_FOLDER | LANDLOCK_ACCESS_FS_WRITE_FILE);
    for (size_t i = 0; done && i < sizeof names / sizeof names[0]; i++) {
        int fd = openat(proc, names[i], O_PATH | O_NOFOLLOW | O_CLOEXEC);
        done = !look_at(fd, &found) || add_rule(ruleset, fd, is_folder(&found) ? READ_FOLDER : READ_FILE);
    }
    (void)close(proc);
    return done;
}

int32_t hsm_landlock_abi(void) {
    long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    return abi > 0 ? (int32_t)abi : 0;
}

bool hsm_landlock_enter(int32_t abi) {
    uint64_t refer = abi >= ABI_REFER ? LANDLOCK_ACCESS_FS_REFER : 0;
    const struct ruleset rules = {.handled_access_fs = USE_FOLDER | NEVER | refer,
                                  .scoped = abi >= ABI_SCOPE ? SCOPE_SIGNAL : 0};
    int ruleset = abi < 1 ? -1 : (int)syscall(SYS_landlock_create_ruleset, &rules, sizeof rules, 0);
    if (ruleset < 0) {
        return false;
    }
    bool done = allow_root_entries(ruleset, refer) && allow_proc_entries(ruleset) &&
                syscall(SYS_landlock_restrict_self, ruleset, 0) == 0;
    (void)close(ruleset);
    return done;
}
