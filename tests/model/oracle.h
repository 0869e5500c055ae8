/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a guest was promised: the list of its operations, and from it what each sector may hold.
 *
 * Time is a counter. A write may be read from its issue on. A value is out of date once another
 * write of the sector, issued after this one's end, has been acknowledged; after a power cut of
 * the authority only a durable one (FUA, or before an acknowledged flush) counts. Once a read has
 * returned a value, no later read may return an older one.
 */
#ifndef ORACLE_H
#define ORACLE_H

#include <stdbool.h>

enum { ORACLE_OPS = 4096, ORACLE_FLUSHES = 1024, ORACLE_SECTORS = 32 };

struct oracle_op {
	int value, first, n;
	int issue, end, ack; /* end: acknowledged, failed or given up */
	bool acked, fua;
	bool hint;     /* a trim: it may be read, it makes nothing out of date */
	bool doubtful; /* a flush after it failed */
	int seen[ORACLE_SECTORS];
};

struct oracle {
	int clock, ops, flushes, next_value;
	struct oracle_op op[ORACLE_OPS];
	struct {
		int issue, ack;
	} flush[ORACLE_FLUSHES];
};

void oracle_reset(struct oracle *o);

/* All that is known begins anew with what the authority holds (durable or not). */
void oracle_rebase(struct oracle *o, const int *value, int sectors, bool durable);

int oracle_write(struct oracle *o, int value, int first, int n, bool fua, bool hint);
void oracle_written(struct oracle *o, int op, bool ok);
int oracle_flush(struct oracle *o);
void oracle_flushed(struct oracle *o, int flush, bool ok);

/*
 * A flush failed. A guest that is told so knows that what came before is not safe, whatever it
 * flushes now. (The device tells it once: when the process dies with that answer, nobody knows.)
 */
void oracle_doubt(struct oracle *o);

int oracle_now(struct oracle *o); /* the time to give to oracle_read() at the end */

/* Whether a read issued then may have returned value; notes that it did. */
bool oracle_read(struct oracle *o, int issue, int sector, int value);

/* Whether a read at that time may have returned value. */
bool oracle_held(const struct oracle *o, int time, int sector, int value);

/* Whether the authority may hold value now; power: after it lost power. */
bool oracle_allows(const struct oracle *o, int sector, int value, bool power);

/* The process died: whatever was not answered has ended, acknowledged or not. */
void oracle_crash(struct oracle *o);

#endif
