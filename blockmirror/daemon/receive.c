/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Disks of other hosts that come here: a peer names one, and the folder or file that it is to come
 * to. Where that is allowed to it (peer allow), the image is made and tried out, and a process is
 * started that serves the disk as a standby, to the peer alone. Nothing is kept that did not get
 * there.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/disk_name.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/maintenance.h"
#include "blockmirror/base/record.h"
#include "blockmirror/base/units.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/daemon/peer.h"
#include "blockmirror/daemon/probe.h"

enum { IDENTITY = 32 };

/* One that is looked at, in a worker. */
struct receipt {
	struct bm_work work;
	struct bm_list link;
	struct peers *peers;
	struct bm_rpc_call *call;
	json_t *params, *allowed; /* what is asked for; the folders that it may be in */
	char *peer;
	const char *name, *disk, *path, *image; /* params' */
	uint64_t size, need;                    /* bytes: of the disk, and that it takes */
	bool overwrite;
	bool shared; /* path is a path or a URI that we are to reach ourselves (share.c) */
	bool looks;  /* no more than whether it may come */
	bool again;  /* it is here already, from an earlier time */
	/* found: */
	char *real; /* the image */
	bool made;
	struct probe probe;
	int result;
	struct bm_error error;
};

static void free_receipt(struct receipt *t)
{
	json_decref(t->params);
	json_decref(t->allowed);
	free(t->peer);
	free(t->real);
	free(t);
}

/* In a worker */

bool receive_allows(const json_t *allowed, const char *folder)
{
	const json_t *one;
	size_t i;

	json_array_foreach(allowed, i, one) {
		bm_free char *real = realpath(json_string_value(one), NULL);
		size_t n = real ? strlen(real) : 0;

		if (real && !strncmp(folder, real, n) &&
		    (!folder[n] || folder[n] == '/' || !strcmp(real, "/")))
			return true;
	}
	return false;
}

static int refuse_folder(struct receipt *t, const char *folder)
{
	return bm_fail(&t->error, BM_E_ACCESS,
		       "host %s does not let host %s put disks into %s: there, \"blockmirror peer "
		       "allow %s --receive %s\" does",
		       t->peers->name, t->peer, folder, t->peer, folder);
}

/* Where it is to be: path itself, or, in a folder, the name that it had. */
static int find_place(struct receipt *t)
{
	bm_free char *copy = strdup(t->path), *folder = NULL;
	const char *name = t->image;
	struct stat st;
	char *slash;

	if (!copy)
		return bm_fail_errno(&t->error, ENOMEM, "%s", t->path);
	if (stat(copy, &st) < 0 || !S_ISDIR(st.st_mode)) {
		slash = strrchr(copy, '/');
		*slash = '\0';
		name = slash + 1;
	}
	for (size_t n = strlen(copy); n > 1 && copy[n - 1] == '/'; n--)
		copy[n - 1] = '\0';
	folder = realpath(*copy ? copy : "/", NULL);
	/* What is not there, and what is not for the peer, look alike to it. */
	if (!folder || !receive_allows(t->allowed, folder))
		return refuse_folder(t, *copy ? copy : "/");
	if (!t->again && bm_maintenance_folder(t->peers->daemon->state, folder, &t->error) < 0)
		return -EBUSY;
	if (!*name || strchr(name, '/') || !strcmp(name, ".") || !strcmp(name, ".."))
		return bm_fail(&t->error, BM_E_USAGE, "%s: the image needs a name", t->path);
	if (asprintf(&t->real, "%s/%s", strcmp(folder, "/") ? folder : "", name) < 0)
		return bm_fail_errno(&t->error, ENOMEM, "%s", t->path);
	return 0;
}

