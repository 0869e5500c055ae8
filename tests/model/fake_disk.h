/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A disk for the model tests: a block device that does nothing by itself. Requests lie in it until
 * the test lets sectors of them take effect, one by one and in any order, and then lets them end.
 * It has a volatile cache: a power cut takes any sector back to any value it had since the last
 * flush that covered it. What a lost connection or a killed process leaves behind ("stale") goes
 * on taking effect.
 *
 * A sector is 512 bytes that hold one number, repeated; 0 is all zeros.
 */
#ifndef FAKE_DISK_H
#define FAKE_DISK_H

#include "blockmirror/blockdev.h"

enum { SECTOR = 512, SECTORS = 16, HISTORY = 96, PENDING = 512 };

struct fake_io {
	struct fake_disk *disk;
	struct bm_request *rq; /* NULL: stale */
	bool used, fua;
	enum bm_op op;
	int first, n, left;
	unsigned id;
	uint32_t applied;        /* bit per sector */
	int value[SECTORS];      /* READ, EXTENTS: seen; stale WRITE: sent */
	unsigned floor[SECTORS]; /* FLUSH: the io whose effect is durable when it is done */
};

struct fake_disk {
	struct bm_dev dev;
	int current[SECTORS];
	struct {
		int value;
		unsigned io; /* 0: before all */
		bool ended;
	} history[SECTORS][HISTORY];
	int histories[SECTORS];
	struct fake_io io[PENDING];
	int pending; /* that are used */
	unsigned ids;
	bool remote; /* cancel ends requests at once and leaves them stale */
	bool prompt; /* ... but for writes that are carried out: their answers may have come */
	/*
	 * A server that does not say when stale requests are over: they may be carried out until
	 * this time, or later, but not any more when what they write is read. 0: another kind.
	 */
	uint64_t old_until;
	bool cancelled;
	struct bm_list ended; /* cancelled requests that wait for their done() */
	struct bm_task end_task;
	uint64_t (*chance)(void);
};

extern const struct bm_dev_ops fake_disk_ops;

/* Content value[] of all sectors, durable; no requests. The memory must have been zeroed. */
void fake_disk_init(struct fake_disk *d, const int *value, uint32_t block,
		    uint64_t (*chance)(void));

/* A new session: open for requests again. */
void fake_disk_open(struct fake_disk *d, struct bm_loop *loop);

/* The n-th request in use, or NULL. */
struct fake_io *fake_disk_pick(struct fake_disk *d, int n);

/* Lets one sector (FLUSH: nothing) of io take effect. */
void fake_io_apply(struct fake_io *io);

/* Ends io: error 0 only when it has taken effect whole. Stale ones just vanish. */
void fake_io_end(struct fake_io *io, int error);

/* The process that made the requests is dead: they are stale. */
void fake_disk_orphan(struct fake_disk *d);

/* Somebody else writes value to a sector, durably. */
void fake_disk_damage(struct fake_disk *d, int sector, int value);

/* Power cut: stale requests are gone, sectors go back to what was durable, or later. */
void fake_disk_power_cut(struct fake_disk *d);

bool fake_disk_has_stale(const struct fake_disk *d);

/* Whether a power cut would take nothing back. */
bool fake_disk_durable(const struct fake_disk *d);

/* What a guest puts in, and finds in, a sector. */
void sector_fill(uint8_t *data, int value);
int sector_value(const uint8_t *data); /* -1: torn */

#endif
