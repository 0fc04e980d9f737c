/* Kills the process before the Nth call that changes what lies below one folder.
 *
 * For: LD_PRELOAD into a Python that runs the agent. Counts every call of libc that writes to a file, renames,
 * syncs, links, unlinks, makes or removes a folder, truncates, or creates a file, whichever thread makes it.
 * Not for: programs that make system calls past libc (tests/crash compares its count with strace's).
 *
 * killpoint_arm(root, at, only, torn, log) arms it in this process: `root` an absolute path without symlinks,
 * `at` counted from 0 (negative: count only), `only` the one call that is counted, as the log writes it (NULL:
 * all), `torn` not 0: a write at the point is done by half first, `log` a descriptor that gets one line per
 * call, or -1. KILLPOINT_ROOT, _AT, _LOG (a file's path) in the environment arm it at start, and are removed,
 * so that processes started by this one live on.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[PATH_MAX], wanted[PATH_MAX + 64];
static size_t root_length;
static long kill_at = -1;
static int torn, log_fd = -1;
static atomic_long count;

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static int inside(const char *path) {
    return !strncmp(path, root, root_length) && (path[root_length] == '/' || path[root_length] == 0);
}

static int inside_fd(int fd, char *found) {
    char link[64], path[PATH_MAX];
    if (!root_length) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    if (found) strcpy(found, path);
    return inside(path);
}

static int inside_at(int folder, const char *path) {
    char found[PATH_MAX];
    if (!root_length) return 0;
    if (path[0] == '/') return inside(path);
    if (folder == AT_FDCWD) return getcwd(found, sizeof found) && inside(found);
    return inside_fd(folder, NULL);
}

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

/* Whether the process is to die at this call; the caller may do a part of it first. */
static int reached(const char *what, const char *path) {
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line - 1, "%s %s", what, path);
    if (wanted[0] && strcmp(line, wanted)) return 0;
    long number = atomic_fetch_add(&count, 1);
    if (log_fd >= 0) {
        line[length] = '\n';
        syscall(SYS_write, log_fd, line, (size_t)length + 1);
    }
    return number == kill_at;
}

static void point(const char *what, const char *path) {
    if (reached(what, path)) die();
}

static void point_fd(const char *what, int fd) {
    char path[PATH_MAX];
    if (inside_fd(fd, path)) point(what, path);
}

void killpoint_arm(const char *folder, long at, const char *only, int tear, int log) {
    strncpy(wanted, only ? only : "", sizeof wanted - 1);
    strncpy(root, folder, sizeof root - 1);
    root_length = strlen(root);
    kill_at = at;
    torn = tear;
    log_fd = log;
    atomic_store(&count, 0);
}

long killpoint_count(void) { return atomic_load(&count); }

__attribute__((constructor)) static void from_environment(void) {
    char *folder = getenv("KILLPOINT_ROOT"), *at = getenv("KILLPOINT_AT"), *log = getenv("KILLPOINT_LOG");
    if (!folder) return;
    int fd = log ? open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666) : -1;
    killpoint_arm(folder, at ? atol(at) : -1, NULL, 0, fd);
    unsetenv("KILLPOINT_ROOT");
    unsetenv("KILLPOINT_AT");
    unsetenv("KILLPOINT_LOG");
}

/* --- content */

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    char path[PATH_MAX];
    if (inside_fd(fd, path) && reached("write", path)) {
        if (torn) real(fd, data, size / 2);
        die();
    }
    return real(fd, data, size);
}

#define BY_FD(result, name, parameters, ...) \
    result name parameters { REAL(name); point_fd(#name, fd); return real(__VA_ARGS__); }
BY_FD(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), fd, data, size, at)
BY_FD(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), fd, data, size, at)
BY_FD(ssize_t, writev, (int fd, const struct iovec *parts, int n), fd, parts, n)
BY_FD(ssize_t, sendfile, (int fd, int from, off_t *at, size_t size), fd, from, at, size)
BY_FD(ssize_t, sendfile64, (int fd, int from, off64_t *at, size_t size), fd, from, at, size)
BY_FD(int, ftruncate, (int fd, off_t size), fd, size)
BY_FD(int, ftruncate64, (int fd, off64_t size), fd, size)
BY_FD(int, fsync, (int fd), fd)
BY_FD(int, fdatasync, (int fd), fd)
BY_FD(int, syncfs, (int fd), fd)
BY_FD(int, fchmod, (int fd, mode_t mode), fd, mode)

/* --- names */

#define BY_PATH(name, path, parameters, ...) \
    int name parameters { REAL(name); if (inside_at(AT_FDCWD, path)) point(#name, path); return real(__VA_ARGS__); }
#define BY_AT(name, folder, path, parameters, ...) \
    int name parameters { REAL(name); if (inside_at(folder, path)) point(#name, path); return real(__VA_ARGS__); }
BY_PATH(rename, new, (const char *old, const char *new), old, new)
BY_PATH(link, new, (const char *old, const char *new), old, new)
BY_PATH(symlink, path, (const char *target, const char *path), target, path)
BY_PATH(unlink, path, (const char *path), path)
BY_PATH(rmdir, path, (const char *path), path)
BY_PATH(mkdir, path, (const char *path, mode_t mode), path, mode)
BY_PATH(truncate, path, (const char *path, off_t size), path, size)
BY_PATH(truncate64, path, (const char *path, off64_t size), path, size)
BY_AT(renameat, b, new, (int a, const char *old, int b, const char *new), a, old, b, new)
BY_AT(renameat2, b, new, (int a, const char *old, int b, const char *new, unsigned how), a, old, b, new, how)
BY_AT(linkat, b, new, (int a, const char *old, int b, const char *new, int how), a, old, b, new, how)
BY_AT(symlinkat, at, path, (const char *target, int at, const char *path), target, at, path)
BY_AT(unlinkat, at, path, (int at, const char *path, int how), at, path, how)
BY_AT(mkdirat, at, path, (int at, const char *path, mode_t mode), at, path, mode)

#define OPEN(name) \
    int name(const char *path, int how, ...) { \
        REAL(name); \
        mode_t mode = 0; \
        if (how & (O_CREAT | __O_TMPFILE)) { va_list rest; va_start(rest, how); mode = va_arg(rest, mode_t); va_end(rest); } \
        if ((how & (O_CREAT | O_TRUNC)) && inside_at(AT_FDCWD, path)) point(#name, path); \
        return real(path, how, mode); \
    }
#define OPENAT(name) \
    int name(int at, const char *path, int how, ...) { \
        REAL(name); \
        mode_t mode = 0; \
        if (how & (O_CREAT | __O_TMPFILE)) { va_list rest; va_start(rest, how); mode = va_arg(rest, mode_t); va_end(rest); } \
        if ((how & (O_CREAT | O_TRUNC)) && inside_at(at, path)) point(#name, path); \
        return real(at, path, how, mode); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
