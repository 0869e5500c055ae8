/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Emptying a datastore, which is a folder with images. All that is known of it is there: what has
 * moved is not found any more, so a drain that was cut off is begun again and goes on. One thread;
 * all of it blocks.
 *
 *   drain_scan.c    what lies there, and what keeps it there
 *   drain_inside.c  what a file holds, and who has it open
 *   drain_plan.c    where each image goes, and when (drain_plan.h)
 *   drain_run.c     they move
 *   drain_move.c    one of them does
 *   drain_tell.c    the plan, what happens, the summary
 */
#ifndef BM_CLI_DRAIN_H
#define BM_CLI_DRAIN_H

#include <jansson.h>
#include <stdio.h>
#include <sys/types.h>

#include "blockmirror/base/day_window.h"
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
	char *backing;    /* what it shows through to; NULL: nothing */
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
	struct bm_day_window window; /* in which images begin to move */
	bool delete_source, dry_run;
	/* drain_tell.c's: */
	uint64_t started;
	bool line; /* of the progress is there */
};

/* drain_scan.c: all that lies in d->from, sorted by name; why is set in what stays. */
int drain_scan(struct drain *d, const json_t *disks, struct bm_error *error);
void drain_forget(struct drain *d);
/* Whether anything but empty folders is there. */
bool drain_is_empty(const struct drain *d);

/*
 * drain_inside.c: looks at the file that image is: sets container, backing and, if it is none that
 * moves, why. opened: sets why when a process or the kernel has it open; list comes of
 * drain_opened(), which looks at all processes once.
 */
void drain_look_inside(const struct drain *d, struct drain_image *image, int fd);
struct drain_opened;
struct drain_opened *drain_opened(void);
void drain_opened_free(struct drain_opened *opened);
void drain_look_who(const struct drain_opened *opened, struct drain_image *image, int fd);

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
void tell_progress(struct drain *d);
void tell_interrupted(struct drain *d);
int tell_summary(struct drain *d); /* an exit code */

#endif
