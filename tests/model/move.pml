/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A machine with two disks moves from S to T: the end of it, from the moment that all disks have joined and the
 * memory goes, as a model that spin explores whole (docs/machine.md). tests/model/promela.sh runs it, and its
 * broken variants. move_source.c and move_end.c are S's process, move_target.c is T's, disk/move.c the disks'.
 * Disk 0 has a copy on T; disk 1, too, or it is on storage that both reach (pool).
 *
 * What holds:
 *  - The machine never runs on both hosts, nor on S once it has run on T, unless T is dead for good, and
 *    there is no pool: what T wrote to that S's memory does not know.
 *  - No disk is served on both, nor has more than one host disk 1 open for writing. Where the machine runs, all
 *    disks are, and as its memory knows them.
 *  - When nothing more can happen all disks are on one host, and the machine runs there, unless that host was
 *    started anew, or it was ended, since T had run it and is dead for good.
 *
 * The gate waits for the vote, so that before it nobody has to be alive for the machine to run on; here whoever
 * died comes again, and nothing would be wrong without. Nor is there a rule that S's "aborted" is durable before
 * it is acted on: who reads it makes it so, too.
 *
 * What the model is, and leaves out:
 *  - Of QEMU: stopped for the stream (DEV) it runs on by itself when that ends, unless SHUT has come through;
 *    then it completes (POST), or still fails; POST never ends by itself. All seen on 7.2.
 *  - A log entry is there, and then durable. S's may report an error and be there all the same. T's are
 *    durable at once, or the rule that says so is left out.
 *  - Disks' data: who fences has it equal on both (handover.pml).
 *  - FAULTS things fail: a process is killed, the network is cut (it comes back), a host is started anew, T's copies
 *    fall behind. A host is down for a while; the other one may be told then that it is dead, and it does not come
 *    back. (It is a person's word, or hook fence's; that such a host is told when it comes back all the same is not
 *    in here.)
 */
#define MOST 3

/* The rules of the code; pan is without the one whose number is in its environment as BROKEN. */
byte broken;
#define RULE(name) (broken != name)
#define complete_then_pass 1  /* move_source.c await_stopped() */
#define all_are_fenced     2  /* ... decide(): disks_fence() */
#define durable_then_tell  3  /* ... decide(): bm_move_log_append() */
#define found_is_rewritten 4  /* move_log.c bm_move_log_open() */
#define undecided_aborts   5  /* move_end.c source_recover() */
#define join_outlives      6  /* disk/move.c move_find() */
#define starts_in_log      7  /* move_target.c commit(): started, then take_disks() */
#define gone_in_log        8  /* ... commit(): gone, then the answer */
#define gone_stays_gone    9  /* ... commit(): of one that is gone nothing comes */
#define disks_then_cont    10 /* ... commit(): take_disks(), then run_machine() */
#define waits_to_be_told   11 /* ... set_up_vm(): QEMU was started with -S */
#define passed_is_not_done 12 /* disk/move.c settle(): only "done" counts */
#define log_decides_leave  13 /* ... disks_leave(): what is fenced opens by the log alone */
#define dead_not_silent    14 /* move_fence.c: a host is fenced that is dead, and not one that does not answer */
#define told_then_alone    15 /* ... standbys_untouched(): S has said that its disks are whole there */
#define untouched          16 /* ... and has not written to them since */
#define alone_goes_on      17 /* move_target.c: one that began by itself goes on by itself, when its process has died */
#define let_go_then_told   18 /* move_end.c try_commit(): shared_let_go(), then commit */
#define found_only_reads   19 /* disk/shared.c shared_only_reads() */
#define stale_is_ended     20 /* move_end.c peer_is_dead(): what T's guest wrote S's memory does not know */
#define note_goes_first    21 /* disk/move.c take_back(): before S's guest writes */

byte faults;
#define FAULT (faults < MOST)

/* QEMU */
#define RUN    0
#define DEV    1
#define POST   2
#define WAIT   3
#define LOADED 4
#define OFF    5
byte svm = RUN, tvm = WAIT;
bit shut, ran, sboot, tboot, link = 1;
bit sdown, tdown, sfenced, tfenced; /* it is off; sfenced: S was told that T is dead, tfenced: T that S is */
bit sure, touched, behind; /* T knows that its copies are whole; they were written to since; they are not */

