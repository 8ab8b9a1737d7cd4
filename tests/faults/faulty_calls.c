/*
 * Makes system calls of the layout fail: loaded into a process with LD_PRELOAD, steered through shared memory.
 *
 * The calls that change or read files below one directory are counted, in a process and all of its forks together.
 * From the call that is asked for on, one, several or all of them fail with an errno, write less than they should, or
 * end the process. Every call that is counted can be noted, so that a test can choose among them.
 *
 * `struct control` has its twin in faulty_calls.py.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind {
    WRITE = 1 << 0, CREATE = 1 << 1, SYNC = 1 << 2, RENAME = 1 << 3, LINK = 1 << 4, UNLINK = 1 << 5, MKDIR = 1 << 6,
    OPEN = 1 << 7, READ = 1 << 8, STAT = 1 << 9, CLOSE = 1 << 10, LOCK = 1 << 11, LIST = 1 << 12,
};

enum action { FAIL = 0, KILL_BEFORE = 1, KILL_AFTER = 2, SHORTEN = 3 };

#define NOTES (1 << 20)

struct control {
    _Atomic int64_t armed, count;
    int64_t first, last, number, action, kinds, victim;
    _Atomic int64_t hits, noted;
    int64_t noting;
    char hit[512];
    char below[3584];
    char notes[NOTES];
};

static struct control *control;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("PUZZLEFS_TEST_FAULTS");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped != MAP_FAILED)
        control = mapped;
    close(fd);
}

/* The process that is to be killed, if any, is the one that calls this; calls count from here on. */
void faults_arm(void)
{
    if (control) {
        control->victim = getpid();
        control->armed = 1;
    }
}

static int is_ours(int directory, const char *path, char *buffer, size_t size)
{
    char link[64];
    size_t used = 0;
    if (!path || path[0] != '/') {
        if (directory == AT_FDCWD) {
            if (!getcwd(buffer, size))
                return 0;
            used = strlen(buffer);
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
            ssize_t length = readlink(link, buffer, size - 1);
            if (length < 0)
                return 0;
            used = (size_t)length;
        }
        if (path)
            buffer[used++] = '/';
    }
    snprintf(buffer + used, size - used, "%s", path ? path : "");
    size_t length = strlen(control->below);
    return strncmp(buffer, control->below, length) == 0 && (buffer[length] == '/' || buffer[length] == '\0');
}

/* What is to be done about a call: nothing (-1), or an action. */
static int due(enum kind kind, const char *name, int directory, const char *path)
{
    if (!control || !control->armed || !(control->kinds & kind))
        return -1;
    int before = errno, result = -1;
    char full[8192];
    if (is_ours(directory, path, full, sizeof full)) {
        int64_t number = atomic_fetch_add(&control->count, 1) + 1;
        if (control->noting) {
            char line[8300];
            int length = snprintf(line, sizeof line, "%s %s\n", name, full + strlen(control->below));
            int64_t place = atomic_fetch_add(&control->noted, length);
            if (place + length < NOTES)
                memcpy(control->notes + place, line, (size_t)length);
        }
        if (control->first && number >= control->first && number <= control->last) {
            if (atomic_fetch_add(&control->hits, 1) == 0)
                snprintf(control->hit, sizeof control->hit, "%s %s", name, full + strlen(control->below));
            result = (int)control->action;
        }
    }
    errno = before;
    return result;
}

