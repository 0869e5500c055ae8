/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Program blockmirror-move: the move of one machine, on one of the two hosts (docs/machine.md).
 * Shared by its files. It is not in any disk's data path, so it may block: one thread goes through
 * the protocol, step by step, one more carries the machine's memory (ram/relay_thread.h), and the
 * loop answers who asks how far it is.
 *
 *   move_main.c    arguments, the control socket
 *   move.c         the plan, the log, what is told of it
 *   move_source.c  the host that the machine comes from: the order of things
 *   move_end.c     there: how it ends, or is taken back; a process that follows one that has died
 *   move_disks.c   there: the machine's disks
 *   move_shared.c  those on storage that both hosts reach
 *   move_target.c  the host that it goes to
 *   move_alone.c   there: when the other host does not answer any more
 *   move_door.c    there: how the other host comes in
 *   move_memory.c  there: the machine's memory, until the other host has it, or the policy gives up
 *   move_incoming.c  on the other host: where that comes in
 *   move_vm.c      the VMM, by QMP
 *   move_hook.c    hooks: what the host does of it
 *   move_announce.c  what is sent for machines whose VMM does not (move_announce.h)
 *   move_media*.c  images that are no disks of ours (move_media.h)
 *   move_tpm.c     a machine's TPM (move_tpm.h)
 *   move_fence.c   a move in doubt, and who may end that
 *   preflight*.c   whether it can move at all (preflight.h)
 */
#ifndef BM_MACHINE_MOVE_H
#define BM_MACHINE_MOVE_H

#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "blockmirror/base/move_log.h"
#include "blockmirror/client.h"
#include "blockmirror/machine/qmp.h"
#include "blockmirror/ram/relay_thread.h"

enum { MOVE_DISKS = 16, MOVE_CACHE = 128 << 20 /* bytes of pages that both hosts keep */ };

/* It is not known where the machine runs, or may run. */
struct doubt {
	atomic_bool is, dead;        /* dead: a person says that the other host is, for good */
	bool fenced;                 /* it is known to be dead */
	uint64_t since, told, asked; /* ns; asked: hook fence */
};

struct move {
	const char *folder, *run, *state; /* STATE/moves/ID, RUN, STATE */
	json_t *plan;
	const char *id, *machine, *peer, *hooks; /* the plan's */
	uint64_t hook_limit;                     /* ns that each hook may take */
	int door;                                /* listens for the other host; -1: none */
	struct bm_move_log log;
	atomic_bool cancelled;
	struct doubt doubt;
	pthread_mutex_t lock; /* of what follows */
	json_t *report;       /* as show tells it, and the daemon afterwards */
};

/* move.c: all block. */
int move_read(struct move *m, struct bm_error *error);
void move_clear(struct move *m);
/* What is told: phase, and anything else. Takes value over. Any thread. */
void move_tell(struct move *m, const char *key, json_t *value);
void move_phase(struct move *m, const char *phase);
/* The plan, with what was found out since. */
int move_save(struct move *m, struct bm_error *error);
/* Until it is durable, however long that takes. */
void move_must_log(struct move *m, enum bm_move_state state);
/* This host's daemon, and a disk. params is taken over. */
int move_ask_daemon(struct move *m, const char *method, json_t *params, json_t **result,
		    struct bm_error *error);
int move_ask_disk(struct move *m, const char *disk, const char *method, json_t *params,
		  json_t **result, struct bm_error *error);
int move_open_disk(struct move *m, const char *disk, struct bm_client **client,
		   struct bm_error *error);
/* It has no process, since the other host has it. */
bool move_disk_is_retired(struct move *m, const char *disk);
/* The daemon knows what has come of it, and the folder is gone. */
void move_forget(struct move *m, json_t *params);
uint64_t move_now(void); /* ns, monotonic */
void move_sleep(uint64_t ns);
/* BM_E_CANCELLED: somebody said so. */
int move_may_go_on(struct move *m, struct bm_error *error);
/*
 * A step has come. For tests: when the file that $BLOCKMIRROR_MOVE_STEP names says "SIDE-STEP die",
 * or "stop", that is done, once.
 */
void move_step(struct move *m, const char *step);

/*
 * move_fence.c. tell: in doubt since the first one, and what about; the log has it from time to
 * time. peer_is_dead: asks the hook, too. for_good: a person said so: nobody need tell it anything.
 * verdict: it is dead, and that does not help. recover: any thread; told is what is known.
 */
void doubt_tell(struct move *m, const char *format, ...) __attribute__((format(printf, 2, 3)));
void doubt_end(struct move *m);
bool doubt_peer_is_dead(struct move *m);
bool doubt_for_good(struct move *m);
void doubt_verdict(struct move *m, const struct bm_error *why);
/* false: the other host's daemon says that it knows of no such move (any more). */
bool doubt_known_there(struct move *m);
int doubt_recover(struct move *m, bool dead, json_t **told, struct bm_error *error);

/* What the target's standbys have got; and that this is what they had when the plan's "seen" was.
 */
