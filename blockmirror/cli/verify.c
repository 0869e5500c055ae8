/* SPDX-License-Identifier: BSD-3-Clause */
/* verify: compares two images in a transient process. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/units.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/cli/cli.h"

/* A name means the disk as its clients see it. */
static json_t *uri_of(const struct cli *cli, const char *text)
{
	bm_free char *uri = NULL;
	struct bm_client *client;
	json_t *disk = NULL, *result = NULL;

	if (!cli_is_served(cli, text)) {
		uri = bm_uri_absolute(text);
		return json_string(uri ? uri : text);
	}
	if (!cli_connect(cli, text, &client, NULL)) {
		if (!bm_client_call(client, "show", NULL, &disk, NULL))
			result = json_string(cli_text(disk, "nbd"));
		json_decref(disk);
		bm_client_close(client);
	}
	return result ? result : json_string(text);
}

static int tell(const struct cli *cli, json_t *result, const char *a, const char *b)
{
	bool equal = json_is_true(json_object_get(result, "equal"));
	char compared[BM_UNITS_TEXT], skipped[BM_UNITS_TEXT];

	if (cli->json) {
		cli_print_json(result);
		return !equal;
	}
	if (equal)
		printf("%s and %s are equal: %s compared, %s zero on both\n", a, b,
		       bm_format_size(compared, cli_number(result, "compared")),
		       bm_format_size(skipped, cli_number(result, "skipped")));
	else if (json_object_get(result, "size_a"))
		printf("%s and %s differ in size: %" PRIu64 " and %" PRIu64 " bytes\n", a, b,
		       cli_number(result, "size_a"), cli_number(result, "size_b"));
	else
		printf("%s and %s differ, first at byte %" PRIu64 "\n", a, b,
		       cli_number(result, "offset"));
	json_decref(result);
	return !equal;
}

static int verify_disk(const struct cli *cli, const char *name)
{
	struct bm_client *client = NULL;
	struct bm_error error;
	json_t *result = NULL;
	int r;

	if (cli_connect(cli, name, &client, &error) < 0)
		return cli_fail(cli, &error);
	r = cli_begin(cli, client, "verify", NULL, NULL, &result);
	bm_client_close(client);
	return r ? r : tell(cli, result, "both copies", name);
}

int cmd_verify(struct cli *cli, int argc, char **argv)
{
	struct bm_client *client = NULL;
	struct bm_error error;
	json_t *result = NULL;
	const char *a, *b;
	int r = cli_options(cli, argc, argv, NULL, NULL, NULL);

	if (!r)
		r = cli_arguments(cli, argc, 1, 2);
	if (r)
		return r < 0 ? 0 : r;
	if (argc - optind == 1)
		return verify_disk(cli, argv[optind]);
	a = argv[optind];
	b = argv[optind + 1];
	if (cli_one_off(cli, &client, &error) < 0 ||
	    bm_client_call(client, "verify",
			   json_pack("{s:o s:o}", "a", uri_of(cli, a), "b", uri_of(cli, b)),
			   &result, &error) < 0)
		r = cli_fail(cli, &error);
	else
		r = tell(cli, result, a, b);
	bm_client_close(client);
	return r;
}
