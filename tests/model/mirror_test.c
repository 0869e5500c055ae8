/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The engine against a model: the real order device and the real mirror, on disks that do what the
 * worst disk may do (fake_disk.h), under simulated time, with random guests, errors, cuts, crashes,
 * switches and detachments; and an oracle that knows what the guest was promised (oracle.h).
 *
 *	mirror_test [-n SEEDS] [-s FIRST] [-v] [-q] [-c]
 *
 * -c: no checkpoints, as seeds were found before there were any.
 *
 * Checked all the time and at the end of every seed:
 *   I1  every acknowledged write is on the authoritative copy; no read goes back in time
 *   I2  clean and idle means equal
 *   I3  an acknowledged flush survives a power cut
 *   I4  one record write at a time, generations in order
 *   I5  the settled map never claims equal what differs, also after crash and power cut
 *   a copy is what the disk was at its cut, and durable (cut.c)
 *   and: when faults end, everything is answered and the copy gets in sync.
 *
 * tests/model/mutants.txt breaks each rule of the engine in turn; "make check-mutants" shows that
 * every one of them is caught here.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/model/world.h"

static bool without; /* checkpoints */

enum { STEPS = 2400, DRAIN_STEPS = 60000 };

/* In some seeds the authority is sound: then the guest never sees an error. */
static bool may_fail(const struct fake_disk *d)
{
	return !w.sound || !w.alive || d != disk_of(w.m->authority);
}

static void disk_step(void)
{
	struct fake_disk *d = &w.disk[below(2)];
	struct fake_io *io = d->pending ? fake_disk_pick(d, below(d->pending)) : NULL;
	int rounds = 1 + below(5);

	/* Old requests take their time where nobody waits for their end. */
	if (!io || (!io->rq && w.foreign && d == &w.disk[1] && !w.draining && percent(97)))
		return;
	while (rounds-- && io->left)
		fake_io_apply(io);
	if (io->rq && w.faults && percent(w.error_percent) && may_fail(d)) {
		trace("disk %d: op %d [%d,+%d) fails", (int)(d - w.disk), (int)io->op, io->first,
		      io->n);
		w.flush_failed[d - w.disk] |= io->op == BM_FLUSH;
		fake_io_end(io, percent(20) ? -ENOSPC : -EIO);
	} else if (!io->left && percent(60)) {
		trace("disk %d: op %d [%d,+%d) ends", (int)(d - w.disk), (int)io->op, io->first,
		      io->n);
		fake_io_end(io, 0);
	}
}

static void record_step(void)
{
	if (!w.record_pending)
		return;
	if (!w.record_applied && percent(60)) {
		w.record_applied = true;
		w.record = w.record_side;
		w.generation++;
		trace("record: generation %d, disk %d, durable", w.generation, w.record);
	} else if (w.record_applied || (w.faults && percent(20))) {
		bool ok = w.record_applied && !(w.faults && w.error_percent && percent(15));

		total.aborted_records += !ok;
		w.record_pending = false;
		trace("record: %s", ok ? "ok" : "failed");
		bm_mirror_committed(w.m, ok ? 0 : -EIO);
	}
}

static void verified(void *arg, int error)
{
	(void)arg;
	trace("verified: %d, %d mismatches", error, (int)w.m->stats.mismatches);
	if (error)
		return;
	total.verified++;
	total.mismatches += (long)w.m->stats.mismatches;
	if (w.m->stats.mismatches && !w.damage_done)
		violation("a difference was found where there is none");
	for (int g = 0; g < GRANULES; g++)
		if (is_damaged(g) && !bm_bitmap_test(&w.m->map.dirty, g) &&
		    !w.m->map.granule[g].busy)
			violation("verified, and granule %d is damaged", g);
}

/* Somebody changes a sector of the other side; then both are compared. */
static void damage_and_verify(void)
{
	int g = below(GRANULES), s = g * GRANULE / SECTOR + below(GRANULE / SECTOR);
	struct fake_disk *d = disk_of(other(w.m));

	if (!w.attached || w.m->phase != PHASE_IDLE || w.m->check.done)
		return;
	if (w.m->link == LINK_UP && percent(50) && !reads_fly() &&
	    !bm_bitmap_test(&w.m->map.dirty, g) && !bm_bitmap_test(&w.m->map.copying, g) &&
	    !w.m->map.granule[g].busy && !stale() && !cut_made(w.m)) {
		trace("DAMAGE disk %d sector %d", (int)(d - w.disk), s);
		fake_disk_damage(d, s, 1000000 + w.step);
		w.damaged |= (uint8_t)(1u << g);
		w.damage_done = true;
	}
	(void)bm_mirror_verify(w.m, verified, NULL);
}

