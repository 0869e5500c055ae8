/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Bytes from and to the wire, within bounds. What does not fit fails for good ("sticky"): a whole
 * message is read or written first, and failed is looked at once, at its end.
 */
#ifndef NBD_SERVER_WIRE_H
#define NBD_SERVER_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct nbd_reader {
	const uint8_t *at;
	size_t left;
	bool failed;
};

struct nbd_writer {
	uint8_t *at;
	size_t room, used; /* bytes behind at that are free; bytes written */
	bool failed;
};

/* The next length bytes, or NULL when there are not so many. */
const uint8_t *nbd_read(struct nbd_reader *r, size_t length);

/* Numbers, in the host's order; 0 when they are cut off. */
uint16_t nbd_read_u16(struct nbd_reader *r);
uint32_t nbd_read_u32(struct nbd_reader *r);
uint64_t nbd_read_u64(struct nbd_reader *r);

/* Whether all went well and nothing is left. */
bool nbd_read_whole(const struct nbd_reader *r);

void nbd_write(struct nbd_writer *w, const void *bytes, size_t length);
void nbd_write_u16(struct nbd_writer *w, uint16_t value);
void nbd_write_u32(struct nbd_writer *w, uint32_t value);
void nbd_write_u64(struct nbd_writer *w, uint64_t value);

#endif
