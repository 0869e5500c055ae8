/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Requests: a manager may give what it asks for an id, and ask again as often as it likes. The job
 * that came of it is known by that id, for ever if it is the last one (it stands in the record),
 * else as long as it is among the last ones here: FOLDER/requests, beside the record. What the
 * record is about to forget is written here first, so there is no moment in which neither has it.
 *
 * A job's request is {"id", "digest"}: of what was asked for, to know other contents by. Jobs are
 * as the record has them (docs/record.md). One writer at a time, as for the record; all that takes
 * a folder blocks.
 */
#ifndef BM_BASE_REQUESTS_H
#define BM_BASE_REQUESTS_H

#include <jansson.h>
#include <stdbool.h>

#include "blockmirror/error.h"

enum { BM_REQUESTS_KEPT = 64, BM_REQUEST_ID = 100, BM_REQUEST_DIGEST = 17 };

/* 1 to BM_REQUEST_ID letters, digits and . _ : @ + -, and no dot first: it names a file, too. */
int bm_request_check_id(const char *id, struct bm_error *error);

/* Of content, in one spelling whatever the order of its members. */
void bm_request_digest(const json_t *content, char digest[BM_REQUEST_DIGEST]);

/* The id of a job's request; NULL: it has none. */
const char *bm_request_of(const json_t *job);

/* The newest of jobs (an array) that has that id, borrowed; NULL: there is none. */
json_t *bm_requests_find(const json_t *jobs, const char *id);

/* Adds job as the newest one, in place of one with its id; the oldest go. Without an id: nothing.
 */
void bm_requests_put(json_t *jobs, json_t *job);

/* All that are kept, oldest first; empty when there is no file. BM_E_RECORD when it is damaged. */
int bm_requests_read(const char *folder, json_t **jobs, struct bm_error *error);

/* bm_requests_put(), durably. 0 at once for a job without a request, or that is there as it is. */
int bm_requests_keep(const char *folder, json_t *job, struct bm_error *error);

#endif
