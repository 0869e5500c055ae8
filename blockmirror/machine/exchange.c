/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What is below a drive's format node, or a device, and putting something else there. There are
 * three ways, by what is above:
 *
 *	a node with a name       blockdev-reopen
 *	one that QEMU has named  the monitor's "qemu-io NODE reopen", which is the same in QEMU;
 *	                         blockdev-reopen refuses such names
 *	a device                 qom-set of its "drive"
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/machine/drive.h"
#include "blockmirror/machine/graph.h"

static json_int_t below(const struct graph *g, const char *format)
{
	bm_free char *qdev = NULL;

	return *format == '/' ? graph_find(g, format, &qdev)
			      : graph_child(g, graph_id(g, format), "file");
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
	name = graph_name(&g, below(&g, format));
	if (!*name) {
		r = bm_fail(error, BM_E_NOT_FOUND, "QEMU has no %s any more", format);
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

static int reopen_named(struct bm_qmp *q, const json_t *reopen, const char *node,
			struct bm_error *error)
{
	json_t *options = json_copy((json_t *)reopen);

	json_object_set_new(options, "file", json_string(node));
	return bm_qmp_call(q, "blockdev-reopen", json_pack("{s:[o]}", "options", options), NULL,
			   error);
}

/* What it prints is for people: the graph tells whether it was done. */
static int reopen_generated(struct bm_qmp *q, const char *format, const char *node,
			    struct bm_error *error)
{
	bm_free char *line = NULL;
	struct bm_child child = {0};
	json_t *printed = NULL;
	const char *text;
	int r = 0;

	if (asprintf(&line, "qemu-io %s \"reopen -o file=%s\"", format, node) < 0) {
		line = NULL;
		return bm_fail_errno(error, ENOMEM, "%s", format);
	}
	r = bm_qmp_call(q, "human-monitor-command", json_pack("{s:s}", "command-line", line),
			&printed, error);
	if (!r)
		r = bm_drive_child(q, format, &child, error);
	if (!r && strcmp(child.name, node) != 0) {
		text = json_string_value(printed);
		r = bm_fail(error, BM_E_QMP, "QEMU refuses to put %s below %s: %.*s", node, format,
			    text ? (int)strcspn(text, "\r\n") : 0, text ? text : "");
	}
	bm_child_clear(&child);
	json_decref(printed);
	return r;
}

static int set_drive(struct bm_qmp *q, const char *device, const char *node, struct bm_error *error)
{
	return bm_qmp_call(
		q, "qom-set",
		json_pack("{s:s s:s s:s}", "path", device, "property", "drive", "value", node),
		NULL, error);
}

/*
 * A device that an I/O thread serves takes a node of that thread only; which one it is, is known to
 * the device, or to the bus above it: each is tried. What is refused has changed nothing.
 */
static int exchange_device(struct bm_qmp *q, const char *device, const char *node,
			   struct bm_error *error)
{
	json_t *threads = NULL, *thread;
	struct bm_error other;
	size_t i;
	int r = set_drive(q, device, node, error);

	if (r != -EPROTO || bm_qmp_call(q, "query-iothreads", NULL, &threads, &other) < 0)
		return r;
	json_array_foreach(threads, i, thread) {
		int moved = bm_qmp_call(q, "x-blockdev-set-iothread",
					json_pack("{s:s s:s}", "node-name", node, "iothread",
						  graph_text(thread, "id")),
					NULL, &other);

		if (!moved)
			r = set_drive(q, device, node, error);
		if (r != -EPROTO)
			break;
	}
	json_decref(threads);
	return r;
}

int bm_drive_exchange(struct bm_qmp *q, const char *format, const json_t *reopen, const char *node,
		      struct bm_error *error)
{
	if (*format == '/')
		return exchange_device(q, format, node, error);
	return *format == '#' ? reopen_generated(q, format, node, error)
			      : reopen_named(q, reopen, node, error);
}