/* logs */
#define BEGUN   0
#define PASSED  1
#define ABORTED 2
#define DONE    3
#define VOTED   4
#define STARTED 5
#define GONE    6
byte sl = BEGUN, sld = BEGUN, tl = BEGUN, tld = BEGUN;

/* S's process, and what it is at */
#define MEMORY  0
#define GATED   1
#define WRITES  2
#define COMMITS 3
#define ABORTS  4
#define LEAVES  5
#define TELLS   6
#define ENDS    7
bit sp = 1, tp = 1, yes, asks, starts;
bit late; /* a commit of a process that is gone, or by a connection */
byte at = MEMORY, answer; /* answer: RUN or GONE + 1; 0: none */

/* disks on S: the process lives, its gate is open, this process of S's has its word, FOLDER/move, passed on */
bit live[2] = 1, open[2] = 1, fenced[2], joined[2] = 1, passed[2];
bit talks[2] = 1; /* S's process, with that process of the disk */
bit taken[2]; /* T's */
bit pool;    /* disk 1 is on storage of both */
bit has = 1; /* S has disk 1 open for writing; T has, when it has taken it */
bit note = 1, wrote; /* by which T sees that S has not written to it since; it has */

#define STREAM (sp && tp && link)
#define ALL(x) (x[0] && x[1])
#define ANY(x) (x[0] || x[1])

inline holds() {
	assert(!(svm == RUN && tvm == RUN) && !(svm == RUN && ran && (pool || !sfenced)));
	assert(tdown || !pool || !(has && taken[1]));
	assert(tdown || (!(open[0] && taken[0]) && !(open[1] && taken[1])));
	assert(tvm != RUN || (ALL(taken) && !behind && !touched && !wrote));
	assert(!(ANY(passed) && sld == ABORTED))
}

inline source_starts() {
	sp = 1; fenced[0] = 0; fenced[1] = 0; talks[0] = 1; talks[1] = 1; yes = 0; answer = 0;
	if
	:: RULE(found_is_rewritten) -> sld = sl
	:: else
	fi;
	if
	:: sl == BEGUN && RULE(undecided_aborts) -> at = ABORTS
	:: sl == BEGUN && !RULE(undecided_aborts) -> at = GATED
	:: sl == PASSED -> at = COMMITS
	:: sl == ABORTED -> at = LEAVES
	:: sl == DONE -> at = ENDS
	fi
}

inline disk_starts(d) {
	live[d] = 1;
	open[d] = !passed[d] && (!joined[d] || !RULE(join_outlives));
	if
	:: d == 1 -> has = !passed[1] && (!joined[1] || !RULE(found_only_reads))
	:: else
	fi
}

/* What the log says; it is made durable first. */
inline follow(d) {
	if
	:: sl == DONE || (sl == PASSED && !RULE(passed_is_not_done)) -> sld = sl; passed[d] = 1; joined[d] = 0; open[d] = 0;
		if
		:: d == 1 -> has = 0
		:: else
		fi
	:: sl == ABORTED -> sld = sl; joined[d] = 0; open[d] = 1;
		if
		:: d == 1 -> has = 1; note = note && !RULE(note_goes_first)
		:: else
		fi
	:: else
	fi
}

inline target_gone() { tl = GONE; tld = GONE; tvm = OFF }

/* Its VMM may be there, and not be reached at the moment. */
inline commit_comes() {
	if
	:: tl == GONE && RULE(gone_stays_gone) -> answer = GONE
	:: tl == BEGUN || (tl == VOTED && (tvm == OFF || FAULT)) ->
		if
		:: tvm != OFF -> faults++
		:: else
		fi;
		if
		:: RULE(gone_in_log) -> tl = GONE; tld = GONE
		:: else
		fi;
		answer = GONE
	:: tl == STARTED || ((tl == VOTED || (tl == GONE && !RULE(gone_stays_gone))) && tvm == LOADED) ->
		if
		:: tl != STARTED && RULE(starts_in_log) -> tl = STARTED; tld = STARTED
		:: else
		fi;
		starts = 1
	fi
}

