/* SPDX-License-Identifier: BSD-3-Clause */
/* Comparing two devices, byte for byte. Loop thread. */
#ifndef BM_MIRROR_VERIFY_H
#define BM_MIRROR_VERIFY_H

#include "blockmirror/blockdev.h"

struct bm_verify_result {
	int error; /* a device failed: -errno, at offset of device `where` (0 or 1) */
	int where;
	bool differ;
	uint64_t offset;   /* of the first difference, or of the failure */
	uint64_t compared; /* bytes read from each */
	uint64_t skipped;  /* bytes that are zero on both, by their extents */
};

struct bm_verify;

/*
 * Compares size bytes of two started devices, whose contents nobody changes. done() is called once,
 * from the loop, and may free verify. Returns 0 or -ENOMEM.
 */
int bm_verify_start(struct bm_loop *loop, struct bm_dev *a, struct bm_dev *b, uint64_t size,
		    void (*done)(void *arg, const struct bm_verify_result *result), void *arg,
		    struct bm_verify **verify);

/* Bytes dealt with so far. */
uint64_t bm_verify_progress(const struct bm_verify *verify);

/* Ends early: done() comes with -ECANCELED as soon as nothing is in flight. */
void bm_verify_cancel(struct bm_verify *verify);

void bm_verify_free(struct bm_verify *verify);

#endif
