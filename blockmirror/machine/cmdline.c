/* SPDX-License-Identifier: BSD-3-Clause */
/* The command line of a running QEMU: what -blockdev and -drive say. */
#include "blockmirror/machine/cmdline.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/memory.h"

enum { LARGEST = 1 << 20, LONGEST_KEY = 200 };

static void flatten(json_t *flat, const char *prefix, json_t *object)
{
	const char *key;
	json_t *value;

	json_object_foreach(object, key, value) {
		char name[LONGEST_KEY];

		snprintf(name, sizeof(name), "%s%s%s", prefix, *prefix ? "." : "", key);
		if (json_is_object(value))
			flatten(flat, name, value);
		else
			json_object_set(flat, name, value);
	}
}

/* key=value,key=value; a comma in a value is doubled. */
static json_t *parse_pairs(const char *text)
{
	json_t *flat = json_object();
	bm_free char *copy = strdup(text);
	char *from = copy;

	while (flat && from && *from) {
		char *key = from, *to, *value = strchr(from, '=');

		if (!value)
			break;
		*value++ = '\0';
		for (from = to = value; *from; from++) {
			if (from[0] == ',' && from[1] != ',')
				break;
			from += *from == ',';
			*to++ = *from;
		}
		from += *from == ',';
		*to = '\0';
		json_object_set_new(flat, key, json_string(value));
	}
	return flat;
}

static json_t *parse(const char *text)
{
	json_t *object, *flat;

	if (*text != '{')
		return parse_pairs(text);
	object = json_loads(text, 0, NULL);
	flat = json_object();
	flatten(flat, "", object);
	json_decref(object);
	return flat;
}

static const char *text_of(const json_t *flat, const char *key)
{
	const char *text = json_string_value(json_object_get(flat, key));

	return text ? text : "";
}

/* The part of flat that is about node, which may be in it ("file.node-name"). */
static json_t *part_of(const json_t *flat, const char *node)
{
	static const char suffix[] = "node-name";
	const char *key, *found = NULL;
	json_t *value, *part;
	size_t prefix;

	json_object_foreach((json_t *)flat, key, value) {
		const char *name = json_string_value(value);
		size_t length = strlen(key);

		if (name && !strcmp(name, node) && length >= sizeof(suffix) - 1 &&
		    !strcmp(key + length - (sizeof(suffix) - 1), suffix))
			found = key;
	}
	if (!found)
		return NULL;
	prefix = strlen(found) - (sizeof(suffix) - 1);
	part = json_object();
	json_object_foreach((json_t *)flat, key, value)
		if (!strncmp(key, found, prefix))
			json_object_set(part, key + prefix, value);
	return part;
}

/* The arguments, each ended by a zero byte. */
static char *read_arguments(pid_t pid, size_t *length)
{
	bm_free char *data = calloc(1, LARGEST + 1);
	char path[64];
	bm_close int fd = -1;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/cmdline", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	*length = 0;
	while (data && fd >= 0 && (n = read(fd, data + *length, LARGEST - *length)) > 0)
		*length += (size_t)n;
	return bm_steal(data);
}

/* What comes after each "-option": find() of it, until that has found something. */
static json_t *search(pid_t pid, const char *option, json_t *(*find)(const json_t *, const char *),
		      const char *wanted)
{
	size_t length, n = strlen(option);
	bm_free char *data = pid > 0 ? read_arguments(pid, &length) : NULL;
	const char *at = data, *end = data ? data + length : NULL;
	bool follows = false;
	json_t *found = NULL;

	for (; at < end && !found; at += strlen(at) + 1) {
		if (follows) {
			json_t *flat = parse(at);

			found = find(flat, wanted);
			json_decref(flat);
		}
		follows = at[0] == '-' && !strncmp(at + (at[1] == '-' ? 2 : 1), option, n + 1);
	}
	return found;
}

json_t *bm_cmdline_node(pid_t pid, const char *node)
{
	return search(pid, "blockdev", part_of, node);
}

/* Of a -drive, its file's: "file.locking", and what it passes down, "aio"; and its own discard. */
static json_t *options_of_file(const json_t *flat)
{
	static const char prefix[] = "file.";
	json_t *value = json_object_get(flat, "aio"), *file = json_object();
	const char *key;

	if (value)
		json_object_set(file, "aio", value);
	value = json_object_get(flat, "discard");
	if (value)
		json_object_set(file, "drive-discard", value);
	json_object_foreach((json_t *)flat, key, value)
		if (!strncmp(key, prefix, sizeof(prefix) - 1))
			json_object_set(file, key + sizeof(prefix) - 1, value);
	return file;
}

static json_t *with_id(const json_t *flat, const char *id)
{
	return strcmp(text_of(flat, "id"), id) ? NULL : options_of_file(flat);
}

static json_t *with_file(const json_t *flat, const char *filename)
{
	static const char *const names[] = {"file", "filename", "file.filename", NULL};

	for (size_t i = 0; names[i]; i++)
		if (!strcmp(text_of(flat, names[i]), filename))
			return options_of_file(flat);
	return NULL;
}

json_t *bm_cmdline_drive(pid_t pid, const char *id, const char *filename)
{
	json_t *found = *id ? search(pid, "drive", with_id, id) : NULL;

	return found ? found : search(pid, "drive", with_file, filename);
}

void bm_json_set_nested(json_t *object, const char *dotted, json_t *value)
{
	const char *dot = strchr(dotted, '.');
	char first[LONGEST_KEY];
	json_t *inner;

	if (!dot) {
		json_object_set_new(object, dotted, value);
		return;
	}
	snprintf(first, sizeof(first), "%.*s", (int)(dot - dotted), dotted);
	inner = json_object_get(object, first);
	if (!inner) {
		inner = json_object();
		json_object_set_new(object, first, inner);
	}
	bm_json_set_nested(inner, dot + 1, value);
}

static json_t *typed(char type, json_t *value)
{
	const char *text = json_string_value(value);

	if (!text || type == 's')
		return json_incref(value);
	if (type == 'b')
		return json_boolean(!strcmp(text, "on") || !strcmp(text, "true") ||
				    !strcmp(text, "yes"));
	return json_integer(strtoll(text, NULL, 0));
}

json_t *bm_cmdline_typed(const json_t *flat, const char *const *names)
{
	json_t *out = json_object();

	for (; flat && *names; names++) {
		json_t *value = json_object_get(flat, *names + 1);

		if (value)
			bm_json_set_nested(out, *names + 1, typed(**names, value));
	}
	return out;
}

char *bm_cmdline_option(const char *list, const char *name)
{
	size_t n = strlen(name);

	for (const char *at = list; at; at = strchr(at, ',')) {
		at += *at == ',';
		if (!strncmp(at, name, n) && at[n] == '=')
			return bm_need(strndup(at + n + 1, strcspn(at + n + 1, ",")));
	}
	return NULL;
}
