/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What each kind of device offers to bm_dev_open(): one opener per scheme, all with its contract.
 * rest is what follows the scheme.
 */
#ifndef BM_DEV_OPEN_H
#define BM_DEV_OPEN_H

#include "blockmirror/base/uri.h"
#include "blockmirror/blockdev.h"

typedef int bm_opener(const struct bm_uri *uri, const struct bm_open_options *options,
		      struct bm_dev **dev, struct bm_error *error);

bm_opener bm_file_open, bm_nbd_open, bm_iscsi_open, bm_mem_open, bm_fault_open, bm_peer_open,
	bm_helper_open;

/*
 * Creates an image file of size bytes, all holes, that exists after a power cut: the file and its
 * folder are synced. Blocks; any thread. Fails with BM_E_EXISTS when path exists.
 */
int bm_file_create(const char *path, uint64_t size, struct bm_error *error);

/* The same for whatever uri names, in its format, if it is a file: BM_E_USAGE when not. */
int bm_image_create(const char *uri, uint64_t size, struct bm_error *error);

/* Checks what every image must fulfil: not empty, a multiple of 512 bytes. */
int bm_check_size(const char *name, uint64_t size, struct bm_error *error);

/*
 * What closing a TCP socket does with what was not sent yet. Default: the kernel goes on sending,
 * for minutes, also when the process is dead. abort: it is thrown away, and the peer is told (RST).
 *
 *	The path to the target drops packets; a write waits in the socket; the session is given up
 *	and closed. The path heals, a new session rewrites the range, is acknowledged and flushed.
 *	Then the old socket's timer fires: the old write is sent again, and lands on top.
 *
 * So sessions abort, unless they are closed in good order. For other sockets it does nothing.
 */
void bm_abort_on_close(int fd, bool abort);

/*
 * Sleeps for ns in steps, asking options->interrupted() between them. Returns 0, or -EINTR when
 * it said so.
 */
int bm_wait_a_while(const struct bm_open_options *options, uint64_t ns);

#endif
