/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A served disk: finds out which image is the truth, locks and opens it, and builds the stack
 *
 *	NBD server → gate → order device → mirror → image
 *
 * A record, where there is one, decides which image that is; what the command line says is only
 * believed by a disk that has none yet.
 */
#include "blockmirror/disk/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "blockmirror/base/cap.h"
#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/disk_name.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/maintenance.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/client.h"
#include "blockmirror/dev/open.h"
#include "blockmirror/disk/job.h"
#include "blockmirror/disk/standby.h"
#include "nbd-server/acl.h"

enum {
	OPENERS = 4,
};
#define TAKE_OVER 30000000000ull /* ns that a dying process gets to end its I/O */
#define ANSWER    1000000000ull  /* ns: who serves a disk answers sooner */

static int make_paths(struct disk *d, const struct disk_options *options, struct bm_error *error)
{
	bm_free char *state = NULL, *run = NULL, *disks = NULL;
	int r;

	if (asprintf(&disks, "%s/disks", options->run_dir) < 0 ||
	    asprintf(&state, "%s/disks/%s", options->state_dir, options->name) < 0)
		return bm_fail_errno(error, ENOMEM, "disk %s", options->name);
	r = bm_make_folders(state);
	if (r < 0)
		return bm_fail_errno(error, r, "cannot create %s", state);
	r = bm_make_folders(disks);
	if (r < 0)
		return bm_fail_errno(error, r, "cannot create %s", disks);
	d->run_dir = realpath(options->run_dir, NULL);
	d->state_dir = realpath(options->state_dir, NULL);
	d->folder = realpath(state, NULL);
	d->records = d->folder ? strdup(d->folder) : NULL;
	run = realpath(disks, NULL);
	d->name = strdup(options->name);
	if (!d->records || !run || !d->run_dir || !d->state_dir || !d->name ||
	    asprintf(&d->nbd_path, "%s/%s.nbd", run, d->name) < 0 ||
	    asprintf(&d->control_path, "%s/%s.sock", run, d->name) < 0 ||
	    asprintf(&d->daemon_path, "%s/../blockmirrord.sock", run) < 0 ||
	    asprintf(&d->map_path, "%s/%s.map", run, d->name) < 0 ||
	    asprintf(&d->doubt_path, "%s/%s.doubt", run, d->name) < 0 ||
	    asprintf(&d->checkpoint_path, "%s/map", d->folder) < 0)
		return bm_fail_errno(error, errno, "disk %s", options->name);
	return 0;
}

/* Whether a process serves the disk now, and does not just take its time to die. */
static bool is_served(const struct disk *d)
{
	struct bm_client *client;
	int r = bm_client_connect(d->control_path, &client, NULL);

	if (r < 0)
		return false;
	bm_client_set_timeout(client, ANSWER);
	r = bm_client_call(client, "show", NULL, NULL, NULL);
	bm_client_close(client);
	return !r;
}

/*
 * One process per record. The lock goes with the process, however it ends; a killed one keeps it
 * until the kernel has ended its I/O, and is waited for. Sockets that were passed to us cannot be
 * asked who serves: a call would wait for ourselves.
 */
