/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The steps by which a disk is slipped under a running QEMU, and taken out again. Each changes one
 * thing; docs/slip.md has for each what a death leaves, and who finds it.
 *
 *	adopt                                          the guest is on   the image's locks
 *	1  the plan is written, durably                file, by QEMU     QEMU
 *	2  a container gets room to grow               .                 QEMU
 *	3  the disk's process starts, beside QEMU      .                 QEMU, process
 *	4  blockdev-add: QEMU connects to it           .                 QEMU, process
 *	5  exchange: drain, change, go on              our disk          process
 *	6  blockdev-del: QEMU closes the image         .                 process
 *	7  claim: nobody else has it                   .                 process, alone
 *
 *	hand back
 *	1  no job runs; blockdev-add: QEMU opens it    our disk          process
 *	2  let-go                                      .                 nobody
 *	3  exchange: drain, change, go on              file, by QEMU     QEMU
 *	4  blockdev-del: QEMU disconnects              .                 QEMU
 *	5  the process ends                            .                 QEMU
 *	6  mark, record, sockets, plan are removed     .                 QEMU
 *
 * bm_drive_exchange() is the one step that moves the guest, and QEMU does it whole or not at all:
 *it waits for all requests below to end, flushes, exchanges the child, and only then lets the next
 * request go. So nothing is in flight on the old side when the new one gets its first request, and
 * whoever writes, there is one who does.
 */
#include "blockmirror/cli/slip.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/record.h"
#include "blockmirror/base/uri.h"

enum {
	NODE_NAME = 31, /* QEMU's longest */
	CLIENTS_MS = 5000,
	STEP_MS = 50,
	RECONNECT = 86400, /* s that QEMU's requests wait for the process: a stall, not an error */
	TIMES = 3, /* a process that died while it was let go of has taken the locks again */
};

/* Steps that are their own end in QEMU, and may have been done before. */
static void remove_node(struct slip *s, const char *node)
{
	struct bm_error ignored;

	slip_qmp_remove(s, node, &ignored);
}

static void say(const struct bm_error *error)
{
	fprintf(stderr, "blockmirror: %s: %s\n", bm_code_name(error->code), error->text);
}

/* The node by which QEMU tries whether it can open a target. */
static void probe_node(const struct slip *s, char node[NODE_NAME + 1])
{
	snprintf(node, NODE_NAME + 1, "bp-%.28s", s->name);
}

/* A node that had no name of its own gets one. */
static void file_node(const struct slip *s, char node[NODE_NAME + 1])
{
	const char *before = slip_text(s, "file_node");

	if (*before == '#')
		snprintf(node, NODE_NAME + 1, "bf-%.28s", s->name);
	else
		snprintf(node, NODE_NAME + 1, "%s", before);
}

static int add_file(struct slip *s, const char *node, const char *path, bool probe,
		    struct bm_error *error)
{
	json_t *options = json_copy(json_object_get(s->plan, "add"));
	struct stat st;

	/* The image may have moved from a file to a block device, or back. */
	if (!stat(path, &st))
		json_object_set_new(options, "driver",
				    json_string(S_ISBLK(st.st_mode) ? "host_device" : "file"));
	json_object_set_new(options, "node-name", json_string(node));
	json_object_set_new(options, "filename", json_string(path));
	if (probe)
		json_object_set_new(options, "auto-read-only", json_false());
	return bm_qmp_call(s->qmp, "blockdev-add", options, NULL, error);
}

/* QEMU may have got what it has open from somebody who could more, or have given up rights since.
 */
static int try_open(struct slip *s, const char *path, struct bm_error *error)
{
	char node[NODE_NAME + 1];
	struct bm_error lost;
	int r;

	probe_node(s, node);
	remove_node(s, node);
	r = add_file(s, node, path, true, error);
	/* The connection: once more, by another one. */
	if (r < 0 && bm_qmp_ended(s->qmp) && !slip_qmp_again(s, &lost)) {
		remove_node(s, node);
		r = add_file(s, node, path, true, error);
	}
	if (!r)
		r = slip_qmp_remove(s, node, error);
	return r;
}

