/* SPDX-License-Identifier: BSD-3-Clause */
/* Image locks compatible with QEMU's. */
#include "blockmirror/dev/lock.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "blockmirror/dev/open.h"

#define LOCK_WAIT 30000000000ull
#define LETS_GO   1000000000ull

enum {
	PERM_BASE = 100,
	SHARED_BASE = 200,

	PERM_CONSISTENT_READ = 1 << 0,
	PERM_WRITE = 1 << 1,
	PERM_WRITE_UNCHANGED = 1 << 2,
	PERM_RESIZE = 1 << 3,
	PERMS = 4
};

static int lock_byte(int fd, short type, off_t start)
{
	struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = 1};

	return fcntl(fd, F_OFD_SETLK, &lock) < 0 ? -errno : 0;
}

/* Whether somebody else holds the byte: the question asked is for a write lock. */
static int held_by_other(int fd, off_t start)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = start, .l_len = 1};

	if (fcntl(fd, F_OFD_GETLK, &lock) < 0)
		return -errno;
	return lock.l_type == F_UNLCK ? 0 : -EAGAIN;
}

static int take(int fd, unsigned used, unsigned unshared)
{
	for (int i = 0; i < PERMS; i++) {
		int r = 0;

		if (used & 1u << i)
			r = lock_byte(fd, F_RDLCK, PERM_BASE + i);
		if (!r && unshared & 1u << i)
			r = lock_byte(fd, F_RDLCK, SHARED_BASE + i);
		if (r < 0)
			return r == -EACCES ? -EAGAIN : r;
	}
	return 0;
}

/* First all locks are taken, then the others' are looked at: of two who come together at least
 * one sees the other. */
static int check(int fd, unsigned used, unsigned unshared)
{
	for (int i = 0; i < PERMS; i++) {
		int r = 0;

		if (used & 1u << i)
			r = held_by_other(fd, SHARED_BASE + i);
		if (!r && unshared & 1u << i)
			r = held_by_other(fd, PERM_BASE + i);
		if (r < 0)
			return r;
	}
	return 0;
}

enum {
	UNSHARED = PERM_WRITE | PERM_RESIZE,
	WRITER = PERM_CONSISTENT_READ | PERM_WRITE | PERM_WRITE_UNCHANGED | PERM_RESIZE,
};

int bm_image_lock(int fd, bool read_only)
{
	unsigned used = read_only ? PERM_CONSISTENT_READ : WRITER;
	int r = take(fd, used, UNSHARED);

	if (!r)
		r = check(fd, used, UNSHARED);
	if (r < 0)
		bm_image_unlock(fd);
	return r;
}

int bm_image_lock_beside(int fd)
{
	return take(fd, WRITER, UNSHARED);
}

int bm_image_lock_alone(int fd)
{
	return check(fd, WRITER, UNSHARED);
}

void bm_image_unlock(int fd)
{
	for (int i = 0; i < PERMS; i++) {
		lock_byte(fd, F_UNLCK, PERM_BASE + i);
		lock_byte(fd, F_UNLCK, SHARED_BASE + i);
	}
}

/*
 * How long a process that is dying may keep the image (options->fence). Without a fence it may be
 * ending in good order: its sockets are closed, and its device is written back before that is.
 */
uint64_t bm_image_patience(const struct bm_open_options *options)
{
	if (!options->fence)
		return LETS_GO;
	return options->fence_ns ? options->fence_ns : LOCK_WAIT;
}

int bm_image_lock_for(int fd, const char *path, const struct bm_open_options *options,
		      struct bm_error *error)
{
	uint64_t left = bm_image_patience(options);
	int r;

	if (options->unlocked)
		return 0;
	while ((r = options->beside ? bm_image_lock_beside(fd)
				    : bm_image_lock(fd, options->read_only)) == -EAGAIN &&
	       left >= BM_IMAGE_RETRY) {
		if (bm_wait_a_while(options, BM_IMAGE_RETRY) < 0)
			break;
		left -= BM_IMAGE_RETRY;
	}
	if (r == -EAGAIN)
		return bm_fail(error, BM_E_LOCKED,
			       "%s: another process has the image open (lslocks(8) shows which)",
			       path);
	/* A file system without locks: as QEMU does, go on without. */
	return r == -EOPNOTSUPP || r == -ENOLCK ? 0 : r ? bm_fail_errno(error, r, "%s", path) : 0;
}
