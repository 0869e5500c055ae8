/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Trying out a new image's file system. A pattern is written at the image's two ends, and is read
 * back past the page cache, so that it is the storage that answers.
 */
#include "blockmirror/daemon/probe.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"

enum {
	SMALLEST_BLOCK = 512,
	LARGEST_BLOCK = 64 << 10,
	HEAD = 1 << 20, /* multiples of the largest block */
	TAIL = 64 << 10,
	SMALL_WRITE = 4096,
	FLUSHES = 7,
};

struct trial {
	const char *path;
	int fd;
	uint64_t size, salt;
	size_t head, tail; /* bytes, at the image's ends, that are used */
	size_t unit;       /* of writes: a block, or 512 bytes through the page cache */
	uint8_t *buffer;   /* HEAD bytes, aligned to LARGEST_BLOCK */
	uint64_t flush_ns; /* of the last one */
	struct probe found;
	struct bm_error *error;
};

static int failed(const struct trial *t, int err, const char *what)
{
	bool full = abs(err) == ENOSPC || abs(err) == EDQUOT;

	return bm_fail(t->error, full ? BM_E_ENOSPC : BM_E_IO, "trying out %s: cannot %s: %s%s",
		       t->path, what, strerror(abs(err)),
		       full ? "; make room in its file system" : "");
}

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/*
 * The eight bytes at offset: no two places have the same, so what lands elsewhere is seen. Nor have
 * two trials: blocks that an earlier image had may come back with its pattern in them, and a write
 * that got lost would look like one that did not.
 */
static uint64_t pattern(const struct trial *t, uint64_t offset)
{
	uint64_t x = offset ^ t->salt;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return x;
}

static void fill(const struct trial *t, uint8_t *data, size_t length, uint64_t at)
{
	for (size_t i = 0; i < length; i += sizeof(uint64_t))
		memcpy(data + i, &(uint64_t){pattern(t, at + i)}, sizeof(uint64_t));
}

static int transfer(int fd, bool writes, uint8_t *data, size_t length, uint64_t at)
{
	while (length) {
		ssize_t n = writes ? pwrite(fd, data, length, (off_t)at)
				   : pread(fd, data, length, (off_t)at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) /* 0: the file ends before its size */
			return n ? -errno : -EIO;
		data += n;
		at += (uint64_t)n;
		length -= (size_t)n;
	}
	return 0;
}

static int flush(struct trial *t)
{
	uint64_t begun = clock_ns(CLOCK_MONOTONIC);

	if (fdatasync(t->fd) < 0)
		return failed(t, errno, "flush (fdatasync)");
	t->flush_ns = clock_ns(CLOCK_MONOTONIC) - begun;
	return 0;
}

static int write_pattern(struct trial *t, uint64_t at, size_t length)
{
	int r;

	fill(t, t->buffer, length, at);
	r = transfer(t->fd, true, t->buffer, length, at);
	return r ? failed(t, r, "write") : flush(t);
}

/* Has to be zeros from hole up to hole_end, and the pattern elsewhere. The file is flushed. */
static int check(const struct trial *t, uint64_t at, size_t length, uint64_t hole,
		 uint64_t hole_end)
{
	int r;

	memset(t->buffer, 0xa5, length); /* not what was written from there */
	r = transfer(t->fd, false, t->buffer, length, at);
	if (r)
		return failed(t, r, "read");
	for (uint64_t i = 0; i < length; i++) {
		uint64_t offset = at + i, word = pattern(t, offset & ~7ull);
		bool zeros = offset >= hole && offset < hole_end;

		if (t->buffer[i] != (zeros ? 0 : ((uint8_t *)&word)[i % sizeof(word)]))
			return bm_fail(
				t->error, BM_E_IO, "%s does not read %s at %" PRIu64, t->path,
				zeros ? "as zeros what was made so" : "back what was written",
				offset);
	}
	return 0;
}

static int check_ends(const struct trial *t, uint64_t hole, uint64_t hole_end)
{
	int r;

	if (!t->found.block) /* the cache shall not answer; where it does all the same, so be it */
		posix_fadvise(t->fd, 0, 0, POSIX_FADV_DONTNEED);
	r = check(t, 0, t->head, hole, hole_end);
	return r ? r : check(t, t->size - t->tail, t->tail, hole, hole_end);
}

/* The alignment to begin with; 0: the kernel says that there is no direct I/O. */
static unsigned told_block(int fd)
{
	struct statx x = {0};

	if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &x) < 0 || !(x.stx_mask & STATX_DIOALIGN))
		return SMALLEST_BLOCK; /* before Linux 6.1, or such a file system */
	return x.stx_dio_offset_align;
}

/*
 * Tried by writing: a read from a hole may succeed whatever its alignment. Not beyond what divides
 * the size, or direct I/O could not reach the end: then, through the page cache (as dev/file.c).
 */
