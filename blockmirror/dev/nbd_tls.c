/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Whom an NBD device believes under TLS.
 *
 * Where libnbd finds no authority in the folder that it was told, or is told none, it takes the
 * system's, and then old versions believe everybody (CVE-2024-7383). So the URI has to say whom to
 * trust, has to say it so that libnbd reads it as we do, and what it names has to be there: before
 * the handshakes, and, as it may have gone in between, after them.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/dev/nbd.h"

static bool is_parameter(const char *word, size_t length, const char *name)
{
	return strlen(name) == length && !strncmp(word, name, length);
}

/*
 * libnbd takes ; for a part of a value where there is a & behind it, and the last one of two that
 * have the same name; names may be escaped, and after # comes no query. Returns what is wrong, or
 * NULL.
 */
static const char *ambiguous(const char *uri)
{
	unsigned certificates = 0, keys = 0;

	if (strpbrk(uri, "#;"))
		return "write %23 for # and %3B for ;, and & between parameters";
	for (const char *word = strchr(uri, '?'); word; word = strchr(word, '&')) {
		size_t length = strcspn(++word, "=&");

		if (memchr(word, '%', length))
			return "the name of a parameter is escaped";
		certificates += is_parameter(word, length, "tls-certificates");
		keys += is_parameter(word, length, "tls-psk-file");
	}
	return certificates > 1 || keys > 1 ? "it says twice whom to trust" : NULL;
}

static int check_folder(const char *uri, const char *folder, struct bm_error *error)
{
	bm_free char *path = NULL;

	if (asprintf(&path, "%s/ca-cert.pem", folder) < 0) {
		path = NULL;
		return bm_fail_errno(error, ENOMEM, "cannot open %s", uri);
	}
	if (access(path, R_OK) < 0)
		return bm_fail_errno(error, errno, "%s: whom to trust is not said: cannot read %s",
				     uri, path);
	return 0;
}

int bm_nbd_check_tls(const char *uri, struct bm_error *error)
{
	bm_free char *folder = bm_uri_parameter(uri, "tls-certificates");
	bm_free char *keys = bm_uri_parameter(uri, "tls-psk-file");
	const char *wrong;

	if (strncmp(uri, "nbds", 4)) {
		if (folder || keys)
			return bm_fail(error, BM_E_URI,
				       "%s: without TLS it cannot be said whom to trust: nbds:// "
				       "and nbds+unix:// have TLS",
				       uri);
		return 0;
	}
	wrong = ambiguous(uri);
	if (wrong)
		return bm_fail(error, BM_E_URI, "%s: %s", uri, wrong);
	if (keys && *keys) /* libnbd looks at nothing else then */
		return 0;
	if (keys || !folder || !*folder)
		return bm_fail(
			error, BM_E_URI,
			"%s: say whom to trust: ?tls-certificates=FOLDER or ?tls-psk-file=FILE",
			uri);
	return check_folder(uri, folder, error);
}
