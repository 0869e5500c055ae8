/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Relocations that a manager gave an id: asked for again, they are told of, and not done again.
 * Only this process begins jobs of the disk, and none while one runs, so of two calls with one id
 * the second one finds the first one's job. The id is in the record before anything is written to
 * the target; before the record gets another job it is in FOLDER/requests, too (steps.c).
 */
#include <errno.h>
#include <string.h>

#include "blockmirror/base/log.h"
#include "blockmirror/base/requests.h"
#include "blockmirror/disk/job.h"

void request_open(struct disk *d)
{
	struct bm_error error;

	if (bm_requests_read(d->folder, &d->requests, &error) < 0)
		bm_log(BM_LOG_ERROR, "%s: %s", d->name, error.text);
}

void request_ended(struct disk *d, json_t *job)
{
	if (d->requests)
		bm_requests_put(d->requests, job);
}

struct job *request_job(const struct disk *d, const char *id)
{
	struct job *job = job_of(d);
	const char *of =
		job ? json_string_value(json_object_get(job->options.request, "id")) : NULL;

	return of && !strcmp(of, id) ? job : NULL;
}

json_t *request_past(const struct disk *d, const char *id)
{
	json_t *found = bm_requests_find(d->past, id);

	if (found)
		return json_incref(found);
	found = bm_requests_find(d->requests, id);
	return found ? report_ended(d, found) : NULL;
}

static void tell(struct bm_rpc_call *call, json_t *job, const char *id, const char *digest)
{
	const json_t *request = json_object_get(job, "request");
	const char *before = json_string_value(json_object_get(request, "digest"));
	struct bm_error error;

	if (before && !strcmp(before, digest)) {
		bm_rpc_reply(call, job);
		return;
	}
	bm_fail(&error, BM_E_ID_REUSED,
		"request %s was another one (job %s, to %.200s): give each its own id", id,
		json_string_value(json_object_get(job, "id")),
		json_string_value(json_object_get(job, "target")));
	bm_rpc_fail(call, &error);
	json_decref(job);
}

/*
 * Without the last jobs' requests a new one cannot be told from an old one. What is asked for
 * without an id goes on.
 */
static int check(const struct disk *d, const char *id, const char *digest, struct bm_error *error)
{
	if (!id || !digest || strlen(digest) >= BM_REQUEST_DIGEST)
		return bm_fail(error, BM_E_USAGE,
			       "request: id and digest (up to 16 characters) are wanted");
	if (bm_request_check_id(id, error) < 0)
		return -EINVAL;
	if (!d->requests)
		return bm_fail(error, BM_E_RECORD,
			       "%s/requests is damaged: which requests were carried out is not "
			       "known; put it right, and start the disk's process again",
			       d->folder);
	return 0;
}

bool request_answer(struct disk *d, struct bm_rpc_call *call, const json_t *params)
{
	const json_t *request = json_object_get(params, "request");
	const char *id = json_string_value(json_object_get(request, "id"));
	const char *digest = json_string_value(json_object_get(request, "digest"));
	struct bm_error error;
	struct job *job;
	json_t *past;

	if (!request)
		return false;
	if (check(d, id, digest, &error) < 0) {
		bm_rpc_fail(call, &error);
		return true;
	}
	job = request_job(d, id);
	past = job ? report_job(job) : request_past(d, id);
	if (past)
		tell(call, past, id, digest);
	return past;
}
