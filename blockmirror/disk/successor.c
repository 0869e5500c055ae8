/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A process that takes the place of another one (upgrade.c), until the disk is its own. All of it
 * blocks: there is nothing to serve yet. That the other one is dead tells the end of its socket;
 * from the moment on that the disk has been passed this process goes on without it, with the
 * clients that it has.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/pass.h"
#include "blockmirror/disk/job.h"

enum { LARGEST = 1 << 20, DESCRIPTORS = 3 /* and that of the image, if it has one */ };

struct successor {
	struct disk *disk;
	int fd;
	bool alone; /* the other process is dead */
	json_t *past, *orders;
	uint8_t buffer[LARGEST];
};

/* We can read the record, and blockmirrord knows of us. Nothing has been touched. */
static int say_ready(const struct successor *s, struct bm_error *error)
{
	bm_record_auto struct bm_record record = {0};
	char hello[256];
	int r = bm_record_read(s->disk->folder, &record, error);

	if (r < 0)
		return r == -ENOENT ? bm_fail(error, BM_E_NOT_FOUND, "disk %s has no record in %s",
					      s->disk->name, s->disk->folder)
				    : r;
	r = daemon_tell_successor(s->disk);
	if (r < 0)
		return bm_fail_errno(error, r, "cannot tell blockmirrord of this process");
	snprintf(hello, sizeof(hello),
		 "{\"v\":1,\"state\":%d,\"clients\":%d,\"version\":\"" BM_VERSION "\"}",
		 UPGRADE_STATE, NBD_HANDOVER);
	r = bm_pass_send(s->fd, NULL, hello, strlen(hello), &(struct bm_pass){0}, 0);
	return r < 0 ? bm_fail_errno(error, r, "the process before this one does not listen") : 0;
}

static int take_disk(struct successor *s, struct disk_options *options, const json_t *message,
		     struct bm_pass *pass, struct bm_error *error)
{
	struct disk *d = s->disk;
	json_t *past, *orders;
	int v, shared;

	if (json_unpack((json_t *)message, "{s:i s:b s:o s:o}", "v", &v, "shared", &shared, "past",
			&past, "orders", &orders) ||
	    v != 1 || !json_is_array(past) || pass->n_fds < DESCRIPTORS ||
	    pass->n_fds > DESCRIPTORS + 1)
		return bm_fail(error, BM_E_INTERNAL,
			       "what the process before this one sent is not understood");
	s->past = json_incref(past);
	s->orders = json_incref(orders);
	d->shared = shared;
	d->predecessor = getppid();
	d->folder_lock = bm_pass_take(pass, 0);
	options->nbd_fd = bm_pass_take(pass, 1);
	options->control_fd = bm_pass_take(pass, 2);
	if (pass->n_fds > DESCRIPTORS)
		d->image_fd = bm_pass_take(pass, DESCRIPTORS);
	return 0;
}

int successor_begin(struct disk *d, struct disk_options *options, struct successor **successor,
		    struct bm_error *error)
{
	struct successor *s = calloc(1, sizeof(*s));
	struct bm_pass pass;
	json_t *message;
	ssize_t n;
	int r;

	if (!s)
		return bm_fail_errno(error, ENOMEM, "disk %s", d->name);
	*successor = s;
	s->disk = d;
	s->fd = options->predecessor;
	r = say_ready(s, error);
	if (r < 0)
		return r;
	n = bm_pass_receive(s->fd, s->buffer, sizeof(s->buffer), &pass, 0);
	if (n <= 0)
		return bm_fail(error, BM_E_INTERRUPTED,
			       "the process before this one ended before it handed disk %s over",
			       d->name);
	message = json_loadb((const char *)s->buffer, (size_t)n, 0, NULL);
	r = take_disk(s, options, message, &pass, error);
	json_decref(message);
	bm_pass_close(&pass);
	return r;
}

static int take_client(struct successor *s, const uint8_t *parcel, size_t length,
		       struct bm_pass *pass)
{
	int fd = bm_pass_take(pass, 0), r;

	if (fd < 0)
		return -EPROTO;
	r = nbd_server_take(s->disk->nbd, fd, parcel, length);
	if (r < 0)
		close(fd);
	return r;
}

/* One message; 0: the other process is dead. */
static ssize_t next(struct successor *s, struct bm_pass *pass)
{
	ssize_t n = bm_pass_receive(s->fd, s->buffer, sizeof(s->buffer), pass, 0);

	s->alone = !n || n == -ECONNRESET;
	return s->alone ? 0 : n;
}

static int take_all(struct successor *s)
{
	struct bm_pass pass;
	ssize_t n = next(s, &pass);
	int left, r = 0;

	if (n <= 0)
		return (int)n;
	bm_pass_close(&pass);
	left = nbd_server_unpack(s->disk->nbd, s->buffer, (size_t)n);
	for (; left > 0 && !r; left--) {
		n = next(s, &pass);
		if (n <= 0)
			return (int)n;
		r = take_client(s, s->buffer, (size_t)n, &pass);
		bm_pass_close(&pass);
	}
	return left < 0 ? left : r;
}

int successor_clients(struct successor *s, struct bm_error *error)
{
	struct disk *d = s->disk;
	int r = nbd_server_freeze(d->nbd, 0, NULL, NULL);

	if (!r)
		r = take_all(s);
	return r ? bm_fail_errno(error, r, "the clients of disk %s cannot be taken over", d->name)
		 : 0;
}

/* They are the other process's still. */
void successor_give_up(struct successor *s)
{
	struct disk *d = s->disk;

	if (!d->nbd)
		return;
	nbd_server_abandon(d->nbd);
	while (nbd_server_clients(d->nbd, NULL, 0))
		bm_loop_turn(d->loop, 0);
}

/* The record knows the last job only. */
static void remember_jobs(struct successor *s)
{
	struct disk *d = s->disk;

	if (json_object_size(s->orders)) /* one that ran may have ended just now */
		json_array_extend(s->past, d->past);
	json_decref(d->past);
	d->past = bm_steal(s->past);
}

void successor_finish(struct successor *s)
{
	static const char taken[] = "{\"v\":1,\"taken\":true}";
	struct disk *d = s->disk;
	struct bm_pass pass;

	remember_jobs(s);
	upgrade_give_orders(d, s->orders);
	(void)bm_pass_send(s->fd, NULL, taken, strlen(taken), &(struct bm_pass){0}, 0);
	if (!s->alone && next(s, &pass) > 0)
		bm_pass_close(&pass);
	if (s->alone)
		bm_log(BM_LOG_WARN, "%s: the process before this one is dead; %u clients are here",
		       d->name, nbd_server_clients(d->nbd, NULL, 0));
	if (!d->shared) {
		nbd_server_own(d->nbd, d->nbd_path);
		bm_rpc_own(d->rpc, d->control_path);
	}
	nbd_server_thaw(d->nbd);
}

void successor_free(struct successor *s)
{
	if (!s)
		return;
	close(s->fd);
	json_decref(s->past);
	json_decref(s->orders);
	free(s);
}
