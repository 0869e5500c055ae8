/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One image moves. A disk that we serve is relocated by its own process, which goes on when we are
 * gone; what a running QEMU has is drain_qemu.c's. What nobody uses is copied, both copies are
 *compared, and the copy gets its name:
 *
 *	copy -> FOLDER/.NAME.part; its owner, mode, times
 *	compare, by the job; the file is as it was when the copy began, and nobody has it open
 *	rename -> FOLDER/NAME, which is not replaced
 *	remove the file, or mark it as an old copy
 *
 * Died before the rename, there is a part that nobody takes for an image, and that the next time
 * writes over; died after it, both are there and equal, and the next time says that the name
 *exists.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/base/record.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/cli/cli.h"
#include "blockmirror/cli/drain.h"

#define PATIENCE 60000000000ull /* ns that an answer may take: a job looks at its target first */
#define REVIVAL  30000000000ull /* ns that a disk's next process may take to come */

/* The folders that it is in, below the datastore, as they are there. */
static int make_folders(const struct drain_image *image, const struct drain_store *into,
			struct bm_error *error)
{
	const char *store = into->path;

	for (const char *slash = strchr(image->name, '/'); slash; slash = strchr(slash + 1, '/')) {
		bm_free char *from = NULL, *to = NULL;
		int n = (int)(slash - image->name);
		struct stat st;

		if (asprintf(&from, "%.*s%.*s", (int)(image->name - image->path), image->path, n,
			     image->name) < 0 ||
		    asprintf(&to, "%s/%.*s", store, n, image->name) < 0)
			return bm_fail_errno(error, ENOMEM, "%s", image->path);
		if (stat(from, &st) < 0)
			return bm_fail_errno(error, errno, "%s", from);
		if (mkdir(to, st.st_mode & 07777) < 0) {
			if (errno == EEXIST)
				continue;
			return bm_fail_errno(error, errno, "cannot make %s", to);
		}
		if (chown(to, st.st_uid, st.st_gid) < 0 || bm_sync_folder_of(to) < 0)
			return bm_fail_errno(error, errno, "%s", to);
	}
	return 0;
}

static void name_target(struct drain_image *image, const char *store)
{
	const char *slash;

	free(image->target);
	free(image->part);
	image->target = image->part = NULL;
	if (asprintf(&image->target, "%s/%s", store, image->name) < 0)
		bm_need(NULL);
	slash = strrchr(image->target, '/');
	if (asprintf(&image->part, "%.*s/.%s%s.part", (int)(slash - image->target), image->target,
		     slash + 1, image->flattens ? ".whole" : "") < 0)
		bm_need(NULL);
}

static int began(struct drain_image *image, json_t *job)
{
	image->number = (int)cli_number(job, "number");
	json_decref(image->job);
	image->job = job;
	return 0;
}

/* A move of it to one of ours, by a drain that was cut off, is this one. */
static bool go_on(const struct drain *d, struct drain_image *image)
{
	struct bm_error error;
	json_t *job = NULL;
	const char *path;
	bool ours = false;

	if (bm_client_call(image->client, "job.show", NULL, &job, &error) < 0)
		return false;
	path = bm_uri_path(cli_text(job, "target"));
	path = path ? path : cli_text(job, "target"); /* bm: */
	for (size_t i = 0; path && i < d->plan.n_stores; i++) {
		size_t n = strlen(d->to[i].path);

		ours |= !strncmp(path, d->to[i].path, n) && path[n] == '/';
	}
	ours = ours && !strcmp(cli_text(job, "kind"), "relocate") &&
	       (!strcmp(cli_text(job, "state"), "running") ||
		!strcmp(cli_text(job, "state"), "paused"));
	if (ours) {
		began(image, job);
		/* It may have had another one. */
		drain_move_rate(image, d->rate / (d->plan.running + 1));
	} else {
		json_decref(job);
	}
	return ours;
}

/* What bm: is in front of has no format of its own. */
static char *target_uri(const struct drain_image *image, const char *clone, const char *end,
			const struct drain_store *store)
{
	return bm_need(store->host ? strdup(end)
				   : bm_uri_like(clone        ? clone
						 : image->uri ? image->uri
							      : image->path,
						 end));
}

static json_t *params_of(const struct drain *d, const struct drain_image *image,
			 const struct drain_store *store)
{
	const char *end = image->disk || image->qmp ? image->target : image->part;
	bm_free char *clone = NULL, *target;
	json_t *params;

	/* One that becomes whole is read, and written, by what knows its format. */
	if (image->flattens && asprintf(&clone, "qcow2:%s", image->path) < 0)
		bm_need(NULL);
	target = target_uri(image, clone, end, store);
	params = json_pack("{s:s s:b s:I}", "target", target, "verify", 1, "rate",
			   (json_int_t)(d->rate / (d->plan.running + 1)));
	if (!image->disk && !image->qmp) {
		json_object_set_new(params, "source", json_string(clone ? clone : image->path));
		json_object_set_new(params, "overwrite", json_true());
		json_object_set_new(params, "flatten", json_boolean(image->flattens));
		return params;
	}
	json_object_set_new(params, "delete_source", json_boolean(d->delete_source));
	if (d->latency)
		json_object_set(params, "guest_latency", d->latency);
	return params;
}

