/* llama-tensor-cache: rpc-server's tensor cache, filled and checked from outside.
 *
 * rpc-server names a cached tensor after the FNV-1a-64 hash of its bytes, 16 hex digits (ggml/src/ggml-rpc/
 * ggml-rpc.cpp: fnv_hash, set_tensor), writes it in place and never looks at it again. Here a tensor is written
 * aside, read back and hashed, and only then given its name.
 *
 *   llama-tensor-cache hash  FILE           < ranges     print the hash of each range
 *   llama-tensor-cache fill  FILE DIR USER  < ranges     put each range into DIR as USER
 *   llama-tensor-cache read  FILE           < ranges     write each range to standard output, its size before it
 *   llama-tensor-cache store DIR USER       < that       put what comes in into DIR as USER
 *   llama-tensor-cache check DIR                         hash each cached tensor: does its name still hold?
 *
 * A range is a line "offset size". A line is printed for each tensor, in no order: "hash size word offset", the word
 * being hashed, present, written, ok or bad; the offset is 0 where the tensor comes from no file. Exit status 1 and one line on standard error where something is wrong.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <pthread.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NAME = 16, MOST_RANGES = 1 << 20, MOST_THREADS = 64 };
static const uint64_t MOST_BYTES = UINT64_C(1) << 40;

struct range { uint64_t offset, size; char name[NAME + 1]; };

static struct range *ranges;
static size_t count, next_range;
static const uint8_t *data;      /* the mapped model */
static const char *dir;          /* the cache; NULL where nothing is written */
static int checking;
static int failed;               /* a thread could not write: the others end their tensor and take no other */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("llama-tensor-cache: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(1);
}

static uint64_t fnv(const uint8_t *bytes, uint64_t size) {
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (uint64_t i = 0; i < size; i++) hash = (hash ^ bytes[i]) * UINT64_C(0x100000001b3);
    return hash;
}

static const uint8_t *map(int file, uint64_t size, const char *name) {
    if (size == 0) return (const uint8_t *)"";
    void *at = mmap(NULL, size, PROT_READ, MAP_PRIVATE, file, 0);
    if (at == MAP_FAILED) die("cannot map %s: %s", name, strerror(errno));
    return at;
}

static void say(uint64_t hash, uint64_t size, const char *word, uint64_t offset) {
    pthread_mutex_lock(&lock);
    if (printf("%016" PRIx64 " %" PRIu64 " %s %" PRIu64 "\n", hash, size, word, offset) < 0 || fflush(stdout)) exit(1);
    pthread_mutex_unlock(&lock);
}

/* Whether the file holds exactly these bytes. Its pages are not kept: nobody needs them soon. A FIFO of that name
 * would keep whoever opens it waiting. */
static int holds(const char *path, uint64_t size, uint64_t hash) {
    struct stat seen;
    int file = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (file < 0) return 0;
    int good = fstat(file, &seen) == 0 && S_ISREG(seen.st_mode) && (uint64_t)seen.st_size == size;
    if (good && size) {
        const uint8_t *bytes = map(file, size, path);
        good = fnv(bytes, size) == hash;
        munmap((void *)bytes, size);
    }
    close(file);
    return good;
}

static void complain(uint64_t hash, int reason) {
    fprintf(stderr, "llama-tensor-cache: cannot write %s/%016" PRIx64 ": %s\n", dir, hash, strerror(reason));
    __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
}

/* A thread that fails leaves the others time to remove their drafts too. */
static void put(const uint8_t *bytes, uint64_t size, uint64_t offset) {
    uint64_t hash = fnv(bytes, size);
    char path[4096], draft[4096];
    struct stat seen;
    snprintf(path, sizeof path, "%s/%016" PRIx64, dir, hash);
    if (stat(path, &seen) == 0 && (uint64_t)seen.st_size == size && holds(path, size, hash)) {
        say(hash, size, "present", offset);
        return;
    }
    snprintf(draft, sizeof draft, "%s/.%016" PRIx64 ".XXXXXX", dir, hash);
    int file = mkostemp(draft, O_CLOEXEC);
    if (file < 0) {
        complain(hash, errno);
        return;
    }
    int wrong = 0;
    for (uint64_t done = 0; done < size && !wrong;) {
        uint64_t left = size - done;
        ssize_t some = write(file, bytes + done, left < (8 << 20) ? left : (8 << 20));
        if (some < 0 && errno != EINTR) wrong = errno;
        if (some > 0) done += (uint64_t)some;
    }
    if (!wrong && fdatasync(file)) wrong = errno;
    if (close(file) && !wrong) wrong = errno;
    if (!wrong && !holds(draft, size, hash)) wrong = EIO;
    if (!wrong && rename(draft, path)) wrong = errno;
    if (wrong) {
        unlink(draft);
        complain(hash, wrong);
        return;
    }
    say(hash, size, "written", offset);
}

static void check(const struct range *one) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, one->name);
    uint64_t hash = strtoull(one->name, NULL, 16);
    say(hash, one->size, holds(path, one->size, hash) ? "ok" : "bad", 0);
}

