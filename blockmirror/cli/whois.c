/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * whois: which image is the truth, and why. Offline: what is read is the mark on the image and the
 * records of all disks; nobody is asked, nothing is changed (docs/record.md).
 */
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/record.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/cli/cli.h"

enum { TEXT = 1000, SHOWN = 400 };

/* What a record has to do with the image. */
enum role {
	ROLE_NONE,
	ROLE_DISK,   /* nothing names the image, but it is marked as this disk's */
	ROLE_SOURCE, /* the disk moved away from it */
	ROLE_TARGET, /* a job copies, or copied, to it */
	ROLE_TRUTH
};

static const char *const role_words[] = {"", "its disk", "was its source", "has it as target",
					 "names it"};

struct claim {
	char folder[PATH_MAX];
	enum role role;
	struct bm_record record;
	const char *source, *target, *state; /* of its job; "" where there is none */
};

struct whois {
	const struct cli *cli;
	const char *asked;
	char *uri; /* canonical */
	struct bm_mark mark;
	bool exists;
	struct claim best; /* the record that has most to do with it */
	unsigned truths;   /* records that name it as the truth */
	char other[PATH_MAX];
	struct bm_error damaged; /* of the record that its mark names */
	/* found */
	const char *verdict;
	int status;
	char why[TEXT], next[2 * TEXT];
};

