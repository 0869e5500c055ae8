/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A machine's images that are no disks of ours. Those that it only reads (a CD, firmware) must be
 * the same on the other host, or are copied there. The flash that firmware keeps its variables in
 * is memory to QEMU: what is in it comes with the memory, and QEMU writes all of it to its own file
 * when the machine runs there; so a file is wanted there, which is made, and the one here is no
 * more the machine's. Whatever else is not ours is refused. For blockmirror-move alone; all block.
 */
#ifndef BM_MACHINE_MOVE_MEDIA_H
#define BM_MACHINE_MOVE_MEDIA_H

#include "blockmirror/machine/move_source.h"

/*
 * An entry of query-block, to list: path, and flash (true: written to). 0: it is none of these, or
 * not one file; 1: taken.
 */
int media_take(const json_t *device, json_t *list);

/* Source: the target has them all, or an error says which one it has not. */
int media_pass(struct source *s, struct bm_error *error);
/* Source, when it is there for good: flash here is PATH.away from now on. */
void media_leave(struct move *m);

/*
 * Target: the calls "media" and "media-write". media: what is to come is in the plan's "want" then.
 * undo: nothing of it is left.
 */
int media_check(struct move *m, json_t *params, struct bm_error *error);
int media_write(struct move *m, json_t *params, struct bm_error *error);
void media_undo(struct move *m);

/* SHA-256 of a file, in hex. */
enum { MEDIA_HASH = 65, MEDIA_PIECE = 256 << 10 };
int media_hash(int fd, char hash[MEDIA_HASH]);

#endif
