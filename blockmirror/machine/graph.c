/* SPDX-License-Identifier: BSD-3-Clause */
/* QEMU's block graph. */
#include "blockmirror/machine/graph.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/machine/drive.h"

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

/* Of "/machine/peripheral/vd0/virtio-backend": vd0, that path, or "/machine/peripheral/vd0". */
static bool is_device(const char *qdev, const char *name, size_t *length)
{
	static const char folder[] = "/machine/peripheral/";
	const char *at = qdev;
	size_t n = strlen(name);

	if (*name != '/' && !strncmp(qdev, folder, sizeof(folder) - 1))
		at += sizeof(folder) - 1;
	if (!n || strncmp(at, name, n) != 0 || (at[n] && at[n] != '/'))
		return false;
	*length = (size_t)(at + n - qdev);
	return true;
}

json_int_t graph_find(const struct graph *g, const char *name, char **qdev)
{
	json_t *device;
	size_t i, length = 0;

	json_array_foreach(g->devices, i, device) {
		const char *path = graph_text(device, "qdev");
		json_t *inserted = json_object_get(device, "inserted");

		if ((!*name || strcmp(graph_text(device, "device"), name) != 0) &&
		    !is_device(path, name, &length))
			continue;
		if (*path && !length) { /* the device that the -drive belongs to */
			const char *inner = strstr(path, "/virtio-backend");

			length = inner ? (size_t)(inner - path) : strlen(path);
		}
		*qdev = *path ? strndup(path, length) : NULL;
		return graph_id(g, graph_text(inserted, "node-name"));
	}
	return graph_id(g, name);
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

int bm_drive_child(struct bm_qmp *q, const char *format, struct bm_child *child,
		   struct bm_error *error)
{
	struct graph g = {0};
	const char *name;
	int r = graph_read(q, &g, error);

	*child = (struct bm_child){0};
	if (r < 0) {
		graph_clear(&g);
		return r;
	}
	name = graph_name(&g, graph_child(&g, graph_id(&g, format), "file"));
	if (!*name) {
		r = bm_fail(error, BM_E_NOT_FOUND, "QEMU has no node %s any more", format);
	} else {
		child->name = strdup(name);
		child->driver = strdup(graph_text(graph_info(&g, name), "drv"));
		child->path = graph_path(q, &g, name);
		if (!child->name || !child->driver || !child->path)
			r = bm_fail_errno(error, ENOMEM, "%s", format);
	}
	graph_clear(&g);
	return r;
}

void bm_child_clear(struct bm_child *child)
{
	free(child->name);
	free(child->driver);
	free(child->path);
	*child = (struct bm_child){0};
}

int bm_drive_has_node(struct bm_qmp *q, const char *node, struct bm_error *error)
{
	struct graph g = {0};
	int r = graph_read(q, &g, error);

	if (!r)
		r = graph_id(&g, node) != 0;
	graph_clear(&g);
	return r;
}
