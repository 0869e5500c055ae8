/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What goes over the connections that carry a machine's RAM (docs/ram.md): frames, each a header
 * of fixed size and a payload of bounded length. Numbers are big-endian. Both sources of RAM use
 * them, QEMU's stream and the native pre-copy: what is in a batch is the codec's (codec.h).
 *
 * Batches are numbered. They go over whichever connection is free, in the order of their numbers
 * on each, and are put in order again at the other end.
 *
 * Nothing here blocks or allocates; any thread.
 */
#ifndef BM_RAM_WIRE_H
#define BM_RAM_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "blockmirror/error.h"

enum {
	BM_RAM_VERSION = 1,
	BM_RAM_HEADER = 48,
	BM_RAM_WEIGHT = 256 << 10, /* bytes that one batch stands for, at most */
	BM_RAM_PAYLOAD = 512 << 10,
	BM_RAM_LINKS = 16, /* connections, at most */
	BM_RAM_ID = 16,    /* bytes that name a move */
	BM_RAM_HELLO = 32,
};

enum bm_ram_type {
	BM_RAM_FRAME_HELLO = 1, /* the first of each connection, both ways */
	BM_RAM_FRAME_BATCH,     /* records of the codec; to the target only, like END */
	BM_RAM_FRAME_END,       /* nothing follows batch "number - 1"; also the answer to that */
	BM_RAM_FRAME_BACK,      /* bytes of the return path; to the source only */
	BM_RAM_FRAME_BEAT,      /* nothing: this side lives */
	BM_RAM_FRAME_FAIL,      /* a sentence: why this side gives up */
	BM_RAM_TYPES
};

enum { BM_RAM_ZSTD = 1 }; /* flags: the payload is one zstd frame */

struct bm_ram_header {
	uint8_t type, flags;
	uint32_t length;  /* of the payload that follows */
	uint32_t plain;   /* of the payload when it is decompressed */
	uint32_t weight;  /* bytes that the batch stands for */
	uint64_t number;  /* from 0 on, batches and the END behind them only; else 0 */
	uint64_t content; /* xxh3 of the bytes that the batch stands for: what they are is the
			     source's matter (QEMU: the stream; native: the pages) */
};

/*
 * Writes BM_RAM_HEADER bytes. The checksum in it is over the header and the payload, as it goes
 * over the wire.
 */
void bm_ram_header_put(uint8_t *to, const struct bm_ram_header *header, const uint8_t *payload);

/*
 * Reads them. What it returns may be relied on: a known type and version, lengths within the
 * bounds above, flags that the type may have. -errno with E_UNREACHABLE: not so.
 */
int bm_ram_header_get(struct bm_ram_header *header, const uint8_t *from, struct bm_error *error);

/* Whether the payload that has come is what the header was made for. from: the same header. */
int bm_ram_payload_check(const struct bm_ram_header *header, const uint8_t *from,
			 const uint8_t *payload, struct bm_error *error);

/* What the payload of HELLO says; the answer says the same. */
struct bm_ram_hello {
	uint8_t id[BM_RAM_ID];
	uint8_t link, links; /* which of how many */
	uint8_t page_bits;
	uint32_t slots; /* of the cache (codec.h) */
};

void bm_ram_hello_put(uint8_t *to, const struct bm_ram_hello *hello);
int bm_ram_hello_get(struct bm_ram_hello *hello, const uint8_t *from, size_t length,
		     struct bm_error *error);

/* Numbers of any alignment. */

static inline void bm_put16(uint8_t *to, unsigned value)
{
	to[0] = (uint8_t)(value >> 8);
	to[1] = (uint8_t)value;
}

static inline void bm_put32(uint8_t *to, uint32_t value)
{
	bm_put16(to, value >> 16);
	bm_put16(to + 2, value & 0xffff);
}

static inline void bm_put64(uint8_t *to, uint64_t value)
{
	bm_put32(to, (uint32_t)(value >> 32));
	bm_put32(to + 4, (uint32_t)value);
}

static inline unsigned bm_get16(const uint8_t *from)
{
	return (unsigned)from[0] << 8 | from[1];
}

static inline uint32_t bm_get32(const uint8_t *from)
{
	return (uint32_t)bm_get16(from) << 16 | bm_get16(from + 2);
}

static inline uint64_t bm_get64(const uint8_t *from)
{
	return (uint64_t)bm_get32(from) << 32 | bm_get32(from + 4);
}

#endif
