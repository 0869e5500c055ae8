/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One end of what carries a native machine's RAM: pages and messages to the target, in the order
 * in which they were put in, and messages back. What it looks like on the way is its own matter.
 * Loop thread only; nothing blocks. No callback is called inside a call.
 */
#ifndef BM_RAM_PIPE_H
#define BM_RAM_PIPE_H

#include "blockmirror/precopy.h"

struct bm_cap;
struct bm_pipe;

enum { BM_PIPE_MESSAGE = 64 << 20 }; /* bytes of a message, at most */

struct bm_pipe_ops {
	/* The source's: pages are taken again. */
	void (*ready)(void *arg);
	/* The target's. 0, or -errno: the pipe has failed, and error says why. */
	int (*page)(void *arg, unsigned region, uint64_t index, const uint8_t *data,
		    struct bm_error *error);
	/* The same, at both ends. */
	int (*message)(void *arg, uint8_t kind, const uint8_t *data, size_t length,
		       struct bm_error *error);
	/* It is of no use any more; once, the last call. */
	void (*failed)(void *arg, const struct bm_error *error);
};

/*
 * Connects to a unix socket so many times; what is behind it leads to the other end. move names the
 * move, at both ends.
 */
int bm_pipe_open(struct bm_loop *loop, const char *path, unsigned connections, const char *move,
		 bool source, const struct bm_pipe_ops *ops, void *arg, struct bm_pipe **pipe,
		 struct bm_error *error);

/* What all of this host may send together; NULL: no cap. It outlives the pipe. */
void bm_pipe_cap(struct bm_pipe *pipe, struct bm_cap *cap);

/* Calls nothing any more. What was put in may be lost. NULL is allowed. */
void bm_pipe_close(struct bm_pipe *pipe);

/* Takes a copy of a page; false: there is no room, ready() will be called. */
bool bm_pipe_page(struct bm_pipe *pipe, unsigned region, uint64_t index, const uint8_t *data);

/* Always taken. -ENOMEM. */
int bm_pipe_message(struct bm_pipe *pipe, uint8_t kind, const void *data, size_t length);

/* What was put in goes out, however little it is. */
void bm_pipe_push(struct bm_pipe *pipe);

/* Bytes that were sent. */
uint64_t bm_pipe_wire(const struct bm_pipe *pipe);

#endif
