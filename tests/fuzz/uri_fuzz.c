/* SPDX-License-Identifier: BSD-3-Clause */
/* Image URIs, as users write them. A password is not shown, whatever stands around it. */
#include <string.h>

#include "blockmirror/base/uri.h"
#include "tests/fuzz/fuzz.h"

/* What is shown fits, is the same for what was shown before, and hiding keeps the length. */
static void check_secrets(const char *text)
{
	size_t length = strlen(text), room = length + 8;
	char *shown = malloc(room), *again = malloc(room), *hidden = strdup(text), narrow[16];

	demand(shown && again && hidden);
	bm_uri_redact(text, shown, room);
	bm_uri_redact(shown, again, room);
	demand(!strcmp(shown, again));
	bm_uri_hide(hidden);
	demand(strlen(hidden) == length);
	/* Two that differ in their passwords only look the same. */
	bm_uri_redact(hidden, again, room);
	demand(!strcmp(shown, again));
	bm_uri_redact(text, narrow, sizeof(narrow));
	demand(strlen(narrow) < sizeof(narrow) && !strncmp(narrow, shown, strlen(narrow)));
	free(shown);
	free(again);
	free(hidden);
}

static void check_paths(const char *text)
{
	char *absolute = bm_uri_absolute(text),
	     *again = absolute ? bm_uri_absolute(absolute) : NULL;
	char *socket = bm_uri_socket(text), *canonical = bm_uri_canonical(text);
	const char *path = bm_uri_path(text);

	demand(!path || (path >= text && path <= text + strlen(text)));
	demand(!absolute || (again && !strcmp(absolute, again)));
	demand(!path || !socket);
	if (path && *path)
		demand(absolute && *bm_uri_path(absolute) == '/' &&
		       bm_uri_format(absolute) == bm_uri_format(text));
	free(absolute);
	free(again);
	free(socket);
	free(canonical);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	char *text = input_text(&in);
	struct bm_error error = {0};
	struct bm_uri *uri = NULL;

	if (!bm_uri_parse(text, &uri, &error)) {
		demand(!strcmp(uri->text, text) && *uri->rest);
		demand(uri->rest >= uri->text && uri->rest <= uri->text + strlen(text));
		demand((uri->scheme == BM_SCHEME_FILE || uri->scheme == BM_SCHEME_FORMAT) ==
		       !!bm_uri_path(text));
		demand((uri->scheme == BM_SCHEME_FORMAT) == !!bm_uri_format(text));
	} else {
		demand(error.code && *error.text && strlen(error.text) < sizeof(error.text));
	}
	free(uri);
	check_secrets(text);
	check_paths(text);
	free(text);
	return 0;
}
