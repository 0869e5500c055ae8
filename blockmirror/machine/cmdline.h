/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The command line of a running QEMU. What it was told about a block node there (-blockdev, -drive)
 * is the only place where options like aio= can be read: QMP does not tell them.
 */
#ifndef BM_MACHINE_CMDLINE_H
#define BM_MACHINE_CMDLINE_H

#include <jansson.h>
#include <sys/types.h>

/*
 * What -blockdev says about the node of that name: a flat object, "cache.direct" and so on, whose
 * values are strings where they were not given as JSON. NULL: nothing, or it cannot be read.
 * Blocks.
 */
json_t *bm_cmdline_node(pid_t pid, const char *node);

/*
 * What the -drive with that id, or else the one of that file, says, as bm_cmdline_node() does of a
 * node: the options of the file itself, and the drive's own discard= as "drive-discard". NULL:
 * there is no such -drive.
 */
json_t *bm_cmdline_drive(pid_t pid, const char *id, const char *filename);

/*
 * Those of flat's options that names lists: each begins with its type: b boolean, i integer, s
 * string ("saio"); NULL ends it. Nested and typed as QMP wants them. flat NULL: an empty object.
 */
json_t *bm_cmdline_typed(const json_t *flat, const char *const *names);

/* The value of NAME=VALUE in a list with commas; malloc()ed, NULL: it is not in there. */
char *bm_cmdline_option(const char *list, const char *name);

/* Takes value over. */
void bm_json_set_nested(json_t *object, const char *dotted, json_t *value);

#endif