/* The other host had it here before: the same image, or none. */
static int look_again(struct receipt *t)
{
	bm_record_auto struct bm_record record = {0};
	bm_free char *folder = NULL;

	if (asprintf(&folder, "%s/disks/%s", t->peers->daemon->state, t->name) < 0)
		return bm_fail_errno(&t->error, ENOMEM, "disk %s", t->name);
	if (bm_record_read(folder, &record, &t->error) < 0)
		return bm_fail(
			&t->error, BM_E_RECORD,
			"host %s has a copy of disk %s already, and no record of it that can "
			"be read",
			t->peers->name, t->name);
	if (record.role != BM_ROLE_STANDBY)
		return bm_fail(&t->error, BM_E_EXISTS, "host %s has disk %s itself", t->peers->name,
			       t->name);
	if (t->shared && record.shared && !strcmp(record.uri, t->real))
		return 0;
	if (t->shared || record.shared)
		return bm_fail(&t->error, BM_E_EXISTS,
			       "host %s waits for disk %s already, on other storage: \"blockmirror "
			       "migrate disarm %s\" ends that",
			       t->peers->name, t->name, t->name);
	if (t->overwrite && !strcmp(record.uri, t->real) && record.size >= t->size)
		return 0;
	return bm_fail(&t->error, BM_E_EXISTS,
		       "host %s has a copy of disk %s already, %s, from an earlier move%s",
		       t->peers->name, t->name, record.uri,
		       strcmp(record.uri, t->real) ? ": move it there, or remove that one first"
						   : "; --overwrite gives up what it holds");
}

static int check_space(struct receipt *t, const char *folder)
{
	char need[BM_UNITS_TEXT], have[BM_UNITS_TEXT];
	struct statvfs fs;
	uint64_t free_bytes;

	if (statvfs(folder, &fs) < 0)
		return bm_fail_errno(&t->error, errno, "cannot use %s", folder);
	free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize;
	if (free_bytes >= t->need)
		return 0;
	return bm_fail(&t->error, BM_E_ENOSPC,
		       "%s on host %s: no space: the disk takes %s, %s are free there", folder,
		       t->peers->name, bm_format_size(need, t->need),
		       bm_format_size(have, free_bytes));
}

