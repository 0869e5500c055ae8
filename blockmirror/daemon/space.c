/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What room another host finds in a folder of ours that its disks may come to. It is asked before
 * images are planned to go there, and while they do. One call, one worker's task.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/maintenance.h"
#include "blockmirror/daemon/peer.h"

struct look {
	struct bm_work work;
	struct peers *peers;
	struct bm_rpc_call *call;
	json_t *allowed, *result;
	char *path, *peer;
	struct bm_error error;
};

static void look(struct bm_work *work)
{
	struct look *l = bm_container(work, struct look, work);
	const char *state = l->peers->daemon->state;
	bm_free char *real = realpath(l->path, NULL);
	struct statvfs fs;
	struct stat st;
	uint64_t used, free, size;

	if (!real || !receive_allows(l->allowed, real)) {
		bm_fail(&l->error, BM_E_ACCESS,
			"host %s does not let host %s put disks into %s: there, \"blockmirror peer "
			"allow %s --receive %s\" does",
			l->peers->name, l->peer, l->path, l->peer, l->path);
		return;
	}
	if (bm_maintenance_host(state, &l->error) < 0 ||
	    bm_maintenance_folder(state, real, &l->error) < 0)
		return;
	if (stat(real, &st) < 0 || statvfs(real, &fs) < 0) {
		bm_fail_errno(&l->error, errno, "%s on host %s", real, l->peers->name);
		return;
	}
	if (!S_ISDIR(st.st_mode)) {
		bm_fail(&l->error, BM_E_NOT_IMAGE, "%s on host %s is no folder", real,
			l->peers->name);
		return;
	}
	used = (fs.f_blocks - fs.f_bfree) * fs.f_frsize;
	free = fs.f_bavail * fs.f_frsize;
	size = fs.f_blocks * fs.f_frsize;
	l->result = json_pack("{s:s s:I s:I s:I s:I}", "path", real, "used", (json_int_t)used,
			      "free", (json_int_t)free, "size", (json_int_t)size, "device",
			      (json_int_t)st.st_dev);
}

static void looked(struct bm_work *work)
{
	struct look *l = bm_container(work, struct look, work);

	if (l->result)
		bm_rpc_reply(l->call, bm_steal(l->result));
	else
		bm_rpc_fail(l->call, &l->error);
	json_decref(l->allowed);
	free(l->path);
	free(l->peer);
	free(l);
}

void method_space(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct peers *p = arg;
	struct peer *peer = peer_admit(p, call, true);
	const char *path = json_string_value(json_object_get(params, "path"));
	struct look *l = peer && path && *path == '/' ? calloc(1, sizeof(*l)) : NULL;

	if (!peer)
		return;
	if (l) {
		l->path = strdup(path);
		l->peer = strdup(peer->name);
	}
	if (!l || !l->path || !l->peer) {
		control_refuse(call, BM_E_USAGE, "path", path ? path : "(none)",
			       "is not one that begins with /");
		if (l) {
			free(l->path);
			free(l->peer);
		}
		free(l);
		return;
	}
	l->peers = p;
	l->call = call;
	l->allowed = json_incref(peer->receive);
	l->work.run = look;
	l->work.done = looked;
	bm_workers_submit(p->callers[ERRAND_THEIRS], p->daemon->loop, &l->work);
}
