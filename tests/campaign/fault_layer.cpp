// A layer between a program and the system (LD_PRELOAD): the n-th call that touches a folder fails, or writes only half,
// or ends the program as kill -9 does.
//
// Counted are the calls that make, write, flush, rename and remove files: open for writing, write, fsync, chmod, rename,
// mkdir, unlink, rmdir.

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[4096];
static long wanted = -1, seen = 0;
static int code = 0;  // the error; 0: a short write; -1: kill -9, before the call or after half of a write

static bool inside(const char* path) { return folder[0] && path && strncmp(path, folder, strlen(folder)) == 0; }

static bool inside(int descriptor) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return false;
    path[size] = 0;
    return inside(path);
}

// Whether this is the call that shall fail.
static bool now(bool counted) { return counted && seen++ == wanted; }

static bool failed(bool counted) {
    if (!now(counted) || !code) return false;
    if (code < 0) kill(getpid(), SIGKILL);
    errno = code;
    return true;
}

template <typename F>
static F real(const char* name) {
    return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}

extern "C" {

void fault_set(const char* place, long at, int error) {
    snprintf(folder, sizeof folder, "%s", place);
    wanted = at, seen = 0, code = error;
}

// Nothing fails any more. How many calls were counted.
long fault_stop() {
    folder[0] = 0;
    return seen;
}

ssize_t write(int descriptor, const void* bytes, size_t count) {
    static auto call = real<ssize_t (*)(int, const void*, size_t)>("write");
    if (now(inside(descriptor))) {
        if (code > 0) return errno = code, -1;
        count = (count + 1) / 2;
        if (code < 0) {
            call(descriptor, bytes, count);
            kill(getpid(), SIGKILL);
        }
    }
    return call(descriptor, bytes, count);
}

// The mode follows where a file may be made.
#define MODE                                                  \
    mode_t mode = 0;                                          \
    if (flags & (O_CREAT | O_TMPFILE)) {                      \
        va_list rest;                                         \
        va_start(rest, flags), mode = va_arg(rest, mode_t);   \
        va_end(rest);                                         \
    }                                                         \
    if (failed(inside(path) && (flags & O_ACCMODE) != O_RDONLY)) return -1;

int open(const char* path, int flags, ...) {
    MODE return real<int (*)(const char*, int, ...)>("open")(path, flags, mode);
}
int open64(const char* path, int flags, ...) {
    MODE return real<int (*)(const char*, int, ...)>("open64")(path, flags, mode);
}
int openat(int directory, const char* path, int flags, ...) {
    MODE return real<int (*)(int, const char*, int, ...)>("openat")(directory, path, flags, mode);
}
int openat64(int directory, const char* path, int flags, ...) {
    MODE return real<int (*)(int, const char*, int, ...)>("openat64")(directory, path, flags, mode);
}

#define CALL(name, parameters, arguments, counted)                          \
    int name parameters {                                                   \
        static auto call = real<int(*) parameters>(#name);                  \
        return failed(counted) ? -1 : call arguments;                       \
    }
CALL(fsync, (int descriptor), (descriptor), inside(descriptor))
CALL(chmod, (const char* path, mode_t mode), (path, mode), inside(path))
CALL(fchmodat, (int d, const char* path, mode_t mode, int flags), (d, path, mode, flags), inside(path))
CALL(rename, (const char* from, const char* to), (from, to), inside(to))
CALL(renameat, (int a, const char* from, int b, const char* to), (a, from, b, to), inside(to))
CALL(mkdir, (const char* path, mode_t mode), (path, mode), inside(path))
CALL(mkdirat, (int directory, const char* path, mode_t mode), (directory, path, mode), inside(path))
CALL(unlink, (const char* path), (path), inside(path))
CALL(unlinkat, (int directory, const char* path, int flags), (directory, path, flags), inside(path) || inside(directory))
CALL(rmdir, (const char* path), (path), inside(path))
}
