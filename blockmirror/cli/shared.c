/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * hand-over, migrate, migrate arm of a disk on storage that the other host reaches itself: a
 * standby there that reads it, the witness by which it is found out that it is the same, and taking
 * it all back.
 */
#include <string.h>
#include <time.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/cli/cli.h"
#include "blockmirror/cli/there.h"

#define BUSY                                                                                \
	10000000000ull /* ns: a host that has just passed the disk on has a guest to let go \
			*/
#define STEP 200000000l

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

/* Of a machine: "DISK", "DISK=WHERE", or NULL for all of its disks */

int shared_check(const struct cli *cli, const char *const *shares, size_t n, const char *into,
		 const char *machine)
{
	for (size_t i = 0; i < n; i++) {
		const char *text = shares[i], *where = text ? strchr(text, '=') : NULL;

		if (!text && into)
			return cli_usage(cli, "--shared: of no disk is anything copied, so there "
					      "is no --into; --shared=DISK names one");
		if (!text)
			continue;
		if (!machine)
			return cli_usage(cli, "--shared=%s: --all is of several machines", text);
		if (where == text || *text == '/' || (where && !where[1]))
			return cli_usage(cli,
					 "--shared=%s: of a machine, DISK or DISK=WHERE is wanted",
					 text);
	}
	return 0;
}

json_t *shared_options(const char *const *shares, size_t n)
{
	json_t *options = n ? json_object() : NULL;

	for (size_t i = 0; i < n; i++) {
		const char *text = shares[i] ? shares[i] : "*", *where = strchr(text, '=');
		bm_free char *name = strndup(text, where ? (size_t)(where - text) : strlen(text));
		bm_free char *uri = where ? bm_uri_absolute(where + 1) : NULL;

		json_object_set_new(options, name, json_string(uri ? uri : ""));
	}
	return options;
}
