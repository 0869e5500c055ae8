/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * NBD: connecting, in a worker's thread. All is asynchronous with a time limit, since a server can
 * accept and never answer; only the resolver may block longer.
 */
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/list.h"
#include "blockmirror/dev/nbd.h"
#include "blockmirror/dev/open.h"

enum { DEFAULT_CONNS = 4, DEFAULT_MAX = 32 << 20, ASK_MS = 100 };
#define FIRST_LIMIT   10000000000ull /* ns for the first connection */
#define MORE_LIMIT    3000000000ull  /* for all others together: one can do without them */
#define DEFAULT_FENCE 2000000000ull

/*
 * Sessions (docs/nbd.md): our own servers admit a session only when all requests of its earlier
 * ones are over, and know it by a metadata context, which other servers leave out of their answer.
 */
#define SESSION "blockmirror:session:%s:%016" PRIx64

/* How an attempt to connect ended. */
struct outcome {
	int err;      /* errno of libnbd, 0 when it has none */
	bool reached; /* the server was reached: it is what it says that failed */
	char text[200];
};

static uint64_t clock_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void note_failure(struct outcome *o, bool reached)
{
	const char *text = nbd_get_error();
	const char *colon = text ? strstr(text, ": ") : NULL;

	o->err = nbd_get_errno();
	o->reached = reached;
	/* What libnbd says starts with the name of its function. */
	snprintf(o->text, sizeof(o->text), "%s",
		 colon  ? colon + 2
		 : text ? text
			: "no reason given");
}

/*
 * Larger than any before, also of processes that are gone: the time of day, and never twice. A
 * clock that was set back makes a new process wait until its time has come; it never lets an old
 * one in.
 */
