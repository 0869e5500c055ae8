/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Storage that both hosts reach passes from S to T: what handover.pml, where S's mirror writes to T's
 * image, does not have. There T shuts a port; here S must have let go of the storage before T opens
 * it. shared.c, yield.c release(), promote.c open_shared(), witness.c. Offers, generations and two
 * machines that write are handover.pml's, and left out.
 *
 * What holds, whoever dies when:
 *  - Never do two have it open for writing; nor does a session of S's, or a write that one has left
 *    behind, come to the storage while T has it.
 *  - When T opens it for writing, all that S has acknowledged is there, and it is the same storage.
 *  - S serves only what it has open; what it may have to serve still it has not let go of.
 *  - When nothing more can happen somebody serves, unless S is dead for good.
 *
 * S's guest writes MAX times, one after the other, T's as often as it likes. MOST things fail. A
 * record is renamed, then durable; an error may come before, between and after. What S's session has
 * left at the server when it was lost may land until the next session of S's has fenced it. Storage
 * has locks (a file), or sessions (locks); T reaches it, or never does (reach); it is the same, or another (same).
 */
#define MAX  2
#define MOST 3

/* The rules of the code; pan is without the one whose number is in its environment as BROKEN. */
byte broken;
#define RULE(name) (broken != name)
#define in_flight_ends     1  /* yield.c: before the flush, and so before the decision */
#define decide_then_let_go 2  /* ... release() comes after the decision */
#define let_go_then_yes    3  /* ... and before the answer */
#define not_meanwhile      4  /* yield_begin(): who asks again while it lets go is told to wait */
#define lost_is_left       5  /* storage_set_roles(): a retired disk opens no session again */
#define attempts_end       6  /* yield.c released(): one that is being opened is waited for */
#define process_comes_first 7 /* pass.c: the record speaks only for a process that is gone */
#define daemon_syncs       8  /* ... and once it is durable */
#define role_is_believed   9  /* disk.c: who has passed it on does not serve */
#define unknown_is_fenced  10 /* yield.c: a record in doubt: "ours" is written before S serves */
#define reach_first        11 /* promote.c ask(): T could open it */
#define it_is_the_same     12 /* witness.c: before T is armed */
#define lock_is_waited_for 13 /* shared_open(): a person may be wrong about S's death */
#define dead_is_fenced     14 /* ... and right, and S have left a write behind */
#define asks_again         15 /* promote.c: T's next process has no answer to go by */
#define open_is_tried      16 /* ... again(), decided */

byte faults;
#define FAULT (faults < MOST)

bool locks, reach, same;
/* S: its record, as it is read, and as a loss of power leaves it. */
bool has = 1, hasd = 1;
byte rst; bool ours;       /* being written: 1 begun, 2 renamed, 3 durable; what it says */
bool sup = 1, sdead;
byte sgate;
#define ACTIVE  0
#define FENCED  1
#define RETIRED 2
bool sopen = 1, lost;      /* it has the storage open; by a session that is lost */
bool try;                  /* and is being opened */
byte y;
#define NONE     0
#define FENCES   1
#define FLUSHES  2
#define DECIDES  3
#define DOUBTS   4
#define RELEASES 5
#define RELEASED 6
/* Its guest's writes: issued, in flight, acknowledged; left at the server; what the storage holds. */
byte w, infl, ackd, late, cur;
#define THEIRS 9

/* T */
bool tup = 1, trec, topen, tactive;
byte p;
#define ASKS    1
#define OPENS   2
#define RECORDS 3
bool alone, q, yc;         /* a person says that S is dead; a question: on its way, taken up */
byte a;
#define YES 1
#define NO  2

inline lands(what) { assert(!topen); cur = what }
inline begin_record(what) { rst = 1; ours = what }
inline s_serves() { sgate = ACTIVE; y = NONE; assert(sopen && has && hasd && !topen) }
inline s_refuses() { if :: yc -> yc = false; a = NO :: else fi }
inline yes() { assert(!has && !hasd); a = YES }
inline s_lets_go() { sopen = false; lost = false }
inline s_says() { y = NONE; if :: yc -> yc = false; yes() :: else fi }
inline s_dies()
{
	if
	:: infl && sopen && !lost && !locks -> if :: late = infl :: cur = infl :: true fi
	:: infl && locks -> if :: cur = infl :: true fi /* the lock is held until then */
	:: else
	fi;
	infl = 0; sup = false; try = false; s_lets_go(); sgate = ACTIVE; y = NONE;
	if :: rst == 1 -> if :: has = ours :: true fi :: else fi;
	rst = 0; q = q || yc; yc = false
}
inline t_dies()
{
	tup = false; topen = false; tactive = false; p = NONE; q = false; yc = false; a = 0; alone = false
}
inline t_opens()
{
	assert(same && !(sup && sopen) && !infl);
	if :: alone && RULE(dead_is_fenced) -> late = 0 :: else fi;
	assert(cur >= ackd && !late);
	topen = true
}
#define T_CAN_OPEN (reach && (!locks || !(sup && sopen) || !RULE(lock_is_waited_for)))