/* Adopting */

/* Only ever longer: to be cut by it QEMU would have to write all of the disk between both calls. */
static int make_room(const struct bm_drive *drive, struct bm_error *error)
{
	uint64_t room = bm_drive_room(drive);
	struct stat st;

	if (!room || stat(drive->path, &st) < 0 || !S_ISREG(st.st_mode) ||
	    (uint64_t)st.st_size >= room)
		return 0;
	if (truncate(drive->path, (off_t)room) < 0)
		return bm_fail_errno(error, errno, "%s: cannot give it room to grow", drive->path);
	return 0;
}

static json_t *make_plan(const char *name, const char *qmp, const char *drive_name,
			 const struct bm_drive *d, bool whole)
{
	char node[NODE_NAME + 1];

	snprintf(node, sizeof(node), "bm-%.28s", name);
	return json_pack("{s:i s:s s:s s:s s:s s:s s:s s:s s:s* s:b s:O s:O}", "format", 1, "name",
			 name, "qmp", qmp, "drive", drive_name, "node", d->format, "file_node",
			 d->file, "nbd_node", node, "path", d->path, "backing", d->backing, "whole",
			 (int)whole, "reopen", d->reopen, "add", d->add);
}

static int add_nbd(struct slip *s, struct bm_error *error)
{
	json_t *disk = NULL;
	bm_free char *path = NULL;
	int r = bm_client_call(s->disk, "show", NULL, &disk, error);

	if (!r) {
		path = bm_uri_socket(cli_text(disk, "nbd"));
		r = bm_qmp_call(
			s->qmp, "blockdev-add",
			json_pack("{s:s s:s s:{s:s s:s*} s:s s:i s:s s:O}", "driver", "nbd",
				  "node-name", slip_text(s, "nbd_node"), "server", "type", "unix",
				  "path", path, "export", s->name, "reconnect-delay", RECONNECT,
				  "discard", "unmap", "cache",
				  json_object_get(json_object_get(s->plan, "add"), "cache")),
			NULL, error);
	}
	json_decref(disk);
	return r;
}

/*
 * QEMU flushes a node that it closes:
 *
 *	The guest is on its file again. The disk's process dies. blockdev-del flushes the NBD node,
 *	which waits for the process to come back: QEMU's main loop, and its guest, for a day.
 *
 * So there is a process until the node is gone, though nothing is written through it any more.
 */
static int disconnect(struct slip *s, struct bm_error *error)
{
	const char *node = slip_text(s, "nbd_node");
	struct bm_error ignored;
	int r = s->qmp ? bm_drive_has_node(s->qmp, node, error) : 0;

	if (r <= 0)
		return r;
	if (slip_disk_ensure_beside(s, &ignored) < 0)
		say(&ignored);
	bm_qmp_set_guard(s->qmp, slip_disk_guard_beside, s);
	r = slip_qmp_remove(s, node, error);
	if (s->qmp)
		bm_qmp_set_guard(s->qmp, NULL, NULL);
	return r;
}

/*
 * The guest is in QEMU: nothing of ours stays. When QEMU cannot be asked, or the process does not
 * end, the plan does: who comes next begins here.
 */
static int undo(struct slip *s, struct bm_error *error)
{
	char probe[NODE_NAME + 1];
	int r = slip_qmp_again(s, error);

	if (!r) {
		probe_node(s, probe);
		r = slip_qmp_remove(s, probe, error);
	}
	if (!r)
		r = disconnect(s, error);
	if (!r || r == -ENOENT)
		r = slip_disk_stop(s, error);
	if (!r)
		slip_forget(s);
	return r;
}

/* What is left is nothing that the guest misses. */
static void undo_or_say(struct slip *s)
{
	struct bm_error error;

	if (undo(s, &error) < 0) {
		say(&error);
		fprintf(stderr,
			"blockmirror: something is left of disk %s, on which no guest is; "
			"'blockmirror hand-back %s' removes it\n",
			s->name, s->name);
	}
}

