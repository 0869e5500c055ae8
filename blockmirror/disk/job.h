/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A job: one relocation, or one copy, of a served disk. At most one runs per disk. Loop thread;
 * what blocks is in steps.c, and runs in workers.
 */
#ifndef BM_DISK_JOB_H
#define BM_DISK_JOB_H

#include "blockmirror/disk/disk.h"

enum job_kind {
	JOB_RELOCATE,
	JOB_COPY /* the disk goes on where it is */
};

/* Where a job is. docs/protocol.md lists what the user sees of it. */
enum job_phase {
	PHASE_PREPARING, /* the target is looked at, and created */
	PHASE_STARTING,  /* the record is told */
	PHASE_COPYING,
	PHASE_VERIFYING, /* both copies are compared */
	PHASE_IN_SYNC,
	PHASE_SWITCHING, /* asked for, or asked back; the mirror does it when it can */
	PHASE_MARKING,   /* it has switched; images are marked */
	PHASE_WINDOW,    /* it mirrors the other way round, and can be undone */
	PHASE_DETACHING, /* the mirror lets one side go */
	PHASE_FINISHING, /* marks, removal, record */
	PHASE_ENDED,
	PHASES
};

enum job_event {
	EV_NONE,
	EV_AGREED, /* the hooks have nothing against it */
	EV_PREPARED,
	EV_STARTED,
	EV_IN_SYNC,
	EV_VERIFIED,
	EV_SWITCH,
	EV_SWITCHED,
	EV_SWITCH_FAILED,
	EV_MARKED,
	EV_UNDO,
	EV_RELEASE,
	EV_CUT, /* the target is a copy as of one instant, and durable */
	EV_DETACHED,
	EV_FINISHED,
	EV_STOP, /* cancelled by the user, or failed: job->error says which */
	EVENTS
};

/* What hooks are asked about, and told of. */
enum hook_step {
	BEFORE_RELOCATE,
	AFTER_RELOCATE,
	BEFORE_SWITCH,
	AFTER_SWITCH,
	BEFORE_RELEASE,
	AFTER_RELEASE
};

/* What a switch may come to: authority passes, or stays. */
enum outcome { FORWARD, BACK };

#define LOSS_WAIT  0ull       /* as long as it takes */
#define LOSS_PAUSE UINT64_MAX /* until somebody resumes the job */

struct job_options {
	enum job_kind kind;
	char *target;
	char *from; /* of a target on another host: address of ours; NULL: any */
	bool overwrite, manual, delete_source, verify, accept_repair;
	bool skip; /* what cannot be read of the source is left out; else it ends the job */
	uint64_t rate, latency;
	uint64_t window;   /* ns in which the switch can be undone */
	uint64_t loss;     /* ns that the target may be away; or one of these: */
	uint64_t deadline; /* ns that a guest's write waits for the target; 0: the default */
	json_t *request;   /* {"id", "digest"} of who asked for it; NULL: it has none */
};

enum job_goal { GOAL_NONE, GOAL_SYNC, GOAL_DONE, GOAL_END };

/* A call that waits for a job. */
struct job_waiter {
	struct bm_list link;
	struct bm_rpc_call *call;
	enum job_goal goal;
	enum job_event event; /* that it has asked for, and fails with; EV_NONE */
};

/* checkpoint.c: what a power cut leaves of the settled map, and the trouble with that. */
enum { CHECKPOINT_CHANGES = 512 }; /* at a time: a guest may wait for the next ones */

struct checkpoint {
	enum {
		CHECKPOINT_KEPT,
		CHECKPOINT_BROKEN,
		CHECKPOINT_RENEWED, /* a new one is being made */
	} state;
	int fd;             /* -1: there is none yet */
	uint64_t id;        /* of the one that is there; 0: not known */
	uint64_t loaded_id; /* of the one that was found; 0: there was none */
	bool doubtful;      /* there may be one that could not be read */
	bool writing, marking;
	bool released; /* no guest waits, whatever becomes of the marks */
	bool awaited;  /* the mirror has let go */
	unsigned count;
	struct bm_claim change[CHECKPOINT_CHANGES];
	const char *image[2]; /* to be marked */
	int error;            /* of the last write */
	struct bm_work write, mark;
	struct bm_timer deadline, retry;
};

