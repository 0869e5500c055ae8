/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The checkpoint of a running job: the copy of its settled map that outlives the host, kept up to
 * date as the mirror asks (docs/record.md). A thread of its own writes it, since a guest's write
 * may wait for a change to be durable; what comes while one is being written goes with the next.
 *
 * A guest does not depend on the state directory. Where a change fails, or takes longer than the
 * deadline while something waits for it, the images are marked: nobody believes that checkpoint any
 * more. Then the guest goes on, and after a while a new one is begun.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/disk/job.h"

#define DEADLINE 1000000000ull  /* ns that a guest waits for a change; then for the marks */
#define RETRY    30000000000ull /* ns until a new checkpoint is tried */

/* A checkpoint that has it, or any of that record when the id is not known, is void. */
enum { MARK = 34 };

static void mark_of(char text[MARK], uint64_t generation, uint64_t id)
{
	snprintf(text, MARK, "%016" PRIx64 ".%016" PRIx64, generation, id);
}

static uint64_t new_id(void)
{
	uint64_t id = 0;

	while (!id) /* eight bytes are never cut short (getrandom(2)) */
		if (getrandom(&id, sizeof(id), 0) != sizeof(id))
			abort();
	return id;
}

uint64_t checkpoint_interval(void)
{
	const char *text = getenv("BLOCKMIRROR_CHECKPOINT");
	double seconds = text ? atof(text) : 0;

	return seconds >= 0.01 && seconds <= 3600 ? (uint64_t)(seconds * 1e9) : 0;
}

static void set_timer(struct job *job, struct bm_timer *timer, uint64_t ns)
{
	(void)bm_timer_set(job->disk->loop, timer, bm_loop_now(job->disk->loop) + ns);
}

/* Workers' */

static int save(struct job *job, const uint8_t *map)
{
	struct checkpoint *c = &job->checkpoint;
	uint64_t id = new_id();
	int fd = mapfile_save(job->disk, job->map_generation, id, map);

	if (fd < 0)
		return fd;
	if (c->fd >= 0)
		close(c->fd);
	c->fd = fd;
	c->id = id;
	return 0;
}

static void write_run(struct bm_work *work)
{
	struct job *job = bm_container(work, struct job, checkpoint.write);
	struct checkpoint *c = &job->checkpoint;

	c->error = c->fd < 0 || c->state == CHECKPOINT_RENEWED ? save(job, NULL) : 0;
	if (!c->error)
		c->error = mapfile_change(c->fd, c->change, c->count);
}

/* One of the two is enough: who resumes looks at both. */
static void mark_run(struct bm_work *work)
{
	struct job *job = bm_container(work, struct job, checkpoint.mark);
	const struct checkpoint *c = &job->checkpoint;
	char text[MARK];

	mark_of(text, job->map_generation, c->id);
	if (!bm_mark_void(c->image[0], text) || !bm_mark_void(c->image[1], text))
		return;
	bm_log(BM_LOG_WARN,
	       "%s.%u: none of the images can be marked; if the host loses power before the "
	       "state directory works again, remove %s before the disk is served",
	       job->disk->name, job->number, job->disk->checkpoint_path);
}

static void park_run(struct bm_work *work)
{
	struct job *job = bm_container(work, struct job, checkpoint.write);

	job->checkpoint.error = save(job, job->map);
}

/* Trouble */

static void submit(struct job *job)
{
	struct checkpoint *c = &job->checkpoint;

	c->writing = true;
	set_timer(job, &c->deadline, DEADLINE);
	bm_workers_submit(job->disk->keeper, job->disk->loop, &c->write);
}

/* Marked, or not in time: the guest goes on. */
static void release(struct job *job)
{
	bm_timer_clear(job->disk->loop, &job->checkpoint.deadline);
	job->checkpoint.released = true;
	bm_mirror_claims_void(job->disk->mirror);
}

