/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The switchover as a model that spin explores whole: every order of events, with the death of the
 * process and the loss of either host's power between any two of them. map.pml is the other half:
 * what is copied after a crash. tests/model/promela.sh runs both, and their broken variants.
 *
 * What holds, in runs of any length, switches back (undo) and crashes among them:
 *  - Who starts after a crash finds an image that has every acknowledged write, or, after a loss of
 *    power, every acknowledged flush.
 *  - Who answers the guest, outside D, is what every record says that a restart could find: there
 *    are never two authorities.
 *  - No two records are under way at a time.
 *
 * What the model is, and leaves out:
 *  - The disk is one granule, and what it holds a number: which write came last. Granules meet only
 *    in flushes and records. The order device lets one write to it run at a time, and no read beside
 *    one, so reads need not be here: what is acknowledged is what a read would return. 1 is taken
 *    from all numbers when all have it: only their order counts, and it keeps them small.
 *  - A copy of the granule is one step; mirror_test has the engine itself for what may collide.
 *  - The authority's errors are the guest's and end nothing. The other side fails in every way: a
 *    leg fails (carried out or not), its host loses power, and its session's end is noticed late.
 *    A leg that is given up for lateness is one that failed.
 *  - S is on the host of the process and of STATE, T on another one. Power loss of S's host ends the
 *    guest, too: what it had not flushed is void. That of T's voids it on T while T is, or may turn
 *    out to be, the authority (docs/mirror.md, "Known and left open").
 *  - A record is a rename: seen at once, durable when the folder is synced, or by itself. It may
 *    report an error before, between and after. Both outcomes' files were set aside: what is left
 *    is the rename. No step must happen: records that never return are among the runs.
 *  - After a crash nothing is believed of the other side (all is dirty); map.pml believes the map.
 */
#define S 0
#define T 1
#define MAX 2

/* The rules of the code; pan is without the one whose number is in its environment as BROKEN. */
byte broken;
#define RULE(name) (broken != name)
#define answers_need_both     1  /* write.c finish(): in D, both legs of a write */
#define flushes_need_both     2  /* and of a flush */
#define flush_before_record   3  /* switch.c: the flush that counts */
#define fua_drained           4  /* switch.c drain(): no FUA that went out plain is in flight */
#define fua_to_both           5  /* write.c: FUA goes to both from DRAIN on */
#define durable_before_flip   6  /* record.c: the folder is synced before a record counts */
#define unknown_is_countered  7  /* switch.c: after one that erred comes "as before" */
#define one_record_at_a_time  8  /* ... when the first one has returned */
#define aborted_is_no_flip    9  /* switch.c: what went wrong in D stops the flip */
#define settle_before_detach  10 /* mirror.c bm_mirror_detach() in D */
#define found_is_durable      11 /* recover.c: a record is believed when it is durable */
#define lost_is_dirty         12 /* mirror.c distrust_unstable() */
#define roles_change          13 /* flush.c flush_roles_changed() */

byte cur[2], dur[2];       /* images: what they hold; what of it outlives a loss of power */
byte w, ackd, fl;          /* versions: issued, acknowledged, covered by an acknowledged flush */

bit rm, rd;                /* the record's image: as it is read, as a loss of power leaves it */
bool jm = 1, jd = 1;       /* ... and whether a job runs */

bool up = 1;               /* the process serves */
bit A;                     /* the authority */
bool alone;                /* no other side */
byte link;                 /* to the other side: */
#define UP      0
#define LOST    1          /* its requests are ending; then it is opened again */
#define LEAVING 2
bool dead;                 /* T's session ended with its power: nothing succeeds on it any more */
bool excused;              /* T lost power when it was, or might have become, the authority */
bool dirty = 1;
bool uo, uc;               /* unstable: open, closed (map.h) */
byte ph;
#define IDLE   0
#define DRAIN  1
#define FLUSH  2
#define REC    3
#define ABORT  4
#define D (ph >= REC)
bool bd, ab;               /* both_durable, abort_needed */

byte leg[2];               /* of the write in flight: */
#define PLAIN  1           /* in flight */
#define FUA    2           /* in flight */
#define DONE   3
#define FAILED 4
bool wbusy, wfua, wplain, wheld;

byte fleg[2], fsn[2], fcov;/* the guest's flush in flight */
bool fbusy, fearly, fheld;