static uint64_t next_epoch(void)
{
	static _Atomic uint64_t last;
	struct timespec t;
	uint64_t before = atomic_load(&last), epoch;

	clock_gettime(CLOCK_REALTIME, &t);
	do {
		epoch = (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
		epoch = epoch > before ? epoch : before + 1;
	} while (!atomic_compare_exchange_weak(&last, &before, epoch));
	return epoch;
}

/* Servers offer it under TLS alone: between hosts. */
static bool may_compress(const struct nbd *n)
{
	return *n->session && !strncmp(n->address, "nbds:", 5);
}

static bool compresses(struct nbd_handle *h)
{
	return nbd_can_meta_context(h, NBD_COMPRESSED) > 0;
}

/* libnbd does not know the flag. */
static bool can_compress(struct nbd_handle *h)
{
	return compresses(h) &&
	       !nbd_set_strict_mode(h, nbd_get_strict_mode(h) & ~(uint32_t)LIBNBD_STRICT_FLAGS);
}

static int begin_connect(struct nbd_conn *c, struct outcome *o)
{
	const struct nbd *n = c->nbd;

	c->handle = nbd_create();
	if (c->handle && !nbd_set_uri_allow_local_file(c->handle, true) &&
	    !nbd_set_pread_initialize(c->handle, false) &&
	    !nbd_add_meta_context(c->handle, LIBNBD_CONTEXT_BASE_ALLOCATION) &&
	    (!*n->session || !nbd_add_meta_context(c->handle, n->session)) &&
	    (!may_compress(n) || !nbd_add_meta_context(c->handle, NBD_COMPRESSED)) &&
	    !nbd_aio_connect_uri(c->handle, n->address))
		return 0;
	note_failure(o, false);
	nbd_close(c->handle);
	c->handle = NULL;
	return -ENOTCONN;
}

static void notify(struct nbd_conn *c, short revents, struct outcome *o)
{
	unsigned direction = nbd_aio_get_direction(c->handle);
	int r = 0;

	if (direction & LIBNBD_AIO_DIRECTION_READ && revents & (POLLIN | POLLHUP | POLLERR))
		r = nbd_aio_notify_read(c->handle);
	else if (direction & LIBNBD_AIO_DIRECTION_WRITE && revents & (POLLOUT | POLLHUP | POLLERR))
		r = nbd_aio_notify_write(c->handle);
	if (r < 0)
		note_failure(o, true);
}

/* One round of poll() over those that are connecting. Returns how many there were. */
static int connect_round(struct nbd_conn *c, unsigned count, struct outcome *o)
{
	struct pollfd fds[NBD_MAX_CONNS];
	int busy = 0;

	for (unsigned i = 0; i < count; i++) {
		unsigned direction;

		fds[i] = (struct pollfd){.fd = -1};
		if (!c[i].handle || !nbd_aio_is_connecting(c[i].handle))
			continue;
		busy++;
		direction = nbd_aio_get_direction(c[i].handle);
		fds[i].fd = nbd_aio_get_fd(c[i].handle);
		fds[i].events = (short)((direction & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
					(direction & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0));
	}
	if (busy && poll(fds, count, ASK_MS) > 0)
		for (unsigned i = 0; i < count; i++)
			if (fds[i].revents)
				notify(&c[i], fds[i].revents, o);
	return busy;
}

/*
 * Connects count connections side by side until all are decided or the time is up; those that
 * failed have no handle afterwards, and *o says why the last of them did. Returns 0 or -EINTR.
 */
static int connect_all(struct nbd_conn *c, unsigned count, uint64_t limit,
		       const struct bm_open_options *options, struct outcome *o)
{
	uint64_t end = clock_ns() + limit;
	int r = 0;

	for (unsigned i = 0; i < count; i++)
		begin_connect(&c[i], o);
	while (connect_round(c, count, o)) {
		if (options->interrupted && options->interrupted(options->arg)) {
			r = -EINTR;
			break;
		}
		if (clock_ns() >= end) {
			*o = (struct outcome){.err = ETIMEDOUT};
			snprintf(o->text, sizeof(o->text), "no answer within %d s",
				 (int)(limit / 1000000000u));
			break;
		}
	}
	for (unsigned i = 0; i < count; i++) {
		if (!c[i].handle || nbd_aio_is_ready(c[i].handle))
			continue;
		nbd_close(c[i].handle);
		c[i].handle = NULL;
	}
	return r;
}

static int connect_failed(const char *name, const struct outcome *o, struct bm_error *error)
{
	enum bm_code code = BM_E_UNREACHABLE;

	if (o->err == EACCES || o->err == EPERM)
		code = BM_E_ACCESS;
	else if (!o->reached && o->err == EINVAL)
		code = BM_E_URI;
	else if (!o->reached && (o->err == ENOMEM || o->err == EMFILE || o->err == ENFILE))
		code = BM_E_INTERNAL;
	else if (o->reached && o->err == ENOENT) /* NBD_REP_ERR_UNKNOWN */
		code = BM_E_NOT_FOUND;
	return bm_fail(error, code, "cannot open %s: %s", name, o->text);
}

/* A peer that is gone without a word is found out within half a minute. Not for Unix sockets. */
static void keep_alive(struct nbd_handle *h)
{
	static const struct {
		int level, name, value;
	} options[] = {{SOL_SOCKET, SO_KEEPALIVE, 1},
		       {IPPROTO_TCP, TCP_KEEPIDLE, 10},
		       {IPPROTO_TCP, TCP_KEEPINTVL, 5},
		       {IPPROTO_TCP, TCP_KEEPCNT, 4},
		       {IPPROTO_TCP, TCP_USER_TIMEOUT, 30000}};
	int fd = nbd_aio_get_fd(h);

	bm_abort_on_close(fd, true);
	for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++)
		setsockopt(fd, options[i].level, options[i].name, &options[i].value,
			   sizeof(options[i].value));
}

static uint32_t block_size(struct nbd_handle *h, int which, uint32_t otherwise)
{
	int64_t size = nbd_get_block_size(h, which);

	return size > 0 && size <= UINT32_MAX ? (uint32_t)size : otherwise;
}

static bool knows_session(const struct nbd *n, struct nbd_handle *h)
{
	return *n->session && nbd_can_meta_context(h, n->session) > 0;
}

static bool same_export(const struct nbd *n, struct nbd_handle *a, struct nbd_handle *b)
{
	int (*const asked[])(struct nbd_handle *) = {
		nbd_is_read_only, nbd_can_flush,     nbd_can_fua,        nbd_can_zero,
		nbd_can_trim,     nbd_can_fast_zero, nbd_can_multi_conn,
	};

	for (size_t i = 0; i < sizeof(asked) / sizeof(asked[0]); i++)
		if (asked[i](a) != asked[i](b))
			return false;
	for (int which = LIBNBD_SIZE_MINIMUM; which <= LIBNBD_SIZE_MAXIMUM; which++)
		if (nbd_get_block_size(a, which) != nbd_get_block_size(b, which))
			return false;
	return nbd_get_size(a) == nbd_get_size(b) && knows_session(n, a) == knows_session(n, b) &&
	       compresses(a) == compresses(b) &&
	       nbd_can_meta_context(a, LIBNBD_CONTEXT_BASE_ALLOCATION) ==
		       nbd_can_meta_context(b, LIBNBD_CONTEXT_BASE_ALLOCATION);
}

static int set_geometry(struct nbd *n, bool read_only, struct bm_error *error)
{
	struct bm_geometry *g = &n->dev.geometry;
	struct nbd_handle *h = n->conn[0].handle;
	int64_t size = nbd_get_size(h); /* may be negative (CVE-2023-5215) */
	uint32_t most = block_size(h, LIBNBD_SIZE_MAXIMUM, DEFAULT_MAX);
	int r = bm_check_size(n->name, size < 0 ? UINT64_MAX / 512 * 512 : (uint64_t)size, error);

	if (r < 0)
		return r;
	if (nbd_is_read_only(h) > 0 && !read_only)
		return bm_fail(error, BM_E_ACCESS, "%s: the export is read-only", n->name);
	n->can_flush = nbd_can_flush(h) > 0;
	n->can_fua = nbd_can_fua(h) > 0;
	n->can_zero = nbd_can_zero(h) > 0;
	n->can_fast_zero = n->can_zero && nbd_can_fast_zero(h) > 0;
	n->can_trim = nbd_can_trim(h) > 0;
	n->can_extents = nbd_can_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) > 0;
	g->size = (uint64_t)size;
	g->block = block_size(h, LIBNBD_SIZE_MINIMUM, 1);
	if (g->block & (g->block - 1) || g->block > BM_BUF_MAX || g->size % g->block ||
	    most < g->block)
		return bm_fail(error, BM_E_SIZE,
			       "%s: the server's block size of %u bytes does not fit its image",
			       n->name, g->block);
	g->max_transfer = (most < BM_BUF_MAX ? most : BM_BUF_MAX) & ~(g->block - 1);
	g->max_zero = n->can_zero ? BM_MAX_ZERO : g->max_transfer;
	g->flags = (read_only ? BM_DEV_READ_ONLY : 0) | (n->can_fast_zero ? BM_DEV_FAST_ZERO : 0) |
		   (n->can_trim ? BM_DEV_TRIM : 0) | (n->can_extents ? BM_DEV_EXTENTS : 0) |
		   (nbd_is_rotational(h) > 0 ? BM_DEV_ROTATIONAL : 0) |
		   (knows_session(n, h) ? BM_DEV_FENCED : 0);
	return 0;
}

