/* SPDX-License-Identifier: BSD-3-Clause */
/* See inventory.h. Owns nothing. */
#include "blockmirror/machine/inventory.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/machine/graph.h"

enum { DEEPEST = 64 };

static bool is_no_flush(const json_t *info)
{
	return json_is_true(json_object_get(json_object_get(info, "cache"), "no-flush"));
}

/* The one edge to that node from a block node. */
static const json_t *edge_to(const struct graph *g, json_int_t id)
{
	json_t *edge;
	size_t i;

	json_array_foreach(g->edges, i, edge)
		if (json_integer_value(json_object_get(edge, "child")) == id &&
		    graph_info(g,
			       graph_name(g, json_integer_value(json_object_get(edge, "parent")))))
			return edge;
	return NULL;
}

/* The file that a node is on, down its "file" edges. */
static json_int_t bottom_of(const struct graph *g, json_int_t id)
{
	for (int depth = 0; depth < DEEPEST; depth++) {
		json_int_t next = graph_child(g, id, "file");

		if (!next)
			break;
		id = next;
	}
	return id;
}

/*
 * Who shows through to it. snapshot=on has QEMU write to a file of its own above, which it has
 * unlinked already.
 */
static void put_above(struct bm_qmp *q, const struct graph *g, json_int_t above, json_t *entry)
{
	bm_free char *path = graph_path(q, g, graph_name(g, bottom_of(g, above)));

	json_object_set_new(entry, "below", json_string(graph_name(g, above)));
	json_object_set_new(entry, "temporary", json_boolean(path && access(path, F_OK) < 0));
}

/* Up to the device, through what shows it. */
static void climb(struct bm_qmp *q, const struct graph *g, json_int_t id, json_t *entry)
{
	const json_t *edge;
	bool unsafe = is_no_flush(graph_info(g, graph_name(g, id)));
	bm_free char *device = NULL;

	for (int depth = 0; depth < DEEPEST && (edge = edge_to(g, id)); depth++) {
		id = json_integer_value(json_object_get(edge, "parent"));
		if (!strcmp(graph_text(edge, "name"), "backing") &&
		    !json_object_get(entry, "below"))
			put_above(q, g, id, entry);
		unsafe |= is_no_flush(graph_info(g, graph_name(g, id)));
	}
	device = graph_device(g, graph_name(g, id));
	json_object_set_new(entry, "unsafe", json_boolean(unsafe));
	if (device)
		json_object_set_new(entry, "device", json_string(device));
}

static bool has_image(const json_t *info)
{
	const char *driver = graph_text(info, "drv");

	return !strcmp(driver, "file") || !strcmp(driver, "host_device");
}

int bm_inventory(struct bm_qmp *q, json_t **list, struct bm_error *error)
{
	struct graph g = {0};
	int r = graph_read(q, &g, error);
	const char *node;
	json_t *info;

	*list = json_array();
	if (!r)
		json_object_foreach(g.named, node, info) {
			bm_free char *path = has_image(info) ? graph_path(q, &g, node) : NULL;
			json_t *entry;

			if (!path)
				continue;
			entry = json_pack("{s:s s:s}", "node", node, "path", path);
			climb(q, &g, graph_id(&g, node), entry);
			json_array_append_new(*list, entry);
		}
	graph_clear(&g);
	return r;
}
