/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Files and block devices.
 *
 * Reads, writes and syncs go through a file engine (dev/aio.h) where that cannot block, and
 * through worker threads where it would: what the engine hands back with -EAGAIN, the rest of a
 * short transfer, buffered files, and all that has no asynchronous call (fallocate, lseek).
 * Holes are made by punching, found by SEEK_HOLE.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/list.h"
#include "blockmirror/base/worker.h"
#include "blockmirror/dev/aio.h"
#include "blockmirror/dev/extents.h"
#include "blockmirror/dev/later.h"
#include "blockmirror/dev/lock.h"
#include "blockmirror/dev/open.h"

enum {
	DEPTH = 256,  /* requests in flight; more wait */
	THREADS = 16, /* workers, started as needed */
	SMALLEST_BLOCK = 512,
	LARGEST_BLOCK = 4096,
};
struct file_io {
	struct file *file;
	struct bm_request *rq;
	struct bm_aio_rq aio;
	struct bm_work work;
	struct bm_list link;
	uint64_t transferred; /* of a READ or WRITE */
};

struct file {
	struct bm_dev dev;
	int fd;
	bool device; /* a block device */
	bool cancelled;
	const struct bm_aio_ops *engine_ops;
	struct bm_aio *engine; /* NULL: workers only */
	struct bm_workers *workers;
	struct bm_later later;
	struct bm_list free, waiting;
	struct file_io io[DEPTH];
};

/* In a worker's thread */

static int transfer(struct file_io *io)
{
	struct bm_request *rq = io->rq;
	int fd = io->file->fd;

	while (io->transferred < rq->length) {
		struct iovec v = {rq->data + io->transferred, rq->length - io->transferred};
		off_t at = (off_t)(rq->offset + io->transferred);
		ssize_t n;

		if (rq->op == BM_READ)
			n = preadv(fd, &v, 1, at);
		else
			n = pwritev2(fd, &v, 1, at, rq->flags & BM_FUA ? RWF_DSYNC : 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) /* 0: the image ends before its size, somebody cut it */
			return n ? -errno : -EIO;
		io->transferred += (uint64_t)n;
	}
	return 0;
}

static int write_zeros(int fd, uint64_t offset, uint64_t length)
{
	while (length) {
		size_t part = length < BM_BUF_MAX ? length : BM_BUF_MAX;
		ssize_t n = pwrite(fd, bm_zeros(), part, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		offset += (uint64_t)n;
		length -= (uint64_t)n;
	}
	return 0;
}

static int try_fallocate(int fd, int mode, const struct bm_request *rq)
{
	int r;

	do {
		r = fallocate(fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)rq->offset, (off_t)rq->length);
	} while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : 0;
}

static bool unsupported(int r)
{
	return r == -EOPNOTSUPP || r == -ENOSYS || r == -ENOTTY || r == -EINVAL;
}

static int zero(struct file_io *io)
{
	const struct bm_request *rq = io->rq;
	int fd = io->file->fd, r = -EOPNOTSUPP;

	if (!(rq->flags & BM_NO_HOLE))
		r = try_fallocate(fd, FALLOC_FL_PUNCH_HOLE, rq);
	/* A block device without an offload for it writes zeros: that is not fast. */
	if (unsupported(r) && rq->op == BM_ZERO && !(rq->flags & BM_FAST && io->file->device))
		r = try_fallocate(fd, FALLOC_FL_ZERO_RANGE, rq);
	if (unsupported(r) && rq->op == BM_TRIM)
		return 0; /* a hint */
	if (unsupported(r))
		r = rq->flags & BM_FAST ? -ENOTSUP : write_zeros(fd, rq->offset, rq->length);
	if (!r && rq->flags & BM_FUA && fdatasync(fd) < 0)
		r = -errno;
	return r;
}

/*
 * lseek() moves the descriptor's one position, which nobody uses: each call's own result is what
 * counts, so several threads may ask together.
 */
static int find_extents(struct file_io *io)
{
	const struct bm_request *rq = io->rq;
	struct bm_extents *x = rq->extents;
	uint64_t at = rq->offset, end = at + rq->length;

	x->count = 0;
	if (!(io->file->dev.geometry.flags & BM_DEV_EXTENTS)) {
		bm_extents_add(x, rq->length, 0);
		return 0;
	}
	while (at < end) {
		off_t data = lseek(io->file->fd, (off_t)at, SEEK_DATA), hole;

		if (data < 0 && errno != ENXIO)
			return -errno;
		if (data < 0 || (uint64_t)data > end) /* a hole up to the end */
			data = (off_t)end;
		if ((uint64_t)data > at &&
		    !bm_extents_add(x, (uint64_t)data - at, BM_EXTENT_HOLE | BM_EXTENT_ZERO))
			return 0;
		at = (uint64_t)data;
		if (at == end)
			break;
		hole = lseek(io->file->fd, data, SEEK_HOLE);
		if (hole < 0)
			return -errno;
		if ((uint64_t)hole > end)
			hole = (off_t)end;
		if (!bm_extents_add(x, (uint64_t)hole - at, 0))
			return 0;
		at = (uint64_t)hole;
	}
	return 0;
}

