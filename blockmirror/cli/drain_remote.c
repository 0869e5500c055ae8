/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * An image that nobody uses goes to another host, by what takes disks there:
 *
 *	remote.create: that host makes the file, and serves it to us alone, as a copy of a disk of
 *ours copy it, over the network; compare both; it has not changed meanwhile remote.keep: the other
 *host serves it no more, forgets the disk, and keeps the file remove the file here, or mark it as
 *an old copy
 *
 * Until it is kept it is marked as a copy that is not whole. The disk's name and identity come of
 * the image's path, so that one that was cut off is found the next time, and taken away first.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/cli/cli.h"
#include "blockmirror/cli/drain.h"

enum { HOST = 256, ID = 33, DISK = 24 };

/* Two hosts may have images of one path. */
static void identify(const struct drain_image *image, char id[ID], char disk[DISK])
{
	char host[HOST] = "";
	bm_free char *text = NULL;
	XXH128_hash_t hash;

	gethostname(host, sizeof(host) - 1);
	if (asprintf(&text, "%s:%s", host, image->path) < 0)
		bm_need(NULL);
	hash = XXH3_128bits(text, strlen(text));
	snprintf(id, ID, "%016" PRIx64 "%016" PRIx64, (uint64_t)hash.high64, (uint64_t)hash.low64);
	snprintf(disk, DISK, "cold-%.16s", id);
}

static json_t *params_of(const struct drain_image *image, const struct drain_store *store)
{
	char id[ID], disk[DISK];

	identify(image, id, disk);
	return json_pack("{s:s s:s s:s}", "peer", store->host, "name", disk, "disk", id);
}

void drain_remote_give_up(const struct drain *d, const struct drain_image *image,
			  const struct drain_store *store)
{
	json_t *result = NULL;

	if (!cli_daemon_call(d->cli, "remote.remove", params_of(image, store), &result, NULL))
		json_decref(result);
}

char *drain_remote_make(const struct drain *d, struct drain_image *image,
			const struct drain_store *store)
{
	json_t *params = params_of(image, store), *result = NULL;
	char *uri = NULL;

	drain_remote_give_up(d, image, store);
	json_object_set_new(params, "path", json_string(store->folder));
	json_object_set_new(params, "image", json_string(image->name));
	json_object_set_new(params, "size", json_integer((json_int_t)image->size));
	json_object_set_new(params, "need", json_integer((json_int_t)image->need));
	if (cli_daemon_call(d->cli, "remote.create", params, &result, &image->why) < 0)
		return NULL;
	if (*cli_text(result, "uri"))
		uri = strdup(cli_text(result, "uri"));
	else
		bm_fail(&image->why, BM_E_IO, "host %s answers with something else", store->host);
	json_decref(result);
	return uri;
}

int drain_remote_keep(const struct drain *d, struct drain_image *image,
		      const struct drain_store *store)
{
	json_t *result = NULL;
	int r = cli_daemon_call(d->cli, "remote.keep", params_of(image, store), &result,
				&image->why);

	json_decref(result);
	return r < 0 ? r : 0;
}
