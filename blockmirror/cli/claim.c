/* SPDX-License-Identifier: BSD-3-Clause */
/* What ids stand for, as files. */
#include "blockmirror/cli/claim.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"

enum { FORMAT = 1, LARGEST = 1 << 20 };

/* The last line that is whole. NULL: there is none. */
static json_t *last_line(char *text)
{
	char *end = strrchr(text, '\n');

	while (end) {
		char *start;
		json_t *line;

		*end = '\0';
		start = strrchr(text, '\n');
		line = json_loads(start ? start + 1 : text, 0, NULL);
		if (json_is_object(json_object_get(line, "asked")))
			return line;
		json_decref(line);
		end = start;
	}
	return NULL;
}

void claim_look(struct claim *c)
{
	bm_free char *text = NULL;

	json_decref(c->said);
	c->said = bm_read_text(c->path, LARGEST, &text) < 0 ? NULL : last_line(text);
}

static int add_line(struct claim *c, struct bm_error *error)
{
	bm_free char *text = json_dumps(c->said, JSON_COMPACT), *line = NULL;
	/* Behind what a torn one has left, if there is any. */
	int n = text ? asprintf(&line, "\n%s\n", text) : -1;

	if (n < 0)
		return bm_fail_errno(error, ENOMEM, "%s", c->path);
	errno = ENOSPC; /* a short write */
	if (write(c->fd, line, (size_t)n) != n || fdatasync(c->fd) < 0)
		return bm_fail_errno(error, errno, "cannot write %s", c->path);
	return 0;
}

int claim_note(struct claim *c, const char *key, json_t *value, struct bm_error *error)
{
	json_object_set_new(c->said, key, value);
	return add_line(c, error);
}

bool claim_is_there(const struct claim *c)
{
	struct stat ours, there;

	return !fstat(c->fd, &ours) && !stat(c->path, &there) && ours.st_ino == there.st_ino &&
	       ours.st_dev == there.st_dev;
}

static int lock(struct claim *c, bool wait)
{
	while (flock(c->fd, LOCK_EX | (wait ? 0 : LOCK_NB)) < 0)
		if (errno != EINTR)
			return errno == EWOULDBLOCK ? 0 : -errno;
	c->locked = true;
	return 0;
}

struct aged {
	char *path;
	struct timespec age;
};

static int by_age(const void *a, const void *b)
{
	const struct aged *x = a, *y = b;

	if (x->age.tv_sec != y->age.tv_sec)
		return x->age.tv_sec < y->age.tv_sec ? -1 : 1;
	return x->age.tv_nsec < y->age.tv_nsec ? -1 : x->age.tv_nsec > y->age.tv_nsec;
}

/* One that is being carried out is nobody's to remove. */
static void remove_unlocked(const char *path)
{
	bm_close int fd = open(path, O_RDWR | O_CLOEXEC);

	if (fd >= 0 && !flock(fd, LOCK_EX | LOCK_NB))
		unlink(path);
}

/* The oldest ones, when there are too many; a tenth more, so that it is not done each time. */
static void make_room(const char *folder)
{
	struct dirent **entries = NULL;
	int n = scandir(folder, &entries, NULL, NULL);
	bm_free struct aged *all = n > CLAIMS_KEPT ? calloc((size_t)n, sizeof(*all)) : NULL;
	int most = CLAIMS_KEPT - CLAIMS_KEPT / 10, found = 0;

	for (int i = 0; i < n; i++) {
		struct stat st;
		char *path = NULL;

		if (all && entries[i]->d_name[0] != '.' &&
		    asprintf(&path, "%s/%s", folder, entries[i]->d_name) >= 0 && !stat(path, &st))
			all[found++] = (struct aged){path, st.st_mtim};
		else
			free(path);
		free(entries[i]);
	}
	free(entries);
	if (!all)
		return;
	qsort(all, (size_t)found, sizeof(*all), by_age);
	for (int i = 0; i < found; i++) {
		if (i < found - most)
			remove_unlocked(all[i].path);
		free(all[i].path);
	}
}