/* From when on the guest is on our disk. */
static int make_ours(struct slip *s, struct bm_error *error)
{
	remove_node(s, slip_text(s, "file_node"));
	return bm_client_call(s->disk, "claim", NULL, NULL, error);
}

int slip_adopt(struct slip *s, const char *qmp, const char *drive_name,
	       const struct bm_drive *drive, struct bm_error *error)
{
	bm_free char *name = s->name ? strdup(s->name) : slip_new_name(drive_name), *path = NULL;
	struct bm_error back;
	int r = 0;

	s->plan = name ? make_plan(name, qmp, drive_name, drive, s->whole) : NULL;
	if (!s->plan)
		return bm_fail_errno(error, ENOMEM, "%s", drive_name);
	r = slip_plan_write(s, error);
	if (r < 0)
		return r;
	r = make_room(drive, error);
	if (!r)
		r = slip_disk_start(s, drive->path, true, error);
	if (!r)
		r = try_open(s, drive->path, error); /* it must be able to have it back */
	if (!r)
		r = add_nbd(s, error);
	if (!r)
		r = slip_qmp_exchange(s, slip_text(s, "nbd_node"), true, error);
	if (r < 0) {
		if (!s->doubt)
			undo_or_say(s);
		return r;
	}
	r = make_ours(s, error);
	if (r < 0 && slip_hand_back(s, &path, &back) < 0)
		say(&back);
	return r;
}

/* Handing back */

/* Where the disk is, a path, if nothing is under way. */
static int ask_path(struct slip *s, char **path, struct bm_error *error)
{
	json_t *disk = NULL, *job;
	const char *uri, *state;
	int r = bm_client_call(s->disk, "show", NULL, &disk, error);

	if (r < 0)
		return r;
	uri = cli_text(disk, "uri");
	job = json_object_get(disk, "job");
	state = cli_text(job, "state");
	if (!strcmp(state, "running") || !strcmp(state, "paused"))
		r = bm_fail(error, BM_E_BUSY,
			    "disk %s is being moved (job %s): wait for it, or cancel it", s->name,
			    cli_text(job, "id"));
	else if (!bm_uri_path(uri))
		r = bm_fail(error, BM_E_UNSUPPORTED,
			    "disk %s is on %s: QEMU gets files and block devices back; move it to "
			    "one first (blockmirror relocate %s PATH)",
			    s->name, uri, s->name);
	else if (!(*path = strdup(bm_uri_path(uri))))
		r = bm_fail_errno(error, ENOMEM, "%s", s->name);
	json_decref(disk);
	return r;
}

/* Steps 2 and 3. A process that died meanwhile, and came again, has locked the image anew. */
static int exchange(struct slip *s, const char *node, struct bm_error *error)
{
	int r = slip_disk_ensure(s, error);

	for (int i = 0; !r && i < TIMES; i++) {
		unsigned starts = s->starts;

		r = bm_client_call(s->disk, "let-go", NULL, NULL, error);
		if (!r)
			r = slip_qmp_exchange(s, node, false, error);
		if (!r || s->doubt || (!slip_disk_gone(s) && s->starts == starts))
			return r;
		r = slip_disk_ensure(s, error);
	}
	return r ? r
		 : bm_fail(error, BM_E_INTERRUPTED, "the process of disk %s dies again and again",
			   s->name);
}

int slip_hand_back(struct slip *s, char **path, struct bm_error *error)
{
	char node[NODE_NAME + 1];
	struct bm_error other;
	int r = slip_disk_ensure(s, error);

	file_node(s, node);
	if (!r)
		r = ask_path(s, path, error);
	if (r < 0)
		return r;
	remove_node(s, node); /* of one who came this far, and no further */
	r = add_file(s, node, *path, false, error);
	if (r < 0)
		return r;
	r = exchange(s, node, error);
	if (r < 0 && !s->doubt) {
		/* Its locks, which it has let go. */
		if (slip_disk_ensure(s, &other) < 0 ||
		    bm_client_call(s->disk, "claim", NULL, NULL, &other) < 0)
			say(&other);
		remove_node(s, node);
	}
	if (r < 0)
		return r;
	undo_or_say(s); /* steps 4 to 6 are the same for one who never came to have it */
	return 0;
}

