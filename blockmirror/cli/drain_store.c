/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Datastores as drain and balance have them: a folder of this host, or bm://HOST/FOLDER, by that or
 * by its name in blockmirror.conf(5), which also has its limits; and what room is there now. Of
 * another host's its blockmirrord is asked, by ours.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/config.h"
#include "blockmirror/base/maintenance.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/base/units.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/cli/cli.h"
#include "blockmirror/cli/drain.h"

/* Paths are compared without links. */
static const json_t *find_entry(const struct cli *cli, const char *real)
{
	json_t *stores = json_object_get(cli->config, "datastores"), *entry;
	const char *name;

	json_object_foreach(stores, name, entry) {
		bm_free char *path = realpath(cli_text(entry, "path"), NULL);

		if (!strcmp(path ? path : cli_text(entry, "path"), real))
			return entry;
	}
	return NULL;
}

static int open_remote(struct drain_store *store, const char *given, struct bm_error *error)
{
	int r = bm_uri_peer(given, &store->host, &store->folder, error);
	size_t n;

	if (r < 0)
		return r;
	n = strlen(store->folder);
	while (n > 1 && store->folder[n - 1] == '/')
		store->folder[--n] = '\0';
	if (asprintf(&store->path, "bm://%s%s", store->host, store->folder) < 0)
		bm_need(NULL);
	return 0;
}

static int open_folder(struct drain_store *store, const char *given, struct bm_error *error)
{
	struct stat st;

	store->path = realpath(given, NULL);
	if (!store->path || stat(store->path, &st) < 0)
		return bm_fail_errno(error, errno, "%s", given);
	if (!S_ISDIR(st.st_mode))
		return bm_fail(error, BM_E_NOT_IMAGE, "%s is no folder", given);
	store->dev = st.st_dev;
	return 0;
}

int drain_store_open(const struct cli *cli, struct drain_store *store, const char *given,
		     struct bm_error *error)
{
	const json_t *entry = cli_datastore(cli, given);
	const char *path = entry ? cli_text(entry, "path") : given;
	int r = !strncmp(path, "bm:", 3) ? open_remote(store, path, error)
					 : open_folder(store, path, error);

	if (!r)
		store->entry = entry ? entry : find_entry(cli, store->path);
	return r;
}

void drain_store_close(struct drain_store *store)
{
	free(store->path);
	free(store->host);
	free(store->folder);
}

int drain_store_may_land(const struct cli *cli, const struct drain_store *store,
			 struct bm_error *error)
{
	return bm_maintenance_folder(cli->state_dir, store->path, error);
}

/* Whether both have their room from one file system. */
static bool is_pool(const struct drain_store *a, const struct drain_store *b)
{
	return a->host || b->host
		       ? a->host && b->host && !strcmp(a->host, b->host) && a->device == b->device
		       : a->dev == b->dev;
}

static bool same_host(const struct drain_store *a, const struct drain_store *b)
{
	return a->host && b->host ? !strcmp(a->host, b->host) : !a->host && !b->host;
}

/* After a first measure: what belongs together, and the limits of each. */
void drain_set_stores(struct drain *d)
{
	for (size_t i = 0; i < d->plan.n_stores; i++) {
		struct plan_store *store = &d->plan.stores[i];
		size_t k = 0;

		while (!is_pool(&d->to[k], &d->to[i]))
			k++;
		store->pool = k;
		for (k = 0; !same_host(&d->to[k], &d->to[i]); k++)
			;
		store->host = k;
		store->limit = (unsigned)cli_number(d->to[i].entry, "parallel");
	}
}

/* Bytes that what runs to the stores of that pool has not written yet. */
static uint64_t promised(const struct drain *d, size_t store)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < d->n; i++) {
		const struct plan_item *item = &d->plan.items[i];
		const json_t *p = json_object_get(d->image[i].job, "progress");
		uint64_t done = cli_number(p, "copied_bytes");

		if (item->state == PLAN_RUNS && is_pool(&d->to[item->store], &d->to[store]) &&
		    item->need > done)
			sum += item->need - done;
	}
	return sum;
}

static int ask_remote(const struct cli *cli, struct drain_store *store, struct bm_error *error)
{
	json_t *result = NULL;
	int r = cli_daemon_call(cli, "remote.space",
				json_pack("{s:s s:s}", "peer", store->host, "path", store->folder),
				&result, error);

	if (r < 0)
		return r;
	store->free = cli_number(result, "free");
	store->used = cli_number(result, "used");
	store->size = cli_number(result, "size");
	store->device = cli_number(result, "device");
	json_decref(result);
	return 0;
}

static int look(const struct cli *cli, struct drain_store *store, struct bm_error *error)
{
	struct statvfs fs;

	if (store->host)
		return ask_remote(cli, store, error);
	if (statvfs(store->path, &fs) < 0)
		return bm_fail_errno(error, errno, "%s", store->path);
	store->free = (uint64_t)fs.f_bavail * fs.f_frsize;
	store->size = (uint64_t)fs.f_blocks * fs.f_frsize;
	store->used = (uint64_t)(fs.f_blocks - fs.f_bfree) * fs.f_frsize;
	return 0;
}

static uint64_t reserve_of(const struct drain *d, const struct drain_store *store)
{
	const char *own = json_string_value(json_object_get(store->entry, "reserve"));
	const char *all = bm_config_text(d->cli->config, "limits", "reserve");
	uint64_t bytes = store->size / 20;

	if (d->reserve != UINT64_MAX)
		return d->reserve;
	if (own || all)
		bm_parse_share(own ? own : all, store->size, &bytes);
	return bytes;
}

int drain_measure(struct drain *d, struct bm_error *error)
{
	for (size_t i = 0; i < d->plan.n_stores; i++) {
		struct drain_store *store = &d->to[i];
		uint64_t taken;
		int r = look(d->cli, store, error);

		if (r < 0)
			return r;
		store->reserve = reserve_of(d, store);
		taken = store->reserve + promised(d, i);
		d->plan.stores[i].room = store->free > taken ? store->free - taken : 0;
	}
	return 0;
}

/* Its kinds, as the configuration names them. */
static bool is_kind(const struct drain_image *image, const char *kind)
{
	bool live = image->disk || image->qmp;
	bool qcow2 = image->container || (image->uri && bm_uri_format(image->uri));

	return !strcmp(kind, "live")   ? live
	       : !strcmp(kind, "cold") ? !live
	       : !strcmp(kind, "raw")  ? !qcow2
				       : qcow2;
}

bool drain_store_takes(const struct drain_image *image, const struct drain_store *store,
		       struct bm_error *error)
{
	const json_t *denied = json_object_get(store->entry, "deny"), *kind;
	size_t i;

	json_array_foreach(denied, i, kind)
		if (is_kind(image, json_string_value(kind)))
			return bm_fail(error, BM_E_DENIED,
				       "%s takes no images that are %s, says the configuration",
				       store->path, json_string_value(kind)),
			       false;
	if (!store->host)
		return true;
	if (image->qmp || image->flattens)
		return bm_fail(error, BM_E_UNSUPPORTED,
			       image->qmp ? "a running QEMU has it, and gets it back on this host: "
					    "it does not go to %s"
					  : "it is made whole on this host: it does not go to %s",
			       store->path),
		       false;
	if (strchr(image->name, '/'))
		return bm_fail(error, BM_E_UNSUPPORTED,
			       "it is in a folder below the datastore, and none is made on host "
			       "%s: drain that folder to one there",
			       store->host),
		       false;
	return true;
}