static int open_locked(struct claim *c, bool make, bool wait, struct bm_error *error)
{
	for (;;) {
		int r;

		c->fd = open(c->path, O_RDWR | O_APPEND | O_CLOEXEC | (make ? O_CREAT : 0), 0600);
		if (c->fd < 0 && errno == ENOENT && !make)
			return -ENOENT;
		if (c->fd < 0)
			return bm_fail_errno(error, errno, "cannot open %s", c->path);
		r = lock(c, wait);
		if (r < 0)
			return bm_fail_errno(error, r, "cannot lock %s", c->path);
		if (!c->locked || claim_is_there(c))
			return 0;
		close(c->fd);
		c->locked = false;
	}
}

/* Who has the lock may be about to write the first line. */
static bool was_refused(const struct claim *c)
{
	const char *state =
		json_string_value(json_object_get(json_object_get(c->said, "answer"), "state"));

	return state && !strcmp(state, "refused");
}

static int wait_for_line(struct claim *c, bool make, bool wait, struct bm_error *error)
{
	int r = open_locked(c, make, wait, error);

	if (r < 0)
		return r;
	claim_look(c);
	for (int i = 0; !c->said && !c->locked && i < 500; i++) {
		usleep(10000);
		close(c->fd);
		c->fd = -1;
		r = open_locked(c, make, false, error);
		if (r < 0)
			return r;
		claim_look(c);
	}
	return 0;
}

static int find(struct claim *c, const char *id, const json_t *asked, bool make, bool wait,
		struct bm_error *error)
{
	int r = wait_for_line(c, make, wait, error);

	if (r < 0)
		return r;
	if (c->said && asked && c->locked && was_refused(c)) { /* and the id is free */
		json_decref(c->said);
		c->said = NULL;
	}
	if (c->said && asked && !json_equal(json_object_get(c->said, "asked"), asked))
		return bm_fail(error, BM_E_ID_REUSED,
			       "request %s was another one before, says %s: give each its own id",
			       id, c->path);
	if (c->said)
		return 0;
	if (c->locked && !make) { /* its maker died before it was one */
		claim_drop(c);
		return -ENOENT;
	}
	if (!c->locked)
		return bm_fail(error, BM_E_BUSY, "request %s: who asks for it does not get on", id);
	c->made = true;
	c->said = json_pack("{s:i s:s s:O}", "format", FORMAT, "id", id, "asked", asked);
	r = c->said ? add_line(c, error) : bm_fail_errno(error, ENOMEM, "request %s", id);
	if (!r && (r = bm_sync_folder_of(c->path)) < 0)
		bm_fail_errno(error, r, "cannot sync %s", c->path);
	if (r < 0)
		claim_drop(c);
	return r;
}

int claim_open(struct claim *c, const char *state, const char *id, const json_t *asked, bool make,
	       bool wait, struct bm_error *error)
{
	bm_free char *folder = NULL;
	int r;

	*c = (struct claim){.fd = -1};
	if (asprintf(&folder, "%s/requests", state) < 0 ||
	    asprintf(&c->path, "%s/%s", folder, id) < 0)
		return bm_fail_errno(error, ENOMEM, "request %s", id);
	r = make ? bm_make_folders(folder) : 0;
	if (r < 0)
		return bm_fail_errno(error, r, "cannot create %s", folder);
	if (make && access(c->path, F_OK) < 0)
		make_room(folder);
	return find(c, id, asked, make, wait, error);
}

bool claim_lock(struct claim *c, bool wait)
{
	return c->locked || (!lock(c, wait) && c->locked);
}

void claim_drop(const struct claim *c)
{
	if (claim_is_there(c)) /* what another one has claimed since is not ours to drop */
		unlink(c->path);
}

void claim_leave(struct claim *c)
{
	close(c->fd);
	c->fd = open(c->path, O_RDWR | O_APPEND | O_CLOEXEC);
	c->locked = false;
}

void claim_unlock(struct claim *c)
{
	if (c->locked)
		flock(c->fd, LOCK_UN);
	c->locked = false;
}

void claim_close(struct claim *c)
{
	if (c->fd >= 0)
		close(c->fd);
	json_decref(c->said);
	free(c->path);
	*c = (struct claim){.fd = -1};
}