static void run_in_worker(struct bm_work *work)
{
	struct file_io *io = bm_container(work, struct file_io, work);
	struct bm_request *rq = io->rq;

	switch (rq->op) {
	case BM_READ:
	case BM_WRITE:
		rq->result = transfer(io);
		break;
	case BM_ZERO:
	case BM_TRIM:
		rq->result = zero(io);
		break;
	case BM_FLUSH:
		rq->result = fdatasync(io->file->fd) < 0 ? -errno : 0;
		break;
	default:
		rq->result = find_extents(io);
		break;
	}
}

/* In the loop's thread */

static void begin(struct file *f, struct bm_request *rq);

static void finish(struct file_io *io, int result)
{
	struct file *f = io->file;
	struct bm_request *rq = io->rq;
	struct bm_list *node;

	bm_list_push(&f->free, &io->link);
	node = bm_list_take(&f->waiting);
	if (node)
		begin(f, bm_container(node, struct bm_request, link));
	rq->done(rq, result);
}

static void worker_done(struct bm_work *work)
{
	struct file_io *io = bm_container(work, struct file_io, work);

	finish(io, io->rq->result);
}

static void to_worker(struct file_io *io)
{
	bm_workers_submit(io->file->workers, io->file->dev.loop, &io->work);
}

static void engine_done(struct bm_aio_rq *aio, int64_t result)
{
	struct file_io *io = bm_container(aio, struct file_io, aio);
	struct bm_request *rq = io->rq;

	if (rq->op == BM_FLUSH && result != -EAGAIN) {
		finish(io, (int)result);
	} else if (result == -EAGAIN) {
		to_worker(io);
	} else if (result < 0) {
		finish(io, (int)result);
	} else if ((uint64_t)result == rq->length) {
		finish(io, 0);
	} else { /* a short transfer: what is whole blocks counts, a worker does the rest */
		io->transferred = (uint64_t)result & ~(uint64_t)(io->file->dev.geometry.block - 1);
		to_worker(io);
	}
}

static void begin(struct file *f, struct bm_request *rq)
{
	static const enum bm_aio_op ops[BM_OPS] = {
		[BM_READ] = BM_AIO_READ, [BM_WRITE] = BM_AIO_WRITE, [BM_FLUSH] = BM_AIO_SYNC};
	struct file_io *io = bm_container(bm_list_take(&f->free), struct file_io, link);

	io->rq = rq;
	io->transferred = 0;
	if (!f->engine || (rq->op != BM_READ && rq->op != BM_WRITE && rq->op != BM_FLUSH)) {
		to_worker(io);
		return;
	}
	io->aio.op = ops[rq->op];
	io->aio.dsync = rq->flags & BM_FUA;
	io->aio.offset = rq->offset;
	io->aio.data = rq->data;
	io->aio.length = (uint32_t)rq->length;
	f->engine_ops->submit(f->engine, &io->aio);
}

static void file_submit(struct bm_dev *dev, struct bm_request *rq)
{
	struct file *f = bm_container(dev, struct file, dev);
	bool writes = rq->op == BM_WRITE || rq->op == BM_ZERO || rq->op == BM_TRIM;

	if (f->cancelled)
		bm_later_done(&f->later, rq, -ESHUTDOWN);
	else if (writes && dev->geometry.flags & BM_DEV_READ_ONLY)
		bm_later_done(&f->later, rq, -EPERM);
	else if (bm_list_empty(&f->free))
		bm_list_append(&f->waiting, &rq->link);
	else
		begin(f, rq);
}

static void file_start(struct bm_dev *dev)
{
	struct file *f = bm_container(dev, struct file, dev);

	bm_later_init(&f->later, dev->loop);
	/* Without it (fs.aio-max-nr used up) the workers do it all. */
	if (f->engine_ops && f->engine_ops->open(dev->loop, f->fd, DEPTH, &f->engine) < 0)
		f->engine = NULL;
}

static void file_cancel(struct bm_dev *dev)
{
	struct file *f = bm_container(dev, struct file, dev);
	struct bm_list *node;

	f->cancelled = true;
	while ((node = bm_list_take(&f->waiting)))
		bm_later_done(&f->later, bm_container(node, struct bm_request, link), -ESHUTDOWN);
}

