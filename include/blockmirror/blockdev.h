/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The block device: anything that reads and writes blocks, behind one interface. A file, an NBD
 * or iSCSI session, memory, a fault injector around another device, a mirror made of two: each is
 * a struct bm_dev, and everything composes through it.
 *
 * Threads: a device belongs to the thread of the loop it was started on. bm_dev_open() may be
 * called in any thread (it blocks), all else only there.
 *
 * Requests: the caller owns the memory of a request, embedded in an array of its own. From
 * bm_submit() until done() the request belongs to the device and is not touched. Submitting never
 * blocks, never fails, and never calls done() before it returns; done() is called exactly once,
 * and may submit again. A request succeeds whole or fails: a short transfer is an error.
 *
 * Every device takes every op. What the backend lacks the device makes up for: ZERO by writing
 * zeros, FUA by a flush, EXTENTS by "all data"; TRIM is a hint and may do nothing. The flags of the
 * geometry tell what is quick, not what is allowed.
 *
 * Order: requests that are in flight together may be carried out in any order, also when they
 * overlap. Who needs an order waits for done(), or puts an order device (bm_order_new()) on top.
 */
#ifndef BLOCKMIRROR_BLOCKDEV_H
#define BLOCKMIRROR_BLOCKDEV_H

#include "blockmirror/buf.h"
#include "blockmirror/error.h"
#include "blockmirror/loop.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

enum bm_op {
	BM_READ,
	BM_WRITE,
	BM_ZERO,    /* reads as zeros afterwards; unmapped where that is quicker, unless NO_HOLE */
	BM_TRIM,    /* content is undefined afterwards; rounded inward to what can be unmapped */
	BM_FLUSH,   /* what was done() before the submission is durable; no offset, no length */
	BM_EXTENTS, /* which parts are holes or zeros */
	BM_OPS
};

/* Flags of a request. */
#define BM_FUA     1u /* WRITE ZERO TRIM: durable when done */
#define BM_NO_HOLE 2u /* ZERO: keep the space allocated */
#define BM_FAST    4u /* ZERO: fail with -ENOTSUP, nothing changed, unless quicker than writing */
#define BM_BULK    8u /* WRITE: a copy's, which nobody waits for: it may be compressed on its way */

/* Flags of an extent; the values are those of NBD's base:allocation. Neither: data. */
#define BM_EXTENT_HOLE 1u /* not allocated: a write to it may run out of space */
#define BM_EXTENT_ZERO 2u /* reads as zeros */

struct bm_extent {
	uint64_t length;
	uint32_t flags;
};

/*
 * The answer to EXTENTS: count (at least 1, at most room) extents that lie one after the other
 * from the request's offset on. Together they cover at most the request's length, and may cover
 * less: ask again for the rest. Neighbours differ in their flags. The answer is as old as the
 * request: a write that was in flight with it makes it void.
 */
struct bm_extents {
	struct bm_extent *v; /* the caller's */
	unsigned room, count;
};

struct bm_request {
	enum bm_op op;
	uint32_t flags;
	uint64_t offset, length; /* bytes, multiples of the geometry's block, within its size */
	uint8_t *data;           /* READ, WRITE: length bytes, memory aligned to the block, too */
	struct bm_buf *buf;      /* WRITE: holds data. Who reads past done() takes a reference */
	struct bm_extents *extents;
	void (*done)(struct bm_request *rq, int error); /* error: 0 or -errno */

	/* The device's own from submit to done. */
	struct bm_list link;
	uint64_t arrived;
	int result;
};

/* What is quick. */
#define BM_DEV_READ_ONLY  1u  /* WRITE ZERO TRIM fail with -EPERM */
#define BM_DEV_FAST_ZERO  2u  /* ZERO is (most often) quicker than writing */
#define BM_DEV_TRIM       4u  /* TRIM does something */
#define BM_DEV_EXTENTS    8u  /* EXTENTS knows more than "all data" */
#define BM_DEV_ROTATIONAL 16u /* seeks are expensive */
/*
 * No request of an earlier session of ours is still under way: the backend has said so, or keeps
 * others out. Without it there is only the hope that the wait (fence_ns) was long enough.
 */
#define BM_DEV_FENCED 32u

#define BM_MAX_ZERO (64u << 20) /* bytes of one ZERO or TRIM that most devices take */

struct bm_geometry {
	uint64_t size;         /* bytes, a multiple of 512 */
	uint32_t block;        /* power of two: offset and length of requests are multiples of it */
	uint32_t max_transfer; /* most bytes of one READ or WRITE, a multiple of block */
	uint64_t max_zero;     /* most bytes of one ZERO or TRIM, a multiple of block */
	uint32_t flags;
};

struct bm_dev;
struct bm_meter; /* blockmirror/base/hist.h */

struct bm_dev_ops {
	const char *name; /* "file", "nbd", "iscsi", … */
	void (*start)(struct bm_dev *dev);
	void (*submit)(struct bm_dev *dev, struct bm_request *rq);
	void (*cancel)(struct bm_dev *dev);
	void (*close)(struct bm_dev *dev);
	int (*descriptor)(const struct bm_dev *dev); /* NULL: there is none */
};

struct bm_dev {
	const struct bm_dev_ops *ops;
	struct bm_loop *loop;
	struct bm_geometry geometry; /* may change between requests, by the device alone */
};

