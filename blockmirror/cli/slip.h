/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A disk slipped under a running QEMU, and taken out again: the commands adopt, hand-back, and
 * relocate --qmp. The order of steps, and what a death leaves after each, is in docs/slip.md; the
 * numbers there are those in slip.c.
 *
 *   slip.c       the steps
 *   slip_plan.c  the plan, a small file beside the disk's record, from before the first step on
 *                until after the last
 *   slip_disk.c  the disk's process
 *   slip_qmp.c   QEMU, also after the connection was lost
 *   slip_cmd.c   the commands
 *
 * QEMU's own graph says where its guest is: nothing here remembers that. The plan only says what
 * the graph cannot: which disk of ours has to do with which node, and how that was made.
 */
#ifndef BM_CLI_SLIP_H
#define BM_CLI_SLIP_H

#include <sys/types.h>

#include "blockmirror/cli/cli.h"
#include "blockmirror/machine/drive.h"
#include "blockmirror/machine/qmp.h"

/* Where the guest is. */
enum slip_place {
	SLIP_NOWHERE, /* QEMU has ended, or has no such node */
	SLIP_IN_QEMU, /* on a file of QEMU's own */
	SLIP_ON_DISK, /* on ours */
};

struct slip {
	const struct cli *cli;
	struct bm_qmp *qmp; /* NULL: QEMU has ended. It may be lost: slip_qmp_again() */
	char *name;         /* of the disk; NULL: there is no plan */
	char *folder;       /* STATE/disks/NAME */
	int lock;           /* of the plan: one command at a time; 0: none */
	json_t *plan;
	struct bm_client *disk; /* NULL: its process is not there, or not known */
	pid_t pid;              /* of the process, if it is our child; 0 */
	unsigned starts;        /* of the process, by us */
	bool doubt;             /* QEMU did not say whether it has moved the guest */
	bool whole;             /* it is handed back when it has moved: relocate --qmp */
};

/* slip.c */

/*
 * Steps 1 to 8: drive, which was found and not refused, is served by us from then on. An error:
 * QEMU has its image as before, and nothing is left; or, s->doubt, it is not known, and settle()
 * finds out.
 */
int slip_adopt(struct slip *s, const char *qmp, const char *drive_name,
	       const struct bm_drive *drive, struct bm_error *error);

/*
 * The steps back: QEMU has the image that the disk is on, the process ends, nothing is left. An
 * error: the guest is on our disk as before, or it is not known.
 */
int slip_hand_back(struct slip *s, char **path, struct bm_error *error);

/*
 * What another command has begun, and not ended: looks where the guest is, and completes, or
 * undoes. After SLIP_ON_DISK the disk's process runs and has its image's locks; after the others
 * nothing is left of the plan, and *path is where the image is (malloc()ed; NULL: not known).
 * Returns a place or -errno.
 */
int slip_settle(struct slip *s, char **path, struct bm_error *error);

/* Whether QEMU can open path, to write; a file gets the owner and mode of the image first. */
int slip_probe(struct slip *s, const char *path, struct bm_error *error);

/* slip_qmp.c */

/*
 * Connects again if the connection was lost. 0: it is there. -ENOENT: QEMU has ended, and s->qmp is
 * NULL. Others: it is not known, since somebody else is connected.
 */
int slip_qmp_again(struct slip *s, struct bm_error *error);
/* blockdev-del; that there is no such node, or that it is in use, is no error. */
int slip_qmp_remove(struct slip *s, const char *node, struct bm_error *error);
/*
 * bm_drive_exchange() of the plan's drive. When the connection is lost meanwhile QEMU's graph says
 * what has become of it; s->doubt: it could not be asked. beside: as of slip_disk_ensure_beside().
 */
int slip_qmp_exchange(struct slip *s, const char *node, bool beside, struct bm_error *error);

/* slip_plan.c */
char *slip_new_name(const char *drive);
/* The plan of that name; or (name NULL) the one for that drive of that QEMU. -ENOENT: none. */
int slip_plan_find(struct slip *s, const char *name, const char *qmp, const char *drive,
		   struct bm_error *error);
int slip_plan_write(struct slip *s, struct bm_error *error);
/* The image's mark, the record, the plan, all in RUN. */
void slip_forget(struct slip *s);
const char *slip_text(const struct slip *s, const char *key);
/*
 * Plans that relocate --qmp has made, and not ended: each with "now", the path that its disk is on
 * ("": none).
 */
json_t *slip_plans(const struct cli *cli);

/* slip_disk.c */
int slip_disk_start(struct slip *s, const char *image, bool beside, struct bm_error *error);
/* Connects; starts it again when it is gone. */
int slip_disk_ensure(struct slip *s, struct bm_error *error);
/* The same where the guest is not on it, but QEMU still connected: QEMU has the image's locks. */
int slip_disk_ensure_beside(struct slip *s, struct bm_error *error);
bool slip_disk_gone(struct slip *s);
/* It shall end, and has. 0 also when there is none. */
int slip_disk_stop(struct slip *s, struct bm_error *error);
/* For bm_qmp_set_guard(): QEMU may be waiting for a process that has died. */
void slip_disk_guard(void *slip);
void slip_disk_guard_beside(void *slip);

void slip_close(struct slip *s);

#endif