/*
 * A qcow2 file may end anywhere, and what is behind its end is zero; what we copy ends with a
 * sector.
 */
static int round_up(struct drain_image *image)
{
	uint64_t size = (image->size + 511) & ~511ull;

	if (!image->container || image->flattens || size == image->size)
		return 0;
	if (truncate(image->path, (off_t)size) < 0)
		return bm_fail_errno(&image->why, errno, "it cannot be made %llu bytes long",
				     (unsigned long long)size);
	image->size = size;
	return 0;
}

/* What has moved, and was not given back, has its target. */
static int begin_qemu(struct drain *d, struct drain_image *image, const struct drain_store *store)
{
	int r = 0;

	if (!image->target || image->need) {
		name_target(image, store->path);
		r = make_folders(image, store, &image->why);
	}
	return r < 0 ? r : drain_qemu_begin(d, image, params_of(d, image, store));
}

static int begin(struct drain *d, struct drain_image *image, const struct drain_store *store)
{
	json_t *job = NULL;
	int r;

	if (image->qmp)
		return begin_qemu(d, image, store);
	r = image->disk ? cli_connect(d->cli, image->disk, &image->client, &image->why)
			: cli_one_off(d->cli, &image->client, &image->why);
	if (r < 0)
		return r;
	bm_client_set_timeout(image->client, PATIENCE);
	if (image->disk && go_on(d, image))
		return 0;
	name_target(image, store->path);
	r = make_folders(image, store, &image->why);
	if (!r && !image->disk && !access(image->target, F_OK))
		r = bm_fail(&image->why, BM_E_EXISTS, "%s exists", image->target);
	if (!r && !image->disk)
		r = round_up(image);
	if (r < 0)
		return r;
	image->stamp = bm_stamp(image->path);
	if (store->host && !image->disk) {
		free(image->part);
		image->part = drain_remote_make(d, image, store);
		if (!image->part)
			return -EHOSTUNREACH;
	}
	r = bm_client_call(image->client, image->disk ? "relocate" : "copy",
			   params_of(d, image, store), &job, &image->why);
	if (r < 0 && store->host && !image->disk)
		drain_remote_give_up(d, image, store);
	return r < 0 ? r : began(image, job);
}

static void end(struct drain_image *image)
{
	bm_client_close(bm_steal(image->client));
}

int drain_move_begin(struct drain *d, size_t which)
{
	struct drain_image *image = &d->image[which];
	int r = begin(d, image, &d->to[d->plan.items[which].store]);

	if (r < 0)
		end(image);
	return r;
}

/* The copy of an image that nobody uses */