static void trouble(struct job *job, int error)
{
	struct checkpoint *c = &job->checkpoint;

	bm_log(BM_LOG_WARN,
	       "%s.%u: the checkpoint %s cannot be kept (%s); the job goes on without, and after a "
	       "power cut all would be copied again",
	       job->disk->name, job->number, job->disk->checkpoint_path, strerror(-error));
	c->state = CHECKPOINT_BROKEN;
	c->released = false;
	set_timer(job, &c->retry, RETRY);
	if (c->fd < 0 && !c->doubtful) { /* there never was one */
		release(job);
		return;
	}
	c->image[0] = bm_uri_path(job_uri(job, BACK));
	c->image[1] = bm_uri_path(job_uri(job, FORWARD));
	c->marking = true;
	set_timer(job, &c->deadline, DEADLINE);
	bm_workers_submit(job->disk->workers, job->disk->loop, &c->mark);
}

static void deadline(struct bm_timer *timer)
{
	struct job *job = bm_container(timer, struct job, checkpoint.deadline);
	struct checkpoint *c = &job->checkpoint;

	if (c->state == CHECKPOINT_BROKEN)
		release(job);
	else if (c->state == CHECKPOINT_KEPT && bm_mirror_claims_awaited(job->disk->mirror))
		trouble(job, -ETIMEDOUT);
	else
		set_timer(job, timer, DEADLINE / 8);
}

static void retry(struct bm_timer *timer)
{
	struct job *job = bm_container(timer, struct job, checkpoint.retry);
	struct checkpoint *c = &job->checkpoint;

	if (c->writing || c->marking) {
		set_timer(job, timer, RETRY);
		return;
	}
	c->state = CHECKPOINT_RENEWED;
	c->count = 0;
	submit(job);
}

/* The mirror has let go, and waited for us. */
static void idle(struct job *job)
{
	struct checkpoint *c = &job->checkpoint;

	if (!c->awaited || checkpoint_busy(job))
		return;
	c->awaited = false;
	host_detached(job->disk);
}

static void mark_done(struct bm_work *work)
{
	struct job *job = bm_container(work, struct job, checkpoint.mark);

	job->checkpoint.marking = false;
	if (!job->checkpoint.released)
		release(job);
	idle(job);
}

static void renewed(struct job *job)
{
	struct checkpoint *c = &job->checkpoint;

	if (c->error) {
		c->state = CHECKPOINT_BROKEN;
		set_timer(job, &c->retry, RETRY);
		return;
	}
	bm_log(BM_LOG_NOTICE, "%s.%u: there is a checkpoint again", job->disk->name, job->number);
	c->state = CHECKPOINT_KEPT;
	c->doubtful = false;
}

static void write_done(struct bm_work *work)
{
	struct job *job = bm_container(work, struct job, checkpoint.write);
	struct checkpoint *c = &job->checkpoint;

	c->writing = false;
	if (c->state == CHECKPOINT_RENEWED) {
		bm_timer_clear(job->disk->loop, &c->deadline);
		renewed(job);
	} else if (c->state == CHECKPOINT_KEPT) {
		bm_timer_clear(job->disk->loop, &c->deadline);
		if (c->error)
			trouble(job, c->error);
		else
			bm_mirror_claims_durable(job->disk->mirror);
	}
	if (c->awaited)
		idle(job);
	else
		checkpoint_go_on(job);
}

/* The life of it */

void checkpoint_go_on(struct job *job)
{
	struct checkpoint *c = &job->checkpoint;

	if (c->writing || c->state != CHECKPOINT_KEPT)
		return;
	c->count = bm_mirror_take_claims(job->disk->mirror, c->change, CHECKPOINT_CHANGES);
	if (c->count)
		submit(job);
}

