/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Going on after a crash, as a model that spin explores whole: which map of settled granules is
 * believed, and what it says then. switch.pml is the other half: who is the authority, which is a
 * matter of course here. tests/model/promela.sh runs both, and their broken variants.
 *
 * What holds, in runs of any length, with the death of the process and the loss of either host's
 * power between any two steps:
 *  - A granule that a process takes for settled is equal on both images (I5).
 *  - One that is clean and idle is equal on both (I2), so that authority may pass.
 *
 * What the model is, and leaves out:
 *  - One granule, its content a number, one write at a time, a copy in one step: as in switch.pml.
 *    Authority passes in one step, as there it is shown to.
 *  - There are two maps of this job: the one in RUN, which the process's death leaves and a loss of
 *    power takes, and the checkpoint in STATE, where a settled granule is claimed, and the claim is
 *    withdrawn durably before anything is sent there. Where STATE fails the checkpoint is made void
 *    by marks on the images, until there is a new one; that neither can be marked is left out
 *    (docs/record.md). A change of it is durable when it is synced, or by itself.
 */
#define S 0
#define T 1
#define MAX 2

/* The rules of the code; pan is without the one whose number is in its environment as BROKEN. */
byte broken;
#define RULE(name) (broken != name)
#define unsettled_at_dispatch 1  /* write.c classify() */
#define settled_after_both    2  /* flush.c: the guest has flushed the authority, too */
#define joins_at_each_leg     3  /* write.c note_unstable(): not at the end of the request */
#define flush_closes_the_set  4  /* flush.c flush_start(): what comes later it does not cover */
#define lost_is_dirty         5  /* mirror.c distrust_unstable() */
#define heals_in_its_session  6  /* write.c settle_granules() */
#define old_requests_first    7  /* a side is opened again when no request may land any more */
#define roles_change          8  /* flush.c flush_roles_changed() */
#define withdrawn_first       9  /* checkpoint.c: a claim goes before anything is sent there */
#define map_ends_first        10 /* job.c finish(): before the image goes */
#define withdrawn_durably     11 /* ... for good */
#define found_is_durable      12 /* checkpoint_load(): what is found is synced first */
#define void_is_not_believed  13 /* checkpoint_load(): of a checkpoint that STATE's failure left */

byte cur[2], dur[2];       /* images: what they hold; what of it outlives a loss of power */
byte w;                    /* the last version issued */
bool mm = 1, settled;      /* RUN: the map is there and the record's; its bit */
bool ck, ckd;              /* STATE: the granule is claimed (as it is read; after a loss of power) */
bool voided;               /* the images say that nobody shall believe that */

bool life = 1;             /* the process serves */
bool cand;                 /* one that begins: the granule is settled, says its map */
bit A;                     /* the authority, as all records say */
bool lost;                 /* the other side's requests are ending; then it is opened again */
bool dead;                 /* T's session ended with its power */
bool ending;               /* the job: its image goes, the record still says that it runs */
bool dirty = 1;
bool uo, uc, uf, uv;       /* unstable: open, closed, flushed, covered (map.h) */
bool all;                  /* what was written to the authority the guest has flushed (flush.c) */

byte leg[2];               /* of the write in flight: */
#define FLIES 1
#define DONE  2
bool wbusy, wheal;
bool late; byte lv;        /* a leg on the other side that the guest did not wait for */
bool fbusy, fall, fcovers; /* the guest's flush in flight */
byte fsn;
bool ef; byte efsn;        /* the engine's flush of the other side */

#define B (1 - A)
#define UP (life && !ending)
#define INSYNC (!lost && !dirty)
#define CAN(x) (x == S || !dead && (A == T || !lost))

inline upto(x, v) { if :: dur[x] < v -> dur[x] = v :: else fi }

inline norm()
{
	if
	:: cur[S] && cur[T] && dur[S] && dur[T] && (!fbusy || fsn) && (!ef || efsn) && (!late || lv) ->
		cur[S]--; cur[T]--; dur[S]--; dur[T]--; w--;
		if :: fbusy -> fsn-- :: else fi;
		if :: ef -> efsn-- :: else fi;
		if :: late -> lv-- :: else fi
	:: else
	fi
}

