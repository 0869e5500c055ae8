/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Small files: those that must survive a power cut, those that people change while we run. All
 * functions block, and return 0 or -errno.
 */
#ifndef BM_BASE_FILE_UTIL_H
#define BM_BASE_FILE_UTIL_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>
#include <time.h>

/* What a file looked like; all zero: there was none. */
struct bm_stamp {
	dev_t dev;
	ino_t ino;
	off_t size;
	struct timespec written, changed;
};

/* Never fails: what cannot be looked at is not there. Does not open the file. */
struct bm_stamp bm_stamp(const char *path);

/* Whether the file is as it was when it got that stamp. */
bool bm_stamp_same(const struct bm_stamp *a, const struct bm_stamp *b);

/* The whole file as a string, malloc()ed; -EFBIG when it is longer than most. */
int bm_read_text(const char *path, size_t most, char **text);

/* Creates or replaces the content of path and syncs file and folder. */
int bm_write_durably(const char *path, const void *data, size_t length);

/* rename(2), then syncs the folder. On error it may have happened or not. */
int bm_rename_durably(const char *from, const char *to);

int bm_sync_file(const char *path);

/* The folder that path is in. */
int bm_sync_folder_of(const char *path);

/* mkdir -p, mode 0700 for what is created. */
int bm_make_folders(const char *path);

#endif
