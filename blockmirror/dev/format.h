/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Image formats: which there are, what an image in one says about itself, and making one. QEMU's
 * tools know the formats; which one an image has is what its URI says, never a guess from what is
 * in it, which may be the guest's doing. All functions block; any thread.
 */
#ifndef BM_DEV_FORMAT_H
#define BM_DEV_FORMAT_H

#include "blockmirror/blockdev.h"

/*
 * Whether the image may be used as the options want: it is in that format, no other file holds its
 * data, none shows through it unless that is wanted, and QEMU writes such images safely. path is
 * absolute.
 */
int bm_format_check(const char *format, const char *path, const struct bm_open_options *options,
		    struct bm_error *error);

/* Whether zeros take no space in it, and no time. */
bool bm_format_has_zeros(const char *format);

/* As bm_file_create(). path begins anywhere. */
int bm_format_create(const char *format, const char *path, uint64_t size, struct bm_error *error);

#endif
