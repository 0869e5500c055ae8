/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The host's part of the checkpoint, as the worst one may be: it takes its time, it fails, a power
 * cut or a death lets any bit through of what was being written, it hangs until nobody waits for it
 * any more. It has chances of its own, so that a seed without a checkpoint does what it did before
 * there was one.
 */
#include "tests/model/world.h"

#include <string.h>

uint64_t fate_state;

uint64_t fate(void)
{
	uint64_t z = fate_state += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

static bool likely(int percent)
{
	return (int)(fate() % 100) < percent;
}

/* One change, on the medium: each bit of which may be there or not (whole: is). */
static void apply(const struct bm_claim *claim, bool whole)
{
	unsigned n = w.m->config.extent;

	for (unsigned i = 0; i < n && claim->extent * n + i < GRANULES; i++) {
		uint8_t bit = (uint8_t)(1u << (claim->extent * n + i));

		if (!whole && likely(50))
			continue;
		if (claim->settled >> i & 1)
			w.checkpoint.bits |= bit;
		else
			w.checkpoint.bits &= (uint8_t)~bit;
	}
}

static void apply_all(bool whole)
{
	for (unsigned i = 0; i < w.checkpoint.count; i++)
		apply(&w.checkpoint.claim[i], whole);
}

void checkpoint_take(void *arg)
{
	struct checkpoint *c = &w.checkpoint;

	(void)arg;
	if (c->writing || c->broken)
		return;
	c->count = bm_mirror_take_claims(w.m, c->claim, 1 + (unsigned)(fate() % GRANULES));
	c->writing = c->count;
	for (unsigned i = 0; i < c->count; i++) {
		trace("checkpoint: extent %d = %d", (int)c->claim[i].extent,
		      (int)c->claim[i].settled);
		total.claims += c->claim[i].settled != 0;
		total.withdrawals += !c->claim[i].settled;
	}
}

/* Nobody believes it any more, whatever it comes to say. */
static void give_up(void)
{
	trace("checkpoint: void");
	total.voids++;
	w.checkpoint.marking = false;
	w.checkpoint.valid = false;
	bm_mirror_claims_void(w.m);
}

static void write_on(void)
{
	struct checkpoint *c = &w.checkpoint;

	if (c->broken && !c->valid) { /* it came back when nobody waited any more */
		c->writing = false;
	} else if (w.faults && likely(5)) {
		apply_all(false);
		trace("checkpoint: failed");
		c->writing = false;
		c->broken = c->marking = true;
	} else if (w.faults && likely(2) && bm_mirror_claims_awaited(w.m)) {
		trace("checkpoint: hangs");
		c->broken = c->marking = true;
	} else if (likely(50)) {
		apply_all(true);
		c->writing = false;
		trace("checkpoint: durable");
		if (!c->broken) {
			bm_mirror_claims_durable(w.m);
			checkpoint_take(NULL);
		}
	} else {
		apply(&c->claim[fate() % c->count], false);
	}
}

/* Long enough for everything to be cold. */
static void cool(void)
{
	struct claims *c = &w.m->claims;

	for (int i = 0; c->active && i < 2; i++) {
		c->patience = 1;
		c->timer.run(&c->timer);
	}
}

void checkpoint_step(void)
{
	struct checkpoint *c = &w.checkpoint;

	if (!w.m->claims.active || !likely(30))
		return;
	if (c->marking && likely(50))
		give_up();
	else if (c->writing)
		write_on();
	else if (c->broken && !c->marking && likely(20)) { /* a new one */
		c->bits = 0;
		c->valid = true;
		c->broken = false;
	} else if (likely(20) && !w.m->claims.kept) {
		cool();
	}
}

/* The process dies; what was being written is there or not, bit by bit. */
void checkpoint_crash(void)
{
	struct checkpoint *c = &w.checkpoint;

	if (c->writing && w.m)
		apply_all(false);
	if (c->marking && likely(50))
		c->valid = false;
	c->writing = c->marking = false;
	c->broken = !c->valid;
}

/* It ends in good order: all that is settled, in a new one. The host may be restarted then. */
void checkpoint_park(void)
{
	struct checkpoint *c = &w.checkpoint;

	if (!c->on)
		return;
	if (!likely(10)) { /* else it could not be written */
		c->bits = w.settled[0];
		c->valid = true;
		c->broken = false;
	}
	if (likely(50))
		w.settled[0] = checkpoint_bits();
}

/* The job is over, and its record says so; or there is another one, that did not begin before. */
void checkpoint_forget(void)
{
	w.checkpoint.writing = false;
	w.checkpoint.bits = 0;
	w.checkpoint.valid = true;
	w.checkpoint.broken = w.checkpoint.marking = false;
	w.let_go = false;
}

/* What a process finds that has no other map. */
uint8_t checkpoint_bits(void)
{
	return w.checkpoint.valid ? w.checkpoint.bits : 0;
}

/*
 * What it says now, and what it may say in a moment, must be equal on both sides whatever a power
 * cut takes back.
 */
void check_checkpoint(const char *when)
{
	const struct checkpoint *c = &w.checkpoint;
	unsigned bits = checkpoint_bits(), n = w.alive ? w.m->config.extent : 1;

	if (!w.attached && !w.let_go)
		return;
	for (unsigned i = 0; c->writing && c->valid && i < c->count; i++)
		bits |= (unsigned)c->claim[i].settled << c->claim[i].extent * n;
	for (int g = 0; g < GRANULES; g++) {
		int first = g * GRANULE / SECTOR;

		if (!(bits >> g & 1) || is_damaged(g))
			continue;
		total.claimed++;
		for (int s = first; s < first + GRANULE / SECTOR; s++)
			if (w.disk[0].histories[s] > 1 || w.disk[1].histories[s] > 1 ||
			    w.disk[0].current[s] != w.disk[1].current[s])
				violation("I5 %s: the checkpoint claims granule %d, sector %d may "
					  "come to differ",
					  when, g, s);
	}
}