/* The process ends in good order, and its map is of use to the next one. */
static void park(void)
{
	if (!w.attached || live())
		return;
	trace("PARK");
	bm_mirror_keep_map(w.m);
	bm_mirror_detach(w.m);
	w.parking = true;
}

static void parking_step(void)
{
	if (!w.attached) {
		uint8_t settled = w.settled[0];

		crash(false, false);
		w.settled[0] = settled;
		w.resumable = true;
		checkpoint_park();
		total.parks++;
	} else if (percent(50)) {
		disk_step();
	} else if (percent(50)) {
		record_step();
	} else {
		bm_loop_turn(w.loop, percent(10) ? 1000000000 : 0);
	}
}

static void host_step(void)
{
	int x = below(w.draining ? 8 : 20);

	if (w.verifies && !w.draining && percent(20))
		damage_and_verify();
	else if (x < 4)
		reopen();
	else if (x < 6)
		record_step();
	else if (w.draining)
		bm_mirror_pause(w.m, false);
	else if (x < 10)
		attach(false);
	else if (x < 14 && w.attached && may_switch())
		bm_mirror_switch(w.m);
	else if (x == 14)
		bm_mirror_pause(w.m, percent(30));
	else if (x == 15 && percent(20) && !w.calm)
		bm_mirror_detach(w.m);
	else if (x == 16)
		bm_mirror_switch_cancel(w.m);
	else if (x == 17 && fate() % 6 == 0)
		cut_ask();
	else if (x == 17 && fate() % 3 == 0)
		bm_mirror_settle(w.m, fate() % 2 ? fate() % 100000000 : 0);
	else if (x == 18 && w.fault_permille)
		park();
}

static void fault_step(void)
{
	switch (below(4)) {
	case 0:
		crash(false, percent(30) && !w.local);
		break;
	case 1:
		crash(true, w.local);
		break;
	case 2:
		if (!w.local)
			lose_target(false);
		break;
	case 3:
		if (!w.local)
			lose_target(true);
		break;
	}
}

static bool quiet(void)
{
	bool rests = w.alive && !live() && !w.disk[0].pending && !w.disk[1].pending &&
		     !w.record_pending && bm_loop_turn(w.loop, 0) == 0 &&
		     /* One that hangs is waited for by nobody once the other side was let go of. */
		     !(w.checkpoint.writing && w.m->claims.active) &&
		     (!w.attached || (mirror_in_sync(w.m) && !w.m->check.done));

	cut_step();
	return rests;
}

static void dead_step(void)
{
	if (percent(50))
		disk_step();
	else if (!w.local && w.faults && percent(3)) { /* the target's host, while we are dead */
		fake_disk_power_cut(&w.disk[1]);
		w.power |= w.record == 1;
		w.cut |= w.record == 1;
		total.power_cuts++;
		check_settled("after the target's power cut");
	} else if (percent(10))
		restart();
}

static void advance(uint64_t ns)
{
	uint64_t end = bm_loop_now(w.loop) + ns;

	while (bm_loop_now(w.loop) < end)
		bm_loop_turn(w.loop, end - bm_loop_now(w.loop));
}

static void live_step(void)
{
	int x = below(100);

	if (w.checkpoint.on)
		checkpoint_step();
	if (w.faults && below(1000) < w.fault_permille)
		fault_step();
	else if (w.parking)
		parking_step();
	else if (x < 25 && !w.draining && live() < w.depth)
		guest_op();
	else if (x < 62)
		disk_step();
	else if (x < 90)
		bm_loop_turn(w.loop, 0);
	else if (x < 92)
		advance(percent(50) ? 100000000 : chance() % 6000000000u);
	else
		host_step();
}

