/* A file system of one file, `disk`, that writes down every write and every flush in the order in which they came.
 *
 * For: a loop device over `disk`: its log is what the disk was told, so that every state in which a power cut
 * may leave the disk can be made from it (tests/crash/power.py).
 * Not for: anything but this. Usage: recorder IMAGE LOG MOUNTPOINT.
 *
 * The log is a run of records: a write is offset and size (64 bits each, of this machine) and the bytes; a
 * flush is offset and size of all ones.
 */
#define FUSE_USE_VERSION 35
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int image, note;

static int found(const char *path, struct stat *status, struct fuse_file_info *info) {
    (void)info;
    memset(status, 0, sizeof *status);
    if (!strcmp(path, "/")) {
        status->st_mode = S_IFDIR | 0755;
        status->st_nlink = 2;
        return 0;
    }
    if (strcmp(path, "/disk")) return -ENOENT;
    return fstat(image, status) ? -errno : 0;
}

static int opened(const char *path, struct fuse_file_info *info) {
    if (strcmp(path, "/disk")) return -ENOENT;
    info->direct_io = 1;
    return 0;
}

static int get(const char *path, char *to, size_t size, off_t at, struct fuse_file_info *info) {
    (void)path, (void)info;
    ssize_t got = pread(image, to, size, at);
    return got < 0 ? -errno : (int)got;
}

static int put(const char *path, const char *from, size_t size, off_t at, struct fuse_file_info *info) {
    (void)path, (void)info;
    uint64_t head[2] = {(uint64_t)at, size};
    struct iovec parts[2] = {{head, sizeof head}, {(void *)from, size}};
    if (writev(note, parts, 2) != (ssize_t)(sizeof head + size)) return -EIO;
    ssize_t gone = pwrite(image, from, size, at);
    return gone < 0 ? -errno : (int)gone;
}

static int flushed(const char *path, int only_data, struct fuse_file_info *info) {
    (void)path, (void)only_data, (void)info;
    uint64_t head[2] = {UINT64_MAX, UINT64_MAX};
    return write(note, head, sizeof head) == sizeof head ? 0 : -EIO;
}

static int resized(const char *path, off_t size, struct fuse_file_info *info) {
    (void)path, (void)size, (void)info;
    return -EPERM;
}

static const struct fuse_operations operations = {
    .getattr = found, .open = opened, .read = get, .write = put, .fsync = flushed, .truncate = resized,
};

int main(int count, char **words) {
    if (count != 4) return 2;
    image = open(words[1], O_RDWR);
    note = open(words[2], O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (image < 0 || note < 0) return 1;
    char *arguments[] = {words[0], "-f", "-s", words[3], NULL};
    return fuse_main(4, arguments, &operations, NULL);
}
