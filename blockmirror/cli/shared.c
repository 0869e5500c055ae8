/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * hand-over and migrate arm of a disk on storage that the other host reaches itself: a standby
 * there that reads it, the witness by which it is found out that it is the same, and taking it all
 * back.
 */
#include <linux/magic.h>
#include <string.h>
#include <sys/vfs.h>
#include <time.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/cli/cli.h"
#include "blockmirror/cli/there.h"

#define BUSY                                                                                \
	10000000000ull /* ns: a host that has just passed the disk on has a guest to let go \
			*/
#define STEP 200000000l

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

bool shared_by_name(const char *uri)
{
	const char *path = bm_uri_path(uri), *server = strstr(uri, "://"), *at;
	struct statfs fs;

	if (path)
		return !statfs(path, &fs) && is_network_type((unsigned)fs.f_type);
	if (!server || (strncmp(uri, "nbd:", 4) != 0 && strncmp(uri, "nbds:", 5) != 0 &&
			strncmp(uri, "iscsi:", 6) != 0))
		return false;
	server += 3;
	at = memchr(server, '@', strcspn(server, "/?"));
	return !is_this_host(at ? at + 1 : server);
}

static int ask(const struct cli *cli, struct there *t, const char *uri, struct bm_error *error)
{
	json_t *result = NULL;
	int r = cli_daemon_call(cli, "remote.share",
				json_pack("{s:s s:s s:s s:s s:I}", "peer", t->host, "name", t->name,
					  "disk", t->disk, "uri", uri, "size", (json_int_t)t->size),
				&result, error);

	json_decref(result);
	return r;
}

int shared_stand_by(const struct cli *cli, struct there *t, const char *host, const char *as,
		    struct bm_error *error)
{
	const struct timespec step = {.tv_nsec = STEP};
	bm_free char *uri = as && *as ? bm_uri_absolute(as) : strdup(t->uri);
	int r;

	if (t->host)
		return bm_fail(error, BM_E_USAGE,
			       "disk %s has its storage on host %s, and not on what both reach",
			       t->name, t->host);
	t->host = strdup(host);
	t->shared = true;
	if (!uri || !t->host)
		return bm_fail_errno(error, ENOMEM, "disk %s", t->name);
	if (!as && strstr(uri, "***"))
		return bm_fail(error, BM_E_USAGE,
			       "%s has a password, which stays on this host: say --shared=URI, as "
			       "host %s is to reach it",
			       uri, host);
	for (uint64_t waited = 0;; waited += STEP) {
		r = ask(cli, t, uri, error);
		if (r >= 0 || error->code != BM_E_BUSY || waited >= BUSY)
			return r;
		nanosleep(&step, NULL);
	}
}

void shared_dismiss(const struct cli *cli, const struct there *t)
{
	struct bm_error error;
	json_t *result = NULL;

	if (!t->shared)
		return;
	if (cli_daemon_call(
		    cli, "remote.remove",
		    json_pack("{s:s s:s s:s}", "peer", t->host, "name", t->name, "disk", t->disk),
		    &result, &error) < 0 &&
	    error.code != BM_E_NOT_FOUND)
		cli_fail(cli, &error);
	json_decref(result);
}