static int put_attributes(const struct drain_image *image)
{
	bm_close int fd = open(image->part, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
	struct timespec times[2];
	struct stat st;

	if (fd < 0 || stat(image->path, &st) < 0)
		return -errno;
	times[0] = st.st_atim;
	times[1] = st.st_mtim;
	if (fchown(fd, st.st_uid, st.st_gid) < 0 || fchmod(fd, st.st_mode & 07777) < 0 ||
	    futimens(fd, times) < 0 || fsync(fd) < 0)
		return -errno;
	return 0;
}

/* Whether it is what was copied still, and nobody has come to use it. */
static int check_unused(const struct drain *d, struct drain_image *image)
{
	bm_close int fd = open(image->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	struct bm_stamp now = bm_stamp(image->path);
	struct drain_opened *opened;

	if (fd < 0 || now.ino != image->stamp.ino || now.size != image->stamp.size ||
	    now.written.tv_sec != image->stamp.written.tv_sec ||
	    now.written.tv_nsec != image->stamp.written.tv_nsec)
		return bm_fail(&image->why, BM_E_BUSY, "it was written to while it was copied");
	opened = drain_opened();
	drain_look_who(d, opened, image, fd);
	drain_opened_free(opened);
	return image->why.code ? -EBUSY : 0;
}

static int leave_source(const struct drain *d, struct drain_image *image)
{
	struct bm_mark mark = {.state = "retired"};

	if (d->delete_source) {
		if (unlink(image->path) < 0 || bm_sync_folder_of(image->path) < 0)
			return bm_fail_errno(&image->why, errno,
					     "it is at %s now, and cannot be removed here",
					     image->target);
		bm_mark_remove(image->path); /* one beside it */
		return 0;
	}
	snprintf(mark.where, sizeof(mark.where), "%s", image->target);
	if (bm_mark_write(image->path, &mark) < 0)
		return bm_fail_errno(&image->why, errno,
				     "it is at %s now, and the old copy cannot be marked",
				     image->target);
	return 0;
}

static int finish_remote(const struct drain *d, struct drain_image *image,
			 const struct drain_store *store)
{
	int r = check_unused(d, image);

	if (!r)
		r = drain_remote_keep(d, image, store);
	if (r < 0)
		drain_remote_give_up(d, image, store);
	return r < 0 ? r : leave_source(d, image);
}

static const struct drain_store *store_of(const struct drain *d, const struct drain_image *image)
{
	return &d->to[d->plan.items[image - d->image].store];
}

static int finish(const struct drain *d, struct drain_image *image)
{
	int r;

	if (store_of(d, image)->host)
		return finish_remote(d, image, store_of(d, image));
	r = check_unused(d, image);
	if (!r)
		r = put_attributes(image);
	if (r < 0 && !image->why.code)
		bm_fail_errno(&image->why, r, "%s", image->part);
	if (!r && renameat2(AT_FDCWD, image->part, AT_FDCWD, image->target, RENAME_NOREPLACE) < 0)
		r = bm_fail_errno(&image->why, errno, "cannot name %s", image->target);
	if (r < 0) {
		unlink(image->part);
		return r;
	}
	r = bm_sync_folder_of(image->target);
	if (r < 0)
		return bm_fail_errno(&image->why, r, "%s", image->target);
	return leave_source(d, image);
}

/* The job */

static void cancel(const struct drain *d, struct drain_image *image)
{
	struct bm_error error;
	json_t *result = NULL;

	if (!bm_client_call(image->client, "job.cancel",
			    json_pack("{s:i}", "number", image->number), &result, &error))
		json_decref(result);
	if (!image->disk && store_of(d, image)->host)
		drain_remote_give_up(d, image, store_of(d, image));
}

static bool over(struct drain *d, struct drain_image *image)
{
	const char *state = cli_text(image->job, "state");
	const json_t *failure = json_object_get(image->job, "error");

	if (!strcmp(state, "done")) {
		image->moved = image->disk || !finish(d, image);
	} else if (failure) {
		image->why.code = bm_code_by_name(cli_text(failure, "code"));
		snprintf(image->why.text, sizeof(image->why.text), "%s",
			 cli_text(failure, "message"));
	} else {
		bm_fail(&image->why, BM_E_CANCELLED, "its move was %s", state);
	}
	if (!image->moved && !image->disk && strcmp(state, "done") != 0 && store_of(d, image)->host)
		drain_remote_give_up(d, image, store_of(d, image));
	end(image);
	return false;
}

/* A disk's process has died: the next one goes on with the job. */
static bool may_come_again(struct drain_image *image, const struct bm_error *error)
{
	if (!image->disk || error->code != BM_E_UNREACHABLE)
		return false;
	end(image);
	if (!image->lost)
		image->lost = tell_now();
	return tell_now() - image->lost < REVIVAL;
}

static int ask(const struct drain *d, struct drain_image *image, json_t **job,
	       struct bm_error *error)
{
	if (!image->client && cli_connect(d->cli, image->disk, &image->client, error) < 0)
		return bm_fail(error, BM_E_UNREACHABLE, "disk %s is not served any more",
			       image->disk);
	return bm_client_call(image->client, "job.show",
			      json_pack("{s:i}", "number", image->number), job, error);
}

bool drain_move_look(struct drain *d, size_t which)
{
	struct drain_image *image = &d->image[which];
	const json_t *progress;
	struct bm_error error;
	json_t *job = NULL;
	const char *state;

	if (image->qmp)
		return drain_qemu_look(d, which);
	if (ask(d, image, &job, &error) < 0) {
		if (may_come_again(image, &error))
			return true;
		image->why = error;
		end(image);
		return false;
	}
	image->lost = 0;
	json_decref(image->job);
	image->job = job;
	state = cli_text(job, "state");
	if (strcmp(state, "running") != 0 && strcmp(state, "paused") != 0)
		return over(d, image);
	progress = json_object_get(job, "progress");
	if (strcmp(cli_text(progress, "target"), "target-full") != 0)
		return true;
	/* It would wait for somebody to make room. */
	cancel(d, image);
	bm_fail(&image->why, BM_E_ENOSPC, "%s has become full",
		d->to[d->plan.items[which].store].path);
	end(image);
	return false;
}

void drain_move_rate(struct drain_image *image, uint64_t rate)
{
	struct bm_error error;
	json_t *result = NULL;

	if (image->client && !bm_client_call(image->client, "job.set",
					     json_pack("{s:i s:I}", "number", image->number, "rate",
						       (json_int_t)rate),
					     &result, &error))
		json_decref(result);
}

void drain_move_leave(const struct drain *d, struct drain_image *image)
{
	if (!image->disk && !image->qmp)
		cancel(d, image);
	end(image);
}