bool ef, efd;              /* the engine's flush of the other side; something became dirty since */
byte efsn;

byte rst;                  /* the record being written: 1 begun, 2 renamed, 3 durable */
bit ra, rend;              /* its image; it ends the job */
bool stray; bit strayed;   /* (one_record_at_a_time) one that was not waited for */

#define B (1 - A)
#define INSYNC (!alone && link == UP && !dirty)
#define PENDING(x) (leg[x] == PLAIN || leg[x] == FUA)
#define CAN(x) (x == S || !dead && (A == T || link == UP)) /* a lost session's end in errors */

inline upto(x, v) { if :: dur[x] < v -> dur[x] = v :: else fi }

inline norm()
{
	if
	:: cur[S] && cur[T] && dur[S] && dur[T] && ackd && fl && (!fbusy || fcov) &&
	   (fleg[S] != PLAIN || fsn[S]) && (fleg[T] != PLAIN || fsn[T]) && (!ef || efsn) ->
		cur[S]--; cur[T]--; dur[S]--; dur[T]--; ackd--; fl--; w--;
		if :: fbusy -> fcov-- :: else fi;
		if :: fleg[S] == PLAIN -> fsn[S]-- :: else fi;
		if :: fleg[T] == PLAIN -> fsn[T]-- :: else fi;
		if :: ef -> efsn-- :: else fi
	:: else
	fi
}

inline mark_dirty()
{
	dirty = true; efd = ef;
	if :: D -> ab = true :: else fi
}

inline interrupted()
{
	if
	:: ph == DRAIN || ph == FLUSH -> ph = IDLE; bd = false
	:: D -> ab = true
	:: else
	fi
}

inline drop_other(how)
{
	link = how;
	if :: (uo || uc) && RULE(lost_is_dirty) -> mark_dirty() :: else fi;
	uo = false; uc = false;
	interrupted()
}

inline lose() { if :: link == UP -> drop_other(LOST) :: else fi }

inline acked(v, durably)
{
	assert(D || (rm == A && rd == A)); /* one authority */
	if :: ackd < v -> ackd = v :: else fi;
	if :: durably && fl < v -> fl = v :: else fi
}

inline write_answered()
{
	acked(w, wfua);
	wbusy = false; wheld = false; wfua = false; leg[S] = 0; leg[T] = 0
}

inline write_finish()
{
	if
	:: wbusy && !PENDING(S) && !PENDING(T) ->
		wplain = false;
		if
		:: D && leg[B] != DONE && RULE(answers_need_both) -> ab = true; wheld = true
		:: else -> write_answered()
		fi
	:: else
	fi
}

inline flush_answered()
{
	acked(fcov, true);
	fbusy = false; fheld = false; fcov = 0; fearly = false; fleg[S] = 0; fleg[T] = 0
}

inline flush_finish()
{
	if
	:: fbusy && fleg[S] != PLAIN && fleg[T] != PLAIN ->
		if
		:: D && !fearly && (ab || fleg[B] != DONE) && RULE(flushes_need_both) ->
			ab = true; fheld = true
		:: else -> flush_answered()
		fi
	:: else
	fi
}

inline engine_flush() { ef = true; efd = false; efsn = cur[B]; uc = uc || uo; uo = false }

inline write_record(x, ends) { assert(rst == 0); rst = 1; ra = x; rend = ends }
inline renamed() { rm = ra; jm = !rend }
inline synced() { rd = rm; jd = jm }

inline settled_as_before()
{
	ph = IDLE; bd = false; ab = false;
	if :: wheld -> write_answered() :: else fi;
	if :: fheld -> flush_answered() :: else fi
}

inline nothing_in_flight()
{
	leg[S] = 0; leg[T] = 0; wbusy = false; wfua = false; wplain = false; wheld = false;
	fleg[S] = 0; fleg[T] = 0; fsn[S] = 0; fsn[T] = 0; fcov = 0;
	fbusy = false; fearly = false; fheld = false;
	ef = false; efd = false; efsn = 0
}