static void end_victim(void)
{
    kill((pid_t)control->victim, SIGKILL);
    while (getpid() == control->victim)
        pause();
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define CALL(kind, name, directory, path, call)                        \
    do {                                                               \
        int action_ = due(kind, #name, directory, path);               \
        if (action_ == FAIL) {                                         \
            errno = (int)control->number;                              \
            return -1;                                                 \
        }                                                              \
        if (action_ == KILL_BEFORE)                                    \
            end_victim();                                              \
        __typeof__(call) result_ = call;                               \
        if (action_ == KILL_AFTER)                                     \
            end_victim();                                              \
        return result_;                                                \
    } while (0)

static enum kind kind_of_open(int flags)
{
    return flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE ? CREATE : OPEN;
}

#define MODE_OF(flags, last)                                           \
    mode_t mode = 0;                                                   \
    if (kind_of_open(flags) == CREATE) {                               \
        va_list rest;                                                  \
        va_start(rest, last);                                          \
        mode = va_arg(rest, mode_t);                                   \
        va_end(rest);                                                  \
    }

int open(const char *path, int flags, ...)
{
    MODE_OF(flags, flags)
    CALL(kind_of_open(flags), open, AT_FDCWD, path, REAL(open)(path, flags, mode));
}

int open64(const char *path, int flags, ...)
{
    MODE_OF(flags, flags)
    CALL(kind_of_open(flags), open64, AT_FDCWD, path, REAL(open64)(path, flags, mode));
}

int openat(int directory, const char *path, int flags, ...)
{
    MODE_OF(flags, flags)
    CALL(kind_of_open(flags), openat, directory, path, REAL(openat)(directory, path, flags, mode));
}

int openat64(int directory, const char *path, int flags, ...)
{
    MODE_OF(flags, flags)
    CALL(kind_of_open(flags), openat64, directory, path, REAL(openat64)(directory, path, flags, mode));
}

ssize_t write(int fd, const void *data, size_t size)
{
    int action = due(WRITE, "write", fd, NULL);
    if (action == FAIL) {
        errno = (int)control->number;
        return -1;
    }
    if (action == KILL_BEFORE)
        end_victim();
    if ((action == SHORTEN || action == KILL_AFTER) && size > 1)
        size /= 2;
    ssize_t written = REAL(write)(fd, data, size);
    if (action == KILL_AFTER)
        end_victim();
    return written;
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset)
{
    int action = due(WRITE, "pwrite", fd, NULL);
    if (action == SHORTEN && size > 1)
        return REAL(pwrite64)(fd, data, size / 2, offset);
    if (action == FAIL) {
        errno = (int)control->number;
        return -1;
    }
    if (action == KILL_BEFORE)
        end_victim();
    ssize_t written = REAL(pwrite64)(fd, data, size, offset);
    if (action == KILL_AFTER)
        end_victim();
    return written;
}

int ftruncate64(int fd, off64_t size) { CALL(WRITE, ftruncate64, fd, NULL, REAL(ftruncate64)(fd, size)); }

int fsync(int fd) { CALL(SYNC, fsync, fd, NULL, REAL(fsync)(fd)); }
int fdatasync(int fd) { CALL(SYNC, fdatasync, fd, NULL, REAL(fdatasync)(fd)); }
int syncfs(int fd) { CALL(SYNC, syncfs, fd, NULL, REAL(syncfs)(fd)); }

int rename(const char *old, const char *new) { CALL(RENAME, rename, AT_FDCWD, new, REAL(rename)(old, new)); }
int renameat(int from, const char *old, int to, const char *new)
{
    CALL(RENAME, renameat, to, new, REAL(renameat)(from, old, to, new));
}

int link(const char *old, const char *new) { CALL(LINK, link, AT_FDCWD, new, REAL(link)(old, new)); }
int linkat(int from, const char *old, int to, const char *new, int flags)
{
    CALL(LINK, linkat, to, new, REAL(linkat)(from, old, to, new, flags));
}

int unlink(const char *path) { CALL(UNLINK, unlink, AT_FDCWD, path, REAL(unlink)(path)); }
int unlinkat(int directory, const char *path, int flags)
{
    CALL(UNLINK, unlinkat, directory, path, REAL(unlinkat)(directory, path, flags));
}
int rmdir(const char *path) { CALL(UNLINK, rmdir, AT_FDCWD, path, REAL(rmdir)(path)); }

int mkdir(const char *path, mode_t mode) { CALL(MKDIR, mkdir, AT_FDCWD, path, REAL(mkdir)(path, mode)); }
int mkdirat(int directory, const char *path, mode_t mode)
{
    CALL(MKDIR, mkdirat, directory, path, REAL(mkdirat)(directory, path, mode));
}

ssize_t read(int fd, void *data, size_t size) { CALL(READ, read, fd, NULL, REAL(read)(fd, data, size)); }
ssize_t pread64(int fd, void *data, size_t size, off64_t offset)
{
    CALL(READ, pread64, fd, NULL, REAL(pread64)(fd, data, size, offset));
}
ssize_t preadv64(int fd, const struct iovec *parts, int count, off64_t offset)
{
    CALL(READ, preadv64, fd, NULL, REAL(preadv64)(fd, parts, count, offset));
}

int stat64(const char *path, struct stat64 *result) { CALL(STAT, stat64, AT_FDCWD, path, REAL(stat64)(path, result)); }
int lstat64(const char *path, struct stat64 *result)
{
    CALL(STAT, lstat64, AT_FDCWD, path, REAL(lstat64)(path, result));
}
int fstat64(int fd, struct stat64 *result) { CALL(STAT, fstat64, fd, NULL, REAL(fstat64)(fd, result)); }
int fstatat64(int directory, const char *path, struct stat64 *result, int flags)
{
    CALL(STAT, fstatat64, directory, path, REAL(fstatat64)(directory, path, result, flags));
}

int close(int fd)
{
    int action = due(CLOSE, "close", fd, NULL);
    int result = REAL(close)(fd); /* what fails has closed the file, too: close(2) */
    if (action == FAIL) {
        errno = (int)control->number;
        return -1;
    }
    return result;
}

int flock(int fd, int how) { CALL(LOCK, flock, fd, NULL, REAL(flock)(fd, how)); }

DIR *opendir(const char *path)
{
    if (due(LIST, "opendir", AT_FDCWD, path) == FAIL) {
        errno = (int)control->number;
        return NULL;
    }
    return REAL(opendir)(path);
}

DIR *fdopendir(int fd)
{
    if (due(LIST, "fdopendir", fd, NULL) == FAIL) {
        errno = (int)control->number;
        return NULL;
    }
    return REAL(fdopendir)(fd);
}
