/* Preloaded into a run's processes: faults of storage and clocks that a test machine does not have.

   A fault is on while its file lies in $FAULT_DIR:
     slow-fsync    fsync takes a second more
     quota         renaming, and making a folder, fail with EDQUOT
     no-links      hard links fail with EPERM
     clock         the time of day is an hour ahead
     clock-NODE    the same on one node of Slurm
*/
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

static int on(const char *fault) {
    const char *folder = getenv("FAULT_DIR");
    char path[4096];
    if (folder == NULL) return 0;
    snprintf(path, sizeof path, "%s/%s", folder, fault);
    return syscall(SYS_access, path, F_OK) == 0;
}

static int refused(const char *fault, int number) {
    if (!on(fault)) return 0;
    errno = number;
    return 1;
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (real == NULL) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

int fsync(int fd) {
    REAL(int, "fsync", int);
    if (on("slow-fsync")) sleep(1);
    return real(fd);
}

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    return refused("quota", EDQUOT) ? -1 : real(from, to);
}

int renameat(int a, const char *from, int b, const char *to) {
    REAL(int, "renameat", int, const char *, int, const char *);
    return refused("quota", EDQUOT) ? -1 : real(a, from, b, to);
}

int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    return refused("quota", EDQUOT) ? -1 : real(path, mode);
}

int link(const char *from, const char *to) {
    REAL(int, "link", const char *, const char *);
    return refused("no-links", EPERM) ? -1 : real(from, to);
}

int linkat(int a, const char *from, int b, const char *to, int flags) {
    REAL(int, "linkat", int, const char *, int, const char *, int);
    return refused("no-links", EPERM) ? -1 : real(a, from, b, to, flags);
}

static long ahead(void) {
    char fault[300];
    const char *node = getenv("SLURMD_NODENAME");
    snprintf(fault, sizeof fault, "clock-%s", node == NULL ? "" : node);
    return on("clock") || on(fault) ? 3600 : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(int, "clock_gettime", clockid_t, struct timespec *);
    int code = real(clock, now);
    if (code == 0 && clock == CLOCK_REALTIME) now->tv_sec += ahead();
    return code;
}

int gettimeofday(struct timeval *now, void *zone) {
    REAL(int, "gettimeofday", struct timeval *, void *);
    int code = real(now, zone);
    if (code == 0) now->tv_sec += ahead();
    return code;
}
