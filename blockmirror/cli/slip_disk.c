/* SPDX-License-Identifier: BSD-3-Clause */
/* The process of a disk that is slipped under a running QEMU: started, watched, ended. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/cli/slip.h"

#define ANSWER 5000000000ull /* ns */
enum { END_MS = 15000, STEP_MS = 20 };

/*
 * QEMU runs as somebody else: that one shall be able to connect. The folders let everybody through
 * to what he can name; the socket is that one's.
 */
static void open_door(const struct slip *s, const char *nbd)
{
	bm_free char *socket_path = bm_uri_socket(nbd), *disks = NULL;
	struct ucred peer = s->qmp ? bm_qmp_peer(s->qmp) : (struct ucred){0};

	if (!socket_path || !s->qmp || geteuid() || !peer.uid || peer.uid == (uid_t)-1)
		return;
	if (asprintf(&disks, "%s/disks", s->cli->run_dir) < 0 ||
	    lchown(socket_path, peer.uid, peer.gid) < 0 || chmod(s->cli->run_dir, 0711) < 0 ||
	    chmod(disks, 0711) < 0)
		fprintf(stderr, "blockmirror: %s: cannot be opened to QEMU's user: %s\n",
			socket_path, strerror(errno));
}

int slip_disk_start(struct slip *s, const char *image, bool beside, struct bm_error *error)
{
	const char *options[] = {beside ? "--beside" : NULL, NULL};
	bm_free char *nbd = NULL;
	int r = cli_start_disk(s->cli, s->name, image, options, &nbd, error);

	if (r < 0)
		return r;
	s->pid = r;
	s->starts++;
	open_door(s, nbd);
	bm_client_close(s->disk);
	s->disk = NULL;
	return cli_connect(s->cli, s->name, &s->disk, error);
}

bool slip_disk_gone(struct slip *s)
{
	struct pollfd p = {.fd = s->disk ? bm_client_fd(s->disk) : -1, .events = POLLIN};
	char byte;

	if (!s->disk)
		return true;
	return poll(&p, 1, 0) > 0 && recv(p.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

/* A child that has ended is not there any more. */
static void reap(struct slip *s)
{
	if (s->pid > 0 && waitpid(s->pid, NULL, WNOHANG) == s->pid)
		s->pid = 0;
}

static int ensure(struct slip *s, bool beside, struct bm_error *error)
{
	if (s->disk && !slip_disk_gone(s))
		return 0;
	bm_client_close(s->disk);
	s->disk = NULL;
	reap(s);
	if (!cli_connect(s->cli, s->name, &s->disk, NULL)) {
		/* One that is being killed still takes connections. */
		bm_client_set_timeout(s->disk, ANSWER);
		if (!bm_client_call(s->disk, "show", NULL, NULL, NULL)) {
			bm_client_set_timeout(s->disk, 0);
			return 0;
		}
		bm_client_close(s->disk);
		s->disk = NULL;
	}
	return slip_disk_start(s, NULL, beside, error);
}

int slip_disk_ensure(struct slip *s, struct bm_error *error)
{
	return ensure(s, false, error);
}

int slip_disk_ensure_beside(struct slip *s, struct bm_error *error)
{
	return ensure(s, true, error);
}

static void guard(struct slip *s, bool beside)
{
	struct bm_error error;

	if (slip_disk_gone(s) && ensure(s, beside, &error) < 0)
		fprintf(stderr, "blockmirror: %s: %s\n", bm_code_name(error.code), error.text);
}

void slip_disk_guard(void *arg)
{
	guard(arg, false);
}

void slip_disk_guard_beside(void *arg)
{
	guard(arg, true);
}

/* It has said that it will end. */
static void wait_end(struct slip *s)
{
	for (int waited = 0; waited < END_MS && !slip_disk_gone(s); waited += STEP_MS)
		poll(NULL, 0, STEP_MS);
	/* One that hangs in the kernel is not waited for. */
	if (s->pid > 0)
		waitpid(s->pid, NULL, slip_disk_gone(s) ? 0 : WNOHANG);
	s->pid = 0;
	bm_client_close(s->disk);
	s->disk = NULL;
}

int slip_disk_stop(struct slip *s, struct bm_error *error)
{
	int r = 0;

	if (!s->disk && cli_connect(s->cli, s->name, &s->disk, NULL) < 0)
		s->disk = NULL;
	/* QEMU's connection is seen to have ended a moment after it has. */
	for (int waited = 0; s->disk && waited < END_MS; waited += STEP_MS) {
		r = bm_client_call(s->disk, "stop", NULL, NULL, error);
		if (r != -EBUSY)
			break;
		poll(NULL, 0, STEP_MS);
	}
	if (r == -EBUSY)
		return r;
	if (s->disk)
		wait_end(s);
	return 0;
}