/* What another one left */

/* Where the disk's record says that it is, or, before there was one, where it was found. */
static char *image_path(const struct slip *s)
{
	bm_record_auto struct bm_record record = {0};
	const char *path;

	if (bm_record_read(s->folder, &record, NULL) < 0)
		return strdup(slip_text(s, "path"));
	path = bm_uri_path(record.uri);
	return path ? strdup(path) : NULL;
}

static int find_guest(struct slip *s, struct bm_child *child, struct bm_error *error)
{
	int r = s->qmp ? bm_drive_child(s->qmp, slip_text(s, "node"), child, error) : -ENOENT;

	if (r == -ENOENT)
		return SLIP_NOWHERE;
	if (r < 0)
		return r;
	return strcmp(child->name, slip_text(s, "nbd_node")) ? SLIP_IN_QEMU : SLIP_ON_DISK;
}

static size_t clients(struct slip *s)
{
	json_t *disk = NULL;
	size_t n = 0;

	if (!bm_client_call(s->disk, "show", NULL, &disk, NULL))
		n = json_array_size(json_object_get(disk, "clients"));
	json_decref(disk);
	return n;
}

/*
 * The machine is gone, or its disk is: what is begun has no sense any more. Unless somebody is
 * connected still, and it is the socket alone that is gone.
 */
static int give_up(struct slip *s, struct bm_error *error)
{
	bm_client_close(s->disk);
	s->disk = NULL;
	if (cli_connect(s->cli, s->name, &s->disk, NULL) < 0)
		return 0;
	for (int waited = 0; clients(s); waited++) {
		if (waited > CLIENTS_MS / STEP_MS)
			return bm_fail(error, BM_E_BUSY,
				       "QEMU does not have disk %s, or does not listen at %s, and "
				       "yet it has clients",
				       s->name, slip_text(s, "qmp"));
		poll(NULL, 0, STEP_MS);
	}
	bm_client_call(s->disk, "job.cancel", NULL, NULL, NULL);
	return slip_disk_stop(s, error);
}

int slip_settle(struct slip *s, char **path, struct bm_error *error)
{
	struct bm_child child = {0};
	int place = find_guest(s, &child, error), r = place < 0 ? place : 0;

	if (place == SLIP_ON_DISK) {
		char node[NODE_NAME + 1];

		file_node(s, node);
		r = slip_disk_ensure(s, error);
		if (!r && strcmp(node, slip_text(s, "file_node")) != 0)
			remove_node(s, node);
		/* E_BUSY: it moves, so it was claimed. */
		if (!r && (r = make_ours(s, error)) == -EBUSY)
			r = 0;
	} else if (place == SLIP_NOWHERE) {
		/* A device that was unplugged has left its node, connected. */
		r = disconnect(s, error);
		if (!r)
			r = give_up(s, error);
	}
	if (!r && place != SLIP_ON_DISK) {
		*path = image_path(s);
		if (place == SLIP_IN_QEMU && *path && strcmp(child.path, *path) != 0)
			r = bm_fail(error, BM_E_RECORD,
				    "the record of disk %s says that it is on %s, and QEMU has %s "
				    "open: see which is right (blockmirror whois), then remove %s",
				    s->name, *path, child.path, s->folder);
	}
	if (!r && place != SLIP_ON_DISK)
		r = undo(s, error);
	bm_child_clear(&child);
	return r < 0 ? r : place;
}

int slip_probe(struct slip *s, const char *path, struct bm_error *error)
{
	struct stat from, to;

	if (!stat(slip_text(s, "path"), &from) && !stat(path, &to) && S_ISREG(from.st_mode) &&
	    S_ISREG(to.st_mode) &&
	    (chown(path, from.st_uid, from.st_gid) < 0 || chmod(path, from.st_mode & 07777) < 0) &&
	    !geteuid())
		return bm_fail_errno(error, errno, "%s: cannot be made QEMU's", path);
	return try_open(s, path, error);
}