init {
	c_code { now.broken = getenv("BROKEN") ? atoi(getenv("BROKEN")) : 0; };
	if :: locks = true :: true fi;
	if :: reach = true :: true fi;
	if :: same = true :: true fi;
	do
	/* S's guest writes; its session is lost, and opened again. */
	:: atomic { sup && sgate == ACTIVE && y == NONE && !infl && w < MAX && !topen -> w++; infl = w }
	:: atomic { sup && infl && sopen && !lost -> lands(infl); ackd = infl; infl = 0 }
	:: atomic { sup && sopen && !lost && !locks && FAULT ->
		faults++; lost = true;
		if :: infl -> if :: late = infl :: true fi :: else fi }
	:: atomic { sup && lost && !try && (sgate != RETIRED || !RULE(lost_is_left)) -> try = true }
	:: atomic { try ->
		try = false; assert(!topen);
		if :: lost -> lost = false; late = 0 :: else fi }
	:: atomic { late -> lands(late); late = 0 }

	/* It yields. */
	:: atomic { q && sup && sgate == ACTIVE && y == NONE && !lost ->
		q = false; yc = true; y = FENCES; sgate = FENCED }
	:: atomic { y == FENCES && (!infl || !RULE(in_flight_ends)) -> y = FLUSHES }
	:: atomic { y == FLUSHES && !lost ->
		if :: RULE(decide_then_let_go) :: else -> s_lets_go() fi;
		y = DECIDES; begin_record(false) }
	:: atomic { (y == FENCES || y == FLUSHES) && FAULT -> faults++; s_refuses(); s_serves() }
	:: atomic { rst == 1 -> rst = 2; has = ours }
	:: atomic { rst == 2 -> rst = 3; hasd = has }
	:: atomic { y == DECIDES && rst == 3 ->
		rst = 0; sgate = RETIRED; y = RELEASES;
		if :: RULE(let_go_then_yes) :: else -> s_says(); y = RELEASES fi }
	:: atomic { y == RELEASES -> if :: RULE(lost_is_left) -> s_lets_go() :: else -> sopen = false fi; y = RELEASED }
	:: atomic { y == RELEASED && (!try || !RULE(attempts_end)) -> s_says() }
	:: atomic { y == DECIDES && FAULT ->
		faults++; rst = 0; s_refuses();
		if
		:: RULE(unknown_is_fenced) -> y = DOUBTS; begin_record(true)
		:: else -> s_serves()
		fi }
	:: atomic { y == DOUBTS && rst == 3 -> rst = 0; s_serves() }
	:: atomic { y == DOUBTS && FAULT -> faults++; begin_record(true) }
	/* It is asked again; or its daemon is. */
	:: atomic { q && sup && sgate == RETIRED && (y == NONE || !RULE(not_meanwhile)) ->
		q = false; yes() }
	:: atomic { q && !sdead && !has && (!sup || !RULE(process_comes_first)) ->
		q = false;
		if :: RULE(daemon_syncs) -> hasd = has :: else fi;
		yes() }

	/* T asks, by itself or because a person says so; opens, and serves. */
	:: atomic { tup && p == NONE && !tactive && (same || !RULE(it_is_the_same)) &&
		    (reach || !RULE(reach_first)) -> p = ASKS; q = true }
	:: atomic { p == ASKS && a == NO -> a = 0; p = NONE }
	:: atomic { p == ASKS && a == YES -> a = 0; p = OPENS }
	:: atomic { p == ASKS && a && FAULT -> /* the answer is lost */
		faults++; a = 0; if :: RULE(asks_again) -> q = true :: else -> p = RECORDS fi }
	:: atomic { p == ASKS && q && (sdead || locks) && same && reach && !alone && FAULT ->
		faults++; alone = true; q = false; p = OPENS }
	:: atomic { p == OPENS && T_CAN_OPEN -> t_opens(); p = RECORDS }
	:: atomic { p == OPENS && FAULT ->
		faults++; if :: RULE(open_is_tried) :: else -> p = RECORDS fi }
	:: atomic { p == RECORDS -> p = NONE; assert(topen); trec = true; tactive = true }
	:: atomic { tactive && cur != THEIRS -> cur = THEIRS }

	/* Processes die, and S's host for good; it loses power. Others begin. */
	:: atomic { sup && (FAULT || sgate == RETIRED && y == NONE) ->
		if :: FAULT -> faults++ :: else fi;
		s_dies() }
	:: atomic { !sdead && FAULT ->
		faults++;
		if :: sup -> s_dies() :: else fi;
		if :: has = hasd :: hasd = has fi;
		if :: sdead = true :: true fi }
	:: atomic { !sup && !sdead && (has || !RULE(role_is_believed)) && !(locks && topen) ->
		sup = true; sopen = true; late = 0; hasd = has; s_serves() }
	:: atomic { tup && FAULT -> faults++; t_dies() }
	:: atomic { !tup && !trec -> tup = true }
	:: atomic { !tup && trec && T_CAN_OPEN -> tup = true; t_opens(); tactive = true }
	:: timeout ->
		assert(sdead || tactive || sup && sgate == ACTIVE && !infl);
		break
	od
}
