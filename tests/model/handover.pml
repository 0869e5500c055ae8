/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A disk passes from host S, which has it, to host T, which has its storage, as a model that spin
 * explores whole: every order of events, with what may fail between any two of them.
 * tests/model/promela.sh runs it, and its broken variants. yield.c, gate.c, offer.c are S's side,
 * promote.c and standby.c T's; questions and answers go through both daemons, pass.c.
 *
 * What holds, whatever the guests of both hosts do, also when they run at the same time:
 *  - Never do two serve writes; and who does is what every record says that a restart could find.
 *  - What S has acknowledged is in T's image when T becomes active. Where T lost its power, and S's
 *    process, who could write it again, died: what an acknowledged flush covers.
 *  - Once S has said yes, whoever came to hear it, it never serves again. It says the same to T
 *    when that asks again, and to nobody else.
 *  - No late write of S lands in T's image once T is active.
 *  - T's record is of a higher generation than any of S's.
 *  - An offer that was withdrawn, and said to be, passes no disk any more; nor does one after S has
 *    said that both machines run.
 *  - When nothing more can happen no write is held, on neither host, and S is not fenced.
 *
 * What the model is, and leaves out:
 *  - The disk is one granule, and what it holds a number: which write of S's guest came last. That
 *    guest writes MAX times, one after the other; T's as often as it likes until T is active, and
 *    of no interest from then on. MOST things fail.
 *  - S's storage is T's image, over one session. The move there, and the undo window that ends
 *    before the fence, are switch.pml's; that the move is undone is one step.
 *  - S's device keeps what it wrote and did not flush, and writes it again after a loss, before
 *    anything else (dev/reopen.h): one step, too.
 *  - A record is a rename: seen at once, durable when the folder is synced, or by itself. It may
 *    report an error before, between and after. What is prepared beside it decides nothing.
 *  - Who cannot say anything now (it is busy, down, out of reach) has a question that waits: asked
 *    again is the same as not answered yet. One that nobody waits for may be carried out late.
 *  - One offer: another one is as the first. Each host's clock ends it when it likes.
 *  - A person who says that S is dead (recover --peer-is-dead) is right.
 *  - A machine leaves S while S's session to T's image stands: who stops it flushes.
 *  - Reads: what is acknowledged is what a read would return. Those of T before it is active find
 *    what is there by then.
 *  - A record that is found is made durable before it is acted on (found_is_durable). Where that
 *    fails and no job runs, the code goes on all the same: who asks is told the same again.
 */
#define S 0
#define T 1
#define MAX  2
#define MOST 3

/* The rules of the code; pan is without the one whose number is in its environment as BROKEN. */
byte broken;
#define RULE(name) (broken != name)
#define fence_comes_first    1  /* yield.c fence() */
#define in_flight_ends       2  /* ... bm_order_when_idle() */
#define flush_then_decide    3  /* ... flushed() */
#define a_write_keeps_it     4  /* ... a guest that writes while fenced runs: E_SPLIT */
#define split_ends_the_offer 5  /* ... and who then asks once more does not get the disk */
#define only_if_offered      6  /* ... may_yield() */
#define storage_is_there     7  /* ... T's image is the disk's */
#define withdrawn_is_so      8  /* ... not while a question is being decided */
#define durable_then_yes     9  /* ... written() */
#define unknown_is_fenced    10 /* ... after an error "ours" is written, then a guest served */
#define until_it_is_durable  11 /* ... as often as that takes */
#define says_it_again        12 /* ... yield_begin(): the peer of a retired disk asks */
#define to_the_peer_alone    13 /* ... somebody else does */
#define role_is_believed     14 /* disk.c believe() */
#define found_is_durable     15 /* a process makes the record that it finds durable; S's and T's */
#define daemon_reads_role    16 /* pass.c was_passed() */
#define process_comes_first  17 /* ... while it lives, what its record says may be unknown */
#define daemon_syncs         18 /* ... and what a dead one left may not be durable */
#define session_is_fenced    19 /* the next session ends the requests of the one before */
#define data_port_stops      20 /* promote.c data_stopped() */
#define record_then_serve    21 /* ... written() */
#define no_is_no             22 /* ... answered() */
#define silence_is_no_yes    23 /* ... answered() */
#define generation_above     24 /* ... begin_record() */
#define asks_again           25 /* ... again() */
#define tries_the_record     26 /* ... again(), decided */
#define standby_flushes      27 /* gate.c: a machine that came from S flushes what it wrote there */
#define undo_tells_t         28 /* its image is not the disk any more, whoever is dead */