static void file_free(struct file *f)
{
	bm_workers_free(f->workers);
	if (f->fd >= 0)
		close(f->fd);
	free(f);
}

static void file_close(struct bm_dev *dev)
{
	struct file *f = bm_container(dev, struct file, dev);

	if (f->engine)
		f->engine_ops->close(f->engine);
	if (dev->loop)
		bm_later_fini(&f->later);
	file_free(f);
}

static int file_descriptor(const struct bm_dev *dev)
{
	return bm_container(dev, struct file, dev)->fd;
}

static const struct bm_dev_ops file_ops = {
	.name = "file",
	.start = file_start,
	.submit = file_submit,
	.cancel = file_cancel,
	.close = file_close,
	.descriptor = file_descriptor,
};

/* Opening */

static int open_once(const char *path, int flags, bool *direct)
{
	int fd = *direct ? open(path, flags | O_DIRECT) : -1;

	if (fd < 0 && (!*direct || errno == EINVAL)) {
		*direct = false;
		fd = open(path, flags);
	}
	return fd < 0 ? -errno : fd;
}

static int open_image(const char *path, const struct bm_open_options *options, struct stat *st,
		      bool *direct, struct bm_error *error)
{
	int flags = (options->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC, fd;
	uint64_t left = bm_image_patience(options);

	if (stat(path, st) < 0)
		return bm_fail_errno(error, errno, "cannot open %s", path);
	if (S_ISDIR(st->st_mode))
		return bm_fail(error, BM_E_NOT_IMAGE, "%s is a directory, not an image", path);
	if (!S_ISREG(st->st_mode) && !S_ISBLK(st->st_mode))
		return bm_fail(error, BM_E_NOT_IMAGE, "%s is neither a file nor a block device",
			       path);
	/* O_EXCL: neither mounted nor opened so by anybody else (open(2)). */
	if (S_ISBLK(st->st_mode) && !options->read_only)
		flags |= O_EXCL;
	*direct = !options->buffered;
	while ((fd = open_once(path, flags, direct)) == -EBUSY && left >= BM_IMAGE_RETRY) {
		if (bm_wait_a_while(options, BM_IMAGE_RETRY) < 0)
			break;
		left -= BM_IMAGE_RETRY;
	}
	return fd < 0 ? bm_fail_errno(error, fd, "cannot open %s", path) : fd;
}

/* Another holder of the descriptor that the caller has: the path may lead to another image now. */
static int take_image(const char *path, const struct bm_open_options *options, struct stat *st,
		      bool *direct, struct bm_error *error)
{
	struct stat named;
	int flags, fd;

	if (stat(path, &named) < 0 || fstat(options->descriptor, st) < 0)
		return bm_fail_errno(error, errno, "cannot open %s", path);
	if (named.st_dev != st->st_dev || named.st_ino != st->st_ino)
		return bm_fail(error, BM_E_FOREIGN, "%s is not the image that was open before",
			       path);
	flags = fcntl(options->descriptor, F_GETFL);
	fd = fcntl(options->descriptor, F_DUPFD_CLOEXEC, 0);
	*direct = flags & O_DIRECT;
	return flags < 0 || fd < 0 ? bm_fail_errno(error, errno, "cannot open %s", path) : fd;
}

/* The alignment that O_DIRECT asks for: told by the kernel (6.1), or found out by reading. */
static uint32_t direct_block(int fd)
{
	uint8_t buffer[2 * LARGEST_BLOCK], *at;
	struct statx x = {0};

	if (!statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &x) && x.stx_mask & STATX_DIOALIGN &&
	    x.stx_dio_offset_align)
		return x.stx_dio_offset_align > SMALLEST_BLOCK ? x.stx_dio_offset_align
							       : SMALLEST_BLOCK;
	at = (uint8_t *)(((uintptr_t)buffer + LARGEST_BLOCK - 1) & ~(uintptr_t)(LARGEST_BLOCK - 1));
	return pread(fd, at, SMALLEST_BLOCK, 0) < 0 && errno == EINVAL ? LARGEST_BLOCK
								       : SMALLEST_BLOCK;
}

/* Whether the file system knows RWF_NOWAIT: without it the engine might block the loop. */
static bool knows_nowait(int fd)
{
	uint8_t buffer[2 * LARGEST_BLOCK];
	struct iovec v = {
		(void *)(((uintptr_t)buffer + LARGEST_BLOCK - 1) & ~(uintptr_t)(LARGEST_BLOCK - 1)),
		LARGEST_BLOCK};

	return preadv2(fd, &v, 1, 0, RWF_NOWAIT) >= 0 || errno == EAGAIN;
}

