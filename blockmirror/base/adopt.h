/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a running disk process hands to a daemon that asks for it ("adopt" in docs/protocol.md): one
 * datagram to RUN/disks/.adopt, {"v":1,"name":NAME,"folder":STATE/disks/NAME}, with descriptors.
 * One that is about to take another one's place sends the same, with "successor":true and its
 * pidfd.
 */
#ifndef BM_BASE_ADOPT_H
#define BM_BASE_ADOPT_H

/* No disk's name begins with a dot. */
#define BM_ADOPT_SOCKET ".adopt"

enum {
	BM_ADOPT_PROCESS, /* its pidfd */
	BM_ADOPT_NBD,     /* the listening sockets */
	BM_ADOPT_CONTROL,
	BM_ADOPT_FDS
};

#endif
