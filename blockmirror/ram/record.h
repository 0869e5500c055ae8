/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The records of a batch, for codec.c and decode.c alone. One byte says which; numbers are
 * big-endian. Page records are of the page at the cursor, which AT sets and each of them moves on
 * by one, a FILL by as many as it has. A batch begins without a cursor.
 */
#ifndef BM_RAM_RECORD_H
#define BM_RAM_RECORD_H

enum bm_ram_record {
	BM_RAM_BYTES = 1, /* length (4), bytes: what is no page */
	BM_RAM_BLOCK,     /* block (2), length (1), name: what the number means from here on */
	BM_RAM_AT,        /* block (2), index (8) */
	BM_RAM_AT_NAMED,  /* the same; the record of the next page names its block */
	BM_RAM_FILL,      /* count (4), value (1): the source said so, without data */
	BM_RAM_BLANK,     /* data that are all zero */
	BM_RAM_COPY,      /* slot (4): what is in it */
	BM_RAM_DELTA,     /* from (4), slot (4), length (2), pieces: what is in slot "from",
			     changed; goes into slot */
	BM_RAM_RAW,       /* slot (4) or NO_SLOT, the page: goes into it */
	BM_RAM_RECORDS
};

/*
 * A DELTA's pieces: skip (2), length (2), bytes; each goes on where the last one ended. What is
 * behind the last one is as it was.
 */

enum {
	BM_RAM_BYTES_HEAD = 5,
	BM_RAM_AT_HEAD = 11,
	BM_RAM_FILL_HEAD = 6,
	BM_RAM_BLOCK_HEAD = 4,
	BM_RAM_COPY_HEAD = 5,
	BM_RAM_DELTA_HEAD = 11,
	BM_RAM_RAW_HEAD = 5,
	BM_RAM_PIECE_HEAD = 4,
	BM_RAM_FILL_WEIGHT = 9,
	BM_RAM_PAGE_WEIGHT = 8, /* and the page */
};

#define BM_RAM_NO_SLOT 0xffffffffu

#endif