/* The other connections, where the server allows them. One does without those that cannot be had.
 */
static int connect_more(struct nbd *n, const struct bm_open_options *options)
{
	unsigned wanted = options->connections ? options->connections : DEFAULT_CONNS;
	struct outcome o;
	unsigned kept = 1;
	int r;

	if (nbd_can_multi_conn(n->conn[0].handle) <= 0)
		return 0;
	n->conns = wanted < NBD_MAX_CONNS ? wanted : NBD_MAX_CONNS;
	r = connect_all(n->conn + 1, n->conns - 1, MORE_LIMIT, options, &o);
	for (unsigned i = 1; i < n->conns; i++) {
		struct nbd_handle *h = n->conn[i].handle;

		n->conn[i].handle = NULL;
		if (h && same_export(n, n->conn[0].handle, h))
			n->conn[kept++].handle = h;
		else
			nbd_close(h);
	}
	n->conns = kept;
	return r;
}

static int connect_first(struct nbd *n, uint64_t limit, const struct bm_open_options *options,
			 struct bm_error *error)
{
	struct outcome o = {.text = "the server closed the connection"};
	int r;

	n->conns = 1;
	if (options->session)
		snprintf(n->session, sizeof(n->session), SESSION, options->session, next_epoch());
	r = connect_all(n->conn, 1, limit, options, &o);
	if (r < 0)
		return bm_fail(error, BM_E_CANCELLED, "cannot open %s: interrupted", n->name);
	return n->conn[0].handle ? 0 : connect_failed(n->name, &o, error);
}

