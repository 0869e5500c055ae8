/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A disk passes between two hosts, there and back, as often as their guests want it, and each keeps a
 * copy that the other one's mirror writes to: a model that spin explores whole. Both hosts do the same,
 * so there is one set of rules for both. tests/model/promela.sh runs it, and its broken variants.
 * yield.c and back.c pass a disk on, promote.c takes it, pass.c answers for a process that is gone. How a
 * pass is made safe against late writes, and what offers are for, is handover.pml's.
 *
 * What holds:
 *  - Never do two serve, nor do the records that a restart could find say so.
 *  - Who begins to serve has all that was acknowledged.
 *  - When nothing more can happen no guest waits.
 *
 * What the model is, and leaves out:
 *  - The disk is one number: which write was acknowledged last. There are WRITES of them, guests want the
 *    disk WANTS times, FAULTS things fail.
 *  - A record is a rename: seen at once, durable when the folder is synced, or by itself. It may report an
 *    error before, between and after.
 *  - Both images are equal, or not; who serves makes them so. Images are durable at once: that both are
 *    flushed before the decision is switch.pml's.
 *  - A question carries the generation of who asks. One that nobody waits for may be carried out late.
 */
#define WRITES 2
#define WANTS  3
#define MOST   3

byte broken;
#define RULE(name) (broken != name)
#define last_word_counts  1  /* yield.c answer_again() */
#define above_who_asks    2  /* ... begin_record(): at least by one */
#define it_takes_then     3  /* ... answer_again(): promote() */
#define equal_then_decide 4  /* ... both_flushed() */
#define fence_comes_first 5  /* ... fence() */
#define durable_then_yes  6  /* ... written() */
#define unknown_is_fenced 7  /* ... give_up() only when "ours" is durable */
#define role_is_believed  8  /* disk.c believe() */
#define found_is_durable  9  /* recover.c sync_records() */
#define daemon_compares   10 /* pass.c was_passed(): the generation of who asks */
#define daemon_syncs      11 /* ... read_alone() */
#define process_first     12 /* ... while it lives, what its record says may be unknown */
#define record_then_serve 13 /* promote.c written() */
#define above_decision    14 /* ... begin_record() */
#define asks_again        15 /* ... answered() */
#define writes_are_noted  16 /* back_take(): before the first write */

#define OTHER(h) (1 - h)

byte faults, wants;
#define FAULT (faults < MOST)

/* Records: the disk is here; by host. What a loss of power leaves is has/gen ..d. */
bit has[2], hasd[2];
byte gen[2], gend[2], last[2];
byte known[2];          /* generation of the last one that the process knows to be durable */
byte rst[2]; bit ra[2]; /* being written: 1 begun, 2 renamed, 3 durable; what it says */

bit up[2], serves[2];
bit linked, thinks;     /* who serves writes to both; and believes that both are equal */
byte img[2], ackd, w, infl[2];
bit held[2];            /* a guest's write, at who does not serve */
bit sheld[2];           /* ... at who is fenced */

byte y[2];
#define NONE    0
#define FENCES  1
#define DECIDES 2
#define DOUBTS  3
bit waits[2];           /* who asks whom that yields, for that answer */
byte p[2];
#define ASKS    1
#define RECORDS 2
bit q[2]; byte qg[2];   /* the question of that host, and its generation */
bit stale[2]; byte sg[2];
byte a[2], ag[2];       /* the answer to it */
#define YES   1
#define NO    2

inline begin_record(h, what) { last[h]++; rst[h] = 1; ra[h] = what }
inline renamed(h) { has[h] = ra[h]; gen[h] = last[h] }
inline synced(h) { hasd[h] = has[h]; gend[h] = gen[h] }

inline ask(h) { p[h] = ASKS; q[h] = 1; qg[h] = known[h] }

inline check(h)
{
	assert(has[h] && hasd[h]);
	assert(!(up[OTHER(h)] && serves[OTHER(h)]));
	assert(!has[OTHER(h)] && !hasd[OTHER(h)]);
	assert(img[h] == ackd)
}

inline opens(h)
{
	serves[h] = 1; y[h] = NONE; known[h] = gen[h]; check(h);
	if :: sheld[h] -> sheld[h] = 0 :: else fi
}