struct job {
	struct disk *disk;
	struct job_options options;
	unsigned number;
	enum job_phase phase;
	bool switched; /* the target is the authority */
	bool undone;   /* it was, and is no more */
	bool paused, switch_wanted, undo_wanted, release_wanted;
	bool attached;                  /* something may have been written to the target */
	bool parked;                    /* it stays as it is, for another process to go on with */
	bool tells;                     /* there were hooks when it began */
	bool agreed;                    /* they have been asked about what is done just now */
	struct hook_call *asking;       /* they are being asked; NULL */
	enum job_event asked_event;     /* then this one comes again */
	struct bm_error held;           /* why a step was not done; BM_OK */
	bool refused;                   /* the target was no good: as if nobody had asked */
	struct bm_error error;          /* why it stopped; BM_OK: it did not */
	struct bm_rpc_call *start_call; /* waits until the target is known to be good */
	struct bm_list waiters;
	char *source; /* URI at the start */
	struct target target;
	uint8_t *map;
	struct bm_mirror_stats last; /* when the mirror was let go */
	uint64_t started, ended;     /* ns of CLOCK_REALTIME */
	uint64_t longest_stall;
	uint64_t switch_started, switch_took;
	uint64_t cut_at;         /* of a copy: the instant, ns of CLOCK_REALTIME; 0: not yet */
	uint64_t cut_took;       /* ns, until it was durable */
	uint64_t window_ends;    /* ns of CLOCK_REALTIME */
	uint64_t map_generation; /* of the record that the map belongs to */
	unsigned resumes;        /* times that a process went on with it where another one was */
	uint64_t kept_bytes, redo_bytes; /* what the last one had not to copy again, and had to */
	const char *resumed_from;        /* "map", "checkpoint", "nothing" */
	struct checkpoint checkpoint;

	struct bm_work prepare, start, finish; /* each with one step of steps.c */
	struct bm_work record;                 /* host->commit() */
	struct bm_work records;                /* both outcomes, ahead of the switch */
	struct bm_work keep;                   /* options that were changed */
	bool keeping, keep_wanted, kept_well;
	json_t *kept; /* what that writes */
	uint64_t kept_generation;
	struct bm_work marks;
	bool preparing_records;
	bool ready[2];                /* prepared, by outcome, and not used yet */
	uint64_t set_aside[2];        /* generations for them */
	const char *commit_ready;     /* the step renames that one; NULL: it writes a new one */
	struct bm_timer switch_timer; /* a switch that failed is tried again */
	struct bm_timer window_timer;
	unsigned switch_failures;
	struct bm_work reopen;
	bool reopening;
	bool disbelieved;           /* the attempt found that the checkpoint is void */
	bool away;                  /* the target is lost, or was not there yet */
	uint64_t away_since;        /* ns of the loop */
	struct bm_timer away_timer; /* it was away for long enough */
	struct bm_dev *reopened;
	bool let_go; /* detached, but one of these two still runs */
	struct bm_timer reopen_timer;
	unsigned reopen_failures;
	struct bm_error step_error;   /* of the step that ran last */
	struct bm_error reopen_error; /* of the last attempt */
	json_t *snapshot;             /* what a step writes into the record */
	char *final_uri;              /* of the record that a step writes */
	uint64_t step_generation;
	_Atomic bool give_up; /* asked by steps that wait */
};

/* host.c: what disk.c gives the mirror; and its part of a new job. */
extern const struct bm_mirror_host job_host;
void host_init(struct job *job);
void host_detached(struct disk *disk); /* the mirror has let go of the other side */
void host_keep(struct job *job);       /* changed options go into the record, as soon as may be */

/*
 * away.c: the target is lost, or was not there when a process took over: it is opened again, as the
 * job's options have it. gone: its device is closed. back, foreign: a sample was compared. chosen:
 * these options have changed, or somebody resumes the job.
 */
void away_init(struct job *job);
void away_begin(struct job *job); /* it is not there yet */
void away_lost(struct job *job);
void away_gone(struct job *job);
void away_back(struct job *job);
void away_foreign(struct job *job);
void away_chosen(struct job *job);
void away_resumed(struct job *job);
void away_clear_timers(struct job *job);

/* What is being done to the disk. */
static inline const char *job_doing(const struct job *job)
{
	return job->options.kind == JOB_COPY ? "copied" : "moved";
}

/* The job stops copying, or goes on. */
void job_pause(struct job *job, bool paused);

/* What the options ask of the mirror. */
void job_set_limits(const struct job *job);

/*
 * Begins a job. call is answered when it runs, or with why it does not: then nothing was changed.
 * options' strings are taken over.
 */
void job_begin(struct disk *disk, struct job_options *options, struct bm_rpc_call *call);

void job_event(struct job *job, enum job_event event);

/* Clients that want to know are told of it as it is now. */
void job_tell(struct job *job);

/* cut.c: in sync; the cut was made. */
enum job_phase job_ask_cut(struct job *job);
void job_cut_made(struct job *job);

/* Stops the job with that error, cleanly, as soon as may be. */
void job_stop(struct job *job, enum bm_code code, const char *text);

/* job.c: a job of that number, not begun. NULL: no memory. options' strings are taken over. */
struct job *job_new(struct disk *disk, const struct job_options *options, unsigned number);
void job_free(struct job *job);

/* recover.c: at start, goes on with the job that the record speaks of. Blocks. */
int job_recover(struct disk *disk, struct bm_error *error);

