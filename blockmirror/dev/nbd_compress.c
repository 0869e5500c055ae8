/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * NBD: what a copy writes is compressed where the way is slower than that, by a thread of the
 * device's own; to servers of ours, which say that they can take it (docs/nbd.md). What a guest
 * writes is never compressed: somebody waits for it.
 *
 * How fast the way is, the kernel knows: how many bytes the other end has acknowledged, in the time
 * in which there were any to send, and room for them there. Slow storage at the other end is no
 * slow way, nor is a copy that is held back for the guest's sake. How fast the codec is, each write
 * tells that it was at, on the processors that the guest leaves. It begins with compressing; while
 * it does not, one write in sixteen is, as a sample.
 */
#include <endian.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <zstd.h>

#include "blockmirror/base/list.h"
#include "blockmirror/base/worker.h"
#include "blockmirror/dev/nbd.h"

enum {
	HEAD = 4,         /* the data's length */
	LEAST = 16 << 10, /* bytes that are worth it */
	LEVEL = 1,
	SQUEEZES = 20, /* that are compressed or on their way: a mirror copies 17 MiB at once */
	SAMPLE_EVERY = 16,
	TICK_US = 4000,      /* the kernel counts in these, or so */
	MEASURED_US = 20000, /* the way was busy for so long, */
	MEASURED = 4 << 20,  /* or took so much: that tells its rate */
};

struct nbd_squeeze {
	struct bm_work work;
	struct nbd_compressor *compressor;
	struct nbd_io *io; /* NULL: free */
	size_t length;     /* of payload; 0: it did not get smaller */
	uint64_t ns;
	uint8_t payload[BM_BUF_MAX];
};

struct nbd_compressor {
	struct bm_workers *workers; /* one thread */
	ZSTD_CCtx *zstd;            /* that thread's */
	atomic_bool stopped;
	struct nbd_way way;
	double codec;   /* bytes/µs; 0: not known yet */
	unsigned plain; /* writes since the last one that was compressed */
	struct nbd_squeeze squeeze[SQUEEZES];
};

struct nbd_compressor *bm_nbd_compressor_new(void)
{
	struct nbd_compressor *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	c->zstd = ZSTD_createCCtx();
	c->workers = bm_workers_new(1);
	for (int i = 0; i < SQUEEZES; i++)
		c->squeeze[i].compressor = c;
	if (c->zstd && c->workers)
		return c;
	bm_nbd_compressor_free(c);
	return NULL;
}

void bm_nbd_compressor_free(struct nbd_compressor *c)
{
	if (!c)
		return;
	if (c->workers)
		bm_workers_free(c->workers);
	ZSTD_freeCCtx(c->zstd);
	free(c);
}

void bm_nbd_compressor_stop(struct nbd_compressor *c)
{
	if (c)
		atomic_store(&c->stopped, true);
}

bool bm_nbd_compressor_is_idle(const struct nbd_compressor *c)
{
	for (int i = 0; c && i < SQUEEZES; i++)
		if (c->squeeze[i].io)
			return false;
	return true;
}

/* In the thread. What saves less than an eighth is not worth being expanded at the other end. */
static void run(struct bm_work *work)
{
	struct nbd_squeeze *s = bm_container(work, struct nbd_squeeze, work);
	const struct bm_request *rq = s->io->rq;
	const uint32_t length = htobe32((uint32_t)rq->length);
	struct timespec begun, ended;
	size_t n;

	s->length = 0;
	if (atomic_load(&s->compressor->stopped))
		return;
	clock_gettime(CLOCK_MONOTONIC, &begun);
	n = ZSTD_compressCCtx(s->compressor->zstd, s->payload + HEAD,
			      rq->length - rq->length / 8 - HEAD, rq->data, rq->length, LEVEL);
	clock_gettime(CLOCK_MONOTONIC, &ended);
	memcpy(s->payload, &length, HEAD);
	s->length = ZSTD_isError(n) ? 0 : n + HEAD;
	s->ns = (uint64_t)(ended.tv_sec - begun.tv_sec) * 1000000000 + (uint64_t)ended.tv_nsec -
		(uint64_t)begun.tv_nsec;
}

static void done(struct bm_work *work)
{
	struct nbd_squeeze *s = bm_container(work, struct nbd_squeeze, work);
	struct nbd_compressor *c = s->compressor;
	double rate = (double)s->io->rq->length * 1000 / (double)(s->ns + 1);

	c->codec = c->codec > 0 ? c->codec * 0.8 + rate * 0.2 : rate;
	bm_nbd_go_on(s->io);
}

/*
 * Several connections that are busy together share the way: then the time is that of the clock.
 * Counters that have gone back are those of a connection that cannot tell: it begins anew.
 */
void bm_nbd_measure(struct nbd_way *way, uint64_t acked, uint64_t busy, uint64_t now)
{
	bool goes_on = acked >= way->acked && busy >= way->busy;
	uint64_t span = busy - way->busy, bytes = acked - way->acked;

	if (goes_on && span < MEASURED_US && bytes < MEASURED)
		return;
	if (span > now - way->at)
		span = now - way->at;
	if (goes_on)
		way->rate = (double)bytes / (double)(span > TICK_US ? span : TICK_US);
	way->acked = acked;
	way->busy = busy;
	way->at = now;
}

/* The first of several connections has what is small, and waits for answers. */
static void look_at_way(const struct nbd *n, struct nbd_way *way)
{
	uint64_t acked = 0, busy = 0;

	for (unsigned i = n->conns > 1; i < n->conns; i++) {
		struct tcp_info info = {0};
		socklen_t length = sizeof(info);

		(void)getsockopt(nbd_aio_get_fd(n->conn[i].handle), IPPROTO_TCP, TCP_INFO, &info,
				 &length);
		acked += info.tcpi_bytes_acked;
		busy += info.tcpi_busy_time - info.tcpi_rwnd_limited;
	}
	bm_nbd_measure(way, acked, busy, bm_loop_now(n->dev.loop) / 1000);
}

static bool is_worth_it(const struct nbd *n, struct nbd_compressor *c)
{
	look_at_way(n, &c->way);
	if (c->codec >= c->way.rate || ++c->plain == SAMPLE_EVERY)
		c->plain = 0;
	return !c->plain;
}

bool bm_nbd_compress(struct nbd_io *io)
{
	struct nbd_compressor *c = io->nbd->compressor;
	const struct bm_request *rq = io->rq;
	struct nbd_squeeze *s = NULL;

	if (!c || rq->op != BM_WRITE || !(rq->flags & BM_BULK) || rq->length < LEAST ||
	    rq->length > sizeof(s->payload) || !is_worth_it(io->nbd, c))
		return false;
	for (int i = 0; i < SQUEEZES && !s; i++)
		if (!c->squeeze[i].io)
			s = &c->squeeze[i];
	if (!s)
		return false;
	io->squeeze = s;
	s->io = io;
	s->work.run = run;
	s->work.done = done;
	bm_workers_submit(c->workers, io->nbd->dev.loop, &s->work);
	return true;
}

const uint8_t *bm_nbd_compressed(const struct nbd_io *io, size_t *length)
{
	*length = io->squeeze ? io->squeeze->length : 0;
	return *length ? io->squeeze->payload : NULL;
}

void bm_nbd_compress_end(struct nbd_io *io)
{
	if (io->squeeze)
		io->squeeze->io = NULL;
	io->squeeze = NULL;
}