uint8_t *checkpoint_load(struct job *job)
{
	struct checkpoint *c = &job->checkpoint;
	struct disk *d = job->disk;
	uint8_t *map = NULL;
	int fd = mapfile_load(d, job->map_generation, &c->id, &map);

	if (fd >= 0 || fd == -ENOENT) {
		c->fd = fd >= 0 ? fd : -1;
		c->loaded_id = fd >= 0 ? c->id : 0;
		return map;
	}
	/* What it may say is not known: there is a new one before a guest writes, or a mark. */
	if (!save(job, NULL))
		return NULL;
	c->id = 0;
	c->doubtful = true;
	c->image[0] = bm_uri_path(job_uri(job, BACK));
	c->image[1] = NULL;
	mark_run(&c->mark);
	c->state = CHECKPOINT_BROKEN;
	c->released = true;
	set_timer(job, &c->retry, RETRY);
	return NULL;
}

bool checkpoint_is_void(const struct job *job)
{
	const char *const uris[] = {job->source, job->target.uri};
	const struct checkpoint *c = &job->checkpoint;
	char text[MARK], any[MARK];

	mark_of(text, job->map_generation, c->loaded_id);
	mark_of(any, job->map_generation, 0);
	for (int i = 0; i < 2; i++) {
		const char *path = bm_uri_path(uris[i]);

		if (path && (bm_mark_is_void(path, text) || bm_mark_is_void(path, any)))
			return true;
	}
	return false;
}

void checkpoint_disbelieve(struct job *job)
{
	struct checkpoint *c = &job->checkpoint;
	struct disk *d = job->disk;
	bool from = !strcmp(job->resumed_from, "checkpoint");

	bm_log(BM_LOG_WARN, "%s.%u: the checkpoint is void, it could not be kept%s", d->name,
	       job->number, from ? "; all is copied again" : "");
	if (from) {
		bm_mirror_distrust(d->mirror);
		job->resumed_from = "nothing";
		job->redo_bytes += job->kept_bytes;
		job->kept_bytes = 0;
	}
	if (c->state != CHECKPOINT_KEPT)
		return;
	c->state = CHECKPOINT_BROKEN;
	c->released = true;
	bm_mirror_claims_void(d->mirror);
	set_timer(job, &c->retry, 0);
}

static void parked(struct bm_work *work)
{
	struct job *job = bm_container(work, struct job, checkpoint.write);

	if (job->checkpoint.error)
		bm_log(BM_LOG_WARN,
		       "%s.%u: its map cannot be kept (%s); after a restart of the host more is "
		       "copied again",
		       job->disk->name, job->number, strerror(-job->checkpoint.error));
	bm_loop_stop(job->disk->loop);
}

void checkpoint_park(struct job *job)
{
	struct checkpoint *c = &job->checkpoint;

	bm_timer_clear(job->disk->loop, &c->deadline);
	bm_timer_clear(job->disk->loop, &c->retry);
	if (!job->map) {
		bm_loop_stop(job->disk->loop);
		return;
	}
	c->write.run = park_run;
	c->write.done = parked;
	bm_workers_submit(job->disk->keeper, job->disk->loop, &c->write);
}

bool checkpoint_busy(const struct job *job)
{
	return job->checkpoint.writing || job->checkpoint.marking;
}

bool checkpoint_hangs(const struct job *job)
{
	return checkpoint_busy(job) && job->checkpoint.state != CHECKPOINT_KEPT;
}

void checkpoint_end(struct job *job)
{
	struct checkpoint *c = &job->checkpoint;

	bm_timer_clear(job->disk->loop, &c->deadline);
	bm_timer_clear(job->disk->loop, &c->retry);
	if (c->fd >= 0)
		close(c->fd);
	c->fd = -1;
}

void checkpoint_init(struct job *job)
{
	struct checkpoint *c = &job->checkpoint;

	c->fd = -1;
	c->write = (struct bm_work){.run = write_run, .done = write_done};
	c->mark = (struct bm_work){.run = mark_run, .done = mark_done};
	c->deadline.run = deadline;
	c->retry.run = retry;
}