json_t *standbys_seen(struct move *m, const json_t *disks);
int standbys_untouched(struct move *m, struct bm_error *error);
/* move_shared.c: the same of one that the source has not copied, as it said in "fenced". */
int shared_untouched(struct move *m, const json_t *disk, struct bm_error *error);

/* The two sides: all there is to do. */
void move_source(struct move *m);
void move_target(struct move *m);

/* move_vm.c: a QEMU. */
struct vm {
	struct bm_qmp *qmp;             /* NULL: not connected */
	bool stopped;                   /* since it was told to migrate, it has stopped its guest */
	bool ended;                     /* the guest was shut down */
	uint64_t stopped_at;            /* by its own word; ns, on our clock, monotonic */
	char migration[24];             /* as the last event had it; "" */
	unsigned round;                 /* of its memory: how often it began anew; 0: it has not */
	json_int_t downtime, bandwidth; /* its parameters before they were changed; 0: not known */
	void (*on_stop)(void *arg);     /* called when it has stopped; NULL: nobody is */
	void *arg;
	uint64_t stopped_ns, resumed_ns; /* when it says it did; ns since 1970 */
};
int vm_connect(struct vm *vm, const char *path, struct bm_error *error);
void vm_close(struct vm *vm);
/* "running", "paused", "postmigrate" …, malloc()ed; NULL: it cannot be asked. */
char *vm_status(struct vm *vm, struct bm_error *error);
/* "none", "active", "completed" …, malloc()ed. info: all that is told of it, or NULL. */
char *vm_migration(struct vm *vm, json_t **info, struct bm_error *error);
int vm_capability(struct vm *vm, const char *name, bool on, struct bm_error *error);
int vm_call(struct vm *vm, const char *command, json_t *arguments, struct bm_error *error);
/*
 * It is to send its memory through a relay; throttle: and to slow its guest down where that takes
 * too long. restore: what was changed for that is as it was.
 */
int vm_set_up_sender(struct vm *vm, bool throttle, struct bm_error *error);
void vm_restore_sender(struct vm *vm);
/* NAMES of disks of ours that it has open, and move_media.h's; an error names what it has beside.
 */
int vm_find_disks(struct vm *vm, const char *run, json_t **disks, json_t **media,
		  struct bm_error *error);
/* Its command line, as a list; NULL: it cannot be found. */
json_t *vm_arguments(struct vm *vm);
/* How long ago it was that it said so; 0: that cannot be. */
uint64_t vm_ago(uint64_t at);
/* Whether anything gets out of its cards, or to them. The guest sees no change of one that it has
 * been told of. */
int vm_set_links(struct vm *vm, bool up, struct bm_error *error);
/* Switches learn where its guest is. Only where the guest is, and not before that is decided. */
void vm_announce(struct vm *vm);
/* Runs on, when it is stopped for a migration that came to nothing. */
void vm_go_on(struct vm *vm);

/* move_door.c */
struct visitor; /* one connection of the other host, which has proven to be that */
struct door;
int door_open(struct move *m, struct door **door, struct bm_error *error);
void door_close(struct door *door);
/* NULL: nobody came, or not who should. Waits for ms. */
struct visitor *door_wait(struct door *door, int ms);
void visitor_leave(struct visitor *v); /* NULL is allowed */
int visitor_socket(const struct visitor *v);
int door_socket(const struct door *d);
bool visitor_waits(const struct visitor *v); /* something of it was read already */
/* It goes on as connections of a relay do. The visitor is gone, whatever comes of it. */
int visitor_become_transport(struct visitor *v, struct bm_transport *transport);
/* A call: its method, params and id. 0: none within ms; 1; -errno: it is gone. */
int visitor_call(struct visitor *v, int ms, json_t **call);
int visitor_reply(struct visitor *v, const json_t *call, json_t *result);
int visitor_fail(struct visitor *v, const json_t *call, const struct bm_error *error);
int visitor_alive(struct visitor *v); /* tells that it is being worked on */

/*
 * move_incoming.c: the target's end of the memory's way (ram/relay.h). The source's connections
 * come one by one, and are of one stream; when the last one is there it goes on to the VMM.
 */
struct incoming {
	char stream[33]; /* its name; "": none has come */
	unsigned links;  /* how many there will be */
	uint32_t here;   /* bits: which of them are */
	struct bm_transport link[BM_RAM_LINKS];
	struct bm_relay *relay; /* NULL: does not run */
};
/* A visitor who has called "ram", and is answered; gone afterwards. path: where the VMM waits. */
void incoming_link(struct incoming *in, struct visitor *v, const json_t *call, const char *path);
uint64_t incoming_bytes(const struct incoming *in);
/* Whether it was the VMM here that would not have it. */
bool incoming_refused(const struct incoming *in);
/* What has come of it comes to nothing, or was all. Twice is once. */
void incoming_end(struct incoming *in);

/*
 * move_hook.c: runs HOOKS/NAME with a file of that JSON; what it prints is JSON, too. -ENOENT:
 * there is no such hook. params is taken over.
 */
int move_hook(struct move *m, const char *name, json_t *params, json_t **result,
	      struct bm_error *error);

#endif