proctype Source() {
end:	do
	/* memory */
	:: atomic { sp && at == MEMORY && svm == RUN && !shut && link && sl == BEGUN && tvm == WAIT -> svm = DEV }
	:: atomic { svm == DEV && (!STREAM || tvm == OFF) -> svm = RUN; holds() }
	:: atomic { sp && at == MEMORY && svm == DEV && link && yes -> shut = 1; at = GATED }
	:: atomic { svm == DEV && shut -> svm = POST }
	/* the decision */
	:: atomic { sp && at == GATED && talks[0] && !fenced[0] && (svm == POST || !RULE(complete_then_pass)) -> open[0] = 0; fenced[0] = 1 }
	:: atomic { sp && at == GATED && talks[1] && !fenced[1] && (svm == POST || !RULE(complete_then_pass)) -> open[1] = 0; fenced[1] = 1 }
	:: atomic { sp && at == GATED && behind -> at = ABORTS }
	:: atomic { sp && at == GATED && !behind && (ALL(fenced) || !RULE(all_are_fenced)) && (svm == POST || !RULE(complete_then_pass)) ->
		sure = sure || (link && tp && tl == VOTED); sl = PASSED; at = WRITES }
	:: atomic { sp && at == WRITES -> sld = PASSED; at = COMMITS }
	:: atomic { sp && at == WRITES && FAULT -> faults++; at = ABORTS } /* it may be there, and may become durable */
	:: atomic { sp && at == WRITES && FAULT -> faults++; sld = PASSED; at = ABORTS }
	:: atomic { sp && at == WRITES && !RULE(durable_then_tell) -> at = COMMITS }
	:: atomic { sp && at == COMMITS && live[1] && has -> has = 0 }
	:: atomic { sp && at == COMMITS && (live[1] && !has || !pool || !RULE(let_go_then_told)) && link && tp && !asks && !starts && !answer -> asks = 1 }
	:: atomic { sp && at == COMMITS && link && answer == GONE -> answer = 0; at = ABORTS }
	:: atomic { sp && at == COMMITS && link && answer == STARTED -> answer = 0; sl = DONE; sld = DONE; at = ENDS }
	:: atomic { sp && at == COMMITS && (tdown || !RULE(dead_not_silent)) -> sfenced = 1; at = ABORTS }
	/* or not */
	:: atomic { sp && at == MEMORY && (!STREAM || tvm == OFF || !ALL(talks) || svm == RUN) -> at = ABORTS }
	:: atomic { sp && at == GATED && (!ALL(talks) || svm == RUN) -> at = ABORTS }
	:: atomic { sp && at == ABORTS -> sl = ABORTED; sld = ABORTED; at = LEAVES; holds() }
	:: atomic { sp && at == LEAVES && live[0] && joined[0] -> follow(0); holds() }
	:: atomic { sp && at == LEAVES && live[1] && joined[1] -> follow(1); holds() }
	:: atomic { sp && at == LEAVES && !ANY(joined) ->
		if
		:: pool && sfenced && taken[1] && RULE(stale_is_ended) -> svm = OFF
		:: (svm == POST || svm == DEV) && !(pool && sfenced && taken[1] && RULE(stale_is_ended)) -> svm = RUN
		:: else
		fi;
		at = TELLS; holds() }
	:: atomic { sp && at == TELLS && sfenced -> at = ENDS }
	:: atomic { sp && at == TELLS && !sfenced && link && tp -> at = ENDS;
		if
		:: tl != STARTED -> target_gone()
		:: else
		fi; holds() }
	:: atomic { sp && at == ENDS && live[0] && joined[0] -> follow(0); holds() }
	:: atomic { sp && at == ENDS && live[1] && joined[1] -> follow(1); holds() }
	od
}

