/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A served disk: the inside of program blockmirror-disk, shared by the files of this folder.
 *
 *   main.c      arguments, signals, the loop
 *   disk.c      the disk: its record, its image, the stack that serves it
 *   owner.c     marks on images, and whom they belong to
 *   target.c    targets: names, checks, creation, opening (in a worker)
 *   remote.c    those on other hosts
 *   storage.c   remote storage that is lost, and opened again
 *   gate.c      what a role lets a guest do
 *   slot.c      what the image stands in, so that it can be let go of
 *   standby.c   a disk that another host has, and its copy here
 *   shared.c    the same, of storage that both hosts reach
 *   witness.c   whether what they reach is the same
 *   offer.c     until when it may pass from one to the other
 *   yield.c     it passes to another host
 *   promote.c   it comes from one
 *   move.c      it passes with all of its machine
 *   mapfile.c   the settled map as files
 *   doubt.c     that a flush failed, for the process that follows
 *   checkpoint.c  the one of them that outlives the host, kept up to date
 *   job.c       the life of a relocation: states and events as a table
 *   host.c      what the mirror asks for and tells while a job runs
 *   away.c      a target that is lost, and how it comes back
 *   switch.c    the part of it in which authority passes, and may come back
 *   recover.c   going on with the job of a process that is gone
 *   request.c   jobs that a manager gave an id
 *   hooks.c     others' programs are asked before a step, and told after it
 *   steps.c     what a job does off the loop: records, marks, removal
 *   report.c    jobs and disks as JSON
 *   control.c   the control socket
 *   daemon.c    what the disk's process and blockmirrord have from each other: sockets
 *   upgrade.c   another process takes this one's place, or does not
 *   successor.c that process, until the disk is its own
 *   beside.c    an image that a running VMM has open, too, and the locks between both
 *   oneoff.c    cold copy and verify, without a served disk
 */
#ifndef BM_DISK_DISK_H
#define BM_DISK_DISK_H

#include <jansson.h>

#include "blockmirror/base/hist.h"
#include "blockmirror/base/list.h"
#include "blockmirror/base/record.h"
#include "blockmirror/base/rpc.h"
#include "blockmirror/base/worker.h"
#include "blockmirror/mirror.h"
#include "nbd-server/server.h"

struct job;

/*
 * host NULL: there is none. until: ns of CLOCK_REALTIME; WITHDRAWN: it has ended before its time,
 * and still says that all of the disk was there.
 */
enum { WITHDRAWN = 1 };
struct offer {
	char *host;
	uint64_t until;
	bool shared;     /* that host reaches the disk's storage itself */
	char *group;     /* disks of one machine, offered together, pass together; NULL: alone */
	char *back;      /* URI, of a standby: what the other host keeps; NULL: nothing */
	uint64_t window; /* ns that it is kept for */
	bool returns;    /* who passes the disk on may have it again, by the same rule, once */
	bool behind;     /* of a standby: what the other host acknowledged need not be here yet */
};

struct disk_options {
	const char *name, *run_dir, *state_dir;
	const char *uri;        /* NULL: what the record says */
	uint64_t create;        /* bytes; 0: the image exists */
	uint64_t size;          /* of a new disk; 0: that of its image */
	bool force;             /* serve an old or incomplete copy */
	bool beside;            /* a VMM has its image open, and lets go later, or has it again */
	bool flatten;           /* ... a linked clone, with what shows through */
	const char *hooks;      /* folder; NULL: none are run */
	uint64_t hook_limit;    /* ns for each */
	int nbd_fd, control_fd; /* sockets that listen already, and that the caller holds, too; 0 */
	int predecessor;        /* take over from the process at the other end; 0 */
	const char *standby_of; /* a new disk is that host's; NULL: it is ours */
	const char *identity;   /* that it has there */
	bool shared;            /* a standby, on the storage that the disk has there */
	const char *keys;       /* file: of hosts; NULL: none is let in by one */
	const char *certificates, *acl; /* folder and file: the same by certificates */
	int data_fd;                    /* listens for the host whose standby it is; 0 */
	struct nbd_server_options limits;
	uint64_t reconnect; /* ns that requests wait for storage that is lost; UINT64_MAX: for ever
			     */
};

