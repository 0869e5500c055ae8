/* SPDX-License-Identifier: BSD-3-Clause */
#include "blockmirror/base/shared_name.h"

#include <linux/magic.h>
#include <string.h>
#include <sys/vfs.h>

#include "blockmirror/base/uri.h"

/* Of several hosts; not FUSE and 9P, which may be anything. */
static bool is_network_type(unsigned type)
{
	static const unsigned known[] = {
		NFS_SUPER_MAGIC,         CEPH_SUPER_MAGIC, OCFS2_SUPER_MAGIC, CIFS_SUPER_MAGIC,
		SMB2_SUPER_MAGIC,        SMB_SUPER_MAGIC,  AFS_FS_MAGIC,      0x01161970 /* GFS2 */,
		0x0bd00bd0 /* Lustre */, 0x47504653 /* GPFS */};

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (known[i] == type)
			return true;
	return false;
}

/* One that each host has for itself. */
static bool is_this_host(const char *server)
{
	static const char *const names[] = {"localhost", "127.", "[::1]", "/", ":", ""};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (*names[i] ? !strncmp(server, names[i], strlen(names[i])) : !*server)
			return true;
	return false;
}

bool bm_shared_by_name(const char *uri)
{
	const char *path = bm_uri_path(uri), *server = strstr(uri, "://"), *at;
	struct statfs fs;

	if (bm_uri_format(uri)) /* a helper of this host opens it */
		return false;
	if (path)
		return !statfs(path, &fs) && is_network_type((unsigned)fs.f_type);
	if (!server || (strncmp(uri, "nbd:", 4) != 0 && strncmp(uri, "nbds:", 5) != 0 &&
			strncmp(uri, "iscsi:", 6) != 0))
		return false;
	server += 3;
	at = memchr(server, '@', strcspn(server, "/?"));
	return !is_this_host(at ? at + 1 : server);
}
