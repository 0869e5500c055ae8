/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What was written to a device and is not flushed yet: the newest content of each block, in memory
 * of a fixed size, so that it can be written again should the device have forgotten it. And a few
 * samples of what is flushed, by which the device is known again. Loop thread only.
 *
 * A stamp says when: content is put in with the stamp of its write's end; a flush that succeeds
 * covers what was put in with its own stamp or an earlier one.
 */
#ifndef BM_DEV_UNFLUSHED_H
#define BM_DEV_UNFLUSHED_H

#include <stdbool.h>
#include <stdint.h>

#include "blockmirror/loop.h"

enum {
	UNFLUSHED_BYTES = 64 << 20, /* of content */
	UNFLUSHED_SAMPLES = 64,
};

struct unflushed_page {
	struct bm_list link;          /* in list, oldest stamp first; or in free */
	struct unflushed_page *chain; /* the next one of its bucket */
	uint64_t number;              /* the page of the disk: its offset by the page's size */
	uint64_t stamp;
	unsigned valid; /* bit per unit that it holds */
};

struct unflushed_sample {
	uint64_t number, hash;
	bool used;
};

struct unflushed {
	uint32_t unit,
		page;   /* bytes: requests are multiples of the one, the other is kept as one */
	unsigned pages; /* that there is memory for */
	unsigned used, reserved;
	struct bm_list list, free;
	struct unflushed_sample sample[UNFLUSHED_SAMPLES];
	unsigned next_sample;
	uint8_t *content;
	struct unflushed_page **bucket;
	struct unflushed_page *at;
};

/* block: a power of two, at least 512. Memory is taken as it is used. 0 or -ENOMEM. */
int bm_unflushed_init(struct unflushed *u, uint32_t block);
void bm_unflushed_fini(struct unflushed *u);

/* Room for a write of that range, until bm_unflushed_release(). False: there is none now. */
bool bm_unflushed_reserve(struct unflushed *u, uint64_t offset, uint64_t length);
void bm_unflushed_release(struct unflushed *u, uint64_t offset, uint64_t length);

/* The range holds data now; NULL: zeros. Room was reserved, and has been released just now. */
void bm_unflushed_put(struct unflushed *u, uint64_t offset, uint64_t length, const uint8_t *data,
		      uint64_t stamp);

/* What the range held is no more. */
void bm_unflushed_forget(struct unflushed *u, uint64_t offset, uint64_t length);

/* What the range holds is not known: a write to it may or may not have been carried out. */
void bm_unflushed_doubt(struct unflushed *u, uint64_t offset, uint64_t length);

/* A flush with that stamp succeeded. */
void bm_unflushed_flushed(struct unflushed *u, uint64_t stamp);

/* All, samples too. */
void bm_unflushed_clear(struct unflushed *u);

/* More than half is used: time for a flush. */
bool bm_unflushed_filling(const struct unflushed *u);

/*
 * The first run of the page from unit *from on: its bytes, offset and length; *from is behind it
 * then. False: there is none.
 */
bool bm_unflushed_run(const struct unflushed *u, const struct unflushed_page *p, unsigned *from,
		      uint8_t **data, uint64_t *offset, uint64_t *length);

/* Whether data, of a page's size, is what the sample saw. */
bool bm_unflushed_same(const struct unflushed_sample *sample, const uint8_t *data, uint32_t page);

#endif
