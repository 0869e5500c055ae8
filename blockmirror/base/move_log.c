/* SPDX-License-Identifier: BSD-3-Clause */
/* The log of a machine's move: a line of text with its number and checksum in each entry. */
#include "blockmirror/base/move_log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/file_util.h"

enum { ENTRY = 512, ENTRIES = 64 };

static const char *const names[BM_MOVE_STATES] = {
	[BM_MOVE_NONE] = "none",       [BM_MOVE_BEGUN] = "begun", [BM_MOVE_VOTED] = "voted",
	[BM_MOVE_STARTED] = "started", [BM_MOVE_GONE] = "gone",   [BM_MOVE_PASSED] = "passed",
	[BM_MOVE_ABORTED] = "aborted", [BM_MOVE_DONE] = "done",
};

const char *bm_move_state_name(enum bm_move_state state)
{
	return (unsigned)state < BM_MOVE_STATES ? names[state] : "?";
}

static int write_whole(int fd, const char *data, size_t length, off_t at)
{
	while (length) {
		ssize_t n = pwrite(fd, data, length, at);

		if (n < 0 && errno != EINTR)
			return -errno;
		data += n > 0 ? n : 0;
		at += n > 0 ? n : 0;
		length -= n > 0 ? (size_t)n : 0;
	}
	return 0;
}

static void make_entry(char entry[ENTRY], unsigned number, const char *state)
{
	char text[ENTRY / 2];
	int n = snprintf(text, sizeof(text), "move %u %s", number, state);

	memset(entry, 0, ENTRY);
	snprintf(entry, ENTRY, "%s xxh64 %016" PRIx64 "\n", text, XXH64(text, (size_t)n, 1));
}

/* What the entry of that number says; BM_MOVE_NONE: it is none. */
static enum bm_move_state understand(const char entry[ENTRY], unsigned number)
{
	char expected[ENTRY];

	for (int i = BM_MOVE_BEGUN; i < BM_MOVE_STATES; i++) {
		make_entry(expected, number, names[i]);
		if (!memcmp(entry, expected, ENTRY))
			return (enum bm_move_state)i;
	}
	return BM_MOVE_NONE;
}

/* Entries follow each other; one that was torn may be followed by none, or by one that is good. */
static int read_all(int fd, unsigned *next, enum bm_move_state *state)
{
	char entry[ENTRY];

	*next = 0;
	*state = BM_MOVE_NONE;
	for (unsigned i = 0; i < ENTRIES; i++) {
		ssize_t n = pread(fd, entry, ENTRY, (off_t)i * ENTRY);
		enum bm_move_state found;

		if (n < 0)
			return -errno;
		found = n == ENTRY ? understand(entry, i) : BM_MOVE_NONE;
		if (found == BM_MOVE_NONE)
			continue;
		*state = found;
		*next = i + 1;
	}
	return 0;
}

int bm_move_log_append(struct bm_move_log *log, enum bm_move_state state)
{
	char entry[ENTRY];
	unsigned number = log->next++; /* also when it fails: it may be there */
	int r;

	/* The last place is written again and again by who must not give up. */
	if (number >= ENTRIES)
		number = ENTRIES - 1;
	make_entry(entry, number, names[state]);
	r = write_whole(log->fd, entry, ENTRY, (off_t)number * ENTRY);
	if (!r && fdatasync(log->fd) < 0)
		r = -errno;
	if (!r)
		log->state = state;
	return r;
}

static int lock(int fd)
{
	return flock(fd, LOCK_EX | LOCK_NB) < 0 ? -errno : 0;
}

int bm_move_log_create(const char *path, struct bm_move_log *log)
{
	static const char nothing[ENTRY * ENTRIES];
	bm_close int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	int r = fd < 0 ? -errno : lock(fd);

	if (!r)
		r = write_whole(fd, nothing, sizeof(nothing), 0);
	if (!r && fsync(fd) < 0)
		r = -errno;
	if (!r)
		r = bm_sync_folder_of(path);
	if (r < 0)
		return r;
	*log = (struct bm_move_log){.fd = bm_steal_fd(fd)};
	return 0;
}

int bm_move_log_open(const char *path, struct bm_move_log *log)
{
	bm_close int fd = open(path, O_RDWR | O_CLOEXEC);
	int r = fd < 0 ? -errno : lock(fd);

	*log = (struct bm_move_log){.fd = -1};
	if (!r)
		r = read_all(fd, &log->next, &log->state);
	if (r < 0)
		return r;
	log->fd = bm_steal_fd(fd);
	return log->state == BM_MOVE_NONE ? 0 : bm_move_log_append(log, log->state);
}

void bm_move_log_close(struct bm_move_log *log)
{
	if (log->fd >= 0)
		close(log->fd);
	log->fd = -1;
}

int bm_move_log_read(const char *path, enum bm_move_state *state)
{
	bm_close int fd = open(path, O_RDWR | O_CLOEXEC);
	unsigned next;
	int r;

	if (fd < 0)
		return -errno;
	r = read_all(fd, &next, state);
	return r || !fdatasync(fd) ? r : -errno;
}

bool bm_move_log_busy(const char *path)
{
	bm_close int fd = open(path, O_RDONLY | O_CLOEXEC);

	return fd >= 0 && lock(fd) == -EWOULDBLOCK;
}
