/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Who owns an image: the mark on it, checked against the record that the mark names. A record that
 * is gone, or says that its disk is elsewhere, owns nothing.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/disk/disk.h"

/* Whether the record in folder says that path is the truth of its disk. */
static bool claims(const char *folder, const char *path)
{
	bm_record_auto struct bm_record record = {0};
	bm_free char *real = bm_uri_canonical(path);
	const char *claimed;

	if (!real || bm_record_read(folder, &record, NULL) < 0)
		return false;
	claimed = bm_uri_path(record.uri);
	return claimed && !strcmp(claimed, real);
}

int owner_check(const char *uri, const char *folder, bool to_serve, struct bm_error *error)
{
	const char *path = bm_uri_path(uri);
	struct bm_mark mark;

	if (!path || bm_mark_read(path, &mark) < 0 || !mark.state[0])
		return 0;
	if (!strcmp(mark.state, "active") && strcmp(mark.folder, folder) &&
	    claims(mark.folder, path))
		return bm_fail(
			error, BM_E_OWNED,
			"%s belongs to the disk whose record is in %s; serve that disk, or remove "
			"that record first",
			path, mark.folder);
	if (to_serve && !strcmp(mark.state, "retired"))
		return bm_fail(
			error, BM_E_RETIRED,
			"%s is an old copy: its disk moved to %s; to use it all the same, remove "
			"the mark (setfattr -x user.blockmirror, or %s.blockmirror)",
			path, mark.where, path);
	if (to_serve && !strcmp(mark.state, "incomplete"))
		return bm_fail(
			error, BM_E_UNUSABLE,
			"%s is an incomplete copy, left by a move that was interrupted; remove it, "
			"or give it as target again with --overwrite",
			path);
	return 0;
}

int owner_mark(const char *uri, const char *state, const struct bm_record *record,
	       const char *folder)
{
	const char *path = bm_uri_path(uri);
	struct bm_mark mark = {0};

	if (!path)
		return 0;
	snprintf(mark.state, sizeof(mark.state), "%s", state);
	snprintf(mark.disk, sizeof(mark.disk), "%s", record->disk);
	snprintf(mark.folder, sizeof(mark.folder), "%s", folder);
	if (!strcmp(state, "retired"))
		bm_uri_redact(record->uri, mark.where, sizeof(mark.where));
	return bm_mark_write(path, &mark);
}
