// Counts the calls of the C library that change files below a folder, and lets one of them end
// otherwise: preloaded (LD_PRELOAD), it sees the writes of every library of a process.
//
//   cc -shared -fPIC -O1 -o failing_files.so failing_files.c -ldl
//
// A call is counted before it is made. Of descriptors it is known which were opened below the folder.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PASS, KILL, KILL_HALF, FAIL, FAIL_HALF, FULL };

static char folder[PATH_MAX];
static int mode, code;
static long count, place;
static char names[1 << 20];
static unsigned char ours[1 << 16];

#define REAL(name) \
  static __typeof__(&name) real; \
  if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

// Begins to count. mode: PASS counts only; KILL and KILL_HALF end the process at call `at`, the
// second after half of a write; FAIL and FAIL_HALF give it an error, the second after half of a
// write; FULL gives the error to it and all later calls that need room.
void failing_files(const char* below, int how, long at, int error) {
  snprintf(folder, sizeof folder, "%s", below);
  mode = how, place = at, code = error, count = 0, names[0] = 0;
  memset(ours, 0, sizeof ours);
}

// The names of the calls so far, each with a newline.
const char* failing_names(void) { return names; }

static int inside(const char* path) {
  size_t length = strlen(folder);
  return length && path && !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

static int is_ours(int file) { return file >= 0 && file < (int)sizeof ours && ours[file]; }

// Counts a call; nonzero where it fails now. needs: whether it needs room on the disk.
static int fails(const char* name, int needs) {
  size_t length = strlen(names);
  if (length + 32 < sizeof names) sprintf(names + length, "%s\n", name);
  ++count;
  if (mode == PASS || count < place || (count > place && !(mode == FULL && needs))) return 0;
  if (mode == KILL || mode == KILL_HALF) kill(getpid(), SIGKILL);
  errno = code;
  return 1;
}

static int halves(void) { return count + 1 == place && (mode == KILL_HALF || mode == FAIL_HALF); }

static int opened(const char* path, int flags, int file) {
  if (file >= 0 && file < (int)sizeof ours)
    ours[file] = inside(path) && (flags & (O_WRONLY | O_RDWR)) != 0;
  return file;
}

#define OPEN(name) \
  int name(const char* path, int flags, ...) { \
    REAL(name); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t bits = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest); \
    if (inside(path) && (flags & (O_CREAT | O_TRUNC)) && fails(#name, 1)) return -1; \
    return opened(path, flags, real(path, flags, bits)); \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
  int name(int at, const char* path, int flags, ...) { \
    REAL(name); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t bits = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest); \
    if (inside(path) && (flags & (O_CREAT | O_TRUNC)) && fails(#name, 1)) return -1; \
    return opened(path, flags, real(at, path, flags, bits)); \
  }
OPENAT(openat)
OPENAT(openat64)

int close(int file) {
  REAL(close);
  if (file >= 0 && file < (int)sizeof ours) ours[file] = 0;
  return real(file);
}

ssize_t write(int file, const void* data, size_t size) {
  REAL(write);
  if (is_ours(file)) {
    if (halves() && real(file, data, size / 2) < 0) return -1;
    if (fails("write", 1)) return -1;
  }
  return real(file, data, size);
}

ssize_t writev(int file, const struct iovec* parts, int size) {
  REAL(writev);
  if (is_ours(file) && fails("writev", 1)) return -1;
  return real(file, parts, size);
}

#define PWRITE(name, offset_type) \
  ssize_t name(int file, const void* data, size_t size, offset_type offset) { \
    REAL(name); \
    if (is_ours(file)) { \
      if (halves() && real(file, data, size / 2, offset) < 0) return -1; \
      if (fails(#name, 1)) return -1; \
    } \
    return real(file, data, size, offset); \
  }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define OF_FILE(name, needs, ...) \
  if (is_ours(file) && fails(#name, needs)) return -1; \
  return real(__VA_ARGS__);

int fsync(int file) { REAL(fsync); OF_FILE(fsync, 1, file) }
int fdatasync(int file) { REAL(fdatasync); OF_FILE(fdatasync, 1, file) }
int ftruncate(int file, off_t size) { REAL(ftruncate); OF_FILE(ftruncate, 0, file, size) }
int ftruncate64(int file, off64_t size) { REAL(ftruncate64); OF_FILE(ftruncate64, 0, file, size) }
int fchmod(int file, mode_t bits) { REAL(fchmod); OF_FILE(fchmod, 0, file, bits) }

int posix_fallocate(int file, off_t offset, off_t size) {
  REAL(posix_fallocate);
  if (is_ours(file) && fails("posix_fallocate", 1)) return code;
  return real(file, offset, size);
}

#define OF_PATH(name, needs, path, ...) \
  if (inside(path) && fails(#name, needs)) return -1; \
  return real(__VA_ARGS__);

int rename(const char* from, const char* to) { REAL(rename); OF_PATH(rename, 1, to, from, to) }
int renameat(int a, const char* from, int b, const char* to) {
  REAL(renameat);
  OF_PATH(renameat, 1, to, a, from, b, to)
}
int link(const char* from, const char* to) { REAL(link); OF_PATH(link, 1, to, from, to) }
int symlink(const char* from, const char* to) { REAL(symlink); OF_PATH(symlink, 1, to, from, to) }
int mkdir(const char* path, mode_t bits) { REAL(mkdir); OF_PATH(mkdir, 1, path, path, bits) }
int rmdir(const char* path) { REAL(rmdir); OF_PATH(rmdir, 0, path, path) }
int unlink(const char* path) { REAL(unlink); OF_PATH(unlink, 0, path, path) }
int unlinkat(int at, const char* path, int flags) {
  REAL(unlinkat);
  OF_PATH(unlinkat, 0, path, at, path, flags)
}
int chmod(const char* path, mode_t bits) { REAL(chmod); OF_PATH(chmod, 0, path, path, bits) }
int truncate(const char* path, off_t size) { REAL(truncate); OF_PATH(truncate, 0, path, path, size) }