static int find_block(struct trial *t)
{
	int flags = fcntl(t->fd, F_GETFL), r;
	unsigned block = flags & O_DIRECT ? told_block(t->fd) : 0;

	for (; block && block <= LARGEST_BLOCK && !(t->size % block); block *= 2) {
		/* In memory and in the file aligned to just this, and not to more. */
		uint64_t at = t->size > block ? block : 0;
		uint8_t *data = t->buffer + block;

		if (block < SMALLEST_BLOCK)
			continue;
		fill(t, data, block, at);
		r = transfer(t->fd, true, data, block, at);
		if (!r)
			r = transfer(t->fd, false, data, block, at);
		if (!r)
			t->unit = t->found.block = block;
		if (r != -EINVAL)
			return r ? failed(t, r, "write and read directly (O_DIRECT)") : 0;
	}
	r = fcntl(t->fd, F_SETFL, flags & ~O_DIRECT);
	return r < 0 ? failed(t, errno, "use the page cache") : 0;
}

/* After writes over what is there: to find room for new data takes longer. */
static int time_flushes(struct trial *t)
{
	size_t length = t->head < SMALL_WRITE ? t->head : SMALL_WRITE;
	uint64_t took[FLUSHES]; /* sorted */

	for (int i = 0; i < FLUSHES; i++) {
		int r = write_pattern(t, 0, length < t->unit ? t->unit : length);
		int j = i;

		if (r < 0)
			return r;
		for (; j && took[j - 1] > t->flush_ns; j--)
			took[j] = took[j - 1];
		took[j] = t->flush_ns;
	}
	t->found.flush_ns = took[FLUSHES / 2];
	return 0;
}

/* Makes a part zero, out of the middle where there is one; what is beside it has to stay. */
static int try_fallocate(struct trial *t, int mode, const char *what, bool *can)
{
	size_t units = t->head / t->unit, at = units / 4 * t->unit;
	size_t length = (units + 1) / 2 * t->unit;
	int r = write_pattern(t, at, length);

	if (r < 0)
		return r;
	mode |= FALLOC_FL_KEEP_SIZE;
	if (TEMP_FAILURE_RETRY(fallocate(t->fd, mode, (off_t)at, (off_t)length)) < 0)
		return errno == EOPNOTSUPP ? 0 : failed(t, errno, what);
	*can = true;
	r = flush(t);
	return r ? r : check_ends(t, at, at + length);
}

static int try_out(struct trial *t)
{
	int r = write_pattern(t, 0, t->head);

	if (!r)
		r = write_pattern(t, t->size - t->tail, t->tail);
	if (!r)
		r = time_flushes(t);
	if (!r)
		r = check_ends(t, 0, 0);
	if (!r)
		r = try_fallocate(t, FALLOC_FL_PUNCH_HOLE, "punch a hole", &t->found.punch);
	if (!r)
		r = try_fallocate(t, FALLOC_FL_ZERO_RANGE, "make a range zero", &t->found.zero);
	return r;
}

static int make_empty(struct trial *t)
{
	int r;

	if (ftruncate(t->fd, 0) < 0 || ftruncate(t->fd, (off_t)t->size) < 0)
		return failed(t, errno, "cut off what was written");
	r = flush(t);
	if (r < 0 || (lseek(t->fd, 0, SEEK_DATA) < 0 && errno == ENXIO))
		return r;
	/* A file system that does not know where its holes are says that all is data. */
	return check_ends(t, 0, t->size);
}

static int open_image(struct trial *t)
{
	struct stat st;

	t->fd = open(t->path, O_RDWR | O_CLOEXEC | O_DIRECT);
	if (t->fd < 0 && errno == EINVAL)
		t->fd = open(t->path, O_RDWR | O_CLOEXEC);
	if (t->fd < 0 || fstat(t->fd, &st) < 0)
		return bm_fail_errno(t->error, errno, "cannot open %s", t->path);
	if (!S_ISREG(st.st_mode))
		return bm_fail(t->error, BM_E_NOT_IMAGE, "%s is not a file", t->path);
	if (!t->size || t->size % SMALLEST_BLOCK || (uint64_t)st.st_size != t->size)
		return bm_fail(t->error, BM_E_SIZE,
			       "%s has %jd bytes, not the %" PRIu64 " that a new image was to have",
			       t->path, (intmax_t)st.st_size, t->size);
	return 0;
}

int probe_image(const char *path, uint64_t size, struct probe *probe, struct bm_error *error)
{
	bm_free uint8_t *buffer = aligned_alloc(LARGEST_BLOCK, HEAD);
	struct trial t = {.path = path, .size = size, .buffer = buffer, .error = error};
	bm_close int fd = -1;
	int r, emptied;

	if (!buffer)
		return bm_fail_errno(error, ENOMEM, "cannot try out %s", path);
	t.unit = SMALLEST_BLOCK;
	t.salt = clock_ns(CLOCK_REALTIME);
	t.head = size < HEAD ? (size_t)size : HEAD;
	t.tail = size - t.head < TAIL ? (size_t)(size - t.head) : TAIL;
	r = open_image(&t);
	fd = t.fd;
	if (r < 0)
		return r;
	r = find_block(&t);
	if (!r)
		r = try_out(&t);
	if (r < 0)
		t.error = NULL; /* what went wrong first is what is told */
	emptied = make_empty(&t);
	r = r ? r : emptied;
	if (!r)
		*probe = t.found;
	return r;
}