proctype Target() {
end:	do
	:: atomic { svm == DEV && STREAM && tvm == WAIT ->
		if
		:: RULE(waits_to_be_told) -> tvm = LOADED
		:: else -> tvm = RUN; ran = 1
		fi; holds() }
	:: atomic { tp && tvm == LOADED && tl == BEGUN && STREAM && at == MEMORY -> tl = VOTED; tld = VOTED; yes = 1 }
	:: atomic { tp && asks -> asks = 0; commit_comes(); holds() }
	:: atomic { tp && late -> late = 0; commit_comes(); holds() }
	:: atomic { tp && starts && !taken[0] -> taken[0] = 1; holds() }
	:: atomic { tp && starts && !taken[1] -> taken[1] = 1; holds() }
	:: atomic { tp && starts && (ALL(taken) || !RULE(disks_then_cont)) -> starts = 0; answer = STARTED;
		if
		:: tvm == LOADED -> tvm = RUN; ran = 1
		:: else
		fi; holds() }
	/* S is dead, and T was told */
	:: atomic { tp && tl == VOTED && tvm == LOADED && sdown && !starts && (sure || !RULE(told_then_alone)) && (!touched || !RULE(untouched)) && (note || !pool) ->
		tfenced = 1; tl = STARTED; tld = STARTED; starts = 1 }
	/* of a stream that has ended nothing comes */
	:: atomic { tp && tl == BEGUN && !link && tvm != OFF -> target_gone() }
	od
}

proctype Faults() {
end:	do
	:: atomic { FAULT && sp && at != ENDS -> faults++; sp = 0; late = late || asks; asks = 0; answer = 0 }
	:: atomic { !sp && !sdown -> source_starts(); holds() }
	:: atomic { FAULT && tp -> faults++; tp = 0; starts = 0; asks = 0; late = 0; answer = 0 }
	:: atomic { !tp && !tdown -> tp = 1;
		if
		:: tl == BEGUN -> target_gone()
		:: tl == STARTED && tfenced && RULE(alone_goes_on) -> starts = 1
		:: else -> tld = tl
		fi; holds() }
	:: atomic { FAULT && live[0] -> faults++; live[0] = 0; talks[0] = 0; open[0] = 0 }
	:: atomic { !live[0] && !sdown -> disk_starts(0);
		if
		:: joined[0] && RULE(log_decides_leave) -> follow(0)
		:: joined[0] && !RULE(log_decides_leave) && sl == PASSED -> joined[0] = 0; open[0] = 1
		:: else
		fi; holds() }
	:: atomic { FAULT && live[1] -> faults++; live[1] = 0; talks[1] = 0; open[1] = 0; has = 0 }
	:: atomic { !live[1] && !sdown -> disk_starts(1);
		if
		:: joined[1] -> follow(1)
		:: else
		fi; holds() }
	:: atomic { FAULT && link -> faults++; link = 0; late = late || asks; asks = 0; answer = 0 }
	:: atomic { !link -> link = 1 }
	:: atomic { FAULT && !sboot -> faults++; sboot = 1; sdown = 1; sp = 0; svm = OFF; sl = sld; answer = 0;
		live[0] = 0; live[1] = 0; talks[0] = 0; talks[1] = 0; open[0] = 0; open[1] = 0; has = 0 }
	:: atomic { FAULT && !tboot -> faults++; tboot = 1; tdown = 1; tp = 0; tvm = OFF; tl = tld; starts = 0; asks = 0; late = 0; answer = 0 }
	:: atomic { sdown && !tfenced -> sdown = 0 }
	:: atomic { tdown && !sfenced -> tdown = 0; holds() }
	:: atomic { FAULT && !behind && at == MEMORY && svm != OFF -> faults++; behind = 1 }
	:: atomic { sure && !touched && svm == RUN && (open[0] || (open[1] && !pool)) && link && !tdown && !ANY(taken) -> touched = 1 }
	:: atomic { pool && sure && !wrote && svm == RUN && open[1] && !ANY(taken) -> wrote = 1 }
	od
}

active proctype Main() {
	c_code { now.broken = getenv("BROKEN") ? atoi(getenv("BROKEN")) : 0; };
	atomic {
		if
		:: pool = 0
		:: pool = 1
		fi;
		run Source(); run Target(); run Faults()
	}
	timeout;
	assert((ALL(open) && (!ANY(taken) || (sfenced && tdown))) || (ALL(taken) && !ANY(open)));
	assert(svm == RUN || tvm == RUN || ((sboot || (pool && sfenced)) && ALL(open)) || (tboot && ALL(taken)))
}
