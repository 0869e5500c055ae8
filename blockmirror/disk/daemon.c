/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a disk's process and blockmirrord have from each other. The daemon passes the sockets that
 * the disk is reached at, and holds them, too: clients that come while no process is there wait in
 * the queue. A daemon that was started anew asks for them again, and for a descriptor by which it
 * sees this process end. Nothing here is needed by a disk that is served without a daemon.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <unistd.h>

#include "blockmirror/base/adopt.h"
#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/pass.h"
#include "blockmirror/base/spawn.h"
#include "blockmirror/disk/disk.h"

/* As sd_listen_fds_with_names(3) has it; our names are "nbd", "control" and "data". */
void daemon_take_sockets(struct disk_options *options)
{
	const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");
	const char *given = getenv("LISTEN_FDNAMES");
	bm_free char *names = given ? strdup(given) : NULL;
	char *rest = names, *name;
	int n = 0;

	if (pid && count && strtol(pid, NULL, 10) == getpid())
		n = (int)strtol(count, NULL, 10);
	for (int i = 0; i < n && (name = strsep(&rest, ":")); i++)
		if (!strcmp(name, "nbd"))
			options->nbd_fd = BM_SPAWN_FIRST_FD + i;
		else if (!strcmp(name, "control"))
			options->control_fd = BM_SPAWN_FIRST_FD + i;
		else if (!strcmp(name, "data"))
			options->data_fd = BM_SPAWN_FIRST_FD + i;
	unsetenv("LISTEN_PID");
	unsetenv("LISTEN_FDS");
	unsetenv("LISTEN_FDNAMES");
}

/* The daemon's socket is beside ours. */
static int address_of(const struct disk *d, struct sockaddr_un *address)
{
	int folder = (int)(strrchr(d->control_path, '/') - d->control_path);

	*address = (struct sockaddr_un){.sun_family = AF_UNIX};
	return snprintf(address->sun_path, sizeof(address->sun_path), "%.*s/" BM_ADOPT_SOCKET,
			folder, d->control_path) < (int)sizeof(address->sun_path)
		       ? 0
		       : -ENAMETOOLONG;
}

static int send_to_daemon(const struct disk *d, json_t *hello, const struct bm_pass *pass)
{
	bm_free char *text = hello ? json_dumps(hello, JSON_COMPACT) : NULL;
	bm_close int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct sockaddr_un address;
	int r = address_of(d, &address);

	json_decref(hello);
	if (fd < 0 || !text || r < 0)
		return r < 0 ? r : -ENOMEM;
	return bm_pass_send(fd, &address, text, strlen(text), pass, MSG_DONTWAIT);
}

int daemon_tell_successor(const struct disk *d)
{
	bm_close int self = pidfd_open(getpid(), 0);
	int r = self < 0 ? -errno
			 : send_to_daemon(d,
					  json_pack("{s:i s:s s:s s:b}", "v", 1, "name", d->name,
						    "folder", d->folder, "successor", 1),
					  &(struct bm_pass){.fds = {self}, .n_fds = 1});

	return r == -ENOENT || r == -ECONNREFUSED ? 0 : r;
}

void daemon_adopt(void *arg, struct bm_rpc_call *call, json_t *params)
{
	struct disk *d = arg;
	struct bm_pass pass = {.n_fds = BM_ADOPT_FDS};
	struct bm_error error;
	bm_close int self = pidfd_open(getpid(), 0);
	int r = self < 0 ? -errno : 0;

	(void)params;
	if (d->stopping || d->upgrade) {
		bm_fail(&error, BM_E_BUSY, "the disk is being %s",
			d->stopping ? "stopped" : "upgraded");
		bm_rpc_fail(call, &error);
		return;
	}
	if (!r) {
		d->shared = true;
		pass.fds[BM_ADOPT_PROCESS] = self;
		pass.fds[BM_ADOPT_NBD] = nbd_server_share(d->nbd);
		pass.fds[BM_ADOPT_CONTROL] = bm_rpc_share(d->rpc);
		r = send_to_daemon(
			d, json_pack("{s:i s:s s:s}", "v", 1, "name", d->name, "folder", d->folder),
			&pass);
	}
	if (r < 0) {
		bm_fail_errno(&error, r, "cannot hand the sockets of disk %s over", d->name);
		bm_rpc_fail(call, &error);
	} else {
		bm_rpc_reply(call, NULL);
	}
}