byte faults;
#define FAULT (faults < MOST)

/* Records: what one says that is read, and that a loss of power leaves; by host. */
bit has[2], hasd[2];       /* the disk is here */
byte gen[2], gend[2];      /* generation */
byte last[2];              /* the highest one that was begun, as the process knows */
byte rst[2]; bit ra[2];    /* being written: 1 begun, 2 renamed, 3 durable; what it says */

/* T's image, and S's guest's writes to it. */
byte cur, dur;             /* what it holds; what of it outlives a loss of power */
byte w, ackd, fl;          /* versions: issued, acknowledged, covered by an acknowledged flush */
byte infl;                 /* in flight */
byte late;                 /* the same, of a session that is over on S, and not on T */
byte kept;                 /* S's process writes that again when it was lost */
bool stopped;              /* S's guest is, and goes on on T: one machine */
bool home;                 /* the move there was undone: S has other storage */

/* S */
bool sup = 1, sdead;       /* its process lives; its host is gone for good */
byte sgate;
#define ACTIVE  0
#define FENCED  1
#define RETIRED 2
bool sheld;                /* a guest's write */
bool link = 1;             /* the session to T's image */
byte y;                    /* the yield: */
#define NONE    0
#define FENCES  1
#define FLUSHES 2
#define DECIDES 3
#define DOUBTS  4
bool offered = 1;
bool over;                 /* it was withdrawn, or S has said that both machines run */
bool said_yes;

/* T */
bool tup = 1, tactive, armed = 1;
bool vouched = 1;          /* S has made an offer: what it has acknowledged is here */
bool port = 1;             /* S is let in */
byte p;                    /* the promotion: */
#define ASKS    1
#define STOPS   2
#define RECORDS 3
bool hand, took;           /* a person wants it, not the guest; did once */
bool held;                 /* T's guest's write */

/* Between them. */
bool q, yc;                /* T's question: on its way, taken up by S's process */
bool stale;                /* one that nobody waits for */
byte a, ag;                /* the answer, and the generation in it */
#define YES 1
#define NO  2

inline begin_record(h, what) { assert(!rst[h]); last[h]++; rst[h] = 1; ra[h] = what }
inline renamed(h) { has[h] = ra[h]; gen[h] = last[h] }
inline synced(h) { hasd[h] = has[h]; gend[h] = gen[h] }
inline record_dies(h)
{
	if :: rst[h] == 1 -> renamed(h) :: true fi;
	rst[h] = 0; ra[h] = 0; last[h] = 0
}
inline power_takes_record(h) { if :: has[h] = hasd[h]; gen[h] = gend[h] :: synced(h) fi }

/* What T's power took, and nobody can write again, is void, but for what was flushed. */
inline nobody_keeps()
{
	kept = 0;
	if :: cur < ackd && !home -> assert(cur >= fl); ackd = cur :: else fi
}

inline s_serves()
{
	assert(has[S] && hasd[S] && !said_yes && !(tup && tactive))
}

inline s_opens()
{
	sgate = ACTIVE; y = NONE; s_serves();
	if :: sheld -> sheld = false; infl = w :: else fi
}

inline s_refuses() { if :: yc -> yc = false; a = NO :: else fi }
inline s_asks_to_wait() { q = q || yc; yc = false }

inline yes(waiting)
{
	said_yes = true; assert(!over);
	if :: waiting -> a = YES; ag = gen[S] :: else fi
}
inline no(waiting)
{
	assert(has[S] || hasd[S]); /* never when it is T's */
	if :: waiting -> a = NO :: else fi
}