/*
 * checkpoint.c. go_on: the mirror has changes. load: at the start, what it says, to be freed.
 * is_void: whether a mark says that nobody may believe what was found; blocks, in a worker. park:
 * this process ends; what the next one needs is made durable, then the loop is stopped. end: it is
 * not written to any more.
 */
uint64_t checkpoint_interval(void); /* ns; 0: the default */
void checkpoint_init(struct job *job);
void checkpoint_go_on(struct job *job);
uint8_t *checkpoint_load(struct job *job);
bool checkpoint_is_void(const struct job *job);
void checkpoint_disbelieve(struct job *job);
void checkpoint_park(struct job *job);
bool checkpoint_busy(const struct job *job);
bool checkpoint_hangs(const struct job *job); /* ... and may be for long */
void checkpoint_end(struct job *job);

/* The disk goes away. */
void job_forget(struct disk *disk);

static inline bool job_runs(const struct job *job)
{
	return job && job->phase != PHASE_ENDED;
}

/* The one that runs, or that was the last one since this process began; NULL: there was none. */
static inline struct job *job_of(const struct disk *disk)
{
	return disk->job && !disk->job->refused ? disk->job : NULL;
}

bool job_in_sync(const struct job *job);

/* In sync, and it comes no further by itself: hooks had something against the switch. */
bool job_is_held(const struct job *job);

/* All is copied but what cannot be read of the source: that is as far as it comes by itself. */
bool job_rest_copied(const struct job *job);

/* The image that has authority when a switch that is asked for now comes to that. */
static inline const char *job_uri(const struct job *job, enum outcome outcome)
{
	return job->switched == (outcome == FORWARD) ? job->source : job->target.uri;
}

uint64_t job_realtime(void); /* ns of CLOCK_REALTIME */

/* Begins a step of steps.c in workers. */
void job_run(struct job *job, struct bm_workers *workers, struct bm_work *work);

/* Sets down what a step will write into a record: the disk is on uri, with the next generation. */
void job_take_snapshot(struct job *job, const char *state, const char *uri);
bool job_has_window(const struct job *job);

/* What the step wrote is what the disk's record is. */
void job_believe_record(struct job *job);

/* Answers who waits for what the job has reached. */
void job_tell_waiters(struct job *job);

/* job.c: the mirror lets the other side go. */
enum job_phase job_detach(struct job *job);

/* switch.c: actions, each returns the phase that is next; then what belongs to a job of it. */
enum job_phase job_ask_switch(struct job *job);
enum job_phase job_ask_undo(struct job *job);
enum job_phase job_switch_failed(struct job *job);
enum job_phase job_passed(struct job *job);
enum job_phase job_open_window(struct job *job);
enum job_phase job_marked(struct job *job);
enum job_phase job_release(struct job *job);
enum job_phase job_window_lost(struct job *job);
void switch_init_job(struct job *job);
void switch_clear_timers(struct job *job);

/* report.c */
json_t *report_loss(uint64_t loss); /* "wait", "pause", or ns */
json_t *report_job(const struct job *job);
json_t *report_disk(struct disk *disk);
/* What the record keeps of a job. */
json_t *report_record(const struct job *job, const char *state);
const char *report_phase(const struct job *job);
/* The job that the record speaks of, which has ended. */
json_t *report_past(const struct disk *disk);

/* The same of any that has, as a record has it. */
json_t *report_ended(const struct disk *d, const json_t *job);

/*
 * request.c. open: at the start; blocks. ended: the record has another job now. job, past: what
 * came of a request, the latter to be released; NULL: nothing. answer: whether call was answered,
 * since its request is known, or no good.
 */
void request_open(struct disk *disk);
void request_ended(struct disk *disk, json_t *job);
struct job *request_job(const struct disk *disk, const char *id);
json_t *request_past(const struct disk *disk, const char *id);
bool request_answer(struct disk *disk, struct bm_rpc_call *call, const json_t *params);

/*
 * hooks.c. agree: whether the step may be done now; false: they are asked first, and then event
 * comes again, or the job says why not (held). asked: about what just now, or NULL. tell: it was
 * done. stop_asking: nobody wants the step any more. forget: the job is about to go.
 */
bool hooks_agree(struct job *job, enum hook_step step, enum job_event event);
const char *hooks_asked(const struct job *job);
void hooks_tell(struct job *job, enum hook_step step);
void hooks_stop_asking(struct job *job);
void hooks_forget(struct job *job);

/* "forward" or "back": of which the name of a prepared record is made. */
const char *job_outcome_name(enum outcome outcome);

/* steps.c: run in workers; they read job->snapshot and write job->step_error. */
void step_prepare(struct bm_work *work);
void step_drop(struct bm_work *work); /* the same work as step_prepare() */
void step_start(struct bm_work *work);
void step_records(struct bm_work *work);
void step_commit(struct bm_work *work);
void step_keep(struct bm_work *work);
void step_marks(struct bm_work *work);
void step_finish(struct bm_work *work);
void step_reopen(struct bm_work *work);

#endif
