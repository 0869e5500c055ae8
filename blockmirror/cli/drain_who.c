/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Who has a file of a datastore open: processes of this host by their descriptors, loop devices,
 * and, where the file system tells, other hosts by their locks.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"
#include "blockmirror/base/memory.h"
#include "blockmirror/cli/drain.h"

struct opener {
	dev_t dev;
	ino_t ino;
	pid_t pid, parent; /* 0: a device */
	int fd;
	char who[64];
};

struct drain_opened {
	struct opener *list;
	size_t n, room;
};

static void add(struct drain_opened *o, const struct stat *st, const struct opener *as)
{
	struct opener *one;

	if (!S_ISREG(st->st_mode))
		return;
	if (o->n == o->room) {
		o->room = o->room ? o->room * 2 : 256;
		o->list = bm_need(reallocarray(o->list, o->room, sizeof(*o->list)));
	}
	one = &o->list[o->n++];
	*one = *as;
	one->dev = st->st_dev;
	one->ino = st->st_ino;
}

static pid_t parent_of(pid_t pid)
{
	char path[64];
	bm_free char *text = NULL;
	const char *name_end;
	int parent = 0;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	if (bm_read_text(path, 4096, &text))
		return 0;
	name_end = strrchr(text, ')');
	return name_end && sscanf(name_end, ") %*c %d", &parent) == 1 ? parent : 0;
}

/* What we have started reads what it copies, and what that has started, for a format. */
static bool is_ours(const struct opener *one)
{
	return one->pid == getpid() || one->parent == getpid() ||
	       (one->parent > 1 && parent_of(one->parent) == getpid());
}

static void add_process(struct drain_opened *o, const char *pid)
{
	struct opener as = {.pid = atoi(pid), .parent = parent_of(atoi(pid))};
	char path[64], name[32] = "";
	bm_free char *text = NULL;
	struct dirent *entry;
	struct stat st;
	DIR *fds;

	if (is_ours(&as))
		return;
	snprintf(path, sizeof(path), "/proc/%.20s/comm", pid);
	if (!bm_read_text(path, sizeof(name), &text))
		snprintf(name, sizeof(name), "%.*s", (int)strcspn(text, "\n"), text);
	snprintf(as.who, sizeof(as.who), "process %.20s (%.20s)", pid, name);
	snprintf(path, sizeof(path), "/proc/%.20s/fd", pid);
	fds = opendir(path);
	while (fds && (entry = readdir(fds)))
		if (isdigit((unsigned char)*entry->d_name) &&
		    !fstatat(dirfd(fds), entry->d_name, &st, 0)) {
			as.fd = atoi(entry->d_name);
			add(o, &st, &as);
		}
	if (fds)
		closedir(fds);
}

static void add_loop_device(struct drain_opened *o, const char *name)
{
	bm_free char *path = NULL, *text = NULL;
	struct opener as = {0};
	struct stat st;

	if (asprintf(&path, "/sys/block/%s/loop/backing_file", name) < 0) {
		path = NULL;
		return;
	}
	if (bm_read_text(path, 4096, &text))
		return;
	text[strcspn(text, "\n")] = '\0';
	snprintf(as.who, sizeof(as.who), "/dev/%.40s", name);
	if (!stat(text, &st))
		add(o, &st, &as);
}

struct drain_opened *drain_opened(void)
{
	struct drain_opened *o = bm_need(calloc(1, sizeof(*o)));
	DIR *all = opendir("/proc"), *blocks = opendir("/sys/block");
	struct dirent *entry;

	while (all && (entry = readdir(all)))
		if (isdigit((unsigned char)*entry->d_name))
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

static bool may_write(const struct opener *one)
{
	char path[64];
	bm_free char *text = NULL;
	const char *flags;

	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", (int)one->pid, one->fd);
	if (!one->pid || bm_read_text(path, 4096, &text))
		return !one->pid;
	flags = strstr(text, "flags:");
	return flags && (strtoul(flags + 6, NULL, 8) & O_ACCMODE) != O_RDONLY;
}

static bool is_counted(const struct drain_image *image, const struct opener *one)
{
	if (one->dev != image->dev || one->ino != image->ino)
		return false;
	if (!image->owner)
		return true;
	return one->pid != image->owner && one->parent != image->owner && may_write(one);
}

static int tell(const struct drain *d, struct drain_image *image, const struct opener *one)
{
	const char *deaf = drain_qemu_deaf(d);

	if (image->owner)
		return bm_fail(&image->why, BM_E_LOCKED,
			       "%s writes to it, beside who serves it: end that", one->who);
	if (!one->pid)
		return bm_fail(&image->why, BM_E_LOCKED,
			       "%s is on it, and what was written there may be in a cache above: "
			       "\"losetup -d\" ends it",
			       one->who);
	if (!strstr(one->who, "(qemu-system"))
		return bm_fail(&image->why, BM_E_LOCKED, "%s has it open", one->who);
	if (deaf)
		return bm_fail(&image->why, BM_E_LOCKED,
			       "%s has it open, which may be a machine that could not be asked: %s",
			       one->who, deaf);
	return bm_fail(&image->why, BM_E_LOCKED,
		       "%s has it open: \"blockmirror machine add NAME --qmp SOCKET\" tells us of "
		       "that machine, and it moves while its guest runs",
		       one->who);
}

/* Locks tell of other hosts, too, where the file system does. While we copy it they are ours. */
void drain_look_who(const struct drain *d, const struct drain_opened *o, struct drain_image *image,
		    int fd)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	bool ours = image->client || image->owner;

	for (size_t i = 0; i < o->n; i++)
		if (is_counted(image, &o->list[i])) {
			tell(d, image, &o->list[i]);
			return;
		}
	if (!ours && !fcntl(fd, F_OFD_GETLK, &lock) && lock.l_type != F_UNLCK)
		bm_fail(&image->why, BM_E_LOCKED, "somebody has locked it");
}
