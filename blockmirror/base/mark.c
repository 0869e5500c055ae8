/* SPDX-License-Identifier: BSD-3-Clause */
/* Marks on images: an extended attribute, or a file beside where there are none. */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/record.h"

#define ATTRIBUTE "user.blockmirror"
#define VOID      "user.blockmirror.void"
#define NOTE      "user.blockmirror.shared"
enum { LARGEST = 4096 };

static char *sidecar(const char *path)
{
	char *beside;

	return asprintf(&beside, "%s.blockmirror", path) < 0 ? NULL : beside;
}

static int read_text(const char *path, char **text)
{
	bm_free char *beside = NULL, *value = calloc(1, LARGEST + 1);
	ssize_t n;

	if (!value)
		return -ENOMEM;
	n = getxattr(path, ATTRIBUTE, value, LARGEST);
	if (n >= 0) {
		*text = bm_steal(value);
		return 0;
	}
	if (errno != ENODATA && errno != EOPNOTSUPP)
		return -errno;
	beside = sidecar(path);
	return beside ? bm_read_text(beside, LARGEST, text) : -ENOMEM;
}

static void take(char *out, size_t size, const char *value)
{
	snprintf(out, size, "%s", value ? value : "");
}

int bm_mark_read(const char *path, struct bm_mark *mark)
{
	const char *state = NULL, *disk = NULL, *folder = NULL, *where = NULL, *format = NULL;
	bm_free char *text = NULL;
	json_int_t generation = 0;
	json_t *root;
	int r = read_text(path, &text);

	memset(mark, 0, sizeof(*mark));
	if (r < 0)
		return r == -ENOENT ? 0 : r;
	root = json_loads(text, 0, NULL);
	if (root && !json_unpack(root, "{s:s s?s s?s s?s s?s s?I}", "state", &state, "disk", &disk,
				 "record", &folder, "where", &where, "format", &format,
				 "generation", &generation)) {
		take(mark->state, sizeof(mark->state), state);
		take(mark->disk, sizeof(mark->disk), disk);
		take(mark->folder, sizeof(mark->folder), folder);
		take(mark->where, sizeof(mark->where), where);
		take(mark->format, sizeof(mark->format), format);
		mark->generation = (uint64_t)generation;
	}
	json_decref(root);
	return 0;
}

static bool is_file(const char *path)
{
	struct stat st;

	return !stat(path, &st) && S_ISREG(st.st_mode);
}

int bm_mark_write(const char *path, const struct bm_mark *mark)
{
	json_t *root = json_pack("{s:s s:s s:s s:s s:s* s:I}", "state", mark->state, "disk",
				 mark->disk, "record", mark->folder, "where", mark->where, "format",
				 *mark->format ? mark->format : NULL, "generation",
				 (json_int_t)mark->generation);
	bm_free char *text = root ? json_dumps(root, JSON_COMPACT) : NULL, *beside = NULL;

	json_decref(root);
	if (!is_file(path))
		return 0;
	if (!text)
		return -ENOMEM;
	if (!setxattr(path, ATTRIBUTE, text, strlen(text), 0))
		return bm_sync_file(path);
	if (errno != EOPNOTSUPP && errno != ENOSPC && errno != E2BIG)
		return -errno;
	beside = sidecar(path);
	return beside ? bm_write_durably(beside, text, strlen(text)) : -ENOMEM;
}

int bm_mark_remove(const char *path)
{
	bm_free char *beside = sidecar(path);
	struct stat st;

	if (!beside)
		return -ENOMEM;
	if (!stat(path, &st) && !S_ISREG(st.st_mode))
		return 0;
	if (removexattr(path, ATTRIBUTE) < 0 && errno != ENODATA && errno != EOPNOTSUPP &&
	    errno != ENOENT)
		return -errno;
	if (is_file(path) || access(path, F_OK))
		unlink(beside);
	return is_file(path) ? bm_sync_file(path) : 0;
}

int bm_mark_void(const char *path, const char *text)
{
	if (!path || !is_file(path))
		return -ENOTSUP;
	if (setxattr(path, VOID, text, strlen(text), 0) < 0)
		return -errno;
	return bm_sync_file(path);
}

bool bm_mark_is_void(const char *path, const char *text)
{
	char found[64];
	ssize_t n = getxattr(path, VOID, found, sizeof(found));

	return n == (ssize_t)strlen(text) && !memcmp(found, text, (size_t)n);
}

static char *note_beside(const char *path)
{
	char *beside;

	return asprintf(&beside, "%s.blockmirror.shared", path) < 0 ? NULL : beside;
}

/* Durably, since what is done next may rest on that. */
static int take_note(const char *path, const char *beside)
{
	int r = removexattr(path, NOTE) < 0 ? -errno : bm_sync_file(path), q = 0;

	if (!unlink(beside))
		q = bm_sync_folder_of(beside);
	else if (errno != ENOENT)
		q = -errno;
	return q ? q : r == -ENODATA || r == -EOPNOTSUPP ? 0 : r;
}

int bm_mark_note(const char *path, const char *text)
{
	bm_free char *beside = note_beside(path);

	if (!beside)
		return -ENOMEM;
	if (!is_file(path))
		return -ENOTSUP;
	if (!text)
		return take_note(path, beside);
	if (!setxattr(path, NOTE, text, strlen(text), 0))
		return 0;
	return errno == EOPNOTSUPP ? bm_write_durably(beside, text, strlen(text)) : -errno;
}

int bm_mark_has_note(const char *path, const char *text)
{
	bm_free char *beside = note_beside(path), *found = calloc(1, LARGEST + 1);
	/* Opened: what a network file system remembers of attributes is looked at anew by that. */
	bm_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	ssize_t n = beside && found ? fgetxattr(fd, NOTE, found, LARGEST) : -1;
	bool silent = n < 0 && errno == EOPNOTSUPP;

	if (!beside || !found)
		return -ENOMEM;
	if (n < 0) {
		free(bm_steal(found));
		if (bm_read_text(beside, LARGEST, &found) < 0)
			return silent ? -ENOTSUP : 0;
	}
	return !strcmp(found, text);
}

bool bm_mark_can_take_note(const char *path)
{
	bm_free char *beside = note_beside(path), *found = calloc(1, LARGEST + 1);
	ssize_t n = beside && found ? getxattr(path, NOTE, found, LARGEST) : -1;
	char *slash = beside ? strrchr(beside, '/') : NULL;

	if (n >= 0)
		return !setxattr(path, NOTE, found, (size_t)n, XATTR_REPLACE);
	if (!slash || access(beside, F_OK) < 0)
		return false;
	*slash = '\0';
	return !access(*beside ? beside : "/", W_OK | X_OK);
}
