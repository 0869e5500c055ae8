/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The handshake of the NBD server, and whatever comes after it: a client that says anything. The
 * first byte chooses the host (host.h, HOST_…) and, by its highest bits, how the client ends; the
 * rest is what it says.
 */
#include "tests/fuzz/host.h"
#include "tests/fuzz/talk.h"

enum { LEAVE = 32, STOP = 64 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	unsigned options = input_u8(&in);
	struct talk talk = {.sent = in};
	struct host host;

	host_open(&host, options, 0);
	host_export(&host, "disk", "another name");
	host_export(&host, "a disk", "");
	host_send(&host, in.at, in.left);
	if (options & STOP)
		host_stop(&host);
	if (options & LEAVE)
		host_rest(&host);
	else
		host_finish(&host);
	/* A server that is stopped need not say anything any more. */
	talk.got = (struct input){host.output, host.got};
	if (!(options & STOP))
		talk_follow(&talk);
	host_close(&host);
	return 0;
}
