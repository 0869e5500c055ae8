/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a file in a datastore holds, by its first bytes. Formats have their magic numbers from their
 * own specifications (of qcow2: docs/interop/qcow2.txt of QEMU).
 */
#include <ctype.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/base/uri.h"
#include "blockmirror/cli/drain.h"

enum { HEAD = 4096, NAME_LIMIT = 1023, DEEPEST = 64 };
#define MAGIC "QFI\xfb"

static uint32_t be32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return be32toh(v);
}

static uint64_t be64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return be64toh(v);
}

/* qcow2 */

enum {
	QCOW2_VERSION = 4,
	QCOW2_BACKING = 8,
	QCOW2_BACKING_SIZE = 16,
	QCOW2_SNAPSHOTS = 60,
	QCOW2_FEATURES = 72,
	QCOW2_DATA_FILE = 1 << 2, /* of the features that must be understood */
	QCOW2_LEAST = 104
};

/* A name in the file is as seen from the file's folder; what QEMU takes for a URI is no file. */
static char *backing_path(const char *path, const char *name)
{
	const char *slash = strrchr(path, '/'), *colon = strchr(name, ':');
	bm_free char *beside = NULL;

	if (!strncmp(name, "file:", 5))
		name += 5;
	else if (colon && (size_t)(colon - name) < strcspn(name, "/"))
		return strdup(name);
	if (*name == '/')
		return bm_uri_canonical(name);
	if (asprintf(&beside, "%.*s/%s", (int)(slash - path), path, name) < 0) {
		beside = NULL;
		return NULL;
	}
	return bm_uri_canonical(beside);
}

/* *backing stays NULL where there is none. */
static int read_backing(const char *path, const uint8_t *head, int fd, char **backing)
{
	uint32_t length = be32(head + QCOW2_BACKING_SIZE);
	char name[NAME_LIMIT + 1] = "";

	if (!be64(head + QCOW2_BACKING) || !length)
		return 0;
	if (length > NAME_LIMIT ||
	    pread(fd, name, length, (off_t)be64(head + QCOW2_BACKING)) != (ssize_t)length)
		return -EINVAL;
	*backing = backing_path(path, name);
	return 0;
}

/* Made whole it has what it shows, and not what it showed once. */
static void look_at_clone(const struct drain *d, struct drain_image *image)
{
	if (!d->flatten)
		bm_fail(&image->why, BM_E_LINKED,
			"it is a linked clone, %s shows through it: --flatten copies both into one "
			"image",
			image->backing);
	else if (image->snapshots)
		bm_fail(&image->why, BM_E_LINKED,
			"it is a linked clone with %u snapshots in it, which --flatten would lose: "
			"remove them (qemu-img snapshot -d), or rebase it (qemu-img rebase)",
			image->snapshots);
	else {
		image->flattens = true;
		image->need += drain_chain_bytes(image->backing);
		snprintf(image->note, sizeof(image->note), "becomes one image with %.80s",
			 image->backing);
	}
}

static void look_at_qcow2(const struct drain *d, struct drain_image *image, const uint8_t *head,
			  ssize_t n, int fd)
{
	uint32_t version = n >= QCOW2_LEAST ? be32(head + QCOW2_VERSION) : 0;

	image->container = true;
	if (version != 2 && version != 3) {
		bm_fail(&image->why, BM_E_NOT_IMAGE,
			"it is a damaged qcow2 image, or of a version "
			"that is not known");
		return;
	}
	if (version == 3 && be64(head + QCOW2_FEATURES) & QCOW2_DATA_FILE) {
		bm_fail(&image->why, BM_E_LINKED, "its data are in another file");
		return;
	}
	image->snapshots = be32(head + QCOW2_SNAPSHOTS);
	if (read_backing(image->path, head, fd, &image->backing) < 0)
		bm_fail(&image->why, BM_E_NOT_IMAGE, "it is a damaged qcow2 image");
	else if (image->backing)
		look_at_clone(d, image);
	else if (image->snapshots)
		snprintf(image->note, sizeof(image->note), "%u snapshots in it come along",
			 image->snapshots);
}