inline answer(h, what) { if :: waits[h] -> waits[h] = 0; a[OTHER(h)] = what; ag[OTHER(h)] = gen[h] :: else fi }

/* "Try again" is a question that waits. */
inline waits_again(h) { if :: waits[h] -> waits[h] = 0; q[OTHER(h)] = 1 :: else fi }

/* o, which has no process, or one that does not serve, is asked by its record. */
inline says(o, asked, waiting)
{
	if
	:: (up[o] -> known[o] : gen[o]) > asked || !RULE(last_word_counts) && up[o] ||
	   !RULE(daemon_compares) && !up[o] ->
		if :: waiting -> a[OTHER(o)] = YES; ag[OTHER(o)] = (up[o] -> known[o] : gen[o]) :: else fi
	:: else -> q[OTHER(o)] = q[OTHER(o)] || waiting; ask(o)
	fi
}

inline is_asked(o, asked, waiting)
{
	if
	:: up[o] && y[o] == NONE && !serves[o] -> says(o, asked, waiting)
	:: up[o] && y[o] != NONE && !RULE(process_first) && !has[o] -> says(o, asked, waiting)
	:: up[o] && y[o] == NONE && serves[o] ->
		y[o] = FENCES; waits[o] = waiting;
		if :: RULE(above_who_asks) && last[o] < asked -> last[o] = asked :: else fi;
		if :: RULE(fence_comes_first) -> serves[o] = 0 :: else fi
	:: !up[o] ->
		if :: RULE(daemon_syncs) -> synced(o) :: else fi;
		says(o, asked, waiting)
	fi
}
#define CAN_SAY(o, asked) ( \
	up[o] && y[o] == NONE && serves[o] && thinks || \
	up[o] && y[o] == NONE && !serves[o] && \
		(known[o] > asked || !RULE(last_word_counts) || p[o] == NONE && RULE(it_takes_then)) || \
	up[o] && y[o] != NONE && !RULE(process_first) && !has[o] && gen[o] > asked || \
	!up[o] && !has[o] && (gen[o] > asked || !RULE(daemon_compares)))

inline dies(h)
{
	if :: rst[h] == 1 -> renamed(h) :: true fi;
	rst[h] = 0; ra[h] = 0; last[h] = 0;
	if :: q[h] -> stale[h] = 1; sg[h] = qg[h] :: true fi;
	waits_again(h);
	up[h] = 0; serves[h] = 0; y[h] = NONE; p[h] = NONE; q[h] = 0; qg[h] = 0; a[h] = 0; ag[h] = 0;
	if :: infl[h] && linked -> img[OTHER(h)] = infl[h] :: true fi;
	if :: infl[h] -> img[h] = infl[h]; ackd = infl[h] :: true fi;
	infl[h] = 0; waits[OTHER(h)] = 0; sheld[h] = 0; thinks = 0; linked = 0
}