static void run_seed(uint64_t seed)
{
	int value[2][SECTORS];

	memset(&w, 0, sizeof(w));
	/* Hashed: states that differ by the generator's step would give one sequence, shifted. */
	seed_state = seed;
	seed_state = chance();
	fate_state = seed_state ^ seed;
	oracle_reset(&oracle);
	for (int s = 0; s < SECTORS; s++) {
		value[0][s] = s / 4 % 2 ? 0 : s + 1;
		value[1][s] = 0;
	}
	w.checkpoint.on = !without && fate() % 2;
	checkpoint_forget();
	w.local = percent(50);
	w.block1 = percent(50) ? SECTOR : 2 * SECTOR;
	w.fault_permille = percent(30) ? 0 : 10;
	w.error_percent = percent(50) ? 0 : percent(50) ? 2 : 8;
	w.sound = percent(30);
	w.verifies = percent(30);
	w.calm = w.verifies && percent(30);
	if (w.calm) /* nor is the target lost, after which nothing is known to be zero */
		w.fault_permille = w.error_percent = 0;
	w.depth = 1 + below(GUESTS);
	fake_disk_init(&w.disk[0], value[0], SECTOR, chance);
	fake_disk_init(&w.disk[1], value[1], w.block1, chance);
	w.disk[1].remote = !w.local;
	w.disk[1].prompt = !without;
	w.foreign = !w.local && percent(60);
	w.swaps = !w.calm && percent(30);
	if (w.foreign)
		w.disk[1].dev.geometry.flags &= ~BM_DEV_FENCED;
	oracle_rebase(&oracle, value[0], SECTORS, true);
	start();
	if (percent(80))
		attach(true);
	for (w.step = 0; !w.failure[0]; w.step++) {
		w.draining = w.step > STEPS;
		w.faults = !w.draining;
		if (w.alive)
			live_step();
		else
			dead_step();
		cut_step();
		check_clean("running");
		check_settled("running");
		check_proving();
		check_checkpoint("running");
		if (w.alive && w.m->hold && w.m->paused)
			violation("a write waits for a copy while copying is paused");
		if (w.alive && w.m->hold && cut_made(w.m))
			violation("a write waits for a copy after the cut");
		if (w.draining && quiet())
			break;
		if (w.step > STEPS + DRAIN_STEPS)
			violation("no end: %d requests, state %d, phase %d, dirty %d", live(),
				  w.alive ? (int)w.m->link : -1, w.alive ? (int)w.m->phase : -1,
				  w.alive ? (int)w.m->map.dirty.count : -1);
	}
	check_clean("at the end");
	if (w.alive) {
		check_authority(w.m->authority ^ w.base, false, "at the end");
		stop();
	}
}

/* A test that never came to the dangerous places proves nothing. */
static bool covered(void)
{
	printf("# guest operations %ld, reads checked %ld, mirrored writes %ld, switches %ld, "
	       "failed "
	       "%ld, records in doubt %ld\n# losses %ld, full %ld, detached %ld, abandoned legs "
	       "%ld, "
	       "holds %ld, crashes %ld, power cuts %ld, settled granules checked %ld\n"
	       "# comparisons %ld, differences found %ld, parked %ld, resumed %ld, granules "
	       "not copied again %ld\n"
	       "# targets back %ld, others in their place %ld, old requests overtaken %ld, found "
	       "%ld\n"
	       "# extents claimed %ld, withdrawn %ld, checkpoints void %ld, claims checked %ld, "
	       "granules not copied again after a power cut %ld\n"
	       "# copies %ld, cut with writes in flight %ld, not at the first time %ld, written to "
	       "since %ld\n",
	       total.guest_ops, total.reads, total.mirrored, total.switches, total.switch_failures,
	       total.aborted_records, total.losses, total.fulls, total.detaches, total.abandoned,
	       total.holds, total.crashes, total.power_cuts, total.settled, total.verified,
	       total.mismatches, total.parks, total.resumes, total.kept, total.backs,
	       total.strangers, total.overtaken, total.late_writes, total.claims, total.withdrawals,
	       total.voids, total.claimed, total.kept_by_checkpoint, total.copies,
	       total.copies_busy, total.copies_again, total.copies_late);
	return total.switches && total.switch_failures && total.losses && total.fulls &&
	       total.detaches && total.abandoned && total.holds && total.crashes &&
	       total.power_cuts && total.settled && total.mirrored && total.verified &&
	       total.mismatches && total.parks && total.resumes && total.kept && total.backs &&
	       total.strangers && total.overtaken && total.late_writes && total.copies &&
	       total.copies_busy && total.copies_again && total.copies_late &&
	       (without || (total.claims && total.withdrawals && total.voids && total.claimed &&
			    total.kept_by_checkpoint));
}

int main(int argc, char **argv)
{
	uint64_t first = 1, seeds = 10000, bad = 0;
	bool quick = false;
	int c;

	while ((c = getopt(argc, argv, "n:s:vqc")) != -1) {
		if (c == 'n')
			seeds = strtoull(optarg, NULL, 10);
		else if (c == 's')
			first = strtoull(optarg, NULL, 10);
		else if (c == 'c')
			without = true;
		else if (c == 'v')
			verbose = true;
		else if (c == 'q')
			quick = true; /* the first violation is enough */
		else
			return 2;
	}
	for (uint64_t seed = first; seed < first + seeds; seed++) {
		run_seed(seed);
		if (!w.failure[0])
			continue;
		printf("# seed %" PRIu64 " step %d: %s\n", seed, w.step, w.failure);
		if (w.alive)
			stop();
		bad++;
		if (quick || bad >= 20)
			break;
	}
	printf("%sok 1 - %" PRIu64 " seeds from %" PRIu64 " keep the invariants\n",
	       bad ? "not " : "", seeds, first);
	if (!quick && seeds >= 1000)
		printf("%sok 2 - every kind of event took place\n", covered() ? "" : "not ");
	printf("1..%d\n", !quick && seeds >= 1000 ? 2 : 1);
	return bad != 0;
}