uint64_t drain_chain_bytes(const char *path)
{
	bm_free char *at = bm_need(strdup(path));
	uint64_t sum = 0;

	for (int depth = 0; at && depth < DEEPEST; depth++) {
		bm_close int fd = open(at, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
		uint8_t head[HEAD] = {0};
		char *next = NULL;
		struct stat st;

		if (fd < 0 || fstat(fd, &st) < 0)
			break;
		sum += (uint64_t)st.st_blocks * 512;
		if (pread(fd, head, sizeof(head), 0) == sizeof(head) && !memcmp(head, MAGIC, 4))
			read_backing(at, head, fd, &next);
		free(at);
		at = next;
	}
	return sum;
}

/* Others */

struct magic {
	size_t at;
	const char *bytes;
	size_t length;
	const char *format; /* NULL: what a raw disk begins with */
};

#define BYTES(text) text, sizeof(text) - 1
static const struct magic magics[] = {
	{0, BYTES("KDMV"), "vmdk"},
	{0, BYTES("COWD"), "vmdk"},
	{0, BYTES("# Disk DescriptorFile"), "vmdk"},
	{0, BYTES("vhdxfile"), "vhdx"},
	{0, BYTES("conectix"), "vhd"},
	{0, BYTES("QED\0"), "qed"},
	{64, BYTES("\x7f\x10\xda\xbe"), "vdi"},
	{510, BYTES("\x55\xaa"), NULL}, /* a boot sector */
	{512, BYTES("EFI PART"), NULL},
	{512, BYTES("LABELONE"), NULL}, /* LVM */
	{0, BYTES("LUKS\xba\xbe"), NULL},
	{0, BYTES("XFSB"), NULL},
	{1080, BYTES("\x53\xef"), NULL}, /* ext2, 3, 4 */
	{4086, BYTES("SWAPSPACE2"), NULL},
};

static const struct magic *find_magic(const uint8_t *head, ssize_t n)
{
	for (size_t i = 0; i < sizeof(magics) / sizeof(magics[0]); i++)
		if ((ssize_t)(magics[i].at + magics[i].length) <= n &&
		    !memcmp(head + magics[i].at, magics[i].bytes, magics[i].length))
			return &magics[i];
	return NULL;
}

static bool is_included(const struct drain *d, const char *name)
{
	const json_t *pattern;
	size_t i;

	json_array_foreach(d->include, i, pattern)
		if (!fnmatch(json_string_value(pattern), name, 0))
			return true;
	return false;
}

static bool has_name_of_image(const char *name)
{
	static const char *const endings[] = {".img", ".raw"};
	size_t n = strlen(name);

	for (size_t i = 0; i < sizeof(endings) / sizeof(endings[0]); i++)
		if (n > 4 && !strcasecmp(name + n - 4, endings[i]))
			return true;
	return false;
}

void drain_look_inside(const struct drain *d, struct drain_image *image, int fd)
{
	uint8_t head[HEAD] = {0};
	ssize_t n = pread(fd, head, sizeof(head), 0);
	const struct magic *magic;

	if (n < 0) {
		bm_fail_errno(&image->why, errno, "it cannot be read");
		return;
	}
	if (n >= 4 && !memcmp(head, MAGIC, 4)) {
		look_at_qcow2(d, image, head, n, fd);
		return;
	}
	magic = find_magic(head, n);
	if (magic && magic->format)
		bm_fail(&image->why, BM_E_UNSUPPORTED,
			"it is in format %s: what nobody uses is moved raw and qcow2 only",
			magic->format);
	else if (!magic && !has_name_of_image(image->name) && !is_included(d, image->name))
		bm_fail(&image->why, BM_E_NOT_IMAGE,
			"neither its name nor its content is that of an image; --include '%s' says "
			"that it is one",
			image->name);
	else if (!image->size || image->size % 512)
		bm_fail(&image->why, BM_E_SIZE, "its size, %llu bytes, is none of a disk",
			(unsigned long long)image->size);
}
