/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The inside of an NBD device: nbd_open.c connects it, nbd_tls.c says whom it may believe, nbd.c
 * carries out its requests, nbd_compress.c makes some of them smaller.
 */
#ifndef BM_DEV_NBD_H
#define BM_DEV_NBD_H

#include <libnbd.h>

#include "blockmirror/base/uri.h"
#include "blockmirror/dev/later.h"

enum {
	NBD_SLOTS = 256, /* requests in flight; more wait */
	NBD_MAX_CONNS = 16,
	NBD_CONTEXT_TEXT = 128,
};

struct nbd_conn {
	struct nbd *nbd;
	struct nbd_handle *handle; /* NULL once it is closed */
	struct bm_watch watch;
	uint64_t load; /* what it has in flight, in bytes or what weighs as much */
	bool shut;     /* the server says that it shuts down */
	bool sending;  /* inside a call of libnbd that submits a command */
};

struct nbd_io {
	struct nbd *nbd;
	struct nbd_squeeze *squeeze; /* NULL: it goes as it is */
	struct bm_request *rq;
	struct nbd_conn *conn;
	uint64_t weight;     /* its share of conn->load */
	struct bm_list link; /* free, flight, or ended */
	int result;
	bool flushing; /* the write is done, the flush that stands for its FUA is not */
};

struct nbd {
	struct bm_dev dev;
	char *name;                     /* the URI, for the log */
	const char *address;            /* the URI to connect to, while that is done */
	char session[NBD_CONTEXT_TEXT]; /* the context that says who we are; "": nobody says */
	struct nbd_conn conn[NBD_MAX_CONNS];
	unsigned conns;
	bool can_flush, can_fua, can_zero, can_fast_zero, can_trim, can_extents;
	struct nbd_compressor *compressor; /* NULL: the server takes nothing that is compressed */
	int dead;                          /* 0, or how every request ends from now on */
	struct bm_later later;
	struct bm_task deliver;
	struct bm_list free, flight, ended; /* struct nbd_io */
	struct bm_list waiting;             /* struct bm_request */
	struct nbd_io io[NBD_SLOTS];
};

extern const struct bm_dev_ops bm_nbd_ops;

/* A device without connections, or NULL. */
struct nbd *bm_nbd_new(const char *name);

/*
 * As bm_nbd_open(), of a server that is known to users by another name, and may take limit (ns) to
 * answer at first.
 */
int bm_nbd_open_at(const char *name, const char *address, uint64_t limit,
		   const struct bm_open_options *options, struct bm_dev **dev,
		   struct bm_error *error);

/* Closes what is connected. The device is not started, or has nothing in flight. */
void bm_nbd_free(struct nbd *n);

/* io is compressed, or was not worth it: it goes to the server, or ends if the device is dead. */
void bm_nbd_go_on(struct nbd_io *io);

/* nbd_compress.c */

#define NBD_COMPRESSED      "blockmirror:zstd" /* the context that stands for it */
#define NBD_FLAG_COMPRESSED (1u << 15)         /* of a write */

struct nbd_compressor *bm_nbd_compressor_new(void);             /* NULL: no memory */
void bm_nbd_compressor_free(struct nbd_compressor *compressor); /* nothing is in it; or NULL */
/* What is in it comes back as it is, soon; or NULL. */
void bm_nbd_compressor_stop(struct nbd_compressor *compressor);
bool bm_nbd_compressor_is_idle(const struct nbd_compressor *compressor); /* or NULL */

/* What is known of the way: as counted by the kernel, of one connection or of several together. */
struct nbd_way {
	uint64_t acked, busy; /* bytes; µs that there was something to send */
	uint64_t at;          /* µs: when that was looked at last */
	double rate;          /* bytes/µs; 0: not known yet */
};

/* What it is at now (µs). */
void bm_nbd_measure(struct nbd_way *way, uint64_t acked, uint64_t busy, uint64_t now);

/* Whether io is compressed first: then bm_nbd_go_on(io) follows, later. */
bool bm_nbd_compress(struct nbd_io *io);
/* What is sent of it, with its length; NULL and 0: its data as it is. */
const uint8_t *bm_nbd_compressed(const struct nbd_io *io, size_t *length);
/* The request is done with. Twice is once. */
void bm_nbd_compress_end(struct nbd_io *io);

/*
 * Whether the server that uri names has to prove itself to somebody whom uri names, if there is
 * TLS; asked before connecting, and after.
 */
int bm_nbd_check_tls(const char *uri, struct bm_error *error);

#endif