/* A server that does not know sessions gets the time to end what it may still be at. */
static int fence(const struct nbd *n, const struct bm_open_options *options)
{
	uint64_t wait = options->fence_ns ? options->fence_ns : DEFAULT_FENCE;

	if (!options->fence || options->fence_no_wait || n->dev.geometry.flags & BM_DEV_FENCED)
		return 0;
	return bm_wait_a_while(options, wait);
}

struct nbd *bm_nbd_new(const char *name)
{
	struct nbd *n = calloc(1, sizeof(*n));

	if (!n)
		return NULL;
	n->name = strdup(name);
	if (!n->name) {
		free(n);
		return NULL;
	}
	n->dev.ops = &bm_nbd_ops;
	bm_list_init(&n->free);
	bm_list_init(&n->flight);
	bm_list_init(&n->ended);
	bm_list_init(&n->waiting);
	for (int i = 0; i < NBD_MAX_CONNS; i++)
		n->conn[i].nbd = n;
	for (int i = 0; i < NBD_SLOTS; i++) {
		n->io[i].nbd = n;
		bm_list_append(&n->free, &n->io[i].link);
	}
	return n;
}

int bm_nbd_open_at(const char *name, const char *address, uint64_t limit,
		   const struct bm_open_options *options, struct bm_dev **dev,
		   struct bm_error *error)
{
	struct nbd *n = bm_nbd_new(name);
	int r;

	if (!n)
		return bm_fail_errno(error, ENOMEM, "cannot open %s", name);
	n->address = address;
	r = connect_first(n, limit, options, error);
	if (r < 0)
		goto fail;
	r = set_geometry(n, options->read_only, error);
	if (r < 0)
		goto fail;
	r = fence(n, options);
	if (!r)
		r = connect_more(n, options);
	if (r < 0) {
		r = bm_fail(error, BM_E_CANCELLED, "cannot open %s: interrupted", n->name);
		goto fail;
	}
	n->address = NULL;
	n->compressor = compresses(n->conn[0].handle) ? bm_nbd_compressor_new() : NULL;
	for (unsigned i = 0; i < n->conns; i++) {
		keep_alive(n->conn[i].handle);
		if (n->compressor && !can_compress(n->conn[i].handle)) {
			bm_nbd_compressor_free(n->compressor);
			n->compressor = NULL;
		}
	}
	*dev = &n->dev;
	return 0;
fail:
	bm_nbd_free(n);
	return r;
}

int bm_nbd_open(const struct bm_uri *uri, const struct bm_open_options *options,
		struct bm_dev **dev, struct bm_error *error)
{
	int r = bm_nbd_check_tls(uri->text, error);

	if (!r)
		r = bm_nbd_open_at(uri->text, uri->text, FIRST_LIMIT, options, dev, error);
	if (r < 0)
		return r;
	r = bm_nbd_check_tls(uri->text, error);
	if (r < 0) {
		bm_dev_close(*dev);
		*dev = NULL;
	}
	return r;
}
