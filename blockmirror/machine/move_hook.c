/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Hooks: programs of the host's administrator, HOOKS/NAME. Each gets the name of a file with one
 * JSON object, and prints one, or nothing. It may be called again with the same.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/base/run.h"
#include "blockmirror/machine/move.h"

struct waiting {
	uint64_t end;
};

static bool enough(void *arg)
{
	const struct waiting *w = arg;

	return move_now() > w->end;
}

static int write_params(const struct move *m, json_t *params, char **path)
{
	bm_free char *text = json_dumps(params, JSON_COMPACT);

	if (!text || asprintf(path, "%s/hook", m->folder) < 0)
		*path = bm_need(NULL);
	return bm_write_durably(*path, text, strlen(text));
}

static int run(const struct move *m, const char *hook, const char *name, const char *params,
	       json_t **result, struct bm_error *error)
{
	struct waiting waiting = {.end = move_now() + m->hook_limit};
	char *argv[] = {(char *)hook, (char *)params, NULL};
	bm_free char *output = NULL;
	char why[200];
	int r = bm_run(argv, enough, &waiting, &output, why, sizeof(why));

	if (r == -EINTR)
		return bm_fail(error, BM_E_UNREACHABLE, "hook %s of machine %s does not end: %s",
			       name, m->machine, hook);
	if (r < 0)
		return bm_fail_errno(error, r, "cannot run %s", hook);
	if (r)
		return bm_fail(error, BM_E_IO, "hook %s of machine %s failed (status %d): %s", name,
			       m->machine, r, *why ? why : hook);
	if (!result)
		return 0;
	*result = output && *output ? json_loads(output, 0, NULL) : json_object();
	return *result ? 0
		       : bm_fail(error, BM_E_IO, "hook %s of machine %s prints no JSON: %.100s",
				 name, m->machine, output);
}

int move_hook(struct move *m, const char *name, json_t *params, json_t **result,
	      struct bm_error *error)
{
	bm_free char *hook = NULL, *path = NULL;
	int r;

	json_object_set_new(params, "move", json_string(m->id));
	json_object_set_new(params, "machine", json_string(m->machine));
	json_object_set_new(params, "peer", json_string(m->peer));
	if (asprintf(&hook, "%s/%s", m->hooks, name) < 0)
		hook = bm_need(NULL);
	r = access(hook, X_OK) < 0 ? -ENOENT : write_params(m, params, &path);
	json_decref(params);
	if (r == -ENOENT) {
		bm_fail(error, BM_E_NOT_FOUND, "there is no hook %s", hook);
		return r;
	}
	return r < 0 ? bm_fail_errno(error, r, "cannot write %s", path)
		     : run(m, hook, name, path, result, error);
}
