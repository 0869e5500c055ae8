/* SPDX-License-Identifier: BSD-3-Clause */
/* What a guest was promised. */
#include "tests/model/oracle.h"

#include <assert.h>
#include <limits.h>

static bool covers(const struct oracle_op *op, int sector)
{
	return sector >= op->first && sector < op->first + op->n;
}

void oracle_reset(struct oracle *o)
{
	o->clock = o->ops = o->flushes = 0;
	o->next_value = 1000;
}

int oracle_write(struct oracle *o, int value, int first, int n, bool fua, bool hint)
{
	struct oracle_op *op = &o->op[o->ops];

	assert(o->ops < ORACLE_OPS);
	*op = (struct oracle_op){.value = value,
				 .first = first,
				 .n = n,
				 .issue = ++o->clock,
				 .end = INT_MAX,
				 .ack = INT_MAX,
				 .fua = fua,
				 .hint = hint};
	for (int s = 0; s < ORACLE_SECTORS; s++)
		op->seen[s] = INT_MAX;
	o->clock++;
	return o->ops++;
}

void oracle_written(struct oracle *o, int i, bool ok)
{
	struct oracle_op *op = &o->op[i];

	op->end = ++o->clock;
	if (ok) {
		op->acked = true;
		op->ack = op->end;
	}
	o->clock++;
}

int oracle_flush(struct oracle *o)
{
	assert(o->flushes < ORACLE_FLUSHES);
	o->flush[o->flushes].issue = ++o->clock;
	o->flush[o->flushes].ack = INT_MAX;
	o->clock++;
	return o->flushes++;
}

void oracle_flushed(struct oracle *o, int flush, bool ok)
{
	o->clock++;
	if (ok)
		o->flush[flush].ack = o->clock;
	if (!ok)
		oracle_doubt(o);
	o->clock++;
}

void oracle_doubt(struct oracle *o)
{
	for (int i = 0; i < o->ops; i++)
		o->op[i].doubtful = true;
}

int oracle_now(struct oracle *o)
{
	return o->clock += 2;
}

void oracle_rebase(struct oracle *o, const int *value, int sectors, bool durable)
{
	int known = o->ops;

	for (int s = 0; s < sectors; s++) {
		int i = oracle_write(o, value[s], s, 1, durable, false);

		oracle_written(o, i, true);
		for (int j = 0; j < known && !durable; j++)
			if (covers(&o->op[j], s) && o->op[j].value == value[s])
				o->op[i].doubtful |= o->op[j].doubtful;
	}
}

void oracle_crash(struct oracle *o)
{
	o->clock++;
	for (int i = 0; i < o->ops; i++)
		if (o->op[i].end == INT_MAX)
			o->op[i].end = o->clock;
	o->clock++;
}

static bool durable(const struct oracle *o, const struct oracle_op *op)
{
	if (!op->acked || op->doubtful)
		return op->fua && op->acked;
	for (int i = 0; !op->fua && i < o->flushes; i++)
		if (o->flush[i].ack != INT_MAX && o->flush[i].issue > op->ack)
			return true;
	return op->fua;
}

bool oracle_allows(const struct oracle *o, int sector, int value, bool power)
{
	for (int i = 0; i < o->ops; i++) {
		const struct oracle_op *op = &o->op[i];
		bool current = op->value == value && covers(op, sector);

		for (int j = 0; current && j < o->ops; j++) {
			const struct oracle_op *newer = &o->op[j];

			if (!newer->hint && covers(newer, sector) && newer->issue > op->end &&
			    newer->acked && (!power || durable(o, newer)))
				current = false;
		}
		if (current)
			return true;
	}
	return false;
}

/* Whether what op wrote to the sector was out of date then. */
static bool outdated(const struct oracle *o, const struct oracle_op *op, int time, int sector)
{
	for (int j = 0; j < o->ops; j++) {
		const struct oracle_op *newer = &o->op[j];

		if (!newer->hint && covers(newer, sector) && newer->issue > op->end &&
		    ((newer->acked && newer->ack < time) || newer->seen[sector] < time))
			return true;
	}
	return false;
}

bool oracle_held(const struct oracle *o, int time, int sector, int value)
{
	for (int i = 0; i < o->ops; i++) {
		const struct oracle_op *op = &o->op[i];

		if (op->value == value && covers(op, sector) && op->issue < time &&
		    !outdated(o, op, time, sector))
			return true;
	}
	return false;
}

bool oracle_read(struct oracle *o, int issue, int sector, int value)
{
	bool found = false;

	for (int i = 0; i < o->ops; i++) {
		struct oracle_op *op = &o->op[i];

		if (op->value != value || !covers(op, sector) || outdated(o, op, issue, sector))
			continue;
		found = true;
		if (value && op->seen[sector] > o->clock)
			op->seen[sector] = o->clock;
	}
	return found;
}
