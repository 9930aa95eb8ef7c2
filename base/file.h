#ifndef MST_BASE_FILE_H
#define MST_BASE_FILE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* All return 0 or a count, or -errno; EINTR is handled inside. Any thread. */
int mst_write_all(int fd, const void *data, size_t len);
/* Reads a whole file of at most max bytes into a new buffer (free(3)), adds a terminating zero byte not counted in *ret_len.
 * -EFBIG when it is larger. */
int mst_file_read(const char *path, size_t max, char **ret_data, size_t *ret_len);
/* Writes path anew through a temporary name in the same folder, fsync, rename, fsync of the folder. The file gets exactly mode (no umask). */
int mst_file_write_durable(const char *path, const void *data, size_t len, mode_t mode);
/* Writes a short text ("123\n") to an existing file such as a cgroup control file, in one write(2).
 * -EIO when it was taken only in part. */
int mst_file_poke(const char *path, const char *text);
/* mkdir -p. */
int mst_mkdirs(const char *path, mode_t mode);
/* PATH gets this process's (or pid's) number; replaced atomically, not durable. */
int mst_pidfile_write(const char *path, pid_t pid);
/* Formats a path; -ENAMETOOLONG when it does not fit. */
__attribute__((format(printf, 3, 4))) int mst_path(char *buf, size_t size, const char *fmt, ...);
/* Kernel's boot id of this host (16 bytes, /proc/sys/kernel/random/boot_id). */
int mst_host_boot_id(uint8_t ret_id[static 16]);

#endif