static int image_size(int fd, const struct stat *st, uint64_t *size)
{
	if (S_ISREG(st->st_mode))
		*size = (uint64_t)st->st_size;
	else if (ioctl(fd, BLKGETSIZE64, size) < 0)
		return -errno;
	return 0;
}

static void set_geometry(struct file *f, const struct stat *st,
			 const struct bm_open_options *options, uint32_t block)
{
	unsigned short rotational = 0;

	f->device = S_ISBLK(st->st_mode);
	f->dev.geometry.block = block;
	f->dev.geometry.max_transfer = BM_BUF_MAX;
	f->dev.geometry.max_zero = BM_MAX_ZERO;
	f->dev.geometry.flags = BM_DEV_FAST_ZERO | BM_DEV_TRIM;
	if (S_ISREG(st->st_mode) && lseek(f->fd, 0, SEEK_HOLE) >= 0)
		f->dev.geometry.flags |= BM_DEV_EXTENTS;
	if (S_ISBLK(st->st_mode) && !ioctl(f->fd, BLKROTATIONAL, &rotational) && rotational)
		f->dev.geometry.flags |= BM_DEV_ROTATIONAL;
	if (options->read_only)
		f->dev.geometry.flags |= BM_DEV_READ_ONLY;
	if (!options->unlocked) /* the lock outlives the I/O of its holder */
		f->dev.geometry.flags |= BM_DEV_FENCED;
}

static int choose_engine(struct file *f, const char *name, bool direct, struct bm_error *error)
{
	if (name && !strcmp(name, "threads"))
		return 0;
	if (name && strcmp(name, bm_aio_linux.name))
		return bm_fail(error, BM_E_USAGE,
			       "unknown file engine \"%s\"; libaio and threads are known", name);
	/* Buffered I/O is never asynchronous. */
	if (direct && (name || knows_nowait(f->fd)))
		f->engine_ops = &bm_aio_linux;
	return 0;
}

int bm_file_open(const struct bm_uri *uri, const struct bm_open_options *options,
		 struct bm_dev **dev, struct bm_error *error)
{
	const char *path = uri->rest;
	struct file *f = calloc(1, sizeof(*f));
	uint32_t block = SMALLEST_BLOCK;
	struct stat st;
	bool direct = false;
	int r;

	if (!f)
		return bm_fail_errno(error, ENOMEM, "cannot open %s", path);
	f->fd = r = options->descriptor ? take_image(path, options, &st, &direct, error)
					: open_image(path, options, &st, &direct, error);
	if (r >= 0 && !options->descriptor)
		r = bm_image_lock_for(f->fd, path, options, error);
	if (r < 0)
		goto fail;
	r = image_size(f->fd, &st, &f->dev.geometry.size);
	r = r ? bm_fail_errno(error, r, "%s", path)
	      : bm_check_size(path, f->dev.geometry.size, error);
	if (r < 0)
		goto fail;
	if (direct)
		block = direct_block(f->fd);
	if (block > LARGEST_BLOCK || f->dev.geometry.size % block) {
		/* O_DIRECT cannot reach the end of the image: through the page cache, then. */
		if (fcntl(f->fd, F_SETFL, fcntl(f->fd, F_GETFL) & ~O_DIRECT) < 0) {
			r = bm_fail_errno(error, errno, "%s", path);
			goto fail;
		}
		direct = false;
		block = SMALLEST_BLOCK;
	}
	set_geometry(f, &st, options, block);
	r = choose_engine(f, options->aio, direct, error);
	if (r < 0)
		goto fail;
	f->workers = bm_workers_new(THREADS);
	if (!f->workers) {
		r = bm_fail_errno(error, ENOMEM, "cannot open %s", path);
		goto fail;
	}
	f->dev.ops = &file_ops;
	bm_list_init(&f->free);
	bm_list_init(&f->waiting);
	for (int i = 0; i < DEPTH; i++) {
		struct file_io *io = &f->io[i];

		io->file = f;
		io->aio.done = engine_done;
		io->work.run = run_in_worker;
		io->work.done = worker_done;
		bm_list_append(&f->free, &io->link);
	}
	*dev = &f->dev;
	return 0;
fail:
	file_free(f);
	return r;
}

int bm_file_create(const char *path, uint64_t size, struct bm_error *error)
{
	bm_close int fd = -1;
	int r = bm_check_size(path, size, error);

	if (r < 0)
		return r;
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return bm_fail_errno(error, errno, "cannot create %s", path);
	r = ftruncate(fd, (off_t)size) < 0 || fsync(fd) < 0 ? -errno : bm_sync_folder_of(path);
	if (r < 0) {
		unlink(path);
		return bm_fail_errno(error, r, "cannot create %s", path);
	}
	return 0;
}
