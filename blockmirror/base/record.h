/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The record: the durable statement of which image is the truth of a disk (docs/record.md). One
 * small file, replaced whole by rename, with a generation that only grows. All functions block.
 * One writer at a time: the disk process, which holds the folder's lock.
 */
#ifndef BM_BASE_RECORD_H
#define BM_BASE_RECORD_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "blockmirror/error.h"

/* What the disk is on this host. */
enum bm_role {
	BM_ROLE_ACTIVE,
	BM_ROLE_STANDBY, /* another host has the disk, and its copy here */
	BM_ROLE_RETIRED, /* it is another host's now */
};

struct bm_record {
	uint64_t generation;
	enum bm_role role;
	char *name; /* of the disk */
	char *disk; /* its identity, 32 hex digits, for ever, on whichever host */
	char *peer; /* the other host; NULL: there is none */
	char *uri;  /* the authoritative image, or here the standby's */
	uint64_t size;
	bool shared; /* of a standby: uri is what the other host serves the disk from, too */
	json_t *job; /* the last job, as docs/record.md has it; NULL for none */
};

/* "active", "standby", "retired". */
const char *bm_role_name(enum bm_role role);

/* Frees what the record points to. */
void bm_record_clear(struct bm_record *record);
#define bm_record_auto __attribute__((cleanup(bm_record_clear)))

/*
 * Reads FOLDER/record. -ENOENT without touching error when there is none; BM_E_RECORD when it is
 * damaged or of a newer format.
 */
int bm_record_read(const char *folder, struct bm_record *record, struct bm_error *error);

/*
 * Writes a record in two steps, so that the second one, which decides, can hardly fail: prepare
 * writes and syncs FOLDER/record.WHICH, commit renames it to FOLDER/record and syncs the folder.
 * When commit fails it is not known which record is there.
 */
int bm_record_prepare(const char *folder, const char *which, const struct bm_record *record,
		      struct bm_error *error);
int bm_record_commit(const char *folder, const char *which, struct bm_error *error);

/* Removes FOLDER/record, what was prepared, and what is kept of past jobs beside it. */
void bm_record_remove(const char *folder);

/* Whether a record can hold uri: it is UTF-8, and what it names outlives a process. */
int bm_record_checks_uri(const char *uri, struct bm_error *error);

/* Both steps. */
int bm_record_write(const char *folder, const struct bm_record *record, struct bm_error *error);

/*
 * Marks beside the data: what an image is to us, so that nobody serves an old copy by mistake. An
 * extended attribute of the file (user.blockmirror), or, where there are none, PATH.blockmirror.
 * For files only: block devices carry no mark.
 */
struct bm_mark {
	char state[16];      /* "active", "retired", "incomplete"; "" for no mark */
	char disk[40];       /* identity of the disk */
	char folder[400];    /* of the record that owns it */
	char format[16];     /* "qcow2" …; "" for none, as images are most often */
	char where[400];     /* retired: where the disk went, redacted */
	uint64_t generation; /* of the record when it was marked; 0: not told */
};

int bm_mark_read(const char *path, struct bm_mark *mark);
int bm_mark_write(const char *path, const struct bm_mark *mark);
int bm_mark_remove(const char *path);

/*
 * On any image that is a file, beside its mark: which checkpoint of its disk is not to be believed
 * (text; the last one that was marked). -ENOTSUP where the file system has no attributes.
 */
int bm_mark_void(const char *path, const char *text);
bool bm_mark_is_void(const char *path, const char *text);

/*
 * The same, for who is to find out by it that two paths, of two hosts, lead to this file: note
 * leaves text with it (NULL: takes it away), beside it where there are no attributes. has_note: 1,
 * 0, or -ENOTSUP: there is no telling. can_take: of one that is there.
 */
int bm_mark_note(const char *path, const char *text);
int bm_mark_has_note(const char *path, const char *text);
bool bm_mark_can_take_note(const char *path);

/* A new identity: 32 random hex digits and a zero byte. */
void bm_identity(char id[33]);

#endif