static int lock_folder(struct disk *d, bool ask, struct bm_error *error)
{
	uint64_t waited = 0;

	d->folder_lock = open(d->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (d->folder_lock < 0)
		return bm_fail_errno(error, errno, "cannot open %s", d->folder);
	while (flock(d->folder_lock, LOCK_EX | LOCK_NB) < 0) {
		const struct timespec step = {.tv_nsec = 10000000};

		if (waited > TAKE_OVER || (ask && is_served(d)))
			return bm_fail(error, BM_E_BUSY,
				       "disk %s is served already (its record in %s is in use)",
				       d->name, d->folder);
		nanosleep(&step, NULL);
		waited += (uint64_t)step.tv_nsec;
	}
	return 0;
}

/* The URI in the record decides. One on the command line must be the same image. */
static int agree(const struct disk *d, const char *uri, struct bm_error *error)
{
	char shown[400];
	bm_free char *asked = uri ? bm_uri_canonical(uri) : NULL;

	if (!uri || (asked && !strcmp(asked, d->record.uri)))
		return 0;
	return bm_fail(error, BM_E_EXISTS,
		       "disk %s is on %s, says its record (generation %" PRIu64
		       " in %s); leave the "
		       "image out to serve that one",
		       d->name, bm_uri_redact(d->record.uri, shown, sizeof(shown)),
		       d->record.generation, d->folder);
}

/* A new image, as far as maintenance goes. */
static int may_land(const struct disk *d, const char *uri, struct bm_error *error)
{
	bm_free char *canonical = bm_uri_canonical(uri);
	const char *path = canonical ? bm_uri_path(canonical) : NULL;
	int r = bm_maintenance_host(d->state_dir, error);

	return r < 0 || !path ? r : bm_maintenance_folder(d->state_dir, path, error);
}

/* A disk that was never served before. */
static int new_disk(struct disk *d, const struct disk_options *options, struct bm_error *error)
{
	char id[33], shown[400];
	int r = 0;

	if (!options->uri)
		return bm_fail(error, BM_E_NOT_FOUND, "disk %s has no record in %s: name its image",
			       d->name, d->folder);
	if (options->create)
		r = may_land(d, options->uri, error);
	if (!r && options->create)
		r = bm_image_create(options->uri, options->create, error);
	if (r < 0)
		return r;
	d->created = options->create != 0;
	bm_identity(id);
	d->record.name = strdup(d->name);
	d->record.disk = strdup(options->identity ? options->identity : id);
	d->record.uri = bm_uri_canonical(options->uri);
	if (options->standby_of) {
		d->record.role = BM_ROLE_STANDBY;
		d->record.peer = strdup(options->standby_of);
		d->record.shared = options->shared;
	}
	if (!d->record.name || !d->record.disk || !d->record.uri ||
	    (options->standby_of && !d->record.peer))
		return bm_fail_errno(error, errno, "%s",
				     bm_uri_redact(options->uri, shown, sizeof(shown)));
	return bm_record_checks_uri(d->record.uri, error);
}

static int open_image(struct disk *d, const struct disk_options *asked, struct bm_error *error)
{
	/* Our own dead process may have left requests behind: the image's lock tells. */
	struct bm_open_options options = {
		.fence = !d->fresh && !asked->beside,
		.session = d->record.disk,
		.linked = !d->fresh || asked->flatten, /* a record's was looked at before */
		.descriptor = d->image_fd,
		.beside = asked->beside};
	enum owner_use use = asked->force ? OWNER_FORCE : OWNER_SERVE;
	bool owned = d->fresh && !d->record.shared; /* else that is the other host's business */
	char shown[400];
	uint32_t block;
	int r;

	/*
	 * What our own record names was looked at when that was believed. Else the mark is looked
	 * at first, since it tells more than a lock that is held, and again when we hold the lock.
	 */
	if (shared_only_reads(d))
		shared_reads(&options);
	r = owned ? owner_check(d->record.uri, d->folder, use, error) : 0;
	if (!r)
		r = bm_dev_open(d->record.uri, &options, &d->side[0], error);
	if (!r && owned)
		r = owner_check(d->record.uri, d->folder, use, error);
	if (r < 0)
		return r;
	d->lent = options.beside;
	if (d->image_fd > 0) /* the device is a holder, too */
		close(d->image_fd);
	d->image_fd = 0;
	block = d->side[0]->geometry.block;
	if (d->fresh)
		d->record.size = asked->size ? asked->size : d->side[0]->geometry.size;
	if (d->side[0]->geometry.size < d->record.size)
		return bm_fail(error, BM_E_SIZE,
			       "%s has %" PRIu64 " bytes and the disk %" PRIu64 ": it was cut",
			       bm_uri_redact(d->record.uri, shown, sizeof(shown)),
			       d->side[0]->geometry.size, d->record.size);
	/* An image with larger blocks than the disk had before may end within one. */
	while (d->record.size % block)
		block /= 2;
	r = storage_fit(d, 0, d->record.uri, block, &d->side[0]);
	return r < 0 ? bm_fail_errno(error, r, "disk %s", d->name) : 0;
}

static int write_record(struct disk *d, struct bm_error *error)
{
	int r;

	d->record.generation = ++d->generation;
	r = bm_record_write(d->folder, &d->record, error);
	if (r < 0 || d->record.shared)
		return r;
	r = owner_mark(d->record.uri, "active", &d->record, d->folder);
	return r < 0 ? bm_fail_errno(error, r, "cannot mark %s", d->record.uri) : 0;
}

/* Named as QEMU names its own bitmaps, so that what reads these reads ours. */
static char *dirty_map_name(const struct disk *d)
{
	char *name;

	return asprintf(&name, "qemu:dirty-bitmap:%s", d->name) < 0 ? NULL : name;
}

static int offer_dirty_map(struct disk *d, struct bm_error *error)
{
	bm_free char *name = dirty_map_name(d);

	if (!name)
		return bm_fail_errno(error, ENOMEM, "disk %s", d->name);
	return nbd_server_add_context(d->nbd, d->name, name, bm_mirror_dirty_dev(d->mirror), error);
}

static int build_devices(struct disk *d, struct bm_error *error)
{
	uint64_t every = checkpoint_interval();
	const struct bm_mirror_config config = {.size = d->record.size,
						.meter = &d->meter,
						.flush_every = every,
						.claim_every = every,
						.doubtful = doubt_found(d)};
	int r;

	bm_dev_start(d->side[0], d->loop);
	r = bm_mirror_new(d->loop, d->side[0], &config, &job_host, d, &d->mirror);
	if (!r)
		r = bm_order_new(bm_mirror_dev(d->mirror), bm_order_align(d->side[0]), &d->meter,
				 &d->order);
	if (r < 0)
		return bm_fail_errno(error, r, "disk %s", d->name);
	bm_dev_start(d->order, d->loop);
	d->gate = gate_new(d->order, &standby_gate, d);
	if (!d->gate)
		return bm_fail_errno(error, ENOMEM, "disk %s", d->name);
	bm_dev_start(d->gate, d->loop);
	offer_read(d);
	gate_set_role(d->gate, standby_gate_role(d));
	standby_armed(d);
	return 0;
}

static int build_server(struct disk *d, const struct disk_options *options, struct bm_error *error)
{
	struct nbd_export exported = {.name = d->name};
	int r;

	d->limits = options->limits;
	d->limits.changed = yield_clients_changed;
	d->limits.arg = d;
	d->nbd = nbd_server_new(d->loop, &d->limits);
	if (!d->nbd)
		return bm_fail_errno(error, ENOMEM, "disk %s", d->name);
	exported.dev = d->gate;
	r = nbd_server_add_export(d->nbd, &exported, error);
	if (!r)
		r = offer_dirty_map(d, error);
	if (!r)
		r = options->nbd_fd ? nbd_server_listen_fd(d->nbd, options->nbd_fd, error)
				    : nbd_server_listen_unix(d->nbd, d->nbd_path, error);
	if (!r)
		r = control_listen(d, options->control_fd, error);
	if (!r)
		r = standby_open(d, options, error);
	return r;
}

static int believe(struct disk *d, const struct disk_options *options, struct bm_error *error)
{
	int r = agree(d, options->uri, error);

	if (strcmp(d->record.name, d->name) != 0)
		return bm_fail(error, BM_E_RECORD,
			       "the record in %s is that of another disk, %s: move the folder back "
			       "to that name and serve that disk, or move it away",
			       d->folder, d->record.name);
	if (!r && d->record.role == BM_ROLE_RETIRED)
		return bm_fail(error, BM_E_RETIRED,
			       "disk %s is on host %s since generation %" PRIu64
			       ", says its record in %s: serve it there",
			       d->name, d->record.peer, d->record.generation, d->folder);
	/* The mark of an image that the other host has is that host's. */
	if (r || shared_only_reads(d))
		return r;
	return owner_check_record(&d->record, d->folder, options->force, error);
}

/* It was ours, and the host that has it keeps its copy here from now on. */
static bool comes_back(const struct disk *d, const struct disk_options *options)
{
	return !d->fresh && options->standby_of && options->identity &&
	       d->record.role == BM_ROLE_RETIRED && !strcmp(d->record.disk, options->identity) &&
	       !strcmp(d->record.peer, options->standby_of);
}

static int find_image(struct disk *d, const struct disk_options *options, struct bm_error *error)
{
	int r = bm_record_read(d->folder, &d->record, error);

	if (r < 0 && r != -ENOENT)
		return r;
	d->fresh = r < 0;
	d->generation = d->record.generation;
	if (!d->fresh && !d->move) {
		r = move_find(d, options->data_fd, error);
		if (r < 0)
			return r;
	}
	if (comes_back(d, options)) {
		offer_remove(d);
		bm_record_clear(&d->record);
		d->fresh = d->returns = true;
	}
	r = d->fresh ? new_disk(d, options, error) : believe(d, options, error);
	if (!r)
		r = open_image(d, options, error);
	/* It was believed by force: from now on it is the latest. */
	if (!r && d->record.generation > d->generation) {
		d->generation = d->record.generation;
		r = write_record(d, error);
	}
	return r;
}

/* It did not come to a disk: what was made for it goes again. */
static void leave_nothing(struct disk *d)
{
	if (!d->fresh || d->returns)
		return;
	if (d->generation)
		bm_record_remove(d->folder);
	if (d->generation && bm_uri_path(d->record.uri) && !d->record.shared)
		bm_mark_remove(bm_uri_path(d->record.uri));
	if (d->created)
		unlink(bm_uri_path(d->record.uri));
	rmdir(d->folder);
}

/* What is open from here on is the disk's only process, or will be. */
static int begin(struct disk *d, struct disk_options *options, struct successor **successor,
		 struct bm_error *error)
{
	int r = make_paths(d, options, error);

	if (r < 0)
		return r;
	if (options->predecessor)
		return successor_begin(d, options, successor, error);
	d->shared = options->control_fd != 0;
	return lock_folder(d, !options->control_fd, error);
}

int disk_open(struct bm_loop *loop, const struct disk_options *asked, struct disk **disk,
	      struct bm_error *error)
{
	struct disk *d = calloc(1, sizeof(*d));
	struct disk_options given = *asked, *options = &given;
	struct successor *successor = NULL;
	int r = bm_disk_name_check(options->name, error);

	if (!d)
		return bm_fail_errno(error, ENOMEM, "disk %s", options->name);
	d->loop = loop;
	d->reconnect = options->reconnect;
	d->hooks = options->hooks;
	d->hook_limit = options->hook_limit;
	bm_list_init(&d->storage);
	bm_list_init(&d->hook_calls);
	d->folder_lock = -1;
	d->past = json_array();
	d->workers = bm_workers_new(OPENERS);
	d->recorder = bm_workers_new(1);
	d->keeper = bm_workers_new(1);
	d->started = bm_loop_now(loop);
	if (!r && (!d->past || !d->workers || !d->recorder || !d->keeper))
		r = bm_fail_errno(error, ENOMEM, "disk %s", options->name);
	if (!r)
		r = begin(d, options, &successor, error);
	if (!r && bm_cap_open(options->run_dir, &d->cap) < 0)
		bm_log(BM_LOG_WARN,
		       "%s: what the host sends in all is not limited for it: %s/cap "
		       "cannot be used",
		       d->name, options->run_dir);
	if (!r)
		r = find_image(d, options, error);
	if (!r)
		r = build_devices(d, error);
	/* Clients may connect from here on, and are served when the loop runs. */
	if (!r)
		r = build_server(d, options, error);
	if (!r)
		request_open(d);
	if (!r && successor)
		r = successor_clients(successor, error);
	if (!r && d->fresh)
		r = write_record(d, error);
	else if (!r)
		r = job_recover(d, error);
	if (!r && successor)
		successor_finish(successor);
	else if (successor)
		successor_give_up(successor);
	successor_free(successor);
	if (r < 0) {
		leave_nothing(d);
		disk_close(d);
		return r;
	}
	*disk = d;
	return 0;
}

static void close_stack(struct disk *d)
{
	bm_dev_close(d->gate);
	bm_dev_close(d->order);
	bm_mirror_free(d->mirror);
	for (int i = 0; i < 2; i++)
		bm_dev_close(d->side[i]);
}

void disk_let_go(struct disk *d)
{
	int fd = bm_dev_descriptor(d->side[disk_authority(d)]);

	d->image_fd = fd < 0 ? 0 : fcntl(fd, F_DUPFD_CLOEXEC, 1);
	close_stack(d);
	d->gate = d->order = d->side[0] = d->side[1] = NULL;
	d->mirror = NULL;
}

int disk_take_up(struct disk *d, struct bm_error *error)
{
	static const struct disk_options none;
	bm_free char *name = dirty_map_name(d);
	int r;

	bm_record_clear(&d->record);
	r = find_image(d, &none, error);
	if (!r)
		r = build_devices(d, error);
	if (!r && !name)
		r = bm_fail_errno(error, ENOMEM, "disk %s", d->name);
	if (!r)
		nbd_server_set_devs(d->nbd, d->name, d->gate, name, bm_mirror_dirty_dev(d->mirror));
	return r;
}

static void left(void *arg)
{
	bm_loop_stop(((struct disk *)arg)->loop);
}

void disk_leave(struct disk *d)
{
	d->stopping = true;
	nbd_server_abandon(d->nbd);
	nbd_server_stop(d->nbd, left, d);
}

/* A job that runs is left as it is; but nothing may be in flight when the devices are closed. */
static void clients_gone(void *arg)
{
	struct disk *d = arg;

	d->leaving = true;
	if (job_runs(d->job) && d->job->map)
		bm_mirror_keep_map(d->mirror);
	if (bm_mirror_detach(d->mirror) == -ENOTCONN)
		bm_loop_stop(d->loop);
}

static void host_gone(void *arg)
{
	struct disk *d = arg;

	nbd_server_stop(d->nbd, clients_gone, d);
}

void disk_stop(struct disk *d)
{
	if (d->stopping)
		return;
	if (upgrade_stops(d))
		return;
	d->stopping = true;
	/* Requests that wait cannot be answered: clients come again to the next process. */
	if (storage_is_lost(d) || gate_held(d->gate) || d->yield || d->promotion || d->witness) {
		d->abandoned = true;
		bm_loop_stop(d->loop);
		return;
	}
	if (job_runs(d->job)) /* a target that is being opened may take its time */
		atomic_store(&d->job->give_up, true);
	if (d->data)
		nbd_server_stop(d->data, host_gone, d);
	else
		host_gone(d);
}

void disk_fini(struct disk *d)
{
	hooks_interrupt(d);
	bm_workers_free(d->workers);
	bm_workers_free(d->recorder);
	bm_workers_free(d->keeper);
	hooks_close(d);
	yield_close(d);
	promote_close(d);
	witness_close(d);
	move_close(d);
	offer_close(d);
	bm_timer_clear(d->loop, &d->offer_timer);
	job_forget(d);
	if (d->verify_call)
		bm_rpc_reply(d->verify_call, NULL);
	if (d->stop_call)
		bm_rpc_reply(d->stop_call, NULL);
	nbd_server_free(d->nbd);
	nbd_server_free(d->data);
	nbd_acl_free(d->acl);
	close_stack(d);
	storage_fini(d);
	bm_cap_close(d->cap);
	if (d->folder_lock >= 0)
		close(d->folder_lock);
	if (d->image_fd > 0)
		close(d->image_fd);
	bm_dev_settle();
	/* Who has called "stop" takes the end of his connection for leave to use the image. */
	bm_rpc_free(d->rpc);
	bm_record_clear(&d->record);
	json_decref(d->past);
	json_decref(d->requests);
	free(d->name);
	free(d->folder);
	free(d->records);
	free(d->run_dir);
	free(d->state_dir);
	free(d->nbd_path);
	free(d->control_path);
	free(d->daemon_path);
	free(d->map_path);
	free(d->doubt_path);
	free(d->checkpoint_path);
}

void disk_close(struct disk *d)
{
	if (d)
		disk_fini(d);
	free(d);
}
