/* SPDX-License-Identifier: BSD-3-Clause */
/* rate: one cap over all that this host sends */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "blockmirror/base/cap.h"
#include "blockmirror/base/units.h"
#include "blockmirror/cli/cli.h"

static int show(const struct cli *cli, uint64_t rate)
{
	char text[BM_UNITS_TEXT];

	if (cli->json)
		cli_print_json(json_pack("{s:i s:I}", "v", 1, "rate", (json_int_t)rate));
	else if (rate)
		printf("%s/s for all that this host sends\n", bm_format_size(text, rate));
	else
		puts("no limit for what this host sends");
	return 0;
}

int cmd_rate(struct cli *cli, int argc, char **argv)
{
	struct bm_error error;
	struct bm_cap *cap = NULL;
	uint64_t rate = 0;
	int r = cli_options(cli, argc, argv, NULL, NULL, NULL);

	if (!r)
		r = cli_arguments(cli, argc, 0, 1);
	if (!r && argc > optind && strcmp(argv[optind], "off") != 0)
		r = cli_size(cli, "rate", argv[optind], &rate);
	if (r)
		return r < 0 ? 0 : r;
	r = bm_cap_open(cli->run_dir, &cap);
	if (r < 0) {
		bm_fail_errno(&error, r, "cannot use %s/cap", cli->run_dir);
		return cli_fail(cli, &error);
	}
	if (argc > optind)
		bm_cap_set(cap, rate);
	rate = bm_cap_rate(cap);
	bm_cap_close(cap);
	return show(cli, rate);
}
