/* SPDX-License-Identifier: BSD-3-Clause */
/* Small files. */
#include "blockmirror/base/file_util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"

struct bm_stamp bm_stamp(const char *path)
{
	struct stat st;

	if (stat(path, &st) < 0)
		return (struct bm_stamp){0};
	return (struct bm_stamp){st.st_dev, st.st_ino, st.st_size, st.st_mtim, st.st_ctim};
}

static bool same_time(const struct timespec *a, const struct timespec *b)
{
	return a->tv_sec == b->tv_sec && a->tv_nsec == b->tv_nsec;
}

bool bm_stamp_same(const struct bm_stamp *a, const struct bm_stamp *b)
{
	return a->dev == b->dev && a->ino == b->ino && a->size == b->size &&
	       same_time(&a->written, &b->written) && same_time(&a->changed, &b->changed);
}

int bm_read_text(const char *path, size_t most, char **text)
{
	bm_close int fd = open(path, O_RDONLY | O_CLOEXEC);
	bm_free char *data = calloc(1, most + 2);
	size_t used = 0;
	ssize_t n;

	if (fd < 0)
		return -errno;
	if (!data)
		return -ENOMEM;
	while ((n = read(fd, data + used, most + 1 - used)) > 0)
		used += (size_t)n;
	if (n < 0)
		return -errno;
	if (used > most)
		return -EFBIG;
	*text = bm_steal(data);
	return 0;
}

static int write_all(int fd, const char *data, size_t length)
{
	while (length) {
		ssize_t n = write(fd, data, length);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		data += n;
		length -= (size_t)n;
	}
	return 0;
}

int bm_write_durably(const char *path, const void *data, size_t length)
{
	bm_close int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	int r;

	if (fd < 0)
		return -errno;
	r = write_all(fd, data, length);
	if (!r && fsync(fd) < 0)
		r = -errno;
	return r ? r : bm_sync_folder_of(path);
}

static int sync_fd(const char *path, int flags)
{
	bm_close int fd = open(path, O_RDONLY | O_CLOEXEC | flags);

	return fd < 0 || fsync(fd) < 0 ? -errno : 0;
}

int bm_sync_file(const char *path)
{
	return sync_fd(path, 0);
}

int bm_sync_folder_of(const char *path)
{
	bm_free char *folder = strdup(path);
	char *slash;

	if (!folder)
		return -ENOMEM;
	slash = strrchr(folder, '/');
	if (!slash)
		return sync_fd(".", O_DIRECTORY);
	slash[slash == folder] = '\0';
	return sync_fd(folder, O_DIRECTORY);
}

int bm_rename_durably(const char *from, const char *to)
{
	return rename(from, to) < 0 ? -errno : bm_sync_folder_of(to);
}

int bm_make_folders(const char *path)
{
	bm_free char *copy = strdup(path);
	int r;

	if (!copy)
		return -ENOMEM;
	for (char *at = copy + 1;; at++) {
		char c = *at;

		if (c && c != '/')
			continue;
		*at = '\0';
		r = mkdir(copy, 0700);
		if (r < 0 && errno != EEXIST)
			return -errno;
		r = r < 0 ? 0 : bm_sync_folder_of(copy);
		if (r < 0)
			return r;
		*at = c;
		if (!c)
			return 0;
	}
}
