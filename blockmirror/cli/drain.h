/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Emptying a datastore, which is a folder with images. All that is known of it is there: what has
 * moved is not found any more, so a drain that was cut off is begun again and goes on. One thread;
 * all of it blocks.
 *
 *   drain_scan.c    what lies there, and what keeps it there
 *   drain_inside.c  what a file holds
 *   drain_who.c     who has it open
 *   drain_check.c   what else is to be said against moving it
 *   drain_qemu.c    images of running QEMUs that we know
 *   drain_plan.c    where each image goes, and when (drain_plan.h)
 *   drain_run.c     they move
 *   drain_move.c    one of them does
 *   drain_tell.c    the plan, what happens, the summary
 *   drain_bar.c     how far all of it is, on a terminal
 */
#ifndef BM_CLI_DRAIN_H
#define BM_CLI_DRAIN_H

#include <jansson.h>
#include <stdio.h>
#include <sys/types.h>

#include "blockmirror/base/file_util.h"
#include "blockmirror/cli/drain_plan.h"
#include "blockmirror/client.h"

struct cli;

struct drain_store {
	char *path; /* absolute, without links */
	dev_t dev;
	uint64_t reserve; /* bytes that stay free */
};

struct drain_image {
	char *path;       /* without links */
	const char *name; /* the part of it that is below the datastore */
	char *disk, *uri; /* of one that we serve; NULL: nobody uses it */
	char *qmp, *drive; /* of one that a running QEMU has; NULL: none has */
	char *slipped;     /* the disk of ours that it is meanwhile, when that is known */
	char *backing;     /* what it shows through to; NULL: nothing */
	bool flattens;     /* it is copied with what shows through to it */
	unsigned snapshots; /* inside it */
	pid_t owner;        /* the process that has it rightly open; 0: none */
	char note[120];     /* what else there is to know of it; "" */
	bool container;   /* qcow2 */
	dev_t dev;        /* these two are the file */
	ino_t ino;
	uint64_t size, need; /* bytes: of the file, and that it takes */
	struct bm_error why; /* it stays: from the beginning, or after all */
	bool moved;
	/* while it moves: */
	struct bm_client *client;
	char *target, *part; /* where it comes to; of one that nobody uses, what it is until then */
	int number;          /* of the job */
	pid_t runner;        /* of one that a QEMU has: our process that moves it; 0 */
	int words;           /* ... that it writes to */
	bool full;           /* ... is taken back, since its target has become full */
	uint64_t lost;       /* since when nobody answers; 0: somebody does */
	json_t *job;         /* as it was last; NULL */
	struct bm_stamp stamp; /* of the file, when that began */
};

struct drain {
	const struct cli *cli;
	struct drain_store from, *to;
	struct drain_image *image;
	size_t n;
	struct plan plan; /* items are the images, stores are to */
	/* As was asked for: */
	json_t *include;  /* patterns of names: these are raw images, whatever they look like */
	json_t *map;      /* {name: folder} */
	uint64_t reserve; /* bytes; UINT64_MAX: a twentieth */
	uint64_t rate;    /* bytes/s of all together; 0: any */
	json_t *latency;  /* as a job has it; NULL: not given */
	int begin, end;   /* minutes of the day between which images begin to move; -1: any time */
	bool delete_source, dry_run, flatten;
	json_t *deny;     /* kinds of file systems that nothing goes to; NULL: the usual ones */
	json_t *machines; /* drain_qemu.c's */
	json_t *plans;    /* of disks that are slipped under a QEMU for their move */
	/* drain_tell.c's: */
	uint64_t started;
	unsigned line; /* lines of the progress that are there */
};

/* drain_scan.c: all that lies in d->from, sorted by name; why is set in what stays. */
int drain_scan(struct drain *d, const json_t *disks, struct bm_error *error);
void drain_forget(struct drain *d);
/* Whether anything but empty folders is there. */
bool drain_is_empty(const struct drain *d);

/*
 * drain_inside.c: looks at the file that image is: sets container, backing, snapshots and, if it is
 * none that moves, why. chain: the bytes that path takes, and all that shows through it.
 */
void drain_look_inside(const struct drain *d, struct drain_image *image, int fd);
uint64_t drain_chain_bytes(const char *path);

/*
 * drain_who.c: look sets why when a process or the kernel has it open, but for its owner and what
 * that has started; of one with an owner only who may write counts. opened() looks at all processes
 * once.
 */
struct drain_opened;
struct drain_opened *drain_opened(void);
void drain_opened_free(struct drain_opened *opened);
void drain_look_who(const struct drain *d, const struct drain_opened *opened,
		    struct drain_image *image, int fd);

/*
 * drain_check.c: stores: what is wrong with one at all. image: sets why, or note; pairs: where a
 * store does not do for an image, the plan gets one that does, or why is set.
 */
int drain_check_stores(const struct drain *d, struct bm_error *error);
void drain_check_image(const struct drain *d, struct drain_image *image, const json_t *disk);
void drain_check_pairs(struct drain *d);

/*
 * drain_qemu.c: ask: all machines that blockmirrord knows, once, before a scan. find: whether one
 * has that file, or a move of it was begun; then the image is that drive's, or why is set. left:
 * what has moved, and QEMU has not got back. deaf: machines that could not be asked, or NULL.
 */
void drain_qemu_ask(struct drain *d);
bool drain_qemu_find(struct drain *d, struct drain_image *image);
void drain_qemu_left(struct drain *d, struct drain_image *(*add)(struct drain *, const char *));
const char *drain_qemu_deaf(const struct drain *d);
int drain_qemu_begin(struct drain *d, struct drain_image *image, json_t *params);
/* As drain_move_look(). */
bool drain_qemu_look(struct drain *d, size_t which);

/* drain_run.c: returns an exit code. */
int drain_run(struct drain *d);
/* What is free on the stores now, less what they keep, and less promised bytes. Blocks. */
int drain_measure(struct drain *d, struct bm_error *error);

/*
 * drain_move.c: begin: 0, or why is set. look: true while it moves; then it has moved, or why is
 * set. rate: it may take so many bytes a second from now on. leave: we end; what is served moves
 * on.
 */
int drain_move_begin(struct drain *d, size_t which);
bool drain_move_look(struct drain *d, size_t which);
void drain_move_rate(struct drain_image *image, uint64_t rate);
void drain_move_leave(struct drain_image *image);

/* drain_tell.c; now: monotonic, ns */
uint64_t tell_now(void);
void tell_plan(const struct drain *d);
void tell_begun(struct drain *d, const struct drain_image *image);
void tell_over(struct drain *d, const struct drain_image *image);
void tell_interrupted(struct drain *d);
int tell_summary(struct drain *d); /* an exit code */

/* drain_bar.c; clear: before anything else is printed */
void tell_progress(struct drain *d);
void tell_clear(struct drain *d);

#endif