static bool same_image(const char *a, const char *b)
{
	const char *one = bm_uri_path(a), *other = bm_uri_path(b);
	struct stat x, y;

	if (!strcmp(a, b))
		return true;
	if (!one || !other || stat(one, &x) < 0 || stat(other, &y) < 0)
		return false;
	return S_ISBLK(x.st_mode) ? S_ISBLK(y.st_mode) && x.st_rdev == y.st_rdev
				  : x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static enum role role_of(const struct whois *w, const struct claim *c)
{
	if (same_image(w->uri, c->record.uri))
		return ROLE_TRUTH;
	if (*c->target && same_image(w->uri, c->target))
		return strcmp(c->state, "done") ? ROLE_TARGET : ROLE_NONE;
	if (*c->source && same_image(w->uri, c->source) && !strcmp(c->record.uri, c->target))
		return ROLE_SOURCE;
	return !strcmp(w->mark.disk, c->record.disk) ? ROLE_DISK : ROLE_NONE;
}

static void read_job(struct claim *c)
{
	c->source = c->target = c->state = "";
	if (c->record.job)
		json_unpack(c->record.job, "{s?s s?s s?s}", "source", &c->source, "target",
			    &c->target, "state", &c->state);
}

/* One record: kept when it has more to do with the image than those before. */
static void consider(struct whois *w, const char *folder)
{
	struct claim c = {.role = ROLE_NONE};
	struct bm_error error;
	int r;

	if (snprintf(c.folder, sizeof(c.folder), "%s", folder) >= (int)sizeof(c.folder))
		return;
	r = bm_record_read(folder, &c.record, &error);
	if (r < 0) {
		if (r != -ENOENT && !strcmp(folder, w->mark.folder))
			w->damaged = error;
		return;
	}
	read_job(&c);
	c.role = role_of(w, &c);
	if (c.role == ROLE_TRUTH && w->truths++)
		snprintf(w->other, sizeof(w->other), "%s", folder);
	if (c.role > w->best.role) {
		bm_record_clear(&w->best.record);
		w->best = c;
	} else {
		bm_record_clear(&c.record);
	}
}

/* All records of STATE, and the one that the mark names. */
static void consider_all(struct whois *w)
{
	bm_free char *disks = NULL, *real = NULL;
	struct dirent **entries = NULL;
	bool seen = !*w->mark.folder;
	int n = -1;

	if (asprintf(&disks, "%s/disks", w->cli->state_dir) >= 0)
		real = realpath(disks, NULL);
	if (real)
		n = scandir(real, &entries, NULL, alphasort);
	for (int i = 0; i < n; i++) {
		bm_free char *folder = NULL;

		if (entries[i]->d_name[0] != '.' &&
		    asprintf(&folder, "%s/%s", real, entries[i]->d_name) >= 0) {
			seen |= !strcmp(folder, w->mark.folder);
			consider(w, folder);
		}
		free(entries[i]);
	}
	free(entries);
	if (!seen)
		consider(w, w->mark.folder);
}

/* "blockmirror serve NAME", of the STATE that the record's folder is in. */
static const char *serve(const struct whois *w, const char *folder, char *out, size_t size)
{
	bm_free char *copy = strdup(folder);
	bm_free char *own = realpath(w->cli->state_dir, NULL);
	char *name = copy ? strrchr(copy, '/') : NULL, *disks;

	if (!name)
		return "blockmirror serve";
	*name++ = '\0';
	disks = strrchr(copy, '/');
	if (disks)
		*disks = '\0';
	if (own && !strcmp(own, copy))
		snprintf(out, size, "blockmirror serve %s", name);
	else
		snprintf(out, size, "blockmirror --state-dir '%s' serve %s", copy, name);
	return out;
}

static void say(struct whois *w, const char *verdict, int status, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

static void say(struct whois *w, const char *verdict, int status, const char *format, ...)
{
	va_list args;

	w->verdict = verdict;
	w->status = status;
	va_start(args, format);
	vsnprintf(w->why, sizeof(w->why), format, args);
	va_end(args);
}

static void next(struct whois *w, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The command to type. */
static void next(struct whois *w, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(w->next, sizeof(w->next), format, args);
	va_end(args);
}

/* The mark was made by a later record than the one that is there. */
static bool outdated(struct whois *w)
{
	const struct claim *c = &w->best;
	char text[TEXT];

	if (!c->role || strcmp(w->mark.disk, c->record.disk) ||
	    w->mark.generation <= c->record.generation)
		return false;
	say(w, "outdated", 6,
	    "the record in %s has generation %" PRIu64
	    ", and this image was marked %s by generation "
	    "%" PRIu64
	    "%s%s: the record is from a backup, or an old copy of its folder; do not serve "
	    "the disk by it before you know which image is the truth",
	    c->folder, c->record.generation, w->mark.state, w->mark.generation,
	    *w->mark.where ? ", when the disk moved to " : "", w->mark.where);
	if (!strcmp(w->mark.state, "active"))
		next(w, "mv %s %s.old; %s %s", c->folder, c->folder,
		     serve(w, c->folder, text, sizeof(text)), w->asked);
	else
		next(w, "blockmirror whois %s", *w->mark.where ? w->mark.where : c->record.uri);
	return true;
}

static void truth(struct whois *w)
{
	const struct claim *c = &w->best;
	char shown[SHOWN], text[TEXT];
	bool moves = !strcmp(c->state, "running");

	next(w, "%s", serve(w, c->folder, text, sizeof(text)));
	if (w->truths > 1) {
		say(w, "disputed", 6, "two records name it: %s and %s; one of them must go",
		    c->folder, w->other);
		next(w, "move the folder of the one that is not the disk's away; then %s", text);
	} else if (*w->mark.state && strcmp(w->mark.disk, c->record.disk)) {
		say(w, "foreign", 6,
		    "the record in %s names this path, but the image is marked as another disk's "
		    "(%s, in %s): something else is where the disk was",
		    c->folder, w->mark.disk, w->mark.folder);
		next(w, "put the disk's image back to %s", w->asked);
	} else if (!w->exists) {
		say(w, "missing", 4,
		    "it is not there, but the record in %s (generation %" PRIu64
		    ") names it as the truth of disk %s",
		    c->folder, c->record.generation, c->record.name);
		next(w, "put the image back to %s", w->asked);
	} else if (c->record.role == BM_ROLE_STANDBY) {
		say(w, "standby", 1,
		    "it is this host's copy of disk %s, which host %s has, says the record in %s "
		    "(generation %" PRIu64 ")",
		    c->record.name, c->record.peer, c->folder, c->record.generation);
		next(w, "blockmirror show %s, on host %s", c->record.name, c->record.peer);
	} else {
		say(w, "truth", 0, "the record in %s (generation %" PRIu64 ") names it%s%s%s",
		    c->folder, c->record.generation,
		    *w->mark.state && strcmp(w->mark.state, "active")
			    ? "; it is not marked so: a crash came between record and mark"
			    : "",
		    moves ? "; a job runs, to or from " : "",
		    moves ? bm_uri_redact(same_image(w->uri, c->target) ? c->source : c->target,
					  shown, sizeof(shown))
			  : "");
	}
}

/* No record names it as the truth; one has to do with it. */
static void not_truth(struct whois *w)
{
	const struct claim *c = &w->best;
	char shown[SHOWN], text[TEXT];
	const char *path = bm_uri_path(c->record.uri);
	struct stat st;
	bool target = c->role == ROLE_TARGET || !strcmp(w->mark.state, "incomplete");

	bm_uri_redact(c->record.uri, shown, sizeof(shown));
	next(w, "%s", serve(w, c->folder, text, sizeof(text)));
	if (target && !strcmp(c->state, "running")) {
		say(w, "target", 1,
		    "it is the target of a job that runs, or goes on when the disk is served; the "
		    "record in %s (generation %" PRIu64 ") says that the disk is on %s",
		    c->folder, c->record.generation, shown);
	} else if (target) {
		say(w, "incomplete", 1,
		    "it was the target of a job that did not come to its end (%s); the record in "
		    "%s "
		    "(generation %" PRIu64 ") says that the disk is on %s",
		    *c->state ? c->state : "unknown", c->folder, c->record.generation, shown);
		next(w, "rm %s, when nobody wants it", w->asked);
	} else if (!strcmp(w->mark.state, "active") && path && stat(path, &st) < 0) {
		say(w, "renamed", 1,
		    "it is marked as the truth of disk %s, whose record in %s (generation %" PRIu64
		    ") names %s, which is not there: it has been renamed, or copied",
		    c->record.name, c->folder, c->record.generation, shown);
		next(w, "mv %s %s; %s", w->asked, path, text);
	} else {
		say(w, "retired", 1,
		    "it is an old copy of disk %s: the record in %s (generation %" PRIu64
		    ") says that the disk is on %s",
		    c->record.name, c->folder, c->record.generation, shown);
	}
}

/* There is no record that has to do with it. */
static void no_record(struct whois *w)
{
	const struct bm_mark *mark = &w->mark;
	const char *path = bm_uri_path(w->asked);

	if (!strcmp(mark->state, "retired")) {
		say(w, "retired", 1,
		    "it is marked as an old copy, whose disk went to %s; the record in %s is gone",
		    mark->where, mark->folder);
		next(w, "blockmirror whois %s", mark->where);
	} else if (!strcmp(mark->state, "incomplete")) {
		say(w, "incomplete", 1,
		    "it is marked as the incomplete target of a job; the record in %s is gone",
		    mark->folder);
		next(w, "rm %s, when nobody wants it", w->asked);
	} else if (*mark->state) {
		say(w, "orphan", 4,
		    "it is marked as the truth of a disk (generation %" PRIu64
		    "), whose record in %s is gone: it may be served by any name",
		    mark->generation, mark->folder);
		next(w, "blockmirror serve NAME %s%s%s", mark->format, *mark->format ? ":" : "",
		     path ? path : w->asked);
	} else {
		say(w, "unknown", 4, "it bears no mark, and no record in %s/disks names it",
		    w->cli->state_dir);
		next(w, "blockmirror --state-dir DIR whois %s, if there is another STATE",
		     w->asked);
	}
}

static void judge(struct whois *w)
{
	if (w->damaged.code) {
		say(w, "damaged", 6, "its mark (%s) names a record that cannot be believed: %.300s",
		    w->mark.state, w->damaged.text);
		next(w, "put %s/record back from a backup", w->mark.folder);
	} else if (outdated(w)) {
		return;
	} else if (w->best.role == ROLE_TRUTH) {
		truth(w);
	} else if (w->best.role) {
		not_truth(w);
	} else {
		no_record(w);
	}
}

static void print_json(const struct whois *w)
{
	const struct claim *c = &w->best;
	char shown[SHOWN], where[SHOWN];
	json_t *j;

	j = json_pack("{s:i s:s s:s s:b s:s s:s}", "v", 1, "image",
		      bm_uri_redact(w->uri, shown, sizeof(shown)), "verdict", w->verdict, "truth",
		      w->status == 0, "why", w->why, "next", w->next);
	json_object_set_new(j, "mark",
			    *w->mark.state
				    ? json_pack("{s:s s:s s:s s:s s:I}", "state", w->mark.state,
						"disk", w->mark.disk, "record", w->mark.folder,
						"where", w->mark.where, "generation",
						(json_int_t)w->mark.generation)
				    : json_null());
	json_object_set_new(j, "record",
			    c->role ? json_pack("{s:s s:s s:s s:I s:s s:s s:s}", "folder",
						c->folder, "name", c->record.name, "disk",
						c->record.disk, "generation",
						(json_int_t)c->record.generation, "uri",
						bm_uri_redact(c->record.uri, where, sizeof(where)),
						"role", role_words[c->role], "job", c->state)
				    : json_null());
	cli_print_json(j);
}

static void print(const struct whois *w)
{
	const struct claim *c = &w->best;
	char shown[SHOWN];

	printf("image       %s\n", bm_uri_redact(w->uri, shown, sizeof(shown)));
	printf("this is     %s%s%s\n", w->verdict, c->role ? ", disk " : "",
	       c->role ? c->record.name : "");
	if (c->role)
		printf("the truth   %s (generation %" PRIu64 "%s)\n",
		       bm_uri_redact(c->record.uri, shown, sizeof(shown)), c->record.generation,
		       w->status == 6 ? ", not to be relied on" : "");
	printf("why         %s\n", w->why);
	printf("next        %s\n", w->next);
}

int cmd_whois(struct cli *cli, int argc, char **argv)
{
	struct whois w = {.cli = cli};
	struct bm_error error;
	struct stat st;
	const char *path;
	int r = cli_options(cli, argc, argv, NULL, NULL, NULL);

	if (!r)
		r = cli_arguments(cli, argc, 1, 1);
	if (r)
		return r < 0 ? 0 : r;
	w.asked = argv[optind];
	w.uri = bm_uri_canonical(w.asked);
	if (!w.uri) {
		bm_fail_errno(&error, errno, "%s", w.asked);
		return cli_fail(cli, &error);
	}
	path = bm_uri_path(w.uri);
	w.exists = !path || !stat(path, &st);
	r = path && w.exists ? bm_mark_read(path, &w.mark) : 0;
	if (r < 0) {
		bm_fail_errno(&error, r, "cannot read the mark of %s", path);
	} else {
		consider_all(&w);
		judge(&w);
		if (!w.exists && !w.best.role)
			r = bm_fail(&error, BM_E_NOT_FOUND,
				    "%s is not there, and no record names it", path);
	}
	if (r >= 0 && cli->json)
		print_json(&w);
	else if (r >= 0)
		print(&w);
	bm_record_clear(&w.best.record);
	free(w.uri);
	return r < 0 ? cli_fail(cli, &error) : w.status;
}
