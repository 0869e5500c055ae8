/* SPDX-License-Identifier: BSD-3-Clause */
/* QEMU's block graph. */
#include "blockmirror/machine/graph.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"

const char *graph_text(const json_t *object, const char *key)
{
	const char *text = json_string_value(json_object_get(object, key));

	return text ? text : "";
}

static json_int_t number(const json_t *object, const char *key)
{
	return json_integer_value(json_object_get(object, key));
}

int graph_read(struct bm_qmp *q, struct graph *g, struct bm_error *error)
{
	json_t *all = NULL, *list = NULL, *node;
	size_t i;
	int r = bm_qmp_call(q, "x-debug-query-block-graph", NULL, &all, error);

	if (!r)
		r = bm_qmp_call(q, "query-named-block-nodes", json_pack("{s:b}", "flat", 1), &list,
				error);
	if (!r)
		r = bm_qmp_call(q, "query-block", NULL, &g->devices, error);
	g->nodes = json_incref(json_object_get(all, "nodes"));
	g->edges = json_incref(json_object_get(all, "edges"));
	g->named = json_object();
	json_array_foreach(list, i, node)
		json_object_set(g->named, graph_text(node, "node-name"), node);
	json_decref(all);
	json_decref(list);
	return r;
}

void graph_clear(struct graph *g)
{
	json_decref(g->nodes);
	json_decref(g->edges);
	json_decref(g->named);
	json_decref(g->devices);
	*g = (struct graph){0};
}

static const json_t *by_id(const struct graph *g, json_int_t id)
{
	json_t *node;
	size_t i;

	json_array_foreach(g->nodes, i, node)
		if (number(node, "id") == id)
			return node;
	return NULL;
}

const char *graph_name(const struct graph *g, json_int_t id)
{
	return graph_text(by_id(g, id), "name");
}

json_int_t graph_id(const struct graph *g, const char *name)
{
	json_t *node;
	size_t i;

	json_array_foreach(g->nodes, i, node)
		if (!strcmp(graph_text(node, "name"), name) &&
		    !strcmp(graph_text(node, "type"), "block-driver"))
			return number(node, "id");
	return 0;
}

static const char peripheral[] = "/machine/peripheral/";

/*
 * Of what query-block calls a device, an id or a path, the path of the one that has "drive": what
 * virtio's has inside, virtio-backend, it has for that one. NULL: none, or no memory.
 */
static char *device_path(const char *qdev)
{
	const char *inner = strstr(qdev, "/virtio-backend");
	int length = inner ? (int)(inner - qdev) : (int)strlen(qdev);
	char *path;

	if (!length || asprintf(&path, "%s%.*s", *qdev == '/' ? "" : peripheral, length, qdev) < 0)
		return NULL;
	return path;
}

/* By its -drive's name, its id, or its path. */
static bool is_called(const json_t *device, const char *path, const char *name)
{
	bm_free char *asked = *name ? device_path(name) : NULL;

	return asked &&
	       (!strcmp(graph_text(device, "device"), name) || (path && !strcmp(path, asked)));
}

json_int_t graph_find(const struct graph *g, const char *name, char **qdev)
{
	json_t *device;
	size_t i;

	json_array_foreach(g->devices, i, device) {
		bm_free char *path = device_path(graph_text(device, "qdev"));
		json_t *inserted = json_object_get(device, "inserted");

		if (!is_called(device, path, name))
			continue;
		*qdev = bm_steal(path);
		return graph_id(g, graph_text(inserted, "node-name"));
	}
	return graph_id(g, name);
}

/* Of query-block: who has that node, or is at that path. NULL: nobody. */
static const json_t *who_has(const struct graph *g, const char *name)
{
	json_t *device;
	size_t i;

	json_array_foreach(g->devices, i, device) {
		json_t *inserted = json_object_get(device, "inserted");
		bm_free char *path = device_path(graph_text(device, "qdev"));

		if (!strcmp(graph_text(inserted, "node-name"), name) ||
		    (path && !strcmp(path, name)))
			return device;
	}
	return NULL;
}

char *graph_device(const struct graph *g, const char *node)
{
	return device_path(graph_text(who_has(g, node), "qdev"));
}

const char *graph_backend(const struct graph *g, const char *name)
{
	return graph_text(who_has(g, name), "device");
}

json_int_t graph_child(const struct graph *g, json_int_t id, const char *name)
{
	json_t *edge;
	size_t i;

	json_array_foreach(g->edges, i, edge)
		if (number(edge, "parent") == id && !strcmp(graph_text(edge, "name"), name))
			return number(edge, "child");
	return 0;
}

unsigned graph_parents(const struct graph *g, json_int_t id)
{
	unsigned count = 0;
	json_t *edge;
	size_t i;

	json_array_foreach(g->edges, i, edge)
		count += number(edge, "child") == id;
	return count;
}

json_int_t graph_only_parent(const struct graph *g, json_int_t id)
{
	json_int_t parent = 0;
	unsigned count = 0;
	json_t *edge;
	size_t i;

	json_array_foreach(g->edges, i, edge)
		if (number(edge, "child") == id) {
			parent = number(edge, "parent");
			count++;
		}
	return count == 1 && !strcmp(graph_text(by_id(g, parent), "type"), "block-driver") ? parent
											   : 0;
}

bool graph_has_children(const struct graph *g, json_int_t id)
{
	json_t *edge;
	size_t i;

	json_array_foreach(g->edges, i, edge)
		if (number(edge, "parent") == id)
			return true;
	return false;
}

bool graph_has_job(const struct graph *g, json_int_t id)
{
	json_t *edge;
	size_t i;

	json_array_foreach(g->edges, i, edge)
		if (number(edge, "child") == id &&
		    !strcmp(graph_text(by_id(g, number(edge, "parent")), "type"), "block-job"))
			return true;
	return false;
}

const json_t *graph_info(const struct graph *g, const char *node)
{
	return json_object_get(g->named, node);
}

char *graph_path(struct bm_qmp *q, const struct graph *g, const char *node)
{
	const char *text = graph_text(graph_info(g, node), "file"), *name = text;
	json_t *told = strncmp(text, "json:", 5) ? NULL : json_loads(text + 5, 0, NULL);
	bm_free char *path = NULL;
	char *real;

	if (told)
		name = graph_text(told, "filename");
	if (*name == '/' ? asprintf(&path, "%s", name) < 0
			 : asprintf(&path, "/proc/%d/cwd/%s", (int)bm_qmp_peer(q).pid, name) < 0)
		path = NULL;
	json_decref(told);
	real = path ? realpath(path, NULL) : NULL;
	return real ? real : bm_steal(path);
}