struct disk {
	struct bm_loop *loop;
	char *name, *folder; /* STATE/disks/NAME; NULL for a one-off, which has no record */
	char *records;       /* the same; of a one-off, STATE/disks/: whose images are whose */
	char *run_dir, *state_dir;
	char *nbd_path, *control_path;
	char *map_path, *checkpoint_path; /* of the settled map: in RUN, and in the folder */
	char *doubt_path;
	char *daemon_path; /* of blockmirrord's socket */
	int folder_lock;
	int image_fd; /* holds the image's locks while there is no device; 0: nothing does */
	struct nbd_server_options limits;
	struct bm_record record;     /* as it is on stable storage, as far as is known */
	uint64_t generation;         /* the highest that a write was begun with */
	struct bm_workers *workers;  /* opening, creating, removing: may hang with a device */
	struct bm_workers *recorder; /* one thread: records, in order */
	struct bm_workers *keeper;   /* one thread: the checkpoint; guests may wait for it */
	struct bm_dev *side[2];      /* as the mirror has them */
	struct bm_list storage;      /* storage.c's: devices that are opened again */
	uint64_t reconnect;          /* of disk_options */
	struct bm_mirror *mirror;
	struct bm_cap *cap; /* of all that this host sends; NULL: it cannot be had */
	struct bm_dev *order;
	struct bm_dev *gate; /* on top, and what guests get */
	uint64_t refused_writes;
	struct offer offer;
	struct offering *offering; /* being written; NULL */
	struct witness *witness;   /* being taken, or looked at; NULL */
	struct bm_timer offer_timer;
	struct yield *yield;         /* under way; NULL */
	struct promotion *promotion; /* the same */
	struct disk_move *move;      /* of its machine, that it is in; NULL */
	struct moving *moving;       /* it is just being told of that; NULL */
	struct bm_timer retired_timer;
	uint64_t
		longest_hold; /* ns that the guest's first request waited for the disk to be ours */
	struct bm_meter meter;
	struct nbd_server *nbd;
	struct nbd_server *data; /* for the mirror of another host; NULL */
	struct nbd_acl *acl;     /* which certificate is whose; NULL: that host has a key */
	struct bm_rpc *rpc;
	struct job *job;   /* running, or the last one; NULL: there was none */
	unsigned jobs;     /* number of the last one */
	const char *hooks; /* of disk_options */
	uint64_t hook_limit;
	struct bm_list hook_calls;       /* the first one is under way */
	struct bm_rpc_call *stop_call;   /* waits until all of them have been made */
	struct bm_rpc_call *verify_call; /* waits for both copies to be compared */
	json_t *past;                    /* jobs that have ended, newest last */
	json_t *requests;                /* those of before that have an id; NULL: not known */
	struct upgrade *upgrade;         /* under way */
	bool shared;                     /* a daemon holds the sockets, and has their paths */
	int predecessor; /* the process that handed the disk over (upgrade.c); 0: none did */
	bool stopping, leaving, created;
	bool lent;      /* its image is, or may be, open in a VMM, which has the locks */
	bool abandoned; /* it ends as a killed process would: disk_close() is not called */
	bool fresh;     /* had no record when it was opened */
	bool returns;   /* or one that says that it was passed on: it comes back as a standby */
	uint64_t started;
};

/* Serves a disk until bm_loop_stop(). Blocks while opening; an error leaves nothing behind. */
int disk_open(struct bm_loop *loop, const struct disk_options *options, struct disk **disk,
	      struct bm_error *error);

/* Requests in flight are answered, clients dropped; then the loop is stopped. */
void disk_stop(struct disk *disk);

/* After the loop ended. NULL is allowed. */
void disk_close(struct disk *disk);

/* The same for a struct disk that is embedded. */
void disk_fini(struct disk *disk);

