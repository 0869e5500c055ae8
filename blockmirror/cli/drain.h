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
 *   drain_store.c   the stores: their limits, the room there is
 *   drain_plan.c    where each image goes, and when (drain_plan.h)
 *   drain_run.c     they move
 *   drain_move.c    one of them does
 *   drain_remote.c  to another host, when nobody uses it
 *   drain_options.c what both commands are asked for
 *   drain_tell.c    the plan, what happens, the summary
 *   balance.c       several datastores are made equally full (balance_plan.h)
 *   drain_bar.c     how far all of it is, on a terminal
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
	char *path;                /* absolute, without links; or bm://HOST/FOLDER */
	char *host, *folder;       /* of another host; NULL: it is of this one */
	const json_t *entry;       /* what the configuration says of it; NULL */
	dev_t dev;                 /* 0 of another host's */
	uint64_t device;           /* there */
	uint64_t size, free, used; /* as last measured; free: to us */
	uint64_t reserve;          /* bytes that stay free */
};

struct drain_image {
	char *path;         /* without links */
	const char *name;   /* the part of it that is below the datastore */
	char *disk, *uri;   /* of one that we serve; NULL: nobody uses it */
	char *qmp, *drive;  /* of one that a running QEMU has; NULL: none has */
	char *slipped;      /* the disk of ours that it is meanwhile, when that is known */
	char *backing;      /* what it shows through to; NULL: nothing */
	bool flattens;      /* it is copied with what shows through to it */
	unsigned snapshots; /* inside it */
	pid_t owner;        /* the process that has it rightly open; 0: none */
	char note[120];     /* what else there is to know of it; "" */
	bool container;     /* qcow2 */
	dev_t dev;          /* these two are the file */
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
	struct bm_day_window window; /* in which images begin to move */
	bool delete_source, dry_run, flatten;
	bool balances;    /* it is no drain: images are of several stores, and from is none */
	json_t *deny;     /* kinds of file systems that nothing goes to; NULL: the usual ones */
	json_t *machines; /* drain_qemu.c's */
	json_t *plans;    /* of disks that are slipped under a QEMU for their move */
	/* drain_tell.c's: */
	uint64_t started;
	unsigned line; /* lines of the progress that are there */
	uint64_t told; /* when progress was told last, as an event */
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

/*
 * drain_store.c; all block. open: given is a name of the configuration's, a folder, or
 * bm://HOST/FOLDER. may_land: 0, or BM_E_MAINTENANCE. measure: what is free on the stores now, less
 * what they keep, and less promised bytes. set_stores: after the first measure, what of limits and
 * shared room the plan is to know. takes: whether such an image may go there at all.
 */
int drain_store_open(const struct cli *cli, struct drain_store *store, const char *given,
		     struct bm_error *error);
void drain_store_close(struct drain_store *store);
int drain_store_may_land(const struct cli *cli, const struct drain_store *store,
			 struct bm_error *error);
int drain_measure(struct drain *d, struct bm_error *error);
void drain_set_stores(struct drain *d);
bool drain_store_takes(const struct drain_image *image, const struct drain_store *store,
		       struct bm_error *error);

/*
 * drain_remote.c: make: the URI, malloc()ed, that an image of nobody is copied to; NULL, and its
 * why is set. keep: it is whole, and stays there. give_up: it goes again.
 */
char *drain_remote_make(const struct drain *d, struct drain_image *image,
			const struct drain_store *store);
int drain_remote_keep(const struct drain *d, struct drain_image *image,
		      const struct drain_store *store);
void drain_remote_give_up(const struct drain *d, const struct drain_image *image,
			  const struct drain_store *store);

/*
 * drain_options.c: begin: what the configuration says, where nothing else is asked for. take: one
 * of the options that both commands have: 0, an exit code, or -1: it is none of these.
 */
#define DRAIN_OPTIONS                                                      \
	{"dry-run", no_argument, NULL, DRAIN_DRY},                         \
		{"reserve", required_argument, NULL, DRAIN_RESERVE},       \
		{"parallel", required_argument, NULL, DRAIN_PARALLEL},     \
		{"rate", required_argument, NULL, DRAIN_RATE},             \
		{"guest-latency", required_argument, NULL, DRAIN_LATENCY}, \
		{"window", required_argument, NULL, DRAIN_WINDOW},         \
		{"include", required_argument, NULL, DRAIN_INCLUDE},       \
	{                                                                  \
		"deny", required_argument, NULL, DRAIN_DENY                \
	}
enum {
	DRAIN_DRY = 1000,
	DRAIN_RESERVE,
	DRAIN_PARALLEL,
	DRAIN_RATE,
	DRAIN_LATENCY,
	DRAIN_WINDOW,
	DRAIN_INCLUDE,
	DRAIN_DENY,
	DRAIN_MOST = 64 /* stores, and moves at a time */
};
void drain_begin(struct drain *d, const struct cli *cli);
int drain_take(struct drain *d, int option, const char *value);
int drain_take_text(const struct drain *d, json_t *list, const char *option, const char *value);
/* After a scan: the plan's items are the images. */
void drain_make_items(struct drain *d);
void drain_free(struct drain *d);

/*
 * drain_move.c: begin: 0, or why is set. look: true while it moves; then it has moved, or why is
 * set. rate: it may take so many bytes a second from now on. leave: we end; what is served moves
 * on.
 */
int drain_move_begin(struct drain *d, size_t which);
bool drain_move_look(struct drain *d, size_t which);
void drain_move_rate(struct drain_image *image, uint64_t rate);
void drain_move_leave(const struct drain *d, struct drain_image *image);

/* drain_tell.c; now: monotonic, ns */
uint64_t tell_now(void);
void tell_plan(const struct drain *d);
void tell_far(struct drain *d);
const char *tell_name(const struct drain *d, const struct drain_image *image);
void tell_begun(struct drain *d, const struct drain_image *image);
void tell_over(struct drain *d, const struct drain_image *image);
void tell_interrupted(struct drain *d);
int tell_summary(struct drain *d); /* an exit code */

/* drain_bar.c; clear: before anything else is printed */
void tell_progress(struct drain *d);
void tell_clear(struct drain *d);

#endif
