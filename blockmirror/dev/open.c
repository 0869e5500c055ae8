/* SPDX-License-Identifier: BSD-3-Clause */
/* bm_dev_open(): from a URI to the device that speaks its scheme. */
#include "blockmirror/dev/open.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/socket.h>
#include <time.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/dev/format.h"

static bm_opener *const openers[] = {
	[BM_SCHEME_FILE] = bm_file_open,     [BM_SCHEME_NBD] = bm_nbd_open,
	[BM_SCHEME_ISCSI] = bm_iscsi_open,   [BM_SCHEME_MEM] = bm_mem_open,
	[BM_SCHEME_FAULT] = bm_fault_open,   [BM_SCHEME_PEER] = bm_peer_open,
	[BM_SCHEME_FORMAT] = bm_helper_open,
};

/* It is the name of a target: by the time that there is an image it has another one. */
int bm_peer_open(const struct bm_uri *uri, const struct bm_open_options *options,
		 struct bm_dev **dev, struct bm_error *error)
{
	(void)options;
	(void)dev;
	return bm_fail(
		error, BM_E_UNSUPPORTED,
		"%s: another host is asked for it when it is the target of a relocation of a "
		"served disk, and only then",
		uri->text);
}

int bm_dev_open(const char *text, const struct bm_open_options *options, struct bm_dev **dev,
		struct bm_error *error)
{
	static const struct bm_open_options defaults;
	bm_free struct bm_uri *uri = NULL;
	int r = bm_uri_parse(text, &uri, error);

	if (r < 0)
		return r;
	return openers[uri->scheme](uri, options ? options : &defaults, dev, error);
}

int bm_image_create(const char *uri, uint64_t size, struct bm_error *error)
{
	const char *path = bm_uri_path(uri), *format = bm_uri_format(uri);
	char shown[400];

	if (!path)
		return bm_fail(error, BM_E_USAGE, "only files can be created, not %s",
			       bm_uri_redact(uri, shown, sizeof(shown)));
	return format ? bm_format_create(format, path, size, error)
		      : bm_file_create(path, size, error);
}

int bm_check_size(const char *name, uint64_t size, struct bm_error *error)
{
	if (!size)
		return bm_fail(error, BM_E_SIZE, "%s: the image has no size (0 bytes)", name);
	if (size % 512)
		return bm_fail(error, BM_E_SIZE,
			       "%s: the image's size of %" PRIu64 " bytes is not a multiple of 512",
			       name, size);
	if (size > INT64_MAX)
		return bm_fail(error, BM_E_SIZE, "%s: the image's size does not fit 63 bits", name);
	return 0;
}

void bm_abort_on_close(int fd, bool abort)
{
	const struct linger linger = {.l_onoff = abort, .l_linger = 0};

	if (fd >= 0)
		setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
}

int bm_wait_a_while(const struct bm_open_options *options, uint64_t ns)
{
	enum { STEP_NS = 20000000 };

	while (ns) {
		uint64_t part = ns < STEP_NS ? ns : STEP_NS;
		struct timespec t = {.tv_nsec = (long)part};

		if (options->interrupted && options->interrupted(options->arg))
			return -EINTR;
		nanosleep(&t, NULL);
		ns -= part;
	}
	return 0;
}