/* Which side of the mirror a record's authority is on, and its URI. */
static inline int disk_authority(const struct disk *disk)
{
	struct bm_mirror_stats stats;

	bm_mirror_get_stats(disk->mirror, &stats);
	return stats.authority;
}

/*
 * owner.c: whether the image may be used by the record in folder (STATE/disks/: by none of them),
 * and the mark that says so. For URIs that are neither files nor block devices both do nothing.
 */
enum owner_use {
	OWNER_SERVE,
	OWNER_FORCE, /* serve it, though it is an old or incomplete copy */
	OWNER_READ,  /* copy it: old ones may be */
	OWNER_OVERWRITE,
};
int owner_check(const char *uri, const char *folder, enum owner_use use, struct bm_error *error);
/*
 * Whether the disk's own record in folder may be believed: not when its image was marked by a later
 * one, or when another record names the image, too. force: the first is no reason; record then has
 * the mark's generation, and no job.
 */
int owner_check_record(struct bm_record *record, const char *folder, bool force,
		       struct bm_error *error);
/* What is marked is what a durable record says, with its generation. */
int owner_mark(const char *uri, const char *state, const struct bm_record *record,
	       const char *folder);
/* The image and its mark; files only: the node of a block device is not the device. */
int owner_remove(const char *uri);

/*
 * storage.c. fit: *dev, which was opened as uri, is not started, and becomes that side, takes
 * requests of block, is opened again when its session is lost, if it has one, and stands in a slot
 * (slot.h). put: the same for one that takes the place of what is in the slot of that side, which
 * has nothing in flight; taken over when it succeeds. 0 or -ENOMEM. set_roles: authority has
 * passed, or may soon. report: the authority's, null where there is nothing to tell. fini: after
 * all sides were closed and the workers are gone.
 */
int storage_fit(struct disk *disk, int side, const char *uri, uint32_t block, struct bm_dev **dev);
int storage_put(struct disk *disk, int side, const char *uri, struct bm_dev **dev);
void storage_set_roles(struct disk *disk);
bool storage_is_lost(const struct disk *disk);
json_t *storage_report(const struct disk *disk);
void storage_fini(struct disk *disk);

/* control.c */
bool control_read_loss(const json_t *value, uint64_t *loss); /* NULL: unchanged */
int control_listen(struct disk *disk, int fd, struct bm_error *error);
void control_stop(struct disk *disk, struct bm_rpc_call *call);
bm_rpc_method control_job_show, control_job_wait, control_job_cancel;

/*
 * Closes the devices of a disk that is frozen and has no second copy any more; the image's locks
 * stay. Then opens them again, as the record has it now. Both block.
 */
void disk_let_go(struct disk *disk);
int disk_take_up(struct disk *disk, struct bm_error *error);

/* All clients are let go at once, and then the loop is stopped. */
void disk_leave(struct disk *disk);

/* beside.c: what a command asks for that slips the disk under a running VMM, or takes it out */
bm_rpc_method beside_claim, beside_let_go;

/* daemon.c: the sockets that were passed to this process, and giving the disk's to a daemon. */
void daemon_take_sockets(struct disk_options *options);
bm_rpc_method daemon_adopt;
/* This process is to take the place of the disk's; 0 also when there is no daemon. */
int daemon_tell_successor(const struct disk *disk);

/* upgrade.c */
enum { UPGRADE_STATE = 1 /* the version of what one process passes to another one */ };
bm_rpc_method upgrade_begin;
/* The mirror has let go of the second copy. */
void upgrade_detached(struct disk *disk);
/* The process was told to end. Whether it will, by and by. */
bool upgrade_stops(struct disk *disk);
/* What a job was told that its record does not say, and telling it to another one. */
json_t *upgrade_orders(const struct disk *disk);
void upgrade_give_orders(struct disk *disk, const json_t *orders);

/*
 * successor.c, in the order of calls, all block. begin: all there is to say against this process is
 * said before the other one lets go of anything; then the disk's lock, its sockets and image are
 * ours. clients: those are, too. finish: the other one ends, or has. give_up: nothing is ours.
 */
