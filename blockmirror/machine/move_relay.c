/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The way of a machine's memory: what its VMM writes to a socket goes to the other host as it is,
 * and what that one's VMM answers comes back. No more is taken than the other side takes: a VMM
 * reckons by that how long the rest will be on its way.
 *
 * On the source's side there is a gate in the way back. QEMU's return path ends with SHUT, and from
 * then on the source never runs on by itself: that message is held until relay_open(). Whatever
 * ends before ends the VMM's connection, and the guest runs on.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "blockmirror/base/memory.h"
#include "blockmirror/machine/move.h"

enum { PIECE = 64 << 10, HEADER = 4, SHUT = 1, LARGEST = 1 << 16 };

static int write_all(int fd, const char *data, size_t length)
{
	while (length) {
		ssize_t n = send(fd, data, length, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		data += n;
		length -= (size_t)n;
	}
	return 0;
}

static void *to_other_host(void *arg)
{
	struct relay *r = arg;
	char *data = bm_need(malloc(PIECE));
	ssize_t n;

	while ((n = recv(r->vm, data, PIECE, 0)) > 0 || (n < 0 && errno == EINTR)) {
		if (n < 0)
			continue;
		if (r->send(r->arg, data, (size_t)n) < 0)
			break;
		atomic_fetch_add(&r->bytes, (uint64_t)n);
	}
	/* The source's has said all, or failed; the target's has loaded all, or failed. */
	shutdown(r->link, SHUT_WR);
	free(data);
	return NULL;
}

static bool may_pass(struct relay *r)
{
	bool may;

	pthread_mutex_lock(&r->lock);
	r->held = true;
	pthread_cond_broadcast(&r->changed);
	while (!r->open && !r->dropped)
		pthread_cond_wait(&r->changed, &r->lock);
	may = r->open;
	pthread_mutex_unlock(&r->lock);
	return may;
}

static int recv_all(struct relay *r, char *data, size_t length)
{
	while (length) {
		ssize_t n = r->recv(r->arg, data, length);

		if (n <= 0)
			return -ECONNRESET;
		data += n;
		length -= (size_t)n;
	}
	return 0;
}

/* Message by message: type and length, big-endian, of 16 bits each. */
static void pass_answers(struct relay *r, unsigned char *data)
{
	while (!recv_all(r, (char *)data, HEADER)) {
		unsigned type = (unsigned)data[0] << 8 | data[1];
		size_t length = (size_t)data[2] << 8 | data[3];

		if (recv_all(r, (char *)data + HEADER, length) < 0)
			return;
		if (type == SHUT && !may_pass(r))
			return;
		if (write_all(r->vm, (char *)data, HEADER + length) < 0)
			return;
	}
}

static void *from_other_host(void *arg)
{
	struct relay *r = arg;
	char *data = bm_need(malloc(HEADER + LARGEST));
	ssize_t n;

	if (r->gated) {
		pass_answers(r, (unsigned char *)data);
	} else {
		while ((n = r->recv(r->arg, data, PIECE)) > 0) {
			if (write_all(r->vm, data, (size_t)n) < 0)
				break;
			atomic_fetch_add(&r->bytes, (uint64_t)n);
		}
	}
	shutdown(r->vm, r->gated ? SHUT_RDWR : SHUT_WR);
	free(data);
	return NULL;
}

int relay_start(struct relay *r, struct bm_error *error)
{
	int failed;

	pthread_mutex_init(&r->lock, NULL);
	pthread_cond_init(&r->changed, NULL);
	failed = pthread_create(&r->threads[0], NULL, to_other_host, r);
	if (failed)
		return bm_fail_errno(error, failed, "cannot start a thread");
	failed = pthread_create(&r->threads[1], NULL, from_other_host, r);
	if (failed) {
		shutdown(r->vm, SHUT_RDWR);
		pthread_join(r->threads[0], NULL);
		return bm_fail_errno(error, failed, "cannot start a thread");
	}
	r->running = true;
	return 0;
}

void relay_open(struct relay *r)
{
	pthread_mutex_lock(&r->lock);
	r->open = true;
	pthread_cond_broadcast(&r->changed);
	pthread_mutex_unlock(&r->lock);
}

bool relay_holds(struct relay *r)
{
	bool held;

	pthread_mutex_lock(&r->lock);
	held = r->held;
	pthread_mutex_unlock(&r->lock);
	return held;
}

void relay_drop(struct relay *r)
{
	if (!r->running)
		return;
	pthread_mutex_lock(&r->lock);
	r->dropped = true;
	pthread_cond_broadcast(&r->changed);
	pthread_mutex_unlock(&r->lock);
	shutdown(r->vm, SHUT_RDWR);
	shutdown(r->link, SHUT_RDWR);
}

void relay_stop(struct relay *r)
{
	if (!r->running)
		return;
	relay_drop(r);
	pthread_join(r->threads[0], NULL);
	pthread_join(r->threads[1], NULL);
	r->running = false;
	close(r->vm);
	r->vm = -1;
}