inline s_decides() { y = DECIDES; assert(!over); begin_record(S, false) }

inline s_flushed()
{
	if
	:: sheld && RULE(a_write_keeps_it) ->
		over = true;
		if :: RULE(split_ends_the_offer) -> offered = false :: else fi;
		s_refuses(); s_opens()
	:: else -> assert(!sheld); s_decides()
	fi
}

inline s_retired()
{
	sgate = RETIRED; y = NONE; rst[S] = 0; offered = false; kept = 0;
	sheld = false; /* it gets an error */
	yes(yc); yc = false
}

inline s_process_dies()
{
	if
	:: infl && tup && port && link -> if :: late = infl :: cur = infl :: true fi
	:: else
	fi;
	infl = 0; sheld = false; link = false; sup = false; sgate = 0; y = NONE;
	record_dies(S); s_asks_to_wait(); nobody_keeps()
}

/* S's daemon has a question; its process, or the record, has the answer, or begins to yield. */
inline s_is_asked(waiting)
{
	if
	:: sup && sgate == RETIRED ->
		if :: RULE(says_it_again) -> yes(waiting) :: else -> no(waiting) fi
	:: sup && sgate != RETIRED && !RULE(process_comes_first) && !has[S] -> yes(waiting)
	:: sup && sgate != RETIRED && (RULE(process_comes_first) || has[S]) ->
		if
		:: !offered && RULE(only_if_offered) || home && RULE(storage_is_there) ->
			no(waiting)
		:: else ->
			assert(offered);
			yc = waiting; y = FENCES;
			if :: RULE(fence_comes_first) -> sgate = FENCED :: else fi
		fi
	:: !sup ->
		if :: RULE(daemon_syncs) -> synced(S) :: else fi;
		yes(waiting)
	fi
}
#define SAYS_BY_RECORD (!sdead && (!has[S] || !RULE(daemon_reads_role)))
#define S_CAN_SAY ( \
	sup && (sgate == RETIRED || y == NONE && (link || home || !offered) || \
		!RULE(process_comes_first) && !has[S]) || \
	!sup && SAYS_BY_RECORD)

/* The guest's write gets an error, too. */
inline t_refused() { held = false; p = NONE; hand = false; q = false }

inline t_unanswered()
{
	if
	:: !RULE(silence_is_no_yes) -> a = YES; ag = 0
	:: else ->
		if
		:: armed && !hand -> q = RULE(asks_again)
		:: else -> t_refused()
		fi
	fi
}

inline t_begins_record()
{
	p = RECORDS;
	if :: last[T] < ag && RULE(generation_above) -> last[T] = ag :: else fi;
	begin_record(T, true)
}

inline t_writes() { assert(has[T] && hasd[T] && !(sup && sgate == ACTIVE)) }

inline t_serves()
{
	tactive = true; armed = false; vouched = false; p = NONE; hand = false; ag = 0;
	assert(sdead || !has[S] && !hasd[S]);
	assert(cur >= ackd && cur >= fl);
	assert(sdead || last[T] > gen[S] && last[T] > gend[S]);
	t_writes(); held = false
}

inline t_process_dies()
{
	if :: q -> stale = true :: true fi;
	q = false; yc = false; a = 0; ag = 0; p = NONE; hand = false;
	if :: infl && port && link -> cur = infl :: true fi;
	late = 0; link = false; port = false; tup = false; tactive = false;
	record_dies(T)
}

