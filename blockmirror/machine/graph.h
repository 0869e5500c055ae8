/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * QEMU's block graph as it was at one moment: who is whose child, what each node is. It is put
 * together of x-debug-query-block-graph (edges; in every QEMU since 4.0), query-named-block-nodes
 * and query-block. For drive.c and exchange.c alone.
 */
#ifndef BM_MACHINE_GRAPH_H
#define BM_MACHINE_GRAPH_H

#include "blockmirror/machine/qmp.h"

struct graph {
	json_t *nodes, *edges; /* with ids */
	json_t *named;         /* what each node is, by name */
	json_t *devices;
};

int graph_read(struct bm_qmp *qmp, struct graph *graph, struct bm_error *error);
void graph_clear(struct graph *graph);

/*
 * Ids are not 0. find: the node that name means, a device's topmost one, and then *qdev is the
 * device's path in the object tree (malloc()ed), if it has one. child: 0 when there is none.
 * only_parent: 0 when there is none, or are several. parents: how many, devices too. device: that
 * has that node and nothing between, as find's *qdev; NULL: none. backend: the name of the -drive
 * that a device, or who has that node, belongs to; "": none.
 */
json_int_t graph_find(const struct graph *graph, const char *name, char **qdev);
json_int_t graph_id(const struct graph *graph, const char *node);
const char *graph_name(const struct graph *graph, json_int_t id);
json_int_t graph_child(const struct graph *graph, json_int_t id, const char *edge);
json_int_t graph_only_parent(const struct graph *graph, json_int_t id);
unsigned graph_parents(const struct graph *graph, json_int_t id);
char *graph_device(const struct graph *graph, const char *node);
const char *graph_backend(const struct graph *graph, const char *node_or_device);
bool graph_has_children(const struct graph *graph, json_int_t id);
bool graph_has_job(const struct graph *graph, json_int_t id);

/*
 * What query-named-block-nodes says of a node, or NULL. The path of its image for us, without links
 * where it can be found, malloc()ed: QEMU's may be from the folder that it was started in.
 */
const json_t *graph_info(const struct graph *graph, const char *node);
char *graph_path(struct bm_qmp *qmp, const struct graph *graph, const char *node);

/* "" when absent. */
const char *graph_text(const json_t *object, const char *key);

#endif
