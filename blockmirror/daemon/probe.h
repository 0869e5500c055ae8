/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Trying out the file system that a new image lies on, before anything is promised about it: write,
 * flush, read back, punch, zero, alignment, and the time that a flush takes.
 */
#ifndef BM_DAEMON_PROBE_H
#define BM_DAEMON_PROBE_H

#include <stdbool.h>
#include <stdint.h>

#include "blockmirror/error.h"

/* What a new image's file system can do; found by doing it. */
struct probe {
	/* Bytes: what direct I/O has to be aligned to (512..64K). 0: there is none that reaches the
	 * whole image, the page cache is used. */
	unsigned block;
	bool punch, zero;  /* fallocate() punches holes; makes ranges zero without writing */
	uint64_t flush_ns; /* the middle one of some fdatasync() calls after a write, each */
};

/*
 * path is a file of size bytes (a multiple of 512, not 0) that is all zeros, and is so again
 * afterwards, all holes, also after a failure as far as possible: whatever else was in it is lost.
 * Nobody else has it open. Writes a little more than 1 MiB at most. Blocks; any thread. Fills in
 * probe if it returns 0. A failure says what did not work: BM_E_ENOSPC, BM_E_IO, or what kept it
 * from opening the image, which then is as it was.
 */
int probe_image(const char *path, uint64_t size, struct probe *probe, struct bm_error *error);

#endif