/* Of what was in flight some is carried out. Nobody follows before that is over (F25, F26). */
inline die()
{
	if :: PENDING(S) -> cur[S] = w :: true fi;
	if :: PENDING(T) && CAN(T) -> cur[T] = w :: true fi;
	if :: rst == 1 -> renamed() :: true fi;
	if :: stray -> rm = strayed :: true fi;
	nothing_in_flight();
	up = false; A = S; alone = false; link = UP; dead = false; dirty = false;
	uo = false; uc = false; ph = IDLE; bd = false; ab = false;
	rst = 0; ra = S; rend = 0; stray = false; strayed = S
}

/*
 * What only the other side has of a write that was under way when the process died, or that power
 * took from the authority: no version of the disk. It becomes lower than what the disk is.
 */
inline forget_what_was_lost()
{
	if
	:: cur[B] > cur[A] || dur[B] > cur[A] ->
		if :: cur[A] == 0 -> cur[A] = 1; dur[A] = 1 :: else fi;
		if :: cur[B] >= cur[A] -> cur[B] = 0 :: else fi;
		if :: dur[B] >= cur[A] -> dur[B] = 0 :: else fi
	:: else
	fi
}

init {
	c_code { now.broken = getenv("BROKEN") ? atoi(getenv("BROKEN")) : 0; };
end:	do
	/* The guest writes: classify(), leg_done(). */
	:: atomic { up && !wbusy && w < MAX && CAN(A) ->
		w++; wbusy = true;
		if :: wfua = false :: wfua = true fi;
		leg[A] = (wfua -> FUA : PLAIN);
		if
		:: alone
		:: INSYNC ->
			leg[B] = (wfua && bd && RULE(fua_to_both) -> FUA : PLAIN);
			wplain = wfua && !bd
		:: !alone && !INSYNC -> if :: !dirty -> mark_dirty() :: else fi
		fi }
	:: atomic { up && PENDING(A) && CAN(A) ->
		cur[A] = w; if :: leg[A] == FUA -> upto(A, w) :: else fi;
		leg[A] = DONE; uo = uo || leg[B];
		write_finish(); norm() }
	:: atomic { up && PENDING(B) && CAN(B) ->
		cur[B] = w; if :: leg[B] == FUA -> upto(B, w) :: else fi;
		leg[B] = DONE; uo = true;
		write_finish(); norm() }
	:: atomic { up && PENDING(B) ->
		if :: CAN(B) -> cur[B] = w :: true fi;
		leg[B] = FAILED; mark_dirty(); lose(); uo = true;
		write_finish(); norm() }

	/* The guest flushes. */
	:: atomic { up && !fbusy && ackd > fl && CAN(A) ->
		fbusy = true; fearly = !bd; fcov = ackd; fsn[A] = cur[A]; fleg[A] = PLAIN;
		if :: bd && INSYNC -> fsn[B] = cur[B]; fleg[B] = PLAIN :: else fi }
	:: atomic { up && fleg[S] == PLAIN ->
		upto(S, fsn[S]); fsn[S] = 0; fleg[S] = DONE; flush_finish(); norm() }
	:: atomic { up && fleg[T] == PLAIN && CAN(T) ->
		upto(T, fsn[T]); fsn[T] = 0; fleg[T] = DONE; flush_finish(); norm() }
	:: atomic { up && fleg[B] == PLAIN && fleg[A] ->
		fleg[B] = FAILED; fsn[B] = 0; lose(); flush_finish(); norm() }
	:: atomic { up && !D && fleg[B] == PLAIN && fleg[A] == DONE && link == UP ->
		interrupted(); fleg[B] = 0; fsn[B] = 0; flush_answered(); norm() } /* too slow */

	/* The copy; a lost side is opened again. */
	:: atomic { up && INSYNC == 0 && !alone && link == UP && !wbusy && CAN(T) ->
		cur[B] = cur[A]; dirty = false; uo = true;
		if :: B == T -> excused = false :: else fi;
		norm() }
	:: atomic { up && dead && A == S && link == UP && !alone -> lose() } /* its end is noticed */
	:: atomic { up && !alone && link == LOST && !ef && !PENDING(B) && fleg[B] != PLAIN ->
		link = UP;
		if :: B == T -> dead = false :: else fi }

	/* The engine flushes the other side: before a switch (PRE), and for it. */
	:: atomic { up && INSYNC && !ef && ph == IDLE && uo -> engine_flush() }
	:: atomic { up && ef && CAN(B) ->
		upto(B, efsn); ef = false; efsn = 0; uc = false;
		if
		:: ph == FLUSH && INSYNC && !efd ->
			ph = REC; ab = false; write_record(B, false)
		:: ph == FLUSH && !(INSYNC && !efd) -> interrupted()
		:: else
		fi;
		efd = false; norm() }
	:: atomic { up && ef -> ef = false; efd = false; efsn = 0; lose(); norm() }

	/* The switch, to and fro. */
	:: atomic { up && INSYNC && ph == IDLE && rst == 0 -> ph = DRAIN; bd = true }
	:: atomic { up && ph == DRAIN && INSYNC && !ef && (!wplain || !RULE(fua_drained)) ->
		if
		:: RULE(flush_before_record) -> ph = FLUSH; engine_flush()
		:: else -> ph = REC; ab = false; write_record(B, false)
		fi }
	:: atomic { up && ph == DRAIN && !INSYNC -> interrupted() }
	:: atomic { rst == 1 -> rst = 2; renamed() }
	:: atomic { rst == 2 -> rst = 3; synced() }
	:: atomic { stray -> stray = false; rm = strayed; rd = rm; strayed = S }
	:: atomic { up && !rend && (rst == 3 || rst == 2 && !RULE(durable_before_flip)) ->
		rst = 0; /* bm_mirror_committed() */
		if
		:: ph == REC && INSYNC && (!ab || !RULE(aborted_is_no_flip)) ->
			A = B; ph = IDLE; bd = false; ab = false;
			uo = RULE(roles_change); /* nothing is known of the guest's flushes there */
			if :: !CAN(A) -> die() :: else fi
		:: ph == REC && !(INSYNC && (!ab || !RULE(aborted_is_no_flip))) ->
			if
			:: ab || !INSYNC -> ph = ABORT; write_record(A, false)
			:: else
			fi
		:: ph == ABORT -> settled_as_before()
		:: else
		fi;
		norm() }
	:: atomic { up && !rend && rst ->
		if
		:: rst == 1 && !RULE(one_record_at_a_time) && !stray -> stray = true; strayed = ra
		:: else
		fi;
		rst = 0;
		if
		:: RULE(unknown_is_countered) -> ph = ABORT; write_record(A, false)
		:: else -> settled_as_before()
		fi;
		norm() }

	/* The job ends: cancelled, or over. */
	:: atomic { up && D -> ab = true }
	:: atomic { up && !alone && link != LEAVING && (!D && rst == 0 || !RULE(settle_before_detach)) ->
		rst = 0; ph = IDLE; bd = false; ab = false; drop_other(LEAVING);
		if :: wheld -> write_answered() :: else fi;
		if :: fheld -> flush_answered() :: else fi;
		norm() }
	:: atomic { up && link == LEAVING && !ef && !PENDING(B) && fleg[B] != PLAIN ->
		alone = true; link = UP; dirty = false; uo = false; uc = false;
		write_record(A, true) }
	:: atomic { up && rend && rst -> cur[B] = 0; dur[B] = 0 } /* its image is removed */
	:: atomic { up && rend && rst == 3 -> rst = 0; rend = 0 }

	/* The process dies. */
	:: atomic { up -> die(); norm() }
	/* S's host loses power. What was in the caches is lost, or was just written. */
	:: atomic { true -> die(); ackd = fl;
		if :: cur[S] = dur[S] :: dur[S] = cur[S] fi;
		if :: rm = rd; jm = jd :: synced() fi;
		norm() }
	/* T's host does. */
	:: atomic { !dead && cur[T] != dur[T] ->
		if :: rm == T || rd == T || rst && ra == T || stray -> excused = true :: else fi;
		if
		:: up && A == T -> die()
		:: up && A == S -> dead = !alone
		:: else
		fi;
		cur[T] = dur[T]; norm() }
	/* Another process begins: the record says where. */
	:: atomic { !up ->
		if :: jm && RULE(found_is_durable) -> synced() :: else fi;
		A = rm;
		assert(cur[A] >= (excused && A == T -> fl : ackd));
		forget_what_was_lost();
		ackd = cur[A];
		if :: A == T -> excused = false :: else fi;
		up = true; alone = !jm;
		if :: alone -> excused = false :: else -> link = LOST; dirty = true fi;
		norm() }
	od
}
