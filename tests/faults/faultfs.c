// Fails one call to the storage. A library to be preloaded: every open, stat, list, read, write, flush, rename and
// removal of a process and its children passes through it, whoever makes it (Python, numpy, safetensors, Arrow).
//
// The processes and their test share a `struct state`, a file named by $FAULTFS_STATE, laid out as tests/faults/seam.py
// knows it. While `root` is not empty, calls on paths below it are counted and named, over all processes and threads;
// the call of number `armed` (from 1) fails with `error` and changes nothing, but for close, which has closed the file.
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAX_CALLS 65536
#define NAME_BYTES 256
struct state {
  _Atomic int64_t count;
  int64_t armed, error;
  char root[NAME_BYTES];
  char names[MAX_CALLS][NAME_BYTES];  // "open step-00000002/checkpoint.json": what the n-th call was
  int32_t processes[MAX_CALLS];  // and whose
};
static struct state *state;

#define REAL(type, name, ...) \
  static type (*real)(__VA_ARGS__); \
  if (!real) real = dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void start(void) {
  int (*open_real)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
  const char *path = getenv("FAULTFS_STATE");
  int file = path ? open_real(path, O_RDWR) : -1;
  if (file < 0) return;
  void *(*mmap_real)(void *, size_t, int, int, int, off_t) = dlsym(RTLD_NEXT, "mmap");
  void *found = mmap_real(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  int (*close_real)(int) = dlsym(RTLD_NEXT, "close");
  close_real(file);
  if (found != MAP_FAILED) state = found;
}

// Whether this call, on an absolute path, is the one that fails; sets errno.
static int fails_at(const char *call, const char *path) {
  size_t length = strlen(state->root);
  if (!length || strncmp(path, state->root, length) || (path[length] && path[length] != '/')) return 0;
  int64_t number = atomic_fetch_add(&state->count, 1) + 1;
  if (number < MAX_CALLS) {
    snprintf(state->names[number], NAME_BYTES, "%s %s", call, path + length + !!path[length]);
    state->processes[number] = getpid();
  }
  if (number != state->armed) return 0;
  errno = state->error;
  return 1;
}
static int fails_fd(const char *call, int file) {
  char link[64], path[PATH_MAX];
  if (!state || !*state->root || file < 0) return 0;
  int kept = errno;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, sizeof path - 1);
  errno = kept;
  if (length < 0) return 0;
  path[length] = 0;
  return fails_at(call, path);
}
static int fails(const char *call, int folder, const char *path) {
  char full[2 * PATH_MAX + 2], start[PATH_MAX] = "";
  if (!state || !*state->root || !path) return 0;
  if (*path == '/') return fails_at(call, path);
  if (folder == AT_FDCWD) {
    if (!getcwd(start, sizeof start)) return 0;
  } else {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, start, sizeof start - 1);
    if (length < 0) return 0;
    start[length] = 0;
  }
  snprintf(full, sizeof full, "%s/%s", start, path);
  return fails_at(call, full);
}

#define MODE(flags) \
  mode_t mode = 0; \
  if ((flags) & (O_CREAT | __O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }
#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    REAL(int, name, const char *, int, ...); \
    MODE(flags) \
    return fails(flags & O_ACCMODE ? "open-to-write" : "open", AT_FDCWD, path) ? -1 : real(path, flags, mode); \
  }
#define OPENAT(name) \
  int name(int folder, const char *path, int flags, ...) { \
    REAL(int, name, int, const char *, int, ...); \
    MODE(flags) \
    return fails(flags & O_ACCMODE ? "open-to-write" : "open", folder, path) ? -1 : real(folder, path, flags, mode); \
  }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)

#define FOPEN(name) \
  FILE *name(const char *path, const char *mode) { \
    REAL(FILE *, name, const char *, const char *); \
    return fails(*mode == 'r' ? "open" : "open-to-write", AT_FDCWD, path) ? NULL : real(path, mode); \
  }
FOPEN(fopen) FOPEN(fopen64)

#define T(...) __VA_ARGS__
#define PATH_CALL(label, name, parameters, types, values, folder, path) \
  int name parameters { REAL(int, name, types); return fails(label, folder, path) ? -1 : real values; }
#define STAT(name, kind) \
  PATH_CALL("stat", name, (const char *p, struct kind *out), T(const char *, struct kind *), (p, out), AT_FDCWD, p)
#define FSTATAT(name, kind) \
  PATH_CALL("stat", name, (int d, const char *p, struct kind *out, int f), T(int, const char *, struct kind *, int), \
            (d, p, out, f), d, p)