/* All holes, and there after a power cut. */
static int make_image(struct receipt *t)
{
	bm_close int fd = open(t->real, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	int r = fd < 0 ? -errno : 0;

	t->made = !r;
	if (!r && (ftruncate(fd, (off_t)t->size) < 0 || fsync(fd) < 0))
		r = -errno;
	if (!r)
		r = bm_sync_folder_of(t->real);
	return r < 0 ? bm_fail_errno(&t->error, r, "cannot create %s on host %s", t->real,
				     t->peers->name)
		     : 0;
}

static int make_and_try(struct receipt *t)
{
	bm_free char *folder = strdup(t->real);
	int r;

	if (!folder)
		return bm_fail_errno(&t->error, ENOMEM, "%s", t->real);
	*strrchr(folder, '/') = '\0';
	r = check_space(t, *folder ? folder : "/");
	if (!r)
		r = make_image(t);
	if (!r)
		r = probe_image(t->real, t->size, &t->probe, &t->error);
	if (r < 0 && t->made)
		unlink(t->real);
	return r;
}

static int use_image(struct receipt *t, const struct stat *st)
{
	char need[BM_UNITS_TEXT], have[BM_UNITS_TEXT];

	if (!S_ISREG(st->st_mode))
		return bm_fail(&t->error, BM_E_NOT_IMAGE, "%s on host %s is no file", t->real,
			       t->peers->name);
	if (!t->overwrite)
		return bm_fail(&t->error, BM_E_EXISTS,
			       "%s exists on host %s; --overwrite gives up what it holds", t->real,
			       t->peers->name);
	if ((uint64_t)st->st_size < t->size)
		return bm_fail(&t->error, BM_E_TOO_SMALL,
			       "%s on host %s is smaller (%s) than the disk (%s)", t->real,
			       t->peers->name, bm_format_size(have, (uint64_t)st->st_size),
			       bm_format_size(need, t->size));
	return 0;
}

static int find_shared(struct receipt *t)
{
	char shown[400];
	int r = share_find(t->allowed, t->path, &t->real, &t->error);

	bm_uri_redact(t->path, shown, sizeof(shown));
	if (r == -EACCES)
		return bm_fail(&t->error, BM_E_ACCESS,
			       "%s is not there on host %s, or host %s may not have it opened: "
			       "there, \"blockmirror peer allow %s --shared %s\" lets it",
			       shown, t->peers->name, t->peer, t->peer, shown);
	return r;
}

static void look(struct bm_work *work)
{
	struct receipt *t = bm_container(work, struct receipt, work);
	struct stat st;

	t->result = t->again ? 0 : bm_maintenance_host(t->peers->daemon->state, &t->error);
	if (!t->result)
		t->result = t->shared ? find_shared(t) : find_place(t);
	if (!t->result && t->again)
		t->result = look_again(t);
	else if (t->shared)
		return; /* the process tells */
	else if (!t->result && !lstat(t->real, &st))
		t->result = use_image(t, &st);
	else if (!t->result)
		t->result = make_and_try(t);
}

/* In the loop */

static json_t *answer(const struct receipt *t, unsigned port)
{
	const struct peers *p = t->peers;
	json_t *j = json_pack("{s:s s:s s:b s:I s:s*}", "name", t->name, "path", t->real, "created",
			      (int)t->made, "port", (json_int_t)port, "address", p->bind);

	if (t->made)
		json_object_set_new(j, "probe",
				    json_pack("{s:I s:b s:b s:I}", "block",
					      (json_int_t)t->probe.block, "punch",
					      (int)t->probe.punch, "zero", (int)t->probe.zero,
					      "flush_ns", (json_int_t)t->probe.flush_ns));
	return j;
}

/* The process's start answers the call. */
static void begin(struct receipt *t)
{
	struct served *s = served_new(t->peers->daemon, t->name);

	if (!s) {
		if (t->made)
			unlink(t->real);
		control_refuse(t->call, BM_E_INTERNAL, "disk", t->name,
			       "cannot be received: out of memory");
		return;
	}
	s->received = json_pack("{s:s s:s s:b}", "peer", t->peer, "disk", t->disk, "shared",
				(int)t->shared);
	s->serve_call = t->call;
	s->first = (struct first_start){.image = bm_steal(t->real),
					.force = t->overwrite,
					.standby = true,
					.size = t->size,
					.made = t->made};
	t->real = strdup(s->first.image);
	s->first.answer = answer(t, 0);
	served_begin(s);
}

static void looked(struct bm_work *work)
{
	struct receipt *t = bm_container(work, struct receipt, work);
	struct daemon *d = t->peers->daemon;
	struct served *s = served_find(d, t->name);

	bm_list_remove(&t->link);
	if (t->result < 0)
		bm_rpc_fail(t->call, &t->error);
	else if (t->looks)
		bm_rpc_reply(t->call, NULL);
	else if (t->again && s && s->received)
		bm_rpc_reply(t->call, answer(t, registry_port(s->received)));
	else if (s || t->again) /* it has come, or gone, while we looked */
		control_refuse(t->call, BM_E_BUSY, "disk", t->name,
			       "was started or stopped there meanwhile; try again");
	else
		begin(t);
	if (t->made && t->result >= 0 && s)
		unlink(t->real);
	free_receipt(t);
}

/* It is small: the loop does not wait for long. */
static int read_record(const struct served *s, struct bm_record *record, struct bm_error *error)
{
	bm_free char *folder = NULL;

	if (asprintf(&folder, "%s/disks/%s", s->daemon->state, s->name) < 0) {
		folder = NULL;
		return bm_fail_errno(error, ENOMEM, "disk %s", s->name);
	}
	return bm_record_read(folder, record, error);
}

/* It was ours, and is the caller's now; but its process still lives. */
static bool was_passed(const struct receipt *t, const struct served *s)
{
	bm_record_auto struct bm_record record = {0};

	return !read_record(s, &record, NULL) && record.role == BM_ROLE_RETIRED &&
	       !strcmp(record.peer, t->peer) && !strcmp(record.disk, t->disk);
}

/* A disk of that name that we have: whether it is the one that is meant. Answers when not. */
static bool is_same(const struct receipt *t, const struct served *s)
{
	struct bm_error error;

	if (s->received && !strcmp(registry_peer(s->received), t->peer) &&
	    !strcmp(registry_disk(s->received), t->disk))
		return true;
	if (was_passed(t, s))
		bm_fail(&error, BM_E_BUSY,
			"host %s has passed disk %s on, and its guest has not let go of it yet",
			t->peers->name, t->name);
	else
		bm_fail(&error, BM_E_EXISTS, "host %s has another disk of the name %s",
			t->peers->name, t->name);
	bm_rpc_fail(t->call, &error);
	return false;
}

static bool identity_good(const char *disk)
{
	return strlen(disk) == IDENTITY && strspn(disk, "0123456789abcdef") == IDENTITY;
}

static bool read_shared(struct receipt *t, struct bm_error *error)
{
	json_int_t size = 0;

	if (json_unpack(t->params, "{s:s s:s s:s s:I}", "name", &t->name, "disk", &t->disk, "uri",
			&t->path, "size", &size) ||
	    size < 512 || size % 512 || strlen(t->path) >= PATH_MAX / 2 || !identity_good(t->disk))
		return bm_fail(error, BM_E_USAGE,
			       "name, disk (its identity), uri and size (bytes) are wanted"),
		       false;
	t->size = (uint64_t)size;
	t->looks = json_is_true(json_object_get(t->params, "look"));
	return bm_disk_name_check(t->name, error) >= 0;
}

static bool read_params(struct receipt *t, struct bm_error *error)
{
	json_int_t size = 0, need = 0;
	int overwrite = 0;

	if (json_unpack(t->params, "{s:s s:s s:s s:s s:I s:I s?b}", "name", &t->name, "disk",
			&t->disk, "path", &t->path, "image", &t->image, "size", &size, "need",
			&need, "overwrite", &overwrite) ||
	    size < 512 || size % 512 || need < 0 || *t->path != '/' ||
	    strlen(t->path) >= PATH_MAX / 2 || strlen(t->image) > NAME_MAX ||
	    !identity_good(t->disk))
		return bm_fail(error, BM_E_USAGE,
			       "name, disk (its identity), path (absolute), image (a name), size "
			       "and need (bytes) are wanted"),
		       false;
	t->size = (uint64_t)size;
	t->need = (uint64_t)need;
	t->overwrite = overwrite;
	return bm_disk_name_check(t->name, error) >= 0;
}

static void receive(struct peers *p, struct bm_rpc_call *call, json_t *params, bool shared)
{
	struct peer *peer = peer_admit(p, call, true);
	struct receipt *t = peer ? calloc(1, sizeof(*t)) : NULL;
	const struct served *s;
	struct bm_error error;

	if (!peer)
		return;
	if (t)
		t->peer = strdup(peer->name);
	if (!t || !t->peer) {
		free(t);
		control_refuse(call, BM_E_INTERNAL, "host", p->name, "is out of memory");
		return;
	}
	t->peers = p;
	t->call = call;
	t->params = json_incref(params);
	t->shared = shared;
	t->allowed = json_incref(shared ? peer->shared : peer->receive);
	if (!(shared ? read_shared(t, &error) : read_params(t, &error))) {
		bm_rpc_fail(call, &error);
		free_receipt(t);
		return;
	}
	s = served_find(p->daemon, t->name);
	t->again = s;
	if (s && !is_same(t, s)) {
		free_receipt(t);
		return;
	}
	t->work.run = look;
	t->work.done = looked;
	bm_list_append(&p->receipts, &t->link);
	bm_workers_submit(p->callers[ERRAND_THEIRS], p->daemon->loop, &t->work);
}

void method_receive(void *arg, struct bm_rpc_call *call, json_t *params)
{
	receive(arg, call, params, false);
}

void method_share(void *arg, struct bm_rpc_call *call, json_t *params)
{
	receive(arg, call, params, true);
}

void receive_close(struct peers *p)
{
	struct bm_error error;
	struct bm_list *node;

	bm_fail(&error, BM_E_UNREACHABLE, "blockmirrord ends");
	while ((node = bm_list_take(&p->receipts))) {
		struct receipt *t = bm_container(node, struct receipt, link);

		bm_rpc_fail(t->call, &error);
		if (t->made)
			unlink(t->real);
		free_receipt(t);
	}
}

/* The end of one */

/* Whether it is one still, and that host's, says its record. */
static int check_standby(const struct served *s, struct bm_record *record, struct bm_error *error)
{
	int r = read_record(s, record, error);

	if (r < 0)
		return r;
	return record->role == BM_ROLE_STANDBY && !strcmp(record->disk, registry_disk(s->received))
		       ? 0
		       : bm_fail(error, BM_E_RECORD,
				 "disk %s is no standby any more, says its record: nothing was "
				 "removed",
				 s->name);
}

/* A standby has nothing that is not on the other host, too; but it may be the disk by now. */
static bool may_discard(const struct served *s, struct bm_rpc_call *call)
{
	bm_record_auto struct bm_record record = {0};
	struct bm_error error;
	int r = check_standby(s, &record, &error);

	if (r < 0 && r != -ENOENT)
		bm_rpc_fail(call, &error);
	return !r || r == -ENOENT;
}

void method_discard(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct peers *p = arg;
	const struct peer *peer = peer_admit(p, call, true);
	const char *name = json_string_value(json_object_get(params, "name")),
		   *disk = json_string_value(json_object_get(params, "disk"));
	struct served *s = peer && name ? served_find(p->daemon, name) : NULL;

	if (!peer)
		return;
	if (!s || !disk || !s->received || strcmp(registry_peer(s->received), peer->name) != 0 ||
	    strcmp(registry_disk(s->received), disk) != 0) {
		control_refuse(call, BM_E_NOT_FOUND, "disk", name ? name : "(none)",
			       "is no standby of the host that calls");
		return;
	}
	if (s->working || s->stopping || s->discard_call || s->serve_call || s->stop_call ||
	    s->state == SERVED_ADOPTING) {
		control_refuse(call, BM_E_BUSY, "disk", name,
			       "is being started or stopped; try again");
		return;
	}
	if (!may_discard(s, call))
		return;
	s->discard_call = call;
	s->keeping = json_is_true(json_object_get(params, "keep"));
	if (s->process.fd < 0) {
		served_stopped(s);
		return;
	}
	s->stopping = true;
	if (pidfd_send_signal(s->process.fd, SIGTERM, NULL, 0) < 0 && errno != ESRCH) {
		s->stopping = false;
		s->discard_call = NULL;
		control_refuse(call, BM_E_INTERNAL, "disk", name, "cannot be told to end");
	}
}

int receive_erase(const struct served *s, struct bm_error *error)
{
	static const char *const rest[] = {"offer", "map"};
	bm_record_auto struct bm_record record = {0};
	bm_free char *folder = NULL;
	int r = check_standby(s, &record, error);

	if (r < 0)
		return r == -ENOENT ? 0 : r;
	if (asprintf(&folder, "%s/disks/%s", s->daemon->state, s->name) < 0) {
		folder = NULL;
		return bm_fail_errno(error, ENOMEM, "disk %s", s->name);
	}
	/* What the other host has the disk on is not ours. */
	if (!record.shared)
		bm_mark_remove(record.uri);
	if (!record.shared && !s->keeping && unlink(record.uri) < 0 && errno != ENOENT)
		return bm_fail_errno(error, errno, "cannot remove %s", record.uri);
	for (size_t i = 0; i < sizeof(rest) / sizeof(rest[0]); i++) {
		bm_free char *path = NULL;

		if (asprintf(&path, "%s/%s", folder, rest[i]) < 0)
			path = NULL;
		else
			unlink(path);
	}
	bm_record_remove(folder);
	if (rmdir(folder) < 0 && errno != ENOENT)
		bm_log(BM_LOG_WARN, "cannot remove %s: %s", folder, strerror(errno));
	return 0;
}