proctype host(bit h)
{
	do
	/* Its guest: writes where it serves, wants the disk where it does not. */
	:: atomic { up[h] && serves[h] && w < WRITES && !infl[h] -> w++; check(h); infl[h] = w }
	:: atomic { infl[h] ->
		img[h] = infl[h]; ackd = infl[h];
		if :: linked -> img[OTHER(h)] = infl[h] :: else fi;
		infl[h] = 0 }
	:: atomic { up[h] && y[h] == FENCES && !serves[h] && !sheld[h] && FAULT -> faults++; sheld[h] = 1 }
	:: atomic { up[h] && !serves[h] && y[h] == NONE && !held[h] && wants < WANTS && !has[h] ->
		wants++; held[h] = 1;
		if :: p[h] == NONE -> ask(h) :: else fi }

	/* The mirror. */
	:: atomic { up[h] && serves[h] && !thinks && up[OTHER(h)] && !has[OTHER(h)] ->
		img[OTHER(h)] = img[h]; linked = 1; thinks = 1 }
	:: atomic { up[h] && (serves[h] || y[h]) && thinks && FAULT -> faults++; thinks = 0; linked = 0 }

	/* It is asked. */
	:: atomic { q[OTHER(h)] && CAN_SAY(h, qg[OTHER(h)]) -> q[OTHER(h)] = 0; is_asked(h, qg[OTHER(h)], 1) }
	:: atomic { stale[OTHER(h)] && CAN_SAY(h, sg[OTHER(h)]) -> stale[OTHER(h)] = 0; is_asked(h, sg[OTHER(h)], 0) }

	/* It yields. */
	:: atomic { up[h] && y[h] == FENCES && !infl[h] ->
		if
		:: sheld[h] -> answer(h, NO); opens(h)
		:: !sheld[h] && !thinks && RULE(equal_then_decide) -> waits_again(h); opens(h)
		:: else -> y[h] = DECIDES; begin_record(h, 0)
		fi }
	:: atomic { rst[h] == 1 -> rst[h] = 2; renamed(h) }
	:: atomic { rst[h] == 2 -> rst[h] = 3; synced(h) }
	:: atomic { rst[h] != 2 && gen[h] != gend[h] -> synced(h) }
	:: atomic { y[h] == DECIDES && (rst[h] == 3 || rst[h] == 2 && !RULE(durable_then_yes)) ->
		rst[h] = 0; y[h] = NONE; serves[h] = 0; thinks = 0; known[h] = gen[h]; answer(h, YES);
		if :: sheld[h] -> sheld[h] = 0; held[h] = 1; if :: p[h] == NONE -> ask(h) :: else fi :: else fi }
	:: atomic { y[h] == DECIDES && FAULT ->
		faults++; rst[h] = 0; waits_again(h);
		if :: RULE(unknown_is_fenced) -> y[h] = DOUBTS; begin_record(h, 1) :: else -> opens(h) fi }
	:: atomic { y[h] == DOUBTS && rst[h] == 3 -> rst[h] = 0; opens(h) }

	/* It asks until there is an answer. */
	:: atomic { p[h] == ASKS && (q[h] || waits[OTHER(h)] || a[h]) && FAULT ->
		faults++;
		if :: q[h] -> stale[h] = 1; sg[h] = qg[h] :: true fi;
		q[h] = 0; waits[OTHER(h)] = 0; a[h] = 0;
		if :: RULE(asks_again) -> q[h] = 1; qg[h] = known[h] :: else -> p[h] = NONE fi }
	:: atomic { p[h] == ASKS && a[h] == NO -> a[h] = 0; p[h] = NONE; held[h] = 0 }
	:: atomic { p[h] == ASKS && a[h] == YES ->
		a[h] = 0; p[h] = RECORDS;
		if :: RULE(above_decision) && last[h] < ag[h] -> last[h] = ag[h] :: else fi;
		begin_record(h, 1) }
	:: stale[h] -> stale[h] = 0
	:: atomic { p[h] == RECORDS && (rst[h] == 3 || rst[h] && !RULE(record_then_serve)) ->
		rst[h] = 0; p[h] = NONE; ag[h] = 0; held[h] = 0;
		thinks = !RULE(writes_are_noted);
		assert(last[h] > gen[OTHER(h)]);
		opens(h) }
	:: atomic { p[h] == RECORDS && rst[h] && FAULT -> faults++; begin_record(h, 1) }

	/* Its process dies, or its host; another one begins. */
	:: atomic { up[h] && FAULT -> faults++; dies(h) }
	:: atomic { FAULT ->
		faults++;
		if :: up[h] -> dies(h) :: else fi;
		if :: has[h] = hasd[h]; gen[h] = gend[h] :: synced(h) fi;
		held[h] = 0 }
	:: atomic { !up[h] ->
		if :: RULE(found_is_durable) -> synced(h) :: else fi;
		up[h] = 1; last[h] = gen[h]; known[h] = gen[h];
		if
		:: has[h] || !RULE(role_is_believed) -> opens(h); held[h] = 0
		:: else -> if :: held[h] -> ask(h) :: else fi
		fi }
	:: atomic { timeout -> assert(!held[0] && !held[1] && !y[0] && !y[1]) -> break }
	od
}

init {
	c_code { now.broken = getenv("BROKEN") ? atoi(getenv("BROKEN")) : 0; };
	d_step {
		has[0] = 1; hasd[0] = 1; gen[0] = 2; gend[0] = 2; last[0] = 2; known[0] = 2; up[0] = 1; serves[0] = 1;
		gen[1] = 4; gend[1] = 4; last[1] = 4; known[1] = 4; up[1] = 1; linked = 1; thinks = 1
	}
	run host(0); run host(1)
}
