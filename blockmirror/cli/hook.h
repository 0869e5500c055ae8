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

#endif