STAT(stat, stat) STAT(lstat, stat) STAT(stat64, stat64) STAT(lstat64, stat64)
FSTATAT(fstatat, stat) FSTATAT(fstatat64, stat64)
PATH_CALL("stat", statx, (int d, const char *p, int f, unsigned m, struct statx *out),
          T(int, const char *, int, unsigned, struct statx *), (d, p, f, m, out), d, p)
PATH_CALL("access", access, (const char *p, int m), T(const char *, int), (p, m), AT_FDCWD, p)
PATH_CALL("access", faccessat, (int d, const char *p, int m, int f), T(int, const char *, int, int), (d, p, m, f), d, p)
PATH_CALL("rename", rename, (const char *p, const char *to), T(const char *, const char *), (p, to), AT_FDCWD, p)
PATH_CALL("rename", renameat, (int d, const char *p, int e, const char *to), T(int, const char *, int, const char *),
          (d, p, e, to), d, p)
PATH_CALL("unlink", unlink, (const char *p), T(const char *), (p), AT_FDCWD, p)
PATH_CALL("unlink", unlinkat, (int d, const char *p, int f), T(int, const char *, int), (d, p, f), d, p)
PATH_CALL("rmdir", rmdir, (const char *p), T(const char *), (p), AT_FDCWD, p)
PATH_CALL("mkdir", mkdir, (const char *p, mode_t m), T(const char *, mode_t), (p, m), AT_FDCWD, p)
PATH_CALL("touch", utimensat, (int d, const char *p, const struct timespec t[2], int f),
          T(int, const char *, const struct timespec *, int), (d, p, t, f), d, p)
PATH_CALL("mkdir", mkdirat, (int d, const char *p, mode_t m), T(int, const char *, mode_t), (d, p, m), d, p)

DIR *opendir(const char *path) {
  REAL(DIR *, opendir, const char *);
  return fails("list", AT_FDCWD, path) ? NULL : real(path);
}
DIR *fdopendir(int file) {
  REAL(DIR *, fdopendir, int);
  return fails_fd("list", file) ? NULL : real(file);
}
#define READDIR(name, kind) \
  struct kind *name(DIR *folder) { \
    REAL(struct kind *, name, DIR *); \
    return fails_fd("list-next", dirfd(folder)) ? NULL : real(folder); \
  }
READDIR(readdir, dirent) READDIR(readdir64, dirent64)

#define FILE_CALL(label, type, name, parameters, types, values) \
  type name parameters { REAL(type, name, types); return fails_fd(label, file) ? -1 : real values; }
FILE_CALL("stat-open", int, fstat, (int file, struct stat *out), T(int, struct stat *), (file, out))
FILE_CALL("stat-open", int, fstat64, (int file, struct stat64 *out), T(int, struct stat64 *), (file, out))
FILE_CALL("read", ssize_t, read, (int file, void *to, size_t n), T(int, void *, size_t), (file, to, n))
FILE_CALL("read", ssize_t, pread, (int file, void *to, size_t n, off_t at), T(int, void *, size_t, off_t),
          (file, to, n, at))
FILE_CALL("read", ssize_t, pread64, (int file, void *to, size_t n, off64_t at), T(int, void *, size_t, off64_t),
          (file, to, n, at))
FILE_CALL("write", ssize_t, write, (int file, const void *from, size_t n), T(int, const void *, size_t),
          (file, from, n))
FILE_CALL("write", ssize_t, writev, (int file, const struct iovec *from, int n), T(int, const struct iovec *, int),
          (file, from, n))
FILE_CALL("sync", int, fsync, (int file), T(int), (file))
FILE_CALL("sync", int, fdatasync, (int file), T(int), (file))
FILE_CALL("lock", int, flock, (int file, int how), T(int, int), (file, how))
FILE_CALL("truncate", int, ftruncate, (int file, off_t n), T(int, off_t), (file, n))
FILE_CALL("truncate", int, ftruncate64, (int file, off64_t n), T(int, off64_t), (file, n))

#define MMAP(name, offset) \
  void *name(void *at, size_t n, int p, int f, int file, offset from) { \
    REAL(void *, name, void *, size_t, int, int, int, offset); \
    return fails_fd("map", file) ? MAP_FAILED : real(at, n, p, f, file, from); \
  }
MMAP(mmap, off_t) MMAP(mmap64, off64_t)

int close(int file) {
  REAL(int, close, int);
  if (!state || !*state->root) return real(file);
  int flags = fcntl(file, F_GETFL);
  int failing = flags >= 0 && (flags & O_ACCMODE) != O_RDONLY && fails_fd("close", file), error = errno;
  int result = real(file);
  if (failing) errno = error;
  return failing ? -1 : result;
}
