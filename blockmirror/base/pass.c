/* SPDX-License-Identifier: BSD-3-Clause */
/* Messages with descriptors. */
#include "blockmirror/base/pass.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

int bm_pass_send(int fd, const struct sockaddr_un *to, const void *data, size_t length,
		 const struct bm_pass *pass, int flags)
{
	union {
		char data[CMSG_SPACE(BM_PASS_FDS * sizeof(int))];
		struct cmsghdr align;
	} control = {0};
	struct iovec v = {(void *)data, length};
	struct msghdr message = {.msg_name = (void *)to,
				 .msg_namelen = to ? sizeof(*to) : 0,
				 .msg_iov = &v,
				 .msg_iovlen = 1};
	size_t size = pass->n_fds * sizeof(int);
	struct cmsghdr *header;
	ssize_t n;

	if (size) {
		message.msg_control = control.data;
		message.msg_controllen = CMSG_SPACE(size);
		header = CMSG_FIRSTHDR(&message);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(size);
		memcpy(CMSG_DATA(header), pass->fds, size);
	}
	do {
		n = sendmsg(fd, &message, flags | MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : 0;
}

void bm_pass_close(struct bm_pass *pass)
{
	for (unsigned i = 0; i < pass->n_fds; i++)
		if (pass->fds[i] >= 0)
			close(pass->fds[i]);
	pass->n_fds = 0;
}

int bm_pass_take(struct bm_pass *pass, unsigned which)
{
	int fd = which < pass->n_fds ? pass->fds[which] : -1;

	if (fd >= 0)
		pass->fds[which] = -1;
	return fd;
}

static void take_control(struct bm_pass *pass, struct msghdr *message)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
		if (c->cmsg_level != SOL_SOCKET)
			continue;
		if (c->cmsg_type == SCM_CREDENTIALS)
			memcpy(&pass->sender, CMSG_DATA(c), sizeof(pass->sender));
		if (c->cmsg_type != SCM_RIGHTS)
			continue;
		pass->n_fds = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(pass->fds, CMSG_DATA(c), pass->n_fds * sizeof(int));
	}
}

ssize_t bm_pass_receive(int fd, void *data, size_t room, struct bm_pass *pass, int flags)
{
	union {
		char data[CMSG_SPACE(BM_PASS_FDS * sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))];
		struct cmsghdr align;
	} control;
	struct iovec v = {data, room};
	struct msghdr message = {.msg_iov = &v,
				 .msg_iovlen = 1,
				 .msg_control = control.data,
				 .msg_controllen = CMSG_SPACE(BM_PASS_FDS * sizeof(int))};
	int on = 0;
	socklen_t length = sizeof(on);
	ssize_t n;

	*pass = (struct bm_pass){.sender.uid = (uid_t)-1};
	/* Room for credentials that do not come could be taken by more descriptors than we want. */
	if (!getsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, &length) && on)
		message.msg_controllen = sizeof(control.data);
	do {
		n = recvmsg(fd, &message, flags | MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	take_control(pass, &message);
	if (!(message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)))
		return n;
	bm_pass_close(pass);
	return -EMSGSIZE;
}
