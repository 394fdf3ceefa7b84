/* The files of tiles: whole, flushed together, owned as they should be, and told when they cannot be written. */
#include <errno.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <hsmcore/audit.h>

#include "harness.h"

static _Atomic unsigned begun;    /* calls that have the disk begin */
static _Atomic unsigned flushed;  /* calls of fsync */
static _Atomic unsigned too_soon; /* of them, those before the disk had begun with every file */
static _Atomic unsigned wanted;
static _Atomic unsigned folders; /* calls of fsync for one */
static _Atomic uint64_t folder_flushed;
static _Atomic unsigned failing; /* the call of fsync that fails, from 1 on; 0: none */

int posix_fadvise(int fd, off_t offset, off_t len, int advice) {
    (void)offset;
    (void)len;
    CHECK_INT(advice, ==, POSIX_FADV_DONTNEED);
    CHECK(fcntl(fd, F_GETFD) >= 0);
    atomic_fetch_add(&begun, 1);
    return 0;
}

int fsync(int fd) {
    struct stat there;
    if (fstat(fd, &there) == 0 && S_ISDIR(there.st_mode)) {
        atomic_fetch_add(&folders, 1);
        folder_flushed = there.st_ino;
        return (int)syscall(SYS_fsync, fd);
    }
    atomic_fetch_add(&too_soon, atomic_load(&begun) < atomic_load(&wanted) ? 1U : 0U);
    if (atomic_fetch_add(&flushed, 1) + 1 == atomic_load(&failing)) {
        errno = EIO;
        return -1;
    }
    return (int)syscall(SYS_fsync, fd);
}

enum { GROUP = 64, MANY = 150 };
static char folder[64];
static char paths[MANY][128];
static uint8_t content[HSM_AUDIT_MAX_FILE];

static size_t room(hsm_audit_file *files, size_t count) {
    (void)strcpy(folder, "/tmp/hsmcore-files-XXXXXX");
    REQUIRE(mkdtemp(folder) != NULL);
    for (size_t i = 0; i < sizeof content; i++) {
        content[i] = (uint8_t)(i * 7);
    }
    for (size_t i = 0; i < count; i++) {
        (void)snprintf(paths[i], sizeof paths[i], "%s/%03zu", folder, i);
        files[i] = (hsm_audit_file){.path = paths[i], .data = content, .size = sizeof content - i};
    }
    begun = flushed = too_soon = failing = folders = 0;
    wanted = (unsigned)count;
    return count;
}

static void clear(size_t count) {
    for (size_t i = 0; i < count; i++) {
        (void)unlink(paths[i]);
    }
    CHECK_INT(rmdir(folder), ==, 0); /* and nothing else is left in it */
}

static uint64_t inode(const char *path) {
    struct stat there;
    return stat(path, &there) == 0 ? there.st_ino : 0;
}

static uid_t owner(const char *path) {
    struct stat there;
    return stat(path, &there) == 0 ? there.st_uid : (uid_t)-1;
}

static void check(const hsm_audit_file *file) {
    static uint8_t found[HSM_AUDIT_MAX_FILE + 1];
    struct stat there;
    int fd = open(file->path, O_RDONLY | O_CLOEXEC);
    REQUIRE(fd >= 0);
    CHECK_INT(read(fd, found, sizeof found), ==, file->size);
    CHECK_BYTES(found, file->data, file->size);
    CHECK_INT(fstat(fd, &there), ==, 0);
    CHECK_INT(there.st_mode & 07777U, ==, 0600);
    CHECK_INT(there.st_uid, ==, owner(folder));
    (void)close(fd);
}

static void all_begin_before_the_first_is_waited_for(void) {
    static hsm_audit_file files[GROUP];
    mode_t before = umask(0777);
    size_t count = room(files, GROUP);
    CHECK_INT(chmod(folder, 0700), ==, 0);
    CHECK_INT(chown(folder, geteuid() == 0 ? 1234 : geteuid(), (gid_t)-1), ==, 0);
    size_t failed;
    CHECK_INT(hsm_audit_store(files, count, &failed), ==, 0);
    (void)umask(before);
    CHECK_INT(begun, ==, count);
    CHECK_INT(flushed, ==, count);
    CHECK_INT(too_soon, ==, 0);
    CHECK_INT(folders, ==, 1);
    CHECK(folder_flushed == inode(folder));
    for (size_t i = 0; i < count; i++) {
        check(&files[i]);
    }
    CHECK_INT(hsm_audit_store(files, 0, &failed), ==, 0);
    clear(count);
}

