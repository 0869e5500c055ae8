/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Targets on other hosts: blockmirrord, which knows these and has the keys, is asked to have one
 * made, or removed. What comes of it is an NBD URI like any other. Blocks; in workers.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/client.h"
#include "blockmirror/dev/open.h"
#include "blockmirror/disk/disk.h"

#define PATIENCE 90000000000ull /* ns: longer than the daemon waits for the other host */
#define BUSY     10000000000ull
#define STEP     200000000ull

static int ask(const char *daemon, const char *method, json_t *params, json_t **result,
	       struct bm_error *error)
{
	struct bm_client *client;
	int r;

	if (bm_client_connect(daemon, &client, error) < 0) {
		json_decref(params);
		return bm_fail(error, BM_E_UNREACHABLE,
			       "blockmirrord does not run: it asks other hosts for us");
	}
	bm_client_set_timeout(client, PATIENCE);
	r = bm_client_call(client, method, params, result, error);
	bm_client_close(client);
	return r;
}

/* A host that has just passed the disk on to us may have a guest of it that is about to leave. */
static int ask_patiently(struct target *target, json_t *params, json_t **answer)
{
	const struct bm_open_options options = {.interrupted = target->interrupted,
						.arg = target->arg};

	for (uint64_t waited = 0;; waited += STEP) {
		int r = ask(target->daemon, "remote.create", json_incref(params), answer,
			    &target->error);

		if (r >= 0 || target->error.code != BM_E_BUSY || waited >= BUSY ||
		    bm_wait_a_while(&options, STEP) < 0)
			return r;
	}
}

int remote_create(struct target *target, const char *image, uint64_t need)
{
	bm_free char *host = NULL, *path = NULL;
	const char *uri = NULL;
	json_t *answer = NULL, *params;
	int created = 0, r = bm_uri_peer(target->text, &host, &path, &target->error);

	if (!r && !target->daemon)
		return bm_fail(&target->error, BM_E_UNSUPPORTED,
			       "%s: only a served disk goes to another host", target->text);
	if (r < 0)
		return r;
	params = json_pack("{s:s s:s s:s s:s s:s s:I s:I s:b s:s*}", "peer", host, "name",
			   target->name, "disk", target->record->disk, "path", path, "image", image,
			   "size", (json_int_t)target->size, "need", (json_int_t)need, "overwrite",
			   (int)target->overwrite, "from", target->from);
	r = ask_patiently(target, params, &answer);
	json_decref(params);
	if (r < 0)
		return r;
	target->error.code = BM_OK;
	if (json_unpack(answer, "{s:s s:b}", "uri", &uri, "created", &created))
		r = bm_fail(&target->error, BM_E_IO, "host %s answers with something else", host);
	target->uri = uri ? strdup(uri) : NULL;
	if (!r && !target->uri)
		r = bm_fail_errno(&target->error, ENOMEM, "%s", target->text);
	target->created = target->zeroed = created;
	json_decref(answer);
	return r;
}

bool remote_is(const char *uri)
{
	bm_free char *host = bm_uri_path(uri) ? NULL : bm_uri_parameter(uri, BM_URI_HOST);

	return host;
}

int remote_remove(const char *daemon, const char *name, const struct bm_record *record,
		  const char *uri, struct bm_error *error)
{
	bm_free char *host = bm_uri_parameter(uri, BM_URI_HOST);

	return ask(daemon, "remote.remove",
		   json_pack("{s:s* s:s s:s}", "peer", host, "name", name, "disk", record->disk),
		   NULL, error);
}

int remote_yield(const struct disk *d, bool keep, uint64_t *generation, bool *kept,
		 struct bm_error *error)
{
	json_t *result = NULL;
	json_int_t found = 0;
	int keeps = 0, r = ask(d->daemon_path, "remote.yield",
			       json_pack("{s:s s:s s:s s:I s:b}", "peer", d->record.peer, "name",
					 d->name, "disk", d->record.disk, "generation",
					 (json_int_t)d->record.generation, "keep", (int)keep),
			       &result, error);

	if (!r && json_unpack(result, "{s:I s?b}", "generation", &found, "kept", &keeps))
		r = bm_fail(error, BM_E_IO, "host %s answers with something else", d->record.peer);
	if (!r) {
		*generation = (uint64_t)found;
		*kept = keep && keeps;
	}
	json_decref(result);
	return r;
}

int remote_became_active(const struct disk *d, bool mirrors, const char *group,
			 struct bm_error *error)
{
	return ask(d->daemon_path, "received",
		   json_pack("{s:s s:s s:b s:s*}", "name", d->name, "peer", d->record.peer,
			     "mirrors", (int)mirrors, "group", group),
		   NULL, error);
}
