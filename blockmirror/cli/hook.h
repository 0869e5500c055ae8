/* SPDX-License-Identifier: BSD-3-Clause */
/* What hypervisors and their managers call. */
#ifndef BM_CLI_HOOK_H
#define BM_CLI_HOOK_H

#include "blockmirror/cli/cli.h"

/* hook_libvirt.c: arguments as libvirt has them; exit status. */
int hook_libvirt(const struct cli *cli, int argc, char **argv);

/* hook_relocate.c: an object on standard input, one on standard output. */
int hook_relocate(struct cli *cli, int argc, char **argv);
char *hook_disk_name(const char *socket);
/*
 * Calls act() for each disk of a domain that has a socket like ours, by its host element and name,
 * until it returns other than 0. -ENOMEM, or what it returned.
 */
struct _xmlDoc;
struct _xmlNode;
int hook_each_disk(struct _xmlDoc *doc,
		   int (*act)(void *arg, struct _xmlNode *host, const char *name), void *arg);
/* Whether the socket is one in our RUN. */
bool hook_is_ours(const struct cli *cli, struct _xmlNode *host, const char *name);

/* hook_resume.c: a disk is served again; exit status. */
int hook_resume(const struct cli *cli, int argc, char **argv);

#endif
