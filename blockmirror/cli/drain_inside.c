/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a file in a datastore holds, by its first bytes, and who has it open. Formats have their
 * magic numbers from their own specifications (of qcow2: docs/interop/qcow2.txt of QEMU).
 */
#include <ctype.h>
#include <dirent.h>
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

enum { HEAD = 4096, NAME_LIMIT = 1023 };

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

static void look_at_qcow2(struct drain_image *image, const uint8_t *head, ssize_t n, int fd)
{
	uint32_t version = n >= QCOW2_LEAST ? be32(head + QCOW2_VERSION) : 0, length;
	char name[NAME_LIMIT + 1] = "";

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
	length = be32(head + QCOW2_BACKING_SIZE);
	if (!be64(head + QCOW2_BACKING) || !length)
		return;
	if (length > NAME_LIMIT ||
	    pread(fd, name, length, (off_t)be64(head + QCOW2_BACKING)) != (ssize_t)length)
		bm_fail(&image->why, BM_E_NOT_IMAGE, "it is a damaged qcow2 image");
	else
		image->backing = backing_path(image->path, name);
	if (image->backing)
		bm_fail(&image->why, BM_E_LINKED,
			"%s shows through it: \"qemu-img rebase -b ''\" makes it whole (flattens "
			"it) while nobody uses it",
			image->backing);
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
	if (n >= 4 && !memcmp(head, "QFI\xfb", 4)) {
		look_at_qcow2(image, head, n, fd);
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

/* Who has it open */

struct opener {
	dev_t dev;
	ino_t ino;
	char who[64];
};

struct drain_opened {
	struct opener *list;
	size_t n, room;
};

static void add(struct drain_opened *o, const struct stat *st, const char *who)
{
	struct opener *one;

	if (!S_ISREG(st->st_mode))
		return;
	if (o->n == o->room) {
		o->room = o->room ? o->room * 2 : 256;
		o->list = bm_need(reallocarray(o->list, o->room, sizeof(*o->list)));
	}
	one = &o->list[o->n++];
	*one = (struct opener){.dev = st->st_dev, .ino = st->st_ino};
	snprintf(one->who, sizeof(one->who), "%s", who);
}

/* A process that we have started reads what it copies. */
static bool is_ours(const char *pid)
{
	char path[64];
	bm_free char *text = NULL;
	const char *name_end;
	int parent = 0;

	snprintf(path, sizeof(path), "/proc/%.20s/stat", pid);
	if (atoi(pid) == getpid() || bm_read_text(path, 4096, &text))
		return atoi(pid) == getpid();
	name_end = strrchr(text, ')');
	return name_end && sscanf(name_end, ") %*c %d", &parent) == 1 && parent == getpid();
}

static void add_process(struct drain_opened *o, const char *pid)
{
	char path[64], who[64], name[32] = "";
	bm_free char *text = NULL;
	struct dirent *entry;
	struct stat st;
	DIR *fds;

	snprintf(path, sizeof(path), "/proc/%.20s/comm", pid);
	if (!bm_read_text(path, sizeof(name), &text))
		snprintf(name, sizeof(name), "%.*s", (int)strcspn(text, "\n"), text);
	snprintf(who, sizeof(who), "process %.20s (%.20s)", pid, name);
	snprintf(path, sizeof(path), "/proc/%.20s/fd", pid);
	fds = opendir(path);
	while (fds && (entry = readdir(fds)))
		if (isdigit((unsigned char)*entry->d_name) &&
		    !fstatat(dirfd(fds), entry->d_name, &st, 0))
			add(o, &st, who);
	if (fds)
		closedir(fds);
}

static void add_loop_device(struct drain_opened *o, const char *name)
{
	bm_free char *path = NULL, *text = NULL;
	char who[64];
	struct stat st;

	if (asprintf(&path, "/sys/block/%s/loop/backing_file", name) < 0) {
		path = NULL;
		return;
	}
	if (bm_read_text(path, 4096, &text))
		return;
	text[strcspn(text, "\n")] = '\0';
	snprintf(who, sizeof(who), "/dev/%.40s", name);
	if (!stat(text, &st))
		add(o, &st, who);
}

struct drain_opened *drain_opened(void)
{
	struct drain_opened *o = bm_need(calloc(1, sizeof(*o)));
	DIR *all = opendir("/proc"), *blocks = opendir("/sys/block");
	struct dirent *entry;

	while (all && (entry = readdir(all)))
		if (isdigit((unsigned char)*entry->d_name) && !is_ours(entry->d_name))
			add_process(o, entry->d_name);
	while (blocks && (entry = readdir(blocks)))
		if (!strncmp(entry->d_name, "loop", 4))
			add_loop_device(o, entry->d_name);
	if (all)
		closedir(all);
	if (blocks)
		closedir(blocks);
	return o;
}

void drain_opened_free(struct drain_opened *o)
{
	free(o->list);
	free(o);
}

/* Locks tell of other hosts, too, where the file system does. While we copy it they are ours. */
void drain_look_who(const struct drain_opened *o, struct drain_image *image, int fd)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	bool ours = image->client;

	for (size_t i = 0; i < o->n; i++)
		if (o->list[i].dev == image->dev && o->list[i].ino == image->ino) {
			bm_fail(&image->why, BM_E_LOCKED, "%s has it open", o->list[i].who);
			return;
		}
	if (!ours && !fcntl(fd, F_OFD_GETLK, &lock) && lock.l_type != F_UNLCK)
		bm_fail(&image->why, BM_E_LOCKED, "somebody has locked it");
}
