/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The target's end of the memory's way: connections of the source's are gathered, until those of
 * one stream are all here, and go to a relay, which gives what comes to the VMM and takes its
 * answers back. A stream that comes to nothing is followed by one with another name. Blocks.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/log.h"
#include "blockmirror/machine/move.h"

static int connect_to_vm(const char *path, struct bm_error *error)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	bm_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || strlen(path) >= sizeof(address.sun_path))
		return bm_fail(error, BM_E_INTERNAL, "no socket to the machine");
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0)
		return bm_fail_errno(error, errno, "cannot connect to %s", path);
	return bm_steal_fd(fd);
}

static bool is_whole(const struct incoming *in)
{
	return in->links && in->here == (1u << in->links) - 1;
}

uint64_t incoming_bytes(const struct incoming *in)
{
	struct bm_relay_stats stats = {0};

	if (in->relay)
		bm_relay_stats(in->relay, &stats);
	return stats.stream;
}

bool incoming_refused(const struct incoming *in)
{
	struct bm_error why = {0};

	return in->relay && bm_relay_wait(in->relay, BM_RELAY_OVER, 0, &why) == BM_RELAY_OVER &&
	       why.code == BM_E_QMP;
}

void incoming_end(struct incoming *in)
{
	bm_relay_stop(in->relay);
	for (unsigned i = 0; !in->relay && i < in->links; i++)
		if (in->here & 1u << i)
			bm_transport_close(&in->link[i]);
	*in = (struct incoming){0};
}

/* Which one it is, or -errno. */
static int admit(struct incoming *in, const json_t *params, struct bm_error *error)
{
	const char *stream;
	int link, links;

	if (json_unpack((json_t *)params, "{s:s s:i s:i}", "stream", &stream, "link", &link,
			"links", &links) ||
	    strlen(stream) != sizeof(in->stream) - 1 || links < 1 || links > BM_RAM_LINKS ||
	    link < 0 || link >= links)
		return bm_fail(error, BM_E_USAGE, "stream, link and links are wanted");
	if (in->relay)
		return bm_fail(error, BM_E_BUSY, "the machine's memory is on its way already");
	if (strcmp(in->stream, stream) != 0)
		incoming_end(in);
	if (in->links && (in->links != (unsigned)links || in->here & 1u << link))
		return bm_fail(error, BM_E_USAGE, "link %d of %d is not wanted", link, links);
	memcpy(in->stream, stream, sizeof(in->stream));
	in->links = (unsigned)links;
	return link;
}

static void start(struct incoming *in, int vm)
{
	struct bm_relay_setup setup = {.qemu = vm, .links = in->links, .cache = MOVE_CACHE};
	struct bm_error error;

	memcpy(setup.id, in->stream, BM_RAM_ID);
	if (bm_relay_start(false, &setup, in->link, &in->relay, &error) >= 0)
		return;
	bm_log(BM_LOG_ERROR, "%s", error.text);
	*in = (struct incoming){0}; /* all of it is closed */
}

void incoming_link(struct incoming *in, struct visitor *v, const json_t *call, const char *path)
{
	struct bm_error error;
	bm_close int vm = -1;
	int link = admit(in, json_object_get(call, "params"), &error), r = link;

	if (r >= 0 && (in->here | 1u << link) == (1u << in->links) - 1)
		r = vm = connect_to_vm(path, &error);
	if (r < 0) {
		bm_log(BM_LOG_ERROR, "the machine's memory: %s", error.text);
		visitor_fail(v, call, &error);
		visitor_leave(v);
		return;
	}
	if (visitor_reply(v, call, NULL) < 0) {
		visitor_leave(v);
		return;
	}
	if (visitor_become_transport(v, &in->link[link]) < 0)
		return;
	in->here |= 1u << link;
	if (is_whole(in))
		start(in, bm_steal_fd(vm));
}
