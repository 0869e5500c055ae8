/* SPDX-License-Identifier: BSD-3-Clause */
/* Which jobs came of which requests: a small file, replaced whole. */
#include "blockmirror/base/requests.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"

enum { FORMAT = 1, LARGEST = 1 << 20 };

int bm_request_check_id(const char *id, struct bm_error *error)
{
	size_t good =
		strspn(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:@+-");

	if (!*id || id[good] || id[0] == '.' || strlen(id) > BM_REQUEST_ID)
		return bm_fail(error, BM_E_USAGE,
			       "id \"%.200s\": 1 to %d letters, digits, and . _ : @ + - are "
			       "wanted, and no dot first",
			       id, BM_REQUEST_ID);
	return 0;
}

void bm_request_digest(const json_t *content, char digest[BM_REQUEST_DIGEST])
{
	bm_free char *text = json_dumps(content, JSON_COMPACT | JSON_SORT_KEYS | JSON_ENCODE_ANY);

	snprintf(digest, BM_REQUEST_DIGEST, "%016" PRIx64,
		 text ? XXH64(text, strlen(text), FORMAT) : 0);
}

const char *bm_request_of(const json_t *job)
{
	return json_string_value(json_object_get(json_object_get(job, "request"), "id"));
}

json_t *bm_requests_find(const json_t *jobs, const char *id)
{
	for (size_t i = json_array_size(jobs); i-- > 0;) {
		json_t *job = json_array_get(jobs, i);
		const char *of = bm_request_of(job);

		if (of && !strcmp(of, id))
			return job;
	}
	return NULL;
}

void bm_requests_put(json_t *jobs, json_t *job)
{
	const char *id = bm_request_of(job);

	if (!id)
		return;
	for (size_t i = json_array_size(jobs); i-- > 0;) {
		const char *of = bm_request_of(json_array_get(jobs, i));

		if (of && !strcmp(of, id))
			json_array_remove(jobs, i);
	}
	json_array_append(jobs, job);
	while (json_array_size(jobs) > BM_REQUESTS_KEPT)
		json_array_remove(jobs, 0);
}

static char *path_of(const char *folder, const char *end)
{
	char *path;

	return asprintf(&path, "%s/requests%s", folder, end) < 0 ? NULL : path;
}

int bm_requests_read(const char *folder, json_t **jobs, struct bm_error *error)
{
	bm_free char *path = path_of(folder, ""), *text = NULL;
	int r = path ? bm_read_text(path, LARGEST, &text) : -ENOMEM, format = 0;
	json_t *root, *found = NULL;

	*jobs = NULL;
	if (r == -ENOENT || r == -ENOTDIR) {
		*jobs = json_array();
		return *jobs ? 0 : bm_fail_errno(error, ENOMEM, "%s", path);
	}
	if (r < 0)
		return bm_fail_errno(error, r, "cannot read %s", path ? path : folder);
	root = json_loads(text, 0, NULL);
	if (!json_unpack(root, "{s:i s:o}", "format", &format, "jobs", &found) &&
	    format == FORMAT && json_is_array(found))
		*jobs = json_incref(found);
	json_decref(root);
	if (*jobs)
		return 0;
	return bm_fail(error, BM_E_RECORD,
		       "%s: damaged, or of a newer version: which requests were carried out is not "
		       "known; restore it from a backup, or move it away when none of them will be "
		       "asked for again",
		       path);
}

static int write_all(const char *folder, json_t *jobs, struct bm_error *error)
{
	bm_free char *path = path_of(folder, ""), *fresh = path_of(folder, ".new"), *text = NULL;
	json_t *root = json_pack("{s:i s:O}", "format", FORMAT, "jobs", jobs);
	int r = -ENOMEM;

	text = root ? json_dumps(root, JSON_COMPACT) : NULL;
	json_decref(root);
	if (path && fresh && text)
		r = bm_write_durably(fresh, text, strlen(text));
	if (!r)
		r = bm_rename_durably(fresh, path);
	return r < 0 ? bm_fail_errno(error, r, "cannot write %s", path ? path : folder) : 0;
}

int bm_requests_keep(const char *folder, json_t *job, struct bm_error *error)
{
	json_t *jobs = NULL;
	int r;

	if (!bm_request_of(job))
		return 0;
	r = bm_requests_read(folder, &jobs, error);
	if (!r && !json_equal(bm_requests_find(jobs, bm_request_of(job)), job)) {
		bm_requests_put(jobs, job);
		r = write_all(folder, jobs, error);
	}
	json_decref(jobs);
	return r;
}
