/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Reading it. inih takes lines apart; it tells of the first bad line alone, and its handler not in
 * which line it is. So lines are given to it by a reader of ours, which counts them, and it reads
 * once more without each line that it could not take apart.
 */
#include "blockmirror/base/config.h"

#include <errno.h>
#include <glob.h>
#include <ini.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/disk_name.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/memory.h"

enum { LARGEST = 1 << 20, KNOWN = 400, NAME = 64 };

struct reading {
	json_t *config, *errors;
	json_t *where; /* {section: {"file", "line"}}: where one with a name was first seen */
	const char *file;
	json_t *seen;   /* in this file: {section: {key: true}} */
	json_t *bad;    /* of it: {line: true}, which inih cannot take apart */
	size_t first;   /* of its errors */
	const char *at; /* what of it was not given out yet */
	int line;
	bool collects;
};

const char *bm_config_file(void)
{
	const char *file = getenv("BLOCKMIRROR_CONFIG");

	return file && *file ? file : "/etc/blockmirror/blockmirror.conf";
}

static __attribute__((format(printf, 4, 5))) void complain(struct reading *r, const char *file,
							   int line, const char *format, ...)
{
	size_t i = json_array_size(r->errors);
	char text[KNOWN + 200];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	for (; i > r->first; i--)
		if (json_integer_value(json_object_get(json_array_get(r->errors, i - 1), "line")) <=
		    line)
			break;
	json_array_insert_new(
		r->errors, i,
		json_pack("{s:s s:i s:s}", "file", file, "line", line, "message", text));
}

/* One line, as fgets() does. */
static char *give_line(char *to, int size, void *arg)
{
	struct reading *r = arg;
	size_t n = strcspn(r->at, "\n");
	bool ends = r->at[n];
	char number[16];

	if (!*r->at)
		return NULL;
	r->line++;
	snprintf(number, sizeof(number), "%d", r->line);
	if (n + 2 > (size_t)size) {
		if (r->collects)
			complain(r, r->file, r->line, "the line is longer than %d characters",
				 size - 2);
		snprintf(to, (size_t)size, "\n");
	} else if (json_object_get(r->bad, number)) {
		snprintf(to, (size_t)size, "\n");
	} else {
		snprintf(to, (size_t)size, "%.*s\n", (int)n, r->at);
	}
	r->at += n + ends;
	return to;
}

/* "datastore fast": kind datastore, and the part of the configuration that it is. NULL: none. */
static json_t *find_section(struct reading *r, const char *section, char *kind)
{
	static const char *const plain[] = {"defaults", "limits"}, *const named[] = {"datastore",
										     "peer"};
	size_t n = strcspn(section, " \t");
	const char *name = section + n + strspn(section + n, " \t");
	char group[NAME];
	json_t *part;

	snprintf(kind, NAME, "%.*s", (int)n, section);
	for (int i = 0; i < 2; i++)
		if (!*name && !strcmp(kind, plain[i]))
			return json_object_get(r->config, kind);
	if (bm_disk_name_check(name, NULL) < 0 ||
	    (strcmp(kind, named[0]) != 0 && strcmp(kind, named[1]) != 0))
		return NULL;
	snprintf(group, sizeof(group), "%.50ss", kind);
	part = json_object_get(json_object_get(r->config, group), name);
	if (part)
		return part;
	part = json_object();
	json_object_set_new(json_object_get(r->config, group), name, part);
	json_object_set_new(r->where, section,
			    json_pack("{s:s s:i s:s s:s}", "file", r->file, "line", r->line, "kind",
				      kind, "name", name));
	return part;
}

/* In one file twice is a mistake; in a later one it takes the place. */
static bool is_again(struct reading *r, const char *section, const char *name)
{
	json_t *keys = json_object_get(r->seen, section);

	if (!keys) {
		keys = json_object();
		json_object_set_new(r->seen, section, keys);
	}
	if (json_object_get(keys, name))
		return true;
	json_object_set_new(keys, name, json_true());
	return false;
}

static void put(struct reading *r, const char *section, const char *name, const char *value)
{
	char kind[NAME], known[KNOWN];
	json_t *part = find_section(r, section, kind), *good = NULL;
	const struct config_key *key = part ? config_find_key(kind, name, known, KNOWN) : NULL;
	const char *wanted;

	if (!part) {
		complain(r, r->file, r->line,
			 *section ? "[%s]: no such section; there are [defaults], [limits], "
				    "[datastore NAME], [peer NAME]"
				  : "%sa section is wanted before the first key",
			 section);
		return;
	}
	if (!key) {
		complain(r, r->file, r->line, "%s: no such key in [%s]; there are %s", name, kind,
			 known);
		return;
	}
	wanted = *value ? key->check(value, &good) : "a value is wanted";
	if (wanted) {
		complain(r, r->file, r->line, "%s = %s: %s", name, value, wanted);
		return;
	}
	if (!key->many && is_again(r, section, name)) {
		complain(r, r->file, r->line, "%s was given before, in the same section", name);
		json_decref(good);
	} else if (!key->many) {
		json_object_set_new(part, name, good);
	} else {
		if (!json_object_get(part, name))
			json_object_set_new(part, name, json_array());
		json_array_append_new(json_object_get(part, name), good);
	}
}

