/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The NBD server with one client, in one process: the real server and loop, over a socket pair; a
 * device in memory, or one that is shaky. The client is the target's: bytes go in, and what comes
 * back is kept. The server shall always get on: where it has all that it can ask for, and neither
 * answers nor closes, the target fails.
 */
#ifndef TESTS_FUZZ_HOST_H
#define TESTS_FUZZ_HOST_H

#include "nbd-server/server.h"
#include "tests/fuzz/fuzz.h"

enum {
	HOST_READ_ONLY = 1,
	HOST_SHAKY = 2,  /* the device answers late, in any order, and fails now and then */
	HOST_BLOCKS = 4, /* and takes whole blocks only */
	HOST_LAZY = 8,   /* the client takes replies only when it has to */
	HOST_SLICES = 16 /* what it sends arrives in small pieces */
};

enum { HOST_OUTPUT = 48 << 20, HOST_SMALL = (1 << 20) + 512, HOST_LARGE = 24 << 20 };

/* Extents of a device: each begins where the one before it ends, the last one has no end. */
struct map {
	unsigned count;
	struct {
		uint64_t end;
		uint32_t flags;
	} part[64];
};

/* A device without contents. Any error and any order that a device may answer with. */
struct shaky {
	struct bm_dev dev;
	struct bm_list held;
	struct bm_task task;
	uint64_t random;
	bool fails;
	const struct map *map; /* what it answers about its extents; NULL: anything */
};

/* The contexts of the export "" that are not base:allocation. */
#define HOST_DIRTY "qemu:dirty-bitmap:web"
#define HOST_OTHER "test:other"

struct host {
	struct bm_loop *loop;
	struct shaky shaky;
	struct shaky marks;           /* what the contexts say; it is shaky where the device is */
	struct bm_dev *lower, *order; /* NULL where there is none */
	struct bm_dev *dev;           /* what is exported */
	struct nbd_server *server;
	unsigned options;
	int fd;    /* the client's end; -1: closed */
	bool over; /* the server has closed the connection */
	bool stopping, stopped;
	size_t sent;
	uint8_t *output; /* what the server said, got bytes, at most HOST_OUTPUT */
	size_t got;
};

/*
 * A server with the export "", which has three metadata contexts, that a client is connected to.
 * seed: of the shaky device.
 */
void host_open(struct host *host, unsigned options, uint8_t seed);

/* Another name for the same device. */
void host_export(struct host *host, const char *name, const char *description);

/* false: the server takes no more. */
bool host_send(struct host *host, const void *bytes, size_t length);

/* Lets the server do what it can without more input. */
void host_rest(struct host *host);

/* The client sends no more, and reads to the end, which must come. */
void host_finish(struct host *host);

/* The client is gone. */
void host_leave(struct host *host);

void host_stop(struct host *host);

/* Ends all; nothing may be left. */
void host_close(struct host *host);

#endif