static void *work(void *nothing) {
    for (;;) {
        pthread_mutex_lock(&lock);
        size_t index = next_range < count && !__atomic_load_n(&failed, __ATOMIC_RELAXED) ? next_range++ : count;
        pthread_mutex_unlock(&lock);
        if (index == count) return nothing;
        struct range *one = &ranges[index];
        if (checking) check(one);
        else if (dir) put(data + one->offset, one->size, one->offset);
        else say(fnv(data + one->offset, one->size), one->size, "hashed", one->offset);
        if (data) madvise((void *)((uintptr_t)(data + one->offset) & ~(uintptr_t)4095), one->size, MADV_DONTNEED);
    }
}

static void run_all(void) {
    pthread_t threads[MOST_THREADS];
    long cores = sysconf(_SC_NPROCESSORS_ONLN), started = 0;
    for (; started < cores && started < MOST_THREADS && (size_t)started < count; started++)
        if (pthread_create(&threads[started], NULL, work, NULL)) die("cannot start a thread");
    for (long i = 0; i < started; i++) pthread_join(threads[i], NULL);
}

static void read_ranges(uint64_t limit) {
    ranges = calloc(MOST_RANGES, sizeof *ranges);
    if (!ranges) die("out of memory");
    struct range one = {0};
    int found;
    while ((found = scanf("%" SCNu64 " %" SCNu64, &one.offset, &one.size)) == 2) {
        if (count == MOST_RANGES) die("more than %d ranges", MOST_RANGES);
        if (one.size > limit || one.offset > limit - one.size)
            die("range %" PRIu64 " %" PRIu64 " ends behind the file's %" PRIu64 " bytes", one.offset, one.size, limit);
        ranges[count++] = one;
    }
    if (found != EOF) die("a range is a line of two numbers: offset and size");
}

static void open_model(const char *path) {
    struct stat seen;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0 || fstat(file, &seen)) die("cannot read %s: %s", path, strerror(errno));
    read_ranges((uint64_t)seen.st_size);
    data = map(file, (uint64_t)seen.st_size, path);
}

/* Everything from here on is done as the cache's owner. */
static void become(const char *user) {
    struct passwd *entry = getpwnam(user);
    if (!entry) die("no user %s", user);
    if (geteuid() == entry->pw_uid) return;
    if (initgroups(user, entry->pw_gid) || setgid(entry->pw_gid) || setuid(entry->pw_uid))
        die("cannot become %s: %s", user, strerror(errno));
}

static void open_cache(const char *path, const char *user) {
    dir = path;
    if (user) become(user);
    umask(077);
    if (mkdir(dir, 0700) && errno != EEXIST) die("cannot make %s: %s", dir, strerror(errno));
}

static void list_cache(void) {
    DIR *folder = opendir(dir);
    if (!folder) die("cannot read %s: %s", dir, strerror(errno));
    ranges = calloc(MOST_RANGES, sizeof *ranges);
    if (!ranges) die("out of memory");
    for (struct dirent *entry; (entry = readdir(folder)) && count < MOST_RANGES;) {
        struct stat seen;
        if (strlen(entry->d_name) != NAME || strspn(entry->d_name, "0123456789abcdef") != NAME) continue;
        if (fstatat(dirfd(folder), entry->d_name, &seen, AT_SYMLINK_NOFOLLOW)) continue;
        memcpy(ranges[count].name, entry->d_name, NAME + 1);
        ranges[count++].size = (uint64_t)seen.st_size;
    }
    closedir(folder);
}

static void send_ranges(void) {
    for (size_t i = 0; i < count; i++) {
        if (fwrite(&ranges[i].size, sizeof ranges[i].size, 1, stdout) != 1 ||
            fwrite(data + ranges[i].offset, 1, ranges[i].size, stdout) != ranges[i].size)
            die("cannot write to standard output: %s", strerror(errno));
    }
    if (fflush(stdout)) die("cannot write to standard output: %s", strerror(errno));
}

/* Sizes are little-endian on the wire, as every machine that llama.cpp's RPC runs on has them. */
static void receive(void) {
    uint64_t size, room = 0;
    uint8_t *bytes = NULL;
    size_t got;
    while ((got = fread(&size, 1, sizeof size, stdin)) == sizeof size) {
        if (size > MOST_BYTES) die("a tensor of %" PRIu64 " bytes is announced: not our protocol", size);
        if (size > room) {
            free(bytes);
            bytes = malloc(room = size);
            if (!bytes) die("no memory for a tensor of %" PRIu64 " bytes", size);
        }
        if (fread(bytes, 1, size, stdin) != size) die("what came in ended inside a tensor; send it again");
        put(bytes, size, 0);
        if (failed) exit(1);
    }
    if (got) die("what came in ended inside a size; send it again");
    free(bytes);
}

int main(int argc, char **argv) {
    const char *verb = argc > 1 ? argv[1] : "";
    if (!strcmp(verb, "hash") && argc == 3) {
        open_model(argv[2]);
        run_all();
    } else if (!strcmp(verb, "fill") && argc == 5) {
        open_model(argv[2]);
        open_cache(argv[3], argv[4]);
        run_all();
    } else if (!strcmp(verb, "read") && argc == 3) {
        open_model(argv[2]);
        send_ranges();
    } else if (!strcmp(verb, "store") && argc == 4) {
        open_cache(argv[2], argv[3]);
        receive();
    } else if (!strcmp(verb, "check") && argc == 3) {
        dir = argv[2];
        checking = 1;
        list_cache();
        run_all();
    } else {
        die("usage: hash FILE | fill FILE DIR USER | read FILE | store DIR USER | check DIR");
    }
    return failed;
}
