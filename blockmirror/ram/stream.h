/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * QEMU's migration stream: parsed into pages and what is none, and rebuilt of them; and the return
 * path beside it. Streams of version 3, as QEMU 2.4 and later send them; seen with 7.2.
 *
 * The parser need not be trusted: what it does not know it passes through as bytes, and what it
 * takes for a page is rebuilt to the very bytes that came, whatever they meant. Only what would
 * not work over a relay is refused: post-copy, and connections of multifd.
 *
 * One thread at a time; nothing blocks or allocates.
 */
#ifndef BM_RAM_STREAM_H
#define BM_RAM_STREAM_H

#include <stdbool.h>
#include <sys/types.h>

#include "blockmirror/ram/codec.h"

enum {
	/* The longest piece that is looked at as a whole: a page, its address, its block's name. */
	BM_STREAM_ITEM_MAX = 8 + 1 + BM_RAM_NAME + (1 << BM_RAM_PAGE_BITS_MAX),
};

enum bm_stream_state {
	BM_STREAM_MAGIC,
	BM_STREAM_BETWEEN,      /* a type of section comes */
	BM_STREAM_CAPABILITIES, /* a list of names; counted by count */
	BM_STREAM_BLOCKS,       /* the list of blocks, until count bytes of RAM are named */
	BM_STREAM_RECORDS,      /* of a RAM section */
	BM_STREAM_BODY,         /* count bytes that nobody looks at, then what is in then */
	BM_STREAM_REST,         /* to the end nobody looks at anything */
};

/* All is for stream.c, but for what says so. */
struct bm_stream {
	enum bm_stream_state state, then;
	uint64_t count;
	uint64_t offset; /* for all: bytes that were parsed */
	bool ignore_shared, has_ram;
	uint32_t ram; /* the number of the section */
	int block;    /* of the last page; -1: none yet */
	unsigned blocks;
	uint8_t lengths[BM_RAM_BLOCKS];
	char names[BM_RAM_BLOCKS][BM_RAM_NAME];

	/* For all. Why the rest is not looked at, and where it begins; NULL while it is. Device
	   state is an ordinary reason, and then devices is set. */
	const char *why;
	uint64_t why_offset;
	bool devices;
	uint64_t sections; /* of RAM that have ended: passes, and pieces of them */
};

void bm_stream_init(struct bm_stream *s);

/*
 * Parses what came next, and encodes it. *used is how much of it is done with; what is left is to
 * be shown again, with more behind it. Returns 0: it takes more than length bytes to go on (never
 * with length BM_STREAM_ITEM_MAX); 1: the encoder's batch is full; -errno: refused, and error says
 * what and at which offset.
 */
int bm_stream_parse(struct bm_stream *s, struct bm_encoder *e, const uint8_t *data, size_t length,
		    size_t *used, struct bm_error *error);

/* The stream has ended: what is left is no whole piece, and passes through as it is. */
void bm_stream_end(struct bm_stream *s);

/* Rebuilds a batch: length bytes at most, the batch's weight, are written to data. */
struct bm_builder {
	struct bm_decoder *decoder;
	uint8_t *data;
	size_t used;
};

int bm_stream_build(struct bm_builder *b, const uint8_t *payload, size_t length, uint32_t weight,
		    struct bm_error *error);

/*
 * The return path: what the target's QEMU says to the source's. Its SHUT without an error ends the
 * source's way back, and is to be held until that is allowed.
 */
struct bm_return {
	uint8_t head[8]; /* of the message that comes, as far as it has come */
	unsigned have;
	uint32_t body; /* bytes of it that nobody looks at */
	bool shut;     /* a SHUT is in head, whole, and not passed on */
};

void bm_return_init(struct bm_return *r);

/*
 * Passes bytes on to where there is room for *length and 7 more, and returns how many it wrote.
 * Stops behind a SHUT without an error (r->shut): *data and *length are what is left then.
 */
size_t bm_return_pass(struct bm_return *r, const uint8_t **data, size_t *length, uint8_t *to);

/* Hands the SHUT out, which is 8 bytes. */
void bm_return_release(struct bm_return *r, uint8_t to[8]);

#endif