static int take(void *arg, const char *section, const char *name, const char *value)
{
	struct reading *r = arg;

	if (r->collects)
		put(r, section, name, value ? value : "");
	return 1;
}

static int pass(struct reading *r, const char *text, bool collects)
{
	r->at = text;
	r->line = 0;
	r->collects = collects;
	return ini_parse_stream(give_line, r, take, r);
}

static void read_file(struct reading *r, const char *file, bool may_be_missing)
{
	bm_free char *text = NULL;
	char number[16];
	int e = bm_read_text(file, LARGEST, &text), line;

	r->file = file;
	r->first = json_array_size(r->errors);
	if (e < 0) {
		if (e != -ENOENT || !may_be_missing)
			complain(r, file, 0, "%s", strerror(-e));
		return;
	}
	r->seen = json_object();
	r->bad = json_object();
	while ((line = pass(r, text, false)) > 0) {
		snprintf(number, sizeof(number), "%d", line);
		json_object_set_new(r->bad, number, json_true());
		complain(r, file, line, "neither [SECTION] nor KEY = VALUE");
	}
	pass(r, text, true);
	json_decref(r->seen);
	json_decref(r->bad);
}

static void read_drop_ins(struct reading *r, const char *file)
{
	bm_free char *pattern = NULL;
	glob_t found = {0};

	if (asprintf(&pattern, "%s.d/*.conf", file) < 0)
		bm_need(NULL);
	if (!glob(pattern, 0, NULL, &found))
		for (size_t i = 0; i < found.gl_pathc; i++)
			read_file(r, found.gl_pathv[i], true);
	globfree(&found);
}

/* What is wrong with all of it, and not with one line. */
static void check_whole(struct reading *r)
{
	json_t *stores = json_object_get(r->config, "datastores"), *paths = json_object(), *place;
	const char *section;

	r->first = 0;
	json_object_foreach(r->where, section, place) {
		const char *name = json_string_value(json_object_get(place, "name")), *file, *path;
		const json_t *store = json_object_get(stores, name);
		int line = (int)json_integer_value(json_object_get(place, "line"));

		if (strcmp(json_string_value(json_object_get(place, "kind")), "datastore") != 0)
			continue;
		r->first = json_array_size(r->errors);
		file = json_string_value(json_object_get(place, "file"));
		path = json_string_value(json_object_get(store, "path"));
		if (!path)
			complain(r, file, line, "datastore %s has no path", name);
		else if (json_object_get(paths, path))
			complain(r, file, line, "datastore %s is where datastore %s is, too", name,
				 json_string_value(json_object_get(paths, path)));
		else
			json_object_set_new(paths, path, json_string(name));
		if (!path)
			json_object_del(stores, name);
	}
	json_decref(paths);
}

void bm_config_read(const char *file, json_t **config, json_t **errors)
{
	struct reading r = {.config = bm_need(json_pack("{s:{} s:{} s:{} s:{}}", "defaults",
							"limits", "datastores", "peers")),
			    .errors = bm_need(json_array()),
			    .where = bm_need(json_object())};
	bool given = file || getenv("BLOCKMIRROR_CONFIG");

	file = file ? file : bm_config_file();
	read_file(&r, file, !given);
	read_drop_ins(&r, file);
	check_whole(&r);
	json_decref(r.where);
	*config = r.config;
	*errors = r.errors;
}

const char *bm_config_text(const json_t *config, const char *section, const char *key)
{
	return json_string_value(json_object_get(json_object_get(config, section), key));
}

uint64_t bm_config_number(const json_t *config, const char *section, const char *key)
{
	return (uint64_t)json_integer_value(json_object_get(json_object_get(config, section), key));
}

void bm_config_use_folders(const json_t *config)
{
	static const char *const names[][2] = {{"run-dir", "BLOCKMIRROR_RUN_DIR"},
					       {"state-dir", "BLOCKMIRROR_STATE_DIR"},
					       {"hooks", "BLOCKMIRROR_HOOKS"}};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		const char *value = bm_config_text(config, "defaults", names[i][0]);

		if (value)
			setenv(names[i][1], value, 0);
	}
}
