/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A file engine: reads, writes and syncs of one descriptor, asynchronously, without ever blocking
 * the loop. dev/file.c does all else. libaio is the one there is (dev/aio_linux.c); another one
 * (io_uring) needs no more than this interface. What an engine cannot do without blocking it
 * answers with -EAGAIN, and a worker thread does it.
 */
#ifndef BM_DEV_AIO_H
#define BM_DEV_AIO_H

#include "blockmirror/loop.h"

struct bm_aio;

enum bm_aio_op { BM_AIO_READ, BM_AIO_WRITE, BM_AIO_SYNC };

/* One transfer. The engine's own part is as large as the largest engine needs. */
struct bm_aio_rq {
	enum bm_aio_op op;
	bool dsync; /* WRITE: durable when done */
	uint64_t offset;
	uint8_t *data;
	uint32_t length;
	/* result: bytes (may be fewer than asked), or -errno; -EAGAIN: would block, do it elsewhere
	 */
	void (*done)(struct bm_aio_rq *rq, int64_t result);
	struct bm_list link; /* the engine's, from submit to done */
	uint64_t engine[8];
};

struct bm_aio_ops {
	const char *name;
	/* At most depth transfers of fd will be in flight. 0 or -errno: the engine does not work.
	 */
	int (*open)(struct bm_loop *loop, int fd, unsigned depth, struct bm_aio **aio);
	/* Takes rq; what one turn of the loop submits goes to the kernel together. */
	void (*submit)(struct bm_aio *aio, struct bm_aio_rq *rq);
	/* Nothing is in flight. */
	void (*close)(struct bm_aio *aio);
};

extern const struct bm_aio_ops bm_aio_linux;

#endif
