/* SPDX-License-Identifier: BSD-3-Clause */
/* What a disk's process is started with: its arguments, its sockets. */
#include <inttypes.h>
#include <stdio.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/record.h"
#include "blockmirror/base/spawn.h"
#include "blockmirror/daemon/peer.h"

enum { ARGUMENTS = 32, NUMBER = 24 };

static int put_option(char **argv, int n, const char *option, const char *value)
{
	if (!value)
		return n;
	argv[n] = (char *)option;
	argv[n + 1] = (char *)value;
	return n + 2;
}

static int put_limits(const struct served *s, char **argv, int n)
{
	static const char *const known[] = {"--max-connections", "--max-data",
					    "--reconnect-timeout"};

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		n = put_option(argv, n, known[i],
			       json_string_value(json_object_get(s->limits, known[i] + 2)));
	}
	return n;
}

/* What a standby's process needs to know; and of a new one, what the other host has said. */
static int put_standby(struct served *s, char **argv, int n, char *size)
{
	struct peers *p = s->daemon->peers;
	const struct peer *peer = s->received ? peer_find(p, registry_peer(s->received)) : NULL;

	if (!s->received)
		return n;
	if (peer && peer->identity) {
		argv[n++] = (char *)"--peer-tls";
		argv[n++] = p->links;
		argv[n++] = (char *)"--peer-acl";
		argv[n++] = p->acl;
	} else {
		argv[n++] = (char *)"--peer-keys";
		argv[n++] = p->keys;
	}
	if (!s->first.standby)
		return n;
	argv[n++] = (char *)"--standby-of";
	argv[n++] = (char *)registry_peer(s->received);
	argv[n++] = (char *)"--disk-id";
	argv[n++] = (char *)registry_disk(s->received);
	snprintf(size, NUMBER, "%" PRIu64, s->first.size);
	argv[n++] = (char *)"--size";
	argv[n++] = size;
	if (registry_shared(s->received))
		argv[n++] = (char *)"--shared";
	return n;
}

/* Or may become one, and is not: then nothing comes by that port. */
static bool is_standby(const struct served *s)
{
	bm_record_auto struct bm_record record = {0};
	bm_free char *folder = NULL;

	if (!s->received || s->first.standby)
		return s->received;
	if (asprintf(&folder, "%s/disks/%s", s->daemon->state, s->name) < 0) {
		folder = NULL;
		return false;
	}
	return !bm_record_read(folder, &record, NULL) && record.role == BM_ROLE_STANDBY;
}

/* The same port each time: the other host knows no other. */
static int listen_data(struct served *s)
{
	unsigned port = registry_port(s->received);
	int fd = peer_listen_data(s->daemon->peers, &port, &s->error);

	if (fd >= 0)
		json_object_set_new(s->received, "port", json_integer(port));
	if (fd >= 0 && s->first.answer)
		json_object_set_new(s->first.answer, "port", json_integer(port));
	return fd;
}

int served_spawn(struct served *s, int *output)
{
	bool listens = is_standby(s) && !registry_shared(s->received);
	bm_close int data = listens ? listen_data(s) : -1;
	const int fds[] = {s->nbd.fd, s->control.fd, data};
	char *argv[ARGUMENTS], create[NUMBER], size[NUMBER];
	struct bm_spawn spawn = {.argv = argv,
				 .log = s->log,
				 .append = true,
				 .output = output,
				 .fds = fds,
				 .n_fds = data < 0 ? 2 : 3,
				 .fd_names = "nbd:control:data"};
	int n = 0, pid;

	if (listens && data < 0)
		return data;
	argv[n++] = (char *)BM_DISK_PROGRAM;
	argv[n++] = (char *)"--name";
	argv[n++] = s->name;
	argv[n++] = (char *)"--run-dir";
	argv[n++] = s->daemon->run;
	argv[n++] = (char *)"--state-dir";
	argv[n++] = s->daemon->state;
	n = put_limits(s, argv, n);
	n = put_option(argv, n, "--hooks", s->daemon->hooks);
	n = put_option(argv, n, "--hook-timeout", s->daemon->hook_limit);
	n = put_standby(s, argv, n, size);
	if (s->first.create) {
		snprintf(create, sizeof(create), "%" PRIu64, s->first.create);
		argv[n++] = (char *)"--create";
		argv[n++] = create;
	}
	if (s->first.force)
		argv[n++] = (char *)"--force";
	if (s->first.flatten)
		argv[n++] = (char *)"--flatten";
	if (s->first.image)
		argv[n++] = s->first.image;
	argv[n] = NULL;
	pid = bm_spawn_disk(&spawn);
	return pid < 0 ? bm_fail_errno(&s->error, pid, "cannot start " BM_DISK_PROGRAM) : pid;
}
