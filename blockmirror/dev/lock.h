/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Image locks: the byte-range OFD locks that QEMU takes (block/file-posix.c there), so that
 * neither opens what the other holds. Byte 100+n is read-locked by who uses permission n, byte
 * 200+n by who does not share it with others.
 */
#ifndef BM_DEV_LOCK_H
#define BM_DEV_LOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "blockmirror/blockdev.h"

#define BM_IMAGE_RETRY 10000000ull /* ns */

/*
 * Locks the image behind fd for writing by nobody else (and, unless read_only, by us). Returns 0,
 * -EAGAIN when another process holds it, or -errno (-EOPNOTSUPP: no locks on this file system).
 * The lock goes with the last descriptor of this open file, and not before I/O of a process that
 * was killed has ended: to wait for it is a fence.
 */
int bm_image_lock(int fd, bool read_only);

/*
 * The same locks beside those of a process that has the image open and will let go of it: they are
 * shared ones, and it is the look at the others' that keeps two apart. Taken before that process
 * lets go they leave no moment in which a third one could have the image. 0 or -errno.
 */
int bm_image_lock_beside(int fd);

/* The look at the others': 0: nobody else has the image, -EAGAIN: somebody has. */
int bm_image_lock_alone(int fd);

/* Gives them up. */
void bm_image_unlock(int fd);

/*
 * The same as the options want it, waiting where they want a fence; a file system without locks is
 * no error. Blocks. patience: for how long (ns) such a wait is.
 */
int bm_image_lock_for(int fd, const char *path, const struct bm_open_options *options,
		      struct bm_error *error);
uint64_t bm_image_patience(const struct bm_open_options *options);

#endif
