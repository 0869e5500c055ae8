/* SPDX-License-Identifier: BSD-3-Clause */
/* hook: the commands that are not for people. */
#include <string.h>

#include "blockmirror/cli/hook.h"

int cmd_hook(struct cli *cli, int argc, char **argv)
{
	int r = cli_options(cli, argc, argv, NULL, NULL, NULL);

	if (!r)
		r = cli_arguments(cli, argc, 1, 8);
	if (r)
		return r < 0 ? 0 : r;
	if (!strcmp(argv[optind], "libvirt"))
		return hook_libvirt(cli, argc - optind - 1, argv + optind + 1);
	if (!strcmp(argv[optind], "resume"))
		return hook_resume(cli, argc - optind - 1, argv + optind + 1);
	if (!strcmp(argv[optind], "relocate"))
		return hook_relocate(cli, argc - optind - 1, argv + optind + 1);
	return cli_usage(cli, "hook %s is not known", argv[optind]);
}