inline mark_dirty() { settled = false; dirty = true }

inline lose()
{
	if
	:: !lost ->
		lost = true;
		if :: RULE(heals_in_its_session) -> wheal = false :: else fi;
		if :: (uo || uc) && RULE(lost_is_dirty) -> mark_dirty() :: else fi;
		uo = false; uc = false
	:: else
	fi
}

/* Something is about to be sent: the claim is withdrawn, or void where STATE fails. */
inline withdraw()
{
	if
	:: ck && !voided && RULE(withdrawn_first) ->
		if
		:: ck = false; if :: RULE(withdrawn_durably) -> ckd = false :: else fi
		:: voided = true
		fi
	:: else
	fi
}

inline settle() { if :: mm && !dirty && !wbusy && !late && !uo && !uc && !uf -> settled = true :: else fi }

inline leg_ended()
{
	settled = false;
	if
	:: leg[S] && leg[T] && (RULE(joins_at_each_leg) || leg[S] != FLIES && leg[T] != FLIES) -> uo = true
	:: else
	fi;
	if
	:: leg[S] != FLIES && leg[T] != FLIES ->
		if :: wheal && leg[S] && leg[T] && !lost -> dirty = false :: else fi;
		wbusy = false; wheal = false; leg[S] = 0; leg[T] = 0
	:: else
	fi
}