static void what_is_there_is_flushed_again_and_what_differs_is_replaced(void) {
    hsm_audit_file files[3];
    size_t count = room(files, 3);
    size_t failed;
    CHECK_INT(hsm_audit_store(files, count, &failed), ==, 0);
    uint64_t same = inode(paths[0]);
    CHECK_INT(truncate(paths[1], 100), ==, 0); /* as after a crash */
    int longer = open(paths[2], O_WRONLY | O_APPEND | O_CLOEXEC);
    CHECK_INT(write(longer, "more", 4), ==, 4);
    (void)close(longer);
    char beside[140];
    (void)snprintf(beside, sizeof beside, "%s.new", paths[1]);
    (void)close(open(beside, O_WRONLY | O_CREAT | O_CLOEXEC, 0644)); /* a crash left it */
    begun = flushed = 0;
    CHECK_INT(hsm_audit_store(files, count, &failed), ==, 0);
    CHECK_INT(begun, ==, 2);
    CHECK_INT(flushed, ==, 3);
    CHECK(inode(paths[0]) == same);
    for (size_t i = 0; i < count; i++) {
        check(&files[i]);
    }
    clear(count);
}

static void a_pipe_or_a_link_under_the_name_of_a_new_file_is_not_written_to(void) {
    hsm_audit_file files[2];
    size_t count = room(files, 2);
    char beside[140];
    char victim[140];
    (void)snprintf(victim, sizeof victim, "%s/victim", folder);
    (void)snprintf(beside, sizeof beside, "%s.new", paths[0]);
    CHECK_INT(symlink(victim, beside), ==, 0);
    CHECK_INT(mkfifo(paths[1], 0600), ==, 0);
    size_t failed;
    CHECK_INT(hsm_audit_store(files, count, &failed), ==, 0);
    CHECK(inode(victim) == 0);
    check(&files[0]);
    check(&files[1]);
    clear(count);
}

static void more_files_than_may_be_open_are_stored(void) {
    static hsm_audit_file files[MANY];
    size_t count = room(files, MANY);
    struct rlimit before;
    CHECK_INT(getrlimit(RLIMIT_NOFILE, &before), ==, 0);
    struct rlimit few = {.rlim_cur = GROUP + 32, .rlim_max = before.rlim_max};
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &few), ==, 0);
    size_t failed;
    CHECK_INT(hsm_audit_store(files, count, &failed), ==, 0);
    CHECK_INT(flushed, ==, count);
    CHECK_INT(unlink(paths[count - 2]), ==, 0);
    CHECK_INT(mkdir(paths[count - 2], 0700), ==, 0);
    CHECK_INT(hsm_audit_store(files, count, &failed), ==, EISDIR);
    CHECK_INT(failed, ==, count - 2);
    CHECK_INT(rmdir(paths[count - 2]), ==, 0);
    CHECK_INT(hsm_audit_store(files, count, &failed), ==, 0);
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &before), ==, 0);
    for (size_t i = 0; i < count; i++) {
        check(&files[i]);
    }
    clear(count);
}

static void the_file_that_fails_is_named_and_may_be_tried_again(void) {
    hsm_audit_file files[5];
    size_t count = room(files, 5);
    size_t failed;
    files[3].path = "/nowhere/at/all";
    CHECK_INT(hsm_audit_store(files, count, &failed), ==, ENOENT);
    CHECK_INT(failed, ==, 3);
    CHECK_INT(flushed, ==, 0);
    files[3].path = "no folder";
    CHECK_INT(hsm_audit_store(files, count, &failed), ==, EINVAL);
    files[3] = (hsm_audit_file){.path = paths[3], .data = content, .size = HSM_AUDIT_MAX_FILE + 1};
    CHECK_INT(hsm_audit_store(files, count, &failed), ==, EINVAL);
    files[3].size = 5;
    failing = 2;
    CHECK_INT(hsm_audit_store(files, count, &failed), ==, EIO);
    CHECK(failed < count);
    CHECK_INT(flushed, ==, count); /* the others are tried */
    CHECK_INT(hsm_audit_store(files, count, &failed), ==, 0);
    for (size_t i = 0; i < count; i++) {
        check(&files[i]);
    }
    clear(count);
}

int main(int argc, char **argv) {
    static const struct test tests[] = {
        TEST(all_begin_before_the_first_is_waited_for),
        TEST(what_is_there_is_flushed_again_and_what_differs_is_replaced),
        TEST(a_pipe_or_a_link_under_the_name_of_a_new_file_is_not_written_to),
        TEST(more_files_than_may_be_open_are_stored),
        TEST(the_file_that_fails_is_named_and_may_be_tried_again),
    };
    return harness_run(tests, COUNT_OF(tests), argc, argv);
}