struct successor;
int successor_begin(struct disk *disk, struct disk_options *options, struct successor **successor,
		    struct bm_error *error);
int successor_clients(struct successor *successor, struct bm_error *error);
void successor_finish(struct successor *successor);
void successor_give_up(struct successor *successor);
void successor_free(struct successor *successor); /* NULL is allowed */

/*
 * hooks.c. run: whether one does. recover: what the process before may not have told is told again.
 * interrupt: those that run are killed, in a moment. close: after the workers are gone.
 */
bool hooks_run(const struct disk *disk);
void hooks_recover(struct disk *disk);
void hooks_interrupt(struct disk *disk);
void hooks_close(struct disk *disk);

/* doubt.c: whether a flush has failed since the host was started; that one has. */
bool doubt_found(const struct disk *disk);
void doubt_note(const struct disk *disk);

enum { DISK_GRANULE = 64 << 10 };

/*
 * mapfile.c: bm_mirror_map_bytes() bytes, which belong to the record with that generation. create:
 * a mapped file in RUN, all 0; NULL with errno set. open: NULL where there is none of that record.
 * remove: both files, and the mapping.
 */
uint8_t *mapfile_create(const struct disk *disk, uint64_t generation);
uint8_t *mapfile_open(const struct disk *disk, uint64_t generation);
void mapfile_close(const struct disk *disk, uint8_t *map);
void mapfile_remove(const struct disk *disk, uint8_t *map);

/*
 * The checkpoint in the folder; these block. save: a new one, with map or nothing in it, takes the
 * place of the one that is there, durably. load: what it says, to be freed, and durable; -ENOENT:
 * none of that record. Both return a descriptor for change, which is durable when it returns 0.
 */
int mapfile_save(const struct disk *disk, uint64_t generation, uint64_t id, const uint8_t *map);
int mapfile_load(const struct disk *disk, uint64_t generation, uint64_t *id, uint8_t **map);
int mapfile_change(int fd, const struct bm_claim *v, unsigned count);

/* A target, found, checked, created where need be, and open. Blocks; in a worker. */
struct target {
	/* asked for */
	const char *text;
	const char *from; /* address of ours by which what goes to another host leaves; NULL: any */
	bool overwrite;
	bool fence; /* requests of an earlier session may be under way to an export */
	uint64_t size;
	const char *source;     /* the authority's URI */
	const char *own_socket; /* of our own export */
	const char *name;       /* for a folder that the source's name does not give one for */
	const struct bm_record *record;
	const char *folder; /* of the record, or of all records */
	const char *daemon; /* blockmirrord's socket; NULL: no other host can be asked */
	bool (*interrupted)(void *arg);
	void *arg;
	/* found */
	char *uri;
	struct bm_dev *dev;
	bool created, zeroed, marked;
	struct bm_mark before; /* what it was marked as */
	struct bm_error error;
};

int target_prepare(struct target *target);

/*
 * remote.c: image is the name that it gets in a folder, need what it takes. is: whether uri came of
 * that; then remove: the disk's copy goes, and its image there. yield: the host that has the disk
 * is asked for it. became_active: our daemon is told that it is ours, whether it is mirrored to
 * there, and that all of its group (NULL) shall be.
 */
int remote_create(struct target *target, const char *image, uint64_t need);
bool remote_is(const char *uri);
int remote_yield(const struct disk *disk, bool keep, uint64_t *generation, bool *kept,
		 struct bm_error *error);
int remote_became_active(const struct disk *disk, bool mirrors, const char *group,
			 struct bm_error *error);
int remote_remove(const char *daemon, const char *name, const struct bm_record *record,
		  const char *uri, struct bm_error *error);

/* Nothing was written to it: it is marked as it was before. Blocks. */
void target_unmark(const struct target *target);

/* Forgets the target: closes it, and removes it when it was created. Blocks. */
void target_drop(struct target *target);

/* An image of the disk's that is not needed any more, on whichever host. Blocks. */
int target_remove(const struct disk *disk, const char *uri);

#endif