/* Of what was in flight some is carried out; who comes next waits until that is over. */
inline die()
{
	if :: leg[S] == FLIES -> cur[S] = w :: true fi;
	if
	:: leg[T] == FLIES && CAN(T) && RULE(old_requests_first) -> cur[T] = w
	:: leg[T] == FLIES && CAN(T) && !RULE(old_requests_first) && !late -> late = true; lv = w
	:: true
	fi;
	if
	:: late && RULE(old_requests_first) ->
		if :: CAN(B) -> cur[B] = lv :: true fi;
		late = false; lv = 0
	:: else
	fi;
	leg[S] = 0; leg[T] = 0; wbusy = false; wheal = false;
	fbusy = false; fall = false; fcovers = false; fsn = 0; ef = false; efsn = 0;
	if :: ck = false :: true fi; /* a claim was just being withdrawn */
	life = false; cand = false; lost = false; dead = false; ending = false;
	dirty = false; uo = false; uc = false; uf = false; uv = false; all = false
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

inline serve()
{
	assert(!cand || cur[S] == cur[T]); /* I5 */
	forget_what_was_lost();
	life = true; lost = true; dirty = !cand; cand = false
}

init {
	c_code { now.broken = getenv("BROKEN") ? atoi(getenv("BROKEN")) : 0; };
end:	do
	/* The guest writes. */
	:: atomic { UP && !wbusy && w < MAX && CAN(A) ->
		withdraw(); w++; wbusy = true; leg[A] = FLIES;
		if
		:: INSYNC -> leg[B] = FLIES
		:: !lost && dirty -> leg[B] = FLIES; wheal = !late /* all of the granule */
		:: !INSYNC -> if :: !dirty -> mark_dirty() :: else fi
		fi;
		if :: RULE(unsettled_at_dispatch) -> settled = false :: else fi }
	:: atomic { UP && leg[A] == FLIES && CAN(A) ->
		cur[A] = w; leg[A] = DONE; all = false; fall = false;
		leg_ended(); norm() }
	:: atomic { UP && leg[B] == FLIES && CAN(B) -> cur[B] = w; leg[B] = DONE; leg_ended(); norm() }
	:: atomic { UP && leg[B] == FLIES -> /* it fails, carried out or not */
		if :: CAN(B) -> cur[B] = w :: true fi;
		mark_dirty(); wheal = false; lose(); leg[B] = DONE; leg_ended(); norm() }
	:: atomic { UP && leg[B] == FLIES && leg[A] == DONE && !late -> /* the deadline */
		late = true; lv = w; mark_dirty(); wheal = false; lose(); leg[B] = 0; leg_ended(); norm() }
	:: atomic { late -> /* it ends at last */
		if :: B == S || !dead -> cur[B] = lv :: true fi;
		late = false; lv = 0;
		if :: UP -> uo = true; settled = false :: else fi;
		norm() }
	/* The guest flushes. */
	:: atomic { UP && !fbusy && (dur[A] < cur[A] || uf) && CAN(A) ->
		fbusy = true; fall = true; fsn = cur[A];
		if :: uf -> uv = true; uf = false; fcovers = true :: else fi }
	:: atomic { UP && fbusy && CAN(A) ->
		upto(A, fsn); fbusy = false; fsn = 0;
		all = all || fall; fall = false;
		if :: fcovers -> fcovers = false; uv = false; settle() :: else fi;
		norm() }
	/* The copy; flushes of the other side; it comes back. */
	:: atomic { UP && !lost && dirty && !wbusy && !late && CAN(S) && CAN(T) ->
		withdraw(); cur[B] = cur[A]; dirty = false; uo = true; norm() }
	/* The checkpoint: a claim; it is durable; a new one after STATE had failed. */
	:: atomic { UP && settled && mm && !ck && !voided && !wbusy && !late -> ck = true }
	:: atomic { ck != ckd && !voided -> ckd = ck }
	:: atomic { UP && voided -> voided = false; ck = false; ckd = false }
	:: atomic { UP && !lost && !ef && uo ->
		ef = true; efsn = cur[B];
		if :: RULE(flush_closes_the_set) -> uc = true; uo = false :: else fi }
	:: atomic { UP && ef && CAN(B) ->
		upto(B, efsn); ef = false; efsn = 0;
		if
		:: !lost ->
			if :: RULE(flush_closes_the_set) -> uf = uf || uc; uc = false :: else -> uf = true; uo = false fi;
			if :: uf && (all || !RULE(settled_after_both)) -> uf = false; settle() :: else fi
		:: else
		fi;
		norm() }
	:: atomic { UP && ef -> ef = false; efsn = 0; lose(); norm() }
	:: atomic { UP && dead && A == S && !lost -> lose() } /* its end is noticed */
	:: atomic { UP && lost && !ef && leg[B] != FLIES && (!late || !RULE(old_requests_first)) ->
		lost = false;
		if :: B == T -> dead = false :: else fi }
	/* Authority passes: the other side is flushed, the record durable. */
	:: atomic { UP && INSYNC && !ef && !fbusy && CAN(B) ->
		assert(wbusy || cur[S] == cur[T]); /* I2 */
		upto(B, cur[B]);
		uf = uf || uo; uo = false; A = B; all = false;
		if :: RULE(roles_change) -> uo = uf || uv; uf = false; uv = false :: else fi }
	/* The job ends; a crash before its record says so lets it go on. */
	:: atomic { UP && !wbusy && !fbusy && !ef && !late ->
		ending = true;
		if :: RULE(map_ends_first) -> mm = false; settled = false; withdraw() :: else fi;
		cur[B] = 0; dur[B] = 0 }
	/* The process ends in good order, or not. */
	:: atomic { UP && !wbusy && !fbusy && !ef && !late && leg[B] != FLIES ->
		if :: ck = settled && mm; ckd = ck; voided = false :: true fi; die() }
	:: atomic { life -> die(); norm() }
	/* S's host loses power; T's does. */
	:: atomic { true -> die();
		if :: cur[S] = dur[S] :: dur[S] = cur[S] fi;
		if :: ck = ckd :: ckd = ck fi;
		mm = false; settled = false; norm() }
	:: atomic { !dead && cur[T] != dur[T] ->
		if :: life && A == T -> die() :: life && A == S -> dead = true :: else fi;
		cur[T] = dur[T]; norm() }
	/* Another process: take_maps(). */
	:: atomic { !life ->
		if :: RULE(found_is_durable) -> ckd = ck :: else fi;
		if
		:: mm -> cand = settled
		:: else -> cand = ck && (!voided || !RULE(void_is_not_believed))
		fi;
		mm = true; settled = cand; serve(); norm() }
	od
}