init {
	c_code { now.broken = getenv("BROKEN") ? atoi(getenv("BROKEN")) : 0; };
	d_step {
		has[S] = 1; hasd[S] = 1; gen[S] = 2; gend[S] = 2; last[S] = 2;
		gen[T] = 1; gend[T] = 1; last[T] = 1
	}
	do
	/* What fails comes first: then what is left out is noticed sooner. */
	/* The session is lost, and opened again. */
	:: atomic { sup && link && FAULT ->
		faults++; link = false;
		if :: infl && tup && port -> if :: late = infl :: cur = infl :: true fi :: else fi }
	:: atomic { sup && sgate != RETIRED && !link && !home && tup && port ->
		link = true;
		if :: RULE(session_is_fenced) -> late = 0 :: else fi;
		if :: cur < kept -> cur = kept :: else fi }

	/* S's guest writes. */
	:: atomic { sup && !infl && !sheld && !stopped && w < MAX && sgate != RETIRED ->
		w++;
		if :: sgate == ACTIVE -> infl = w :: else -> sheld = true fi }
	:: atomic { sup && infl && (home || link && tup && port) ->
		if :: home :: else -> cur = infl; kept = infl fi;
		ackd = infl; infl = 0; s_serves() }
	:: atomic { late && tup && port -> assert(!tactive); cur = late; late = 0 }
	/* It flushes: that passes a fence. */
	:: atomic { sup && sgate != RETIRED && link && tup && port && !home &&
		    (fl < ackd || dur < ackd) ->
		dur = cur; fl = ackd; kept = 0 }
	/* It is stopped, when nothing of it is under way. */
	:: atomic { sup && link && sgate == ACTIVE && !infl && !stopped && !home -> stopped = true }

	/* S is asked. */
	:: atomic { q && S_CAN_SAY -> q = false; s_is_asked(true) }
	:: atomic { stale && S_CAN_SAY -> stale = false; s_is_asked(false) }
	:: !RULE(to_the_peer_alone) && (sup && sgate == RETIRED || !sup && !sdead && !has[S]) ->
		assert(false) /* T's image is the only one */

	/* It yields. */
	:: atomic { y == FENCES && (!infl || !RULE(in_flight_ends)) ->
		if :: RULE(flush_then_decide) -> y = FLUSHES :: else -> s_flushed() fi }
	:: atomic { y == FENCES && FAULT -> faults++; s_asks_to_wait(); s_opens() }
	:: atomic { y == FLUSHES && (home || link && tup && port) ->
		dur = cur; kept = 0; s_flushed() }
	:: atomic { y == FLUSHES && FAULT -> faults++; s_asks_to_wait(); s_opens() }
	:: atomic { rst[S] == 1 -> rst[S] = 2; renamed(S) }
	:: atomic { rst[S] == 2 -> rst[S] = 3; synced(S) }
	:: atomic { rst[S] != 2 && gen[S] != gend[S] -> synced(S) }
	:: atomic { y == DECIDES && (rst[S] == 3 || rst[S] == 2 && !RULE(durable_then_yes)) ->
		s_retired() }
	:: atomic { y == DECIDES && FAULT ->
		faults++; rst[S] = 0; s_asks_to_wait();
		if
		:: RULE(unknown_is_fenced) -> y = DOUBTS; begin_record(S, true)
		:: else -> s_opens()
		fi }
	:: atomic { y == DOUBTS && rst[S] == 3 -> rst[S] = 0; s_opens() }
	:: atomic { y == DOUBTS && FAULT ->
		faults++; rst[S] = 0;
		if :: RULE(until_it_is_durable) -> begin_record(S, true) :: else -> s_opens() fi }

	/* The offer, and what T knows of it, expire; it is withdrawn, which T may not hear of. */
	:: offered -> offered = false
	:: armed -> armed = false
	:: atomic { sup && offered && sgate != RETIRED && (y == NONE || !RULE(withdrawn_is_so)) ->
		offered = false; over = true;
		if :: tup && p == NONE -> armed = false; vouched = false :: true fi }
	/* The move to T is undone. */
	:: atomic { sup && sgate == ACTIVE && y == NONE && !infl && link && tup && port &&
		    !stopped && !home ->
		home = true; kept = 0; link = false;
		if :: RULE(undo_tells_t) -> armed = false; vouched = false :: else fi }

	/* T's guest writes. */
	:: atomic { tup && !tactive && armed && !held ->
		held = true;
		if :: p == NONE -> p = ASKS; q = true :: else fi }
	/* It flushes before that: a machine that came from S does not know that it did. */
	:: atomic { tup && !tactive && stopped && fl < ackd ->
		fl = ackd;
		if :: RULE(standby_flushes) -> dur = cur :: else fi }

	/* T asks, or is told to, until there is an answer. */
	:: atomic { tup && !tactive && p == NONE && !took ->
		took = true; hand = true; p = ASKS; q = true }
	:: atomic { p == ASKS && q && !S_CAN_SAY && (hand || !armed) -> stale = true; t_refused() }
	:: atomic { p == ASKS && (q || yc || a) && FAULT ->
		faults++;
		if :: q -> stale = true :: true fi;
		q = false; yc = false; a = 0; ag = 0;
		t_unanswered() }
	:: stale -> stale = false
	:: atomic { a == NO ->
		a = 0;
		if :: RULE(no_is_no) -> t_refused() :: else -> p = STOPS fi }
	:: atomic { a == YES -> a = 0; p = STOPS }
	:: atomic { p == STOPS ->
		if :: RULE(data_port_stops) -> late = 0; port = false; link = false :: else fi;
		t_begins_record() }
	:: atomic { rst[T] == 1 -> rst[T] = 2; renamed(T) }
	:: atomic { rst[T] == 2 -> rst[T] = 3; synced(T) }
	:: atomic { rst[T] != 2 && gen[T] != gend[T] -> synced(T) }
	:: atomic { p == RECORDS && (rst[T] == 3 || rst[T] && !RULE(record_then_serve)) ->
		rst[T] = 0; t_serves() }
	:: atomic { p == RECORDS && rst[T] && FAULT ->
		faults++; rst[T] = 0;
		if :: RULE(tries_the_record) -> t_begins_record() :: else fi }

	/* Processes die. */
	:: atomic { sup && FAULT -> faults++; s_process_dies() }
	:: atomic { sup && sgate == RETIRED -> s_process_dies() } /* it ends with its last client */
	:: atomic { tup && FAULT -> faults++; t_process_dies() }
	/* Hosts lose power, and what was in their caches, or not. S's does for good, too. */
	:: atomic { !sdead && FAULT ->
		faults++;
		if :: sup -> s_process_dies() :: else fi;
		power_takes_record(S); stale = false;
		if :: sdead = true :: true fi }
	:: atomic { FAULT && (tup || cur != dur || gen[T] != gend[T]) ->
		faults++;
		if :: tup -> t_process_dies() :: else fi;
		power_takes_record(T); held = false;
		if :: cur = dur :: dur = cur fi;
		if
		:: cur >= ackd || home
		:: cur < ackd && !home && stopped -> /* the machine, on T by now, ends, too */
			assert(cur >= fl || kept >= fl); ackd = (cur < fl -> fl : cur)
		:: cur < ackd && !home && !stopped && !kept -> nobody_keeps()
		:: else
		fi }
	/* Others begin: the record says what they are. */
	:: atomic { !sup && !sdead && (home || tup && port) &&
		    (has[S] || !RULE(role_is_believed)) ->
		if :: RULE(found_is_durable) -> synced(S) :: else fi;
		sup = true; last[S] = gen[S]; link = !home;
		if :: RULE(session_is_fenced) -> late = 0 :: else fi;
		s_opens() }
	:: atomic { !tup ->
		if :: RULE(found_is_durable) -> synced(T) :: else fi;
		tup = true; last[T] = gen[T];
		if
		:: has[T] -> t_serves()
		:: else ->
			port = true;
			if
			:: held && armed -> p = ASKS; q = true
			:: held && !armed -> held = false
			:: else
			fi
		fi }
	/* A person says that S is dead. */
	:: atomic { sdead && vouched && tup && !tactive && (p == NONE || p == ASKS) ->
		hand = true; q = false; yc = false; a = 0; p = STOPS }

	:: timeout ->
		assert(!held && p == NONE);
		assert(!infl && !sheld && y == NONE && !(sup && sgate == FENCED));
		break
	od
}
