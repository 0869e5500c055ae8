/* SPDX-License-Identifier: BSD-3-Clause */
/* Opening an iSCSI device: iscsi_login.c makes sessions, iscsi_open.c asks what the unit is. */
#ifndef BM_DEV_ISCSI_OPEN_H
#define BM_DEV_ISCSI_OPEN_H

#include <netdb.h>

#include "blockmirror/dev/iscsi.h"

struct iscsi_opening {
	struct iscsi *iscsi;
	const char *uri;
	const struct bm_open_options *options;
	struct bm_error *error;
	uint64_t end; /* of the time limit, on CLOCK_MONOTONIC */
	char initiator[224];
	char given[256];              /* the portal as the URI has it */
	char portal[NI_MAXHOST + 32]; /* numeric, the one that answered */
	uint32_t isid;

	/* The one answer that is waited for, or that came last. */
	struct scsi_task *task;
	bool answered;
	int status;
	uint32_t response; /* to task management */
	char why[160];     /* when status is not GOOD: what libiscsi says about it */
};

void bm_iscsi_limit(struct iscsi_opening *o, uint64_t ns);

/* bm_fail(), with the name of the device in front. */
int bm_iscsi_failed(const struct iscsi_opening *o, enum bm_code code, const char *what);

/* The same for what libiscsi did not even take. */
int bm_iscsi_not_sent(struct iscsi_opening *o, struct iscsi_session *s);

/* A callback for libiscsi, user being the opening. */
void bm_iscsi_on_answer(struct iscsi_context *context, int status, void *data, void *user);

/* Waits for it. Returns 0, whatever the status is, or an error: none will come any more. */
int bm_iscsi_wait(struct iscsi_opening *o, struct iscsi_session *s);

/* Checks the URI and takes from it what it says; gives the initiator its name. */
int bm_iscsi_prepare(struct iscsi_opening *o);

/* Makes s a session of its own that is logged in. The first one finds the portal. */
int bm_iscsi_log_in(struct iscsi_opening *o, struct iscsi_session *s);

#endif