struct bm_open_options {
	bool read_only;
	/*
	 * Sessions of our own may have ended with requests in flight: return only when these are
	 * known to be over. File: waits for the image lock, which the kernel keeps until the dead
	 * process's I/O has ended. iSCSI: resets the LUN. NBD: a server that knows sessions admits
	 * the new one only then; for any other fence_ns is waited.
	 */
	bool fence;
	uint64_t fence_ns;  /* 0: the default, 2 s (NBD), 30 s at most (file) */
	bool fence_no_wait; /* ... but where there is nothing but a wait, the caller sees to it */
	/*
	 * NBD: who writes: letters, digits, "-", at most 64. The same for all sessions that take
	 * each other's place, by whichever process, and nobody else's. NULL: the session takes
	 * nobody's place, and nobody takes its.
	 */
	const char *session;
	unsigned connections; /* NBD, iSCSI: 0 means the default, 4 */
	const char *aio;      /* file: "libaio", "threads", or NULL: the best that works */
	bool buffered;        /* file: through the page cache, not O_DIRECT */
	bool unlocked;        /* file: take no image locks */
	bool beside;          /* file: take them beside another process, which lets go later */
	/*
	 * An image in a format: others may show through it (a linked clone), and their content
	 * counts.
	 */
	bool linked;
	/*
	 * File: the image's descriptor, of a device that was this image before, maybe in another
	 * process (bm_dev_descriptor()), whose locks come with it. Stays the caller's. 0: none.
	 */
	int descriptor;
	bool (*interrupted)(void *arg); /* asked now and then while waiting: give up? */
	void *arg;
};

/*
 * Opens what uri names: PATH, file:PATH, nbd:, nbds:, nbd+unix:, nbds+unix:, iscsi:, mem:SIZE,
 * fault:SPEC;URI, and FORMAT:PATH (qcow2, vmdk, vhdx, vpc; read-only vdi, qed, qcow, parallels,
 * dmg). options NULL means read-write and the defaults. Blocks; any thread. On success *dev is to
 * be started on a loop, or closed. Errors: what bm_fail() gives, with a text for users.
 *
 * A format is carried out by a helper, a process of its own that ends with the device, and with us.
 * It takes its time to end: bm_dev_close() does not wait for it, who opens the image again does.
 */
int bm_dev_open(const char *uri, const struct bm_open_options *options, struct bm_dev **dev,
		struct bm_error *error);

/* Waits for the helpers of devices that are closed: what a program does last. */
void bm_dev_settle(void);

/* Gives dev to loop's thread. Before this nothing may be submitted. */
static inline void bm_dev_start(struct bm_dev *dev, struct bm_loop *loop)
{
	dev->loop = loop;
	dev->ops->start(dev);
}

static inline void bm_submit(struct bm_dev *dev, struct bm_request *rq)
{
	dev->ops->submit(dev, rq);
}

/*
 * Ends all requests in flight, with an error where they cannot be finished, as soon as the
 * backend lets them go (a file's requests end only when the kernel has done them), and fails all
 * that come later with -ESHUTDOWN. What was cancelled may still be carried out at the other end.
 * May be called inside done(), and calls none itself before it returns.
 */
static inline void bm_dev_cancel(struct bm_dev *dev)
{
	dev->ops->cancel(dev);
}

/* No request may be in flight. NULL is allowed. */
static inline void bm_dev_close(struct bm_dev *dev)
{
	if (dev)
		dev->ops->close(dev);
}

/*
 * The descriptor that the image's locks are held by, for another holder to be: they last until the
 * last one has closed it. -1: the device has no such thing. It stays the device's.
 */
static inline int bm_dev_descriptor(const struct bm_dev *dev)
{
	return dev->ops->descriptor ? dev->ops->descriptor(dev) : -1;
}

/*
 * An order device on top of lower: overlapping requests are carried out one after the other, in
 * the order of their arrival (reads beside reads excepted); requests of any offset and length are
 * served, by bounce and read-modify-write where lower's block asks for it; longer ones than lower
 * takes are cut, and lock piece by piece. align (a power of two, at least lower's block for all
 * time) is what ranges are rounded out to when they are compared. meter (NULL is allowed) is kept
 * up to date with the latency of each request. Does not own lower, which must be started first.
 * Returns 0 or -ENOMEM; *dev is not started yet.
 */
int bm_order_new(struct bm_dev *lower, uint32_t align, struct bm_meter *meter, struct bm_dev **dev);

/*
 * Runs task from the loop once all requests in the order device have ended; soon when there are
 * none now. One task at a time: the last one that was given; NULL takes it back (and
 * bm_task_cancel(), when it may be about to run).
 */
void bm_order_when_idle(struct bm_dev *order, struct bm_task *task);

/* Whether a write, a zero or a trim is in the order device now, and has not ended. */
bool bm_order_changes(const struct bm_dev *order);

/* The align for a device that may be moved to others: their blocks have up to 4 KiB, or lower's. */
#define BM_ORDER_ALIGN 4096u
uint32_t bm_order_align(const struct bm_dev *lower);

/*
 * Makes *dev, which is not started, take requests of multiples of block, transfers of BM_BUF_MAX
 * and zeros of BM_MAX_ZERO bytes: where it does not, an order device that owns it takes its place.
 * What is on top of several devices needs to know one set of limits only. Returns 0 or -ENOMEM.
 */
int bm_order_fit(struct bm_dev **dev, uint32_t block);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
